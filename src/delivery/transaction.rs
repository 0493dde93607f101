//! One mail transaction over a connection: MAIL, RCPT, DATA, body, and what each reply means for whom.

use std::sync::atomic::{AtomicBool, Ordering};

use super::connect::Failure;
use super::connection::{Broken, Connection};
use super::{Answer, Fate, Outcome};
use crate::mail::Envelope;
use crate::smtp::client::{self, CleanBody, ServerReply};

/// Written at once; a larger body goes in several pieces.
const PIECE_BYTES: usize = 256 << 10;

/// What is to be sent.
pub(super) struct Parcel<'a> {
    pub(super) envelope: &'a Envelope,
    /// Positions in the envelope.
    pub(super) recipients: &'a [usize],
    pub(super) header_section: &'a [u8],
    pub(super) size: usize,
    /// Only a hop with 8BITMIME may get it.
    pub(super) needs_eight_bit: bool,
    pub(super) body: CleanBody<'a>,
    /// Set when the body is begun.
    pub(super) begun: &'a AtomicBool,
    pub(super) may_deliver: &'a (dyn Fn() -> bool + Send + Sync),
}

pub(super) enum Ended {
    /// Every recipient has an outcome. `reusable` = another transaction may follow on the connection.
    Done { outcomes: Vec<Outcome>, reusable: bool },
    /// The hop has surely taken nothing and another may be tried.
    NotTaken(Failure),
}

/// The verbs of the transaction, written at once with PIPELINING, else one by one.
struct Verbs {
    text: String,
    ends: Vec<usize>,
    sent: usize,
}

pub(super) async fn run(connection: &mut Connection, parcel: &Parcel<'_>) -> Ended {
    connection.messages += 1;
    if !(parcel.may_deliver)() {
        return Ended::Done {
            outcomes: not_now(connection).for_all(parcel.recipients, Fate::Deferred),
            reusable: false,
        };
    }
    if let Some(answer) = impossible(connection, parcel) {
        return Ended::Done { outcomes: answer.for_all(parcel.recipients, Fate::Bounced), reusable: true };
    }
    match converse(connection, parcel).await {
        Ok(ended) => ended,
        Err(broken) => {
            let answer = connection.failed("4.4.2", &broken.to_string());
            Ended::NotTaken(Failure { permanent: false, answer })
        }
    }
}

fn not_now(connection: &Connection) -> Answer {
    connection.failed("4.3.2", "this node has lost touch with its cluster, or another one has taken over the message")
}

/// What the hop has said beforehand that it cannot take.
fn impossible(connection: &Connection, parcel: &Parcel<'_>) -> Option<Answer> {
    let offered = &connection.extensions;
    if !offered.smtputf8 && needs_smtputf8(parcel) {
        return Some(connection.failed("5.6.7", "the next hop does not offer SMTPUTF8, which the message needs"));
    }
    if !offered.eight_bit_mime && parcel.needs_eight_bit {
        return Some(connection.failed("5.6.3", "the next hop does not offer 8BITMIME, which the message needs"));
    }
    let max = offered.size_max.filter(|&max| parcel.size as u64 > max)?;
    Some(connection.failed("5.3.4", &format!("the next hop takes messages of at most {max} octets")))
}

fn needs_smtputf8(parcel: &Parcel<'_>) -> bool {
    let recipients = parcel.recipients.iter().filter_map(|&at| parcel.envelope.recipients.get(at));
    client::needs_smtputf8(parcel.envelope, recipients, parcel.header_section)
}

impl Verbs {
    fn new(connection: &Connection, parcel: &Parcel<'_>) -> Self {
        let (offered, smtputf8) = (&connection.extensions, needs_smtputf8(parcel));
        let mut text = String::with_capacity(256);
        let mut ends = Vec::with_capacity(parcel.recipients.len() + 2);
        client::write_mail(&mut text, parcel.envelope, parcel.size, offered, smtputf8);
        ends.push(text.len());
        for recipient in parcel.recipients.iter().filter_map(|&at| parcel.envelope.recipients.get(at)) {
            client::write_rcpt(&mut text, recipient, offered, smtputf8);
            ends.push(text.len());
        }
        text.push_str("DATA\r\n");
        ends.push(text.len());
        Self { text, ends, sent: 0 }
    }

