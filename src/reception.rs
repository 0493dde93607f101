//! Early answers: what a sender or recipient is told at MAIL and RCPT, before there is a message.
//!
//! Limits and locks are advice here, from this node's replica; only the admission decides.
//!
//! A recipient's domain is looked up only where the mail is delivered by MX. With a relay or a route somebody else
//! knows where the domain is, and this node may well have no DNS to ask. An answer that DNS fails to give is no reason
//! to refuse a recipient: the queue will ask again.

use std::time::Duration;

use outgate_cluster::state::settings::{Settings, ValidSender};
use outgate_cluster::state::{Advice, UserView};
use outgate_cluster::{Command, Outcome, Scope};

use crate::dns::Exchangers;
use crate::mail::{Address, ReversePath};
use crate::policy::identity::{Traits, identity};
use crate::policy::sender::permits;
use crate::smtp::Reply;
use crate::submission::{Client, Line, limit_reply, recipient_hash};

const COUNT_TIMEOUT: Duration = Duration::from_secs(1);
/// More recipients than any limit.
const UNREACHABLE: u64 = 1 << 40;

/// A transaction as far as it is known at RCPT.
#[derive(Debug)]
pub struct Transaction<'a> {
    pub reverse_path: &'a ReversePath,
    /// Accepted so far.
    pub recipients: &'a [Address],
}

/// `Ok` = 250 to MAIL. `declared_size` is SIZE=.
pub async fn sender(
    line: &Line,
    client: &Client,
    reverse_path: &ReversePath,
    declared_size: Option<u64>,
) -> Result<(), Reply> {
    let user = line.directory.current(&client.user).ok_or_else(Reply::sender_not_permitted)?;
    let settings = &user.settings;
    if declared_size.is_some_and(|size| size > settings.max_message_size) {
        return Err(Reply::too_large(settings.max_message_size));
    }
    if let Some(address) = reverse_path.address() {
        permits(settings, address).map_err(|rule| {
            tracing::info!(user = %user.login, sender = %address, %rule, "sender not permitted");
            Reply::sender_not_permitted()
        })?;
        valid_sender(line, settings, address).await?;
        // The null reverse-path has a limit of its own, which only the admission knows.
        not_limited(line, client, &user, reverse_path)?;
    }
    Ok(())
}

/// `Ok` = 250 to RCPT.
pub async fn recipient(
    line: &Line,
    client: &Client,
    transaction: Transaction<'_>,
    recipient: &Address,
) -> Result<(), Reply> {
    let user = line.directory.current(&client.user).ok_or_else(Reply::sender_not_permitted)?;
    if transaction.reverse_path.is_null() && transaction.recipients.iter().any(|known| known != recipient) {
        return Err(Reply::null_sender_many_recipients());
    }
    let view = view(line, client, &user, &transaction, recipient);
    if view.is_beside_contact {
        return Err(Reply::locked_recipient());
    }
    if !view.has_route
        && let Err(refusal) = deliverable(line, recipient).await
    {
        count_invalid(line, client, &user, transaction.reverse_path).await;
        return Err(refusal);
    }
    if view.fits { Ok(()) } else { Err(Reply::distinct_recipients(user.settings.max_recipients_per_day)) }
}

/// Who is meant by `<postmaster>` without a domain: the admin contact of the User's domain, or its postmaster.
pub fn postmaster(line: &Line, user: &UserView) -> Option<Address> {
    let contact = line.cluster.read(|state| state.domain(&user.domain)).and_then(|domain| domain.contact);
    let contact = contact.and_then(|contact| Address::new(&contact).ok());
    contact.or_else(|| Address::new(&format!("postmaster@{}", user.domain)).ok())
}

/// Counts a recipient that could not even be parsed.
pub async fn malformed_recipient(line: &Line, client: &Client, reverse_path: &ReversePath) {
    if let Some(user) = line.directory.current(&client.user) {
        count_invalid(line, client, &user, reverse_path).await;
    }
}

/// `valid_sender_required`. `mailbox` asks DNS for the domain, as `domain` does: there is no callout to the sender's MX yet.
async fn valid_sender(line: &Line, settings: &Settings, address: &Address) -> Result<(), Reply> {
    match settings.valid_sender_required {
        ValidSender::Off => return Ok(()),
        ValidSender::Domain | ValidSender::Mailbox => {}
    }
    // A literal names a host and no domain, so there is none that could receive an answer.
    let domain = address.dns_domain().ok_or_else(Reply::sender_domain_unknown)?;
    match line.dns.exchangers(&domain).await {
        Ok(Exchangers::Hosts(_)) => Ok(()),
        Ok(Exchangers::Null) => Err(Reply::sender_null_mx()),
        Ok(Exchangers::None) => Err(Reply::sender_domain_unknown()),
        Err(_) => Err(Reply::dns_failure()),
    }
}

