//! One mail transaction: from MAIL to the end of DATA (RFC 5321 section 3.3).

use crate::mail::{Address, Body, Envelope, Notify, Recipient, Return, ReversePath};

use super::content::Content;

/// What MAIL and RCPT have said so far.
#[derive(Debug)]
pub struct Transaction {
    reverse_path: ReversePath,
    pub(super) declared_size: Option<u64>,
    pub(super) body: Body,
    pub(super) smtputf8: bool,
    pub(super) ret: Option<Return>,
    pub(super) envid: Option<String>,
    addresses: Vec<Address>,
    /// NOTIFY and ORCPT of each address.
    notices: Vec<(Notify, Option<String>)>,
    /// RCPT was tried, with or without success.
    pub(super) recipient_tried: bool,
    /// Begun by DATA or the first BDAT.
    pub(super) content: Option<Box<Content>>,
}

impl Transaction {
    pub(super) fn new(reverse_path: ReversePath) -> Self {
        Self {
            reverse_path,
            declared_size: None,
            body: Body::SevenBit,
            smtputf8: false,
            ret: None,
            envid: None,
            addresses: Vec::new(),
            notices: Vec::new(),
            recipient_tried: false,
            content: None,
        }
    }

    pub fn reverse_path(&self) -> &ReversePath {
        &self.reverse_path
    }

    /// The recipients that were accepted.
    pub fn recipients(&self) -> &[Address] {
        &self.addresses
    }

    /// SIZE= of MAIL.
    pub fn declared_size(&self) -> Option<u64> {
        self.declared_size
    }

    /// An address that is there already stays as it was given first.
    pub(super) fn add(&mut self, recipient: Recipient) {
        if self.addresses.contains(&recipient.address) {
            return;
        }
        self.addresses.push(recipient.address);
        self.notices.push((recipient.notify, recipient.original));
    }

    pub(super) fn into_envelope(self) -> Envelope {
        let recipients = self.addresses.into_iter().zip(self.notices);
        Envelope {
            reverse_path: self.reverse_path,
            recipients: recipients
                .map(|(address, (notify, original))| Recipient { address, notify, original })
                .collect(),
            body: self.body,
            smtputf8: self.smtputf8,
            ret: self.ret,
            envid: self.envid,
        }
    }
}