    /// The reply to verb `number`, which is written first unless it is on its way.
    async fn reply(&mut self, connection: &mut Connection, number: usize) -> Result<ServerReply, Broken> {
        let end = if connection.extensions.pipelining { self.text.len() } else { self.ends[number] };
        if self.sent < end {
            connection.write(&self.text.as_bytes()[self.sent..end]).await?;
            self.sent = end;
        }
        connection.reply().await
    }
}

/// `Err` = broken before the body was begun.
async fn converse(connection: &mut Connection, parcel: &Parcel<'_>) -> Result<Ended, Broken> {
    if connection.needs_reset {
        let reply = connection.ask("RSET\r\n").await?;
        if !reply.is_positive() {
            return Ok(Ended::NotTaken(Failure { permanent: false, answer: connection.answer(&reply) }));
        }
    }
    connection.needs_reset = true;
    let mut verbs = Verbs::new(connection, parcel);
    let mail = verbs.reply(connection, 0).await?;
    if !mail.is_positive() {
        let answer = connection.answer(&mail);
        return Ok(if mail.is_permanent() {
            // Replies to the rest may be under way: the connection is of no more use.
            Ended::Done { outcomes: answer.for_all(parcel.recipients, Fate::Bounced), reusable: false }
        } else {
            Ended::NotTaken(Failure { permanent: false, answer })
        });
    }
    let mut outcomes = Vec::with_capacity(parcel.recipients.len());
    let mut taken = Vec::with_capacity(parcel.recipients.len());
    for (number, &recipient) in parcel.recipients.iter().enumerate() {
        let reply = verbs.reply(connection, number + 1).await?;
        if reply.code == 421 {
            return Ok(Ended::NotTaken(Failure { permanent: false, answer: connection.answer(&reply) }));
        }
        if reply.is_positive() {
            taken.push(recipient);
        } else {
            outcomes.push(connection.answer(&reply).for_one(recipient, rcpt_fate(&reply)));
        }
    }
    if taken.is_empty() && !connection.extensions.pipelining {
        return Ok(Ended::Done { outcomes, reusable: true });
    }
    let data = verbs.reply(connection, parcel.recipients.len() + 1).await?;
    if taken.is_empty() {
        // A server that wants a message for nobody is out of step; one that refuses is right.
        return Ok(Ended::Done { outcomes, reusable: !(300..400).contains(&data.code) && data.code != 421 });
    }
    if data.code != 354 {
        let fate = if data.is_permanent() { Fate::Bounced } else { Fate::Deferred };
        outcomes.extend(connection.answer(&data).for_all(&taken, fate));
        return Ok(Ended::Done { outcomes, reusable: fate == Fate::Bounced });
    }
    parcel.begun.store(true, Ordering::Relaxed);
    let (last, reusable) = send_body(connection, parcel, &taken).await;
    outcomes.extend(last);
    Ok(Ended::Done { outcomes, reusable })
}

/// 552 with "too many recipients" is temporary (RFC 5321 section 4.5.3.1.10).
fn rcpt_fate(reply: &ServerReply) -> Fate {
    if reply.is_permanent() && !(reply.code == 552 && reply.enhanced() == Some("5.5.3")) {
        Fate::Bounced
    } else {
        Fate::Deferred
    }
}

/// From here on, what is not surely refused or taken is deferred.
async fn send_body(connection: &mut Connection, parcel: &Parcel<'_>, taken: &[usize]) -> (Vec<Outcome>, bool) {
    for piece in parcel.body.pieces(PIECE_BYTES) {
        // The final dot is in the last piece: without it the hop has nothing.
        if !(parcel.may_deliver)() {
            return (not_now(connection).for_all(taken, Fate::Deferred), false);
        }
        if let Err(broken) = connection.write(&piece).await {
            let answer = connection.failed("4.4.2", &format!("while sending the message: {broken}"));
            return (answer.for_all(taken, Fate::Deferred), false);
        }
    }
    let reply = match connection.final_reply().await {
        Ok(reply) => reply,
        Err(broken) => {
            let answer = connection.failed("4.4.2", &format!("after the end of the message: {broken}"));
            return (answer.for_all(taken, Fate::Deferred), false);
        }
    };
    let fate = match reply.code {
        200..300 => Fate::Delivered,
        500..600 => Fate::Bounced,
        _ => Fate::Deferred,
    };
    connection.needs_reset = fate != Fate::Delivered;
    let mut outcomes = connection.answer(&reply).for_all(taken, fate);
    outcomes.iter_mut().for_each(|outcome| outcome.dsn_passed_on = connection.extensions.dsn);
    (outcomes, connection.is_in_step() && reply.code != 421)
}
