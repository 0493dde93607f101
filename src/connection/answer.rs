//! Where the session's questions find their answers.

use crate::mail::{Message, MessageId, ReversePath};
use crate::reception::{self, Transaction};
use crate::smtp::{EndOfData, Question, Reply};
use crate::submission::{self, Incoming};
use crate::user::LoginError;

use super::Stage;
use super::dialogue::Dialogue;

/// Memory that a message claims before its first octet, where SIZE= does not say more.
const FIRST_CLAIM: u64 = 16 * 1024;

impl Dialogue {
    pub(super) async fn find_answer(&mut self, question: Question) -> Reply {
        match question {
            Question::Login { login, password } => self.log_in(&login, &password.0).await,
            Question::Sender { reverse_path, declared_size } => self.sender(&reverse_path, declared_size).await,
            Question::Recipient(address) => self.recipient(&address).await,
            Question::MalformedRecipient => self.malformed_recipient().await,
            Question::Content => self.content().await,
            Question::Message(end) => self.message(*end).await,
        }
    }

    async fn log_in(&mut self, login: &str, password: &[u8]) -> Reply {
        let directory = &self.shared.line.directory;
        let over = self.stage.wait_for(|&stage| stage == Stage::Over);
        let result = tokio::select! {
            result = directory.authenticate(self.ends.client, login, password) => result,
            _ = over => return Reply::not_now(),
        };
        match result {
            Ok(user) => {
                self.become_client(user);
                Reply::auth_ok()
            }
            Err(LoginError::Failed) => Reply::auth_failed(),
            Err(LoginError::Blocked) => Reply::address_blocked(),
            Err(LoginError::TooManySessions) => Reply::too_many_from_user(),
            Err(LoginError::Unavailable) => Reply::auth_unavailable(),
        }
    }

    async fn sender(&mut self, reverse_path: &ReversePath, declared_size: Option<u64>) -> Reply {
        if let Some(reply) = self.node_refusal() {
            return reply;
        }
        let line = &self.shared.line;
        let Some(client) = &mut self.client else { return Reply::not_authenticated() };
        let Some(view) = line.directory.current(&client.user) else { return Reply::not_authenticated() };
        let size_max = view.settings.max_message_size;
        self.session.set_size_max(size_max);
        if let Some(address) = reception::postmaster(line, &view) {
            self.session.set_postmaster(address);
        }
        if declared_size.is_some_and(|size| size > size_max) {
            return Reply::too_large(size_max);
        }
        if client.helo != self.session.helo() {
            self.session.helo().clone_into(&mut client.helo);
        }
        let result = reception::sender(line, client, reverse_path, declared_size).await;
        result.map_or_else(|reply| reply, |()| Reply::sender_ok())
    }

    async fn recipient(&self, address: &crate::mail::Address) -> Reply {
        let (Some(client), Some(transaction)) = (&self.client, self.session.transaction()) else {
            return Reply::not_authenticated();
        };
        let so_far = Transaction { reverse_path: transaction.reverse_path(), recipients: transaction.recipients() };
        let result = reception::recipient(&self.shared.line, client, so_far, address).await;
        result.map_or_else(|reply| reply, |()| Reply::recipient_ok())
    }

    async fn malformed_recipient(&self) -> Reply {
        if let (Some(client), Some(transaction)) = (&self.client, self.session.transaction()) {
            reception::malformed_recipient(&self.shared.line, client, transaction.reverse_path()).await;
        }
        Reply::recipient_malformed()
    }

    /// A message may come in if the node can take it and there is memory for all that it declared.
    async fn content(&mut self) -> Reply {
        if let Some(reply) = self.node_refusal() {
            return reply;
        }
        let Some(client) = &self.client else { return Reply::not_authenticated() };
        self.pace = None;
        let declared = self.session.transaction().and_then(|transaction| transaction.declared_size());
        let claim = declared.unwrap_or(0).max(FIRST_CLAIM);
        match self.held.claim(client.user.view.id, claim, self.shared.patience.room).await {
            Ok(()) => Reply::start_data(),
            Err(super::budget::Exhausted) => Reply::undecided(),
        }
    }

    /// Why this node takes no mail now.
    fn node_refusal(&self) -> Option<Reply> {
        match *self.stage.borrow() {
            Stage::Open => {}
            Stage::Closed | Stage::Draining | Stage::Over => return Some(Reply::not_now()),
        }
        (!self.shared.line.has_room()).then(Reply::disk_full)
    }

    async fn message(&mut self, end: EndOfData) -> Reply {
        let EndOfData { envelope, size, content } = end;
        let Some(client) = &self.client else { return Reply::not_authenticated() };
        let (line, id) = (&self.shared.line, MessageId::generate());
        let reply = match content {
            Ok(bytes) => {
                let incoming = Incoming { id, client: (**client).clone(), envelope, message: Message::new(bytes) };
                submission::submit(line, incoming).await
            }
            Err(fault) => submission::refused(line, id, client, &envelope, size, fault),
        };
        self.held.release();
        reply
    }
}