/// A limit that is already reached is told at MAIL; a lock waits for the end of DATA. So does a limit that locks: only
/// an admission can count the excess as abuse.
fn not_limited(line: &Line, client: &Client, user: &UserView, reverse_path: &ReversePath) -> Result<(), Reply> {
    let identity = known_identity(client, user, reverse_path);
    let now = line.cluster.now();
    match line.cluster.read(|state| state.advise(user.id, identity.as_deref(), now)) {
        Advice::Pass | Advice::Locked { .. } => Ok(()),
        Advice::Limit { scope: Scope::User, .. } if user.settings.lock_on_limit => Ok(()),
        Advice::Limit { window, unit, limit, retry_after_s, .. } => {
            Err(limit_reply(limit, unit, window, retry_after_s))
        }
    }
}

/// The identity as far as it is known before there are header fields.
fn known_identity(client: &Client, user: &UserView, reverse_path: &ReversePath) -> Option<String> {
    let authentication_user = client.user.authentication_user.as_deref();
    identity(&user.settings, Traits { reverse_path, authentication_user, message: None })
}

/// What the replica says of a recipient.
struct View {
    /// Within `max_recipients_per_day`.
    fits: bool,
    /// The sender's domain has a fixed next hop, or the node has.
    has_route: bool,
    /// While locked, the admin contact is written to alone: this is somebody beside it, or the contact beside somebody.
    /// The contact is put off then, too: the whole message will be refused, and a client that comes back with the
    /// contact alone gets through.
    is_beside_contact: bool,
}

fn view(line: &Line, client: &Client, user: &UserView, transaction: &Transaction<'_>, recipient: &Address) -> View {
    let now = line.cluster.now();
    // As the admission does: whatever limits_enabled says, and never for the null reverse-path.
    let counts_recipients = user.settings.max_recipients_per_day > 0 && !transaction.reverse_path.is_null();
    let known = transaction.recipients;
    let identity = known_identity(client, user, transaction.reverse_path);
    line.cluster.read(|state| {
        let domain = state.domain(&user.domain);
        let contact = domain.as_ref().and_then(|domain| domain.contact.as_deref());
        let is_contact = |address: &Address| contact.is_some_and(|c| address.as_str().eq_ignore_ascii_case(c));
        let mixes = !known.is_empty() && (is_contact(recipient) != known.iter().all(is_contact));
        let is_locked = || matches!(state.advise(user.id, identity.as_deref(), now), Advice::Locked { .. });
        let fits = || {
            let hash = recipient_hash(recipient);
            let fits = |new: usize| state.recipient_fits(user.id, hash, new as u64, now);
            // Only an address that the state knows still fits behind so many new ones.
            let is_known = |hash| state.recipient_fits(user.id, hash, UNREACHABLE, now);
            let new =
                || known.iter().map(recipient_hash).filter(|&earlier| earlier != hash && !is_known(earlier)).count();
            fits(known.len()) || fits(new())
        };
        View {
            fits: !counts_recipients || fits(),
            has_route: !line.config.delivery.relay.is_empty() || domain.is_some_and(|domain| domain.route.is_some()),
            is_beside_contact: mixes && is_locked(),
        }
    })
}

async fn deliverable(line: &Line, recipient: &Address) -> Result<(), Reply> {
    // An address literal needs no look-up.
    let Some(domain) = recipient.dns_domain() else { return Ok(()) };
    match line.dns.exchangers(&domain).await {
        Ok(Exchangers::Hosts(_)) | Err(_) => Ok(()),
        Ok(Exchangers::Null) => Err(Reply::recipient_null_mx()),
        Ok(Exchangers::None) => Err(Reply::recipient_domain_unknown()),
    }
}

/// The count is committed before the client hears its 5xx, so a lock that it causes holds from the next message on.
/// A store that is slow is not waited for: a count may be lost, an answer may not. The null reverse-path never locks
/// anyone: whoever provoked a bounce chose its recipient.
async fn count_invalid(line: &Line, client: &Client, user: &UserView, reverse_path: &ReversePath) {
    if reverse_path.is_null() {
        return;
    }
    let identity = known_identity(client, user, reverse_path);
    let propose = line.cluster.propose(Command::InvalidRecipients { user: user.id, identity, count: 1 });
    match tokio::time::timeout(COUNT_TIMEOUT, propose).await {
        Ok(Ok(applied)) => {
            if let Outcome::Lock(Some(change)) = applied.outcome {
                line.metrics.locks.get_or_create(&"invalid_recipients".into()).inc();
                tracing::warn!(user = %user.login, to = ?change.to, index = applied.index, "locked for invalid recipients");
            }
        }
        Ok(Err(error)) => tracing::warn!(%error, user = %user.login, "an invalid recipient was not counted"),
        Err(_) => tracing::warn!(user = %user.login, "an invalid recipient may not have been counted"),
    }
}

#[cfg(test)]
mod tests;
