//! Which nodes there are, who vouches for them, and the tokens by which new ones join.
//!
//! A node is a member from the entry that names it to the entry that removes it; raft's own membership follows this table
//! and never leads it. Ids come from the log and are never given twice, so that a removed node's certificate stays
//! worthless for ever.
//!
//! A node *owns* mail from [`Command::NodeUp`] to [`Command::NodeDown`]; each time is an owner epoch. Between them nothing
//! of it is admitted, so that its mirrors know all that it can have answered with 250 when they take over.
//!
//! [`Command::NodeUp`]: crate::command::Command::NodeUp
//! [`Command::NodeDown`]: crate::command::Command::NodeDown

use serde::{Deserialize, Serialize};

use super::view::NodeView;
use super::{Key, State};
use crate::command::{Authority, Outcome, Refusal};
use crate::name::Timestamp;

/// Tokens that may wait at once.
const TOKENS_MAX: usize = 64;

/// The authority, once the cluster is formed, and the id given out last.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug, Default)]
pub(super) struct Formation {
    pub(super) authority: Option<Authority>,
    pub(super) last_node: u64,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Node {
    /// `host:port` on which other nodes reach it.
    pub(super) address: String,
    pub(super) joined: Timestamp,
    pub(super) draining: bool,
}

/// Whether a node owns mail.
#[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ownership {
    /// Grows each time the node comes up; 0 = it never was.
    pub epoch: u64,
    pub up: bool,
}

impl Ownership {
    /// It has owned mail and may not any more.
    pub fn is_down(self) -> bool {
        self.epoch > 0 && !self.up
    }
}

/// Whom a token has let in: the same key gets the same answer again, so that a lost answer costs no token.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub(super) struct Token {
    pub(super) expires: Timestamp,
    pub(super) used: Option<([u8; 32], u64)>,
}

impl State {
    pub(super) fn form(&mut self, authority: Authority, address: String) -> Result<Outcome, Refusal> {
        if self.formation.authority.is_some() {
            return Err(Refusal::FormedAlready);
        }
        self.formation.authority = Some(authority);
        Ok(Outcome::Joined(self.add_node(address)))
    }

    fn add_node(&mut self, address: String) -> u64 {
        self.formation.last_node += 1;
        let (id, joined) = (self.formation.last_node, self.clock.seen);
        self.nodes.insert(id, Node { address, joined, draining: false });
        self.touch(Key::Formation);
        self.touch(Key::Node(id));
        id
    }

    pub(super) fn token_put(&mut self, token: [u8; 32], valid_ms: u64) -> Result<Outcome, Refusal> {
        let now = self.clock.seen;
        let expired: Vec<[u8; 32]> =
            self.tokens.iter().filter(|(_, token)| token.expires <= now).map(|(hash, _)| *hash).collect();
        for hash in expired {
            self.tokens.remove(&hash);
            self.touch(Key::Token(hash));
        }
        if self.tokens.len() >= TOKENS_MAX {
            return Err(Refusal::TooManyTokens(u32::try_from(TOKENS_MAX).unwrap_or(u32::MAX)));
        }
        self.tokens.insert(token, Token { expires: now.plus_millis(valid_ms), used: None });
        self.touch(Key::Token(token));
        Ok(Outcome::Done)
    }

    pub(super) fn join(&mut self, token: [u8; 32], key: [u8; 32], address: String) -> Result<Outcome, Refusal> {
        let now = self.clock.seen;
        let known = self.tokens.get(&token).filter(|token| token.expires > now).ok_or(Refusal::UnknownToken)?;
        match known.used {
            Some((of, node)) if of == key && self.nodes.contains_key(&node) => return Ok(Outcome::Joined(node)),
            Some(_) => return Err(Refusal::UnknownToken),
            None => {}
        }
        if let Some((id, _)) = self.nodes.iter().find(|(_, node)| node.address == address) {
            return Err(Refusal::AddressTaken(address, *id));
        }
        let id = self.add_node(address);
        if let Some(token) = self.tokens.get_mut(&token) {
            token.used = Some((key, id));
        }
        self.touch(Key::Token(token));
        Ok(Outcome::Joined(id))
    }

    pub(super) fn node_set(
        &mut self,
        id: u64,
        address: Option<String>,
        draining: Option<bool>,
    ) -> Result<Outcome, Refusal> {
        let node = self.nodes.get_mut(&id).ok_or(Refusal::UnknownNode(id))?;
        node.address = address.unwrap_or_else(|| node.address.clone());
        node.draining = draining.unwrap_or(node.draining);
        self.touch(Key::Node(id));
        Ok(Outcome::Done)
    }

    /// The outcomes of its admissions stay: its mirrors will ask for them.
    pub(super) fn node_remove(&mut self, id: u64) -> Result<Outcome, Refusal> {
        if self.nodes.len() == 1 && self.nodes.contains_key(&id) {
            return Err(Refusal::LastNode(id));
        }
        self.nodes.remove(&id).ok_or(Refusal::UnknownNode(id))?;
        self.touch(Key::Node(id));
        if self.ownership.remove(&id).is_some() {
            self.touch(Key::Ownership(id));
        }
        Ok(Outcome::Done)
    }

    pub(super) fn node_down(&mut self, id: u64, epoch: u64) -> Result<Outcome, Refusal> {
        self.own(id, Ownership { epoch, up: true }, Ownership { epoch, up: false })
    }

    pub(super) fn node_up(&mut self, id: u64, epoch: u64) -> Result<Outcome, Refusal> {
        self.own(id, Ownership { epoch, up: false }, Ownership { epoch: epoch.saturating_add(1), up: true })
    }

    fn own(&mut self, id: u64, from: Ownership, to: Ownership) -> Result<Outcome, Refusal> {
        if !self.nodes.contains_key(&id) {
            return Err(Refusal::UnknownNode(id));
        }
        if self.ownership(id) == from {
            self.ownership.insert(id, to);
            self.touch(Key::Ownership(id));
        }
        Ok(Outcome::Done)
    }

    pub fn ownership(&self, id: u64) -> Ownership {
        self.ownership.get(&id).copied().unwrap_or_default()
    }

    /// In the order of their ids.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.nodes.iter().map(|(id, node)| self.node_view(*id, node)).collect()
    }

    pub fn node(&self, id: u64) -> Option<NodeView> {
        self.nodes.get(&id).map(|node| self.node_view(id, node))
    }

    fn node_view(&self, id: u64, node: &Node) -> NodeView {
        let Node { address, joined, draining } = node.clone();
        NodeView { id, address, joined, draining, ownership: self.ownership(id) }
    }

    /// Whether nothing of the node is admitted: it missed its lease or was removed.
    pub fn is_out(&self, id: u64) -> bool {
        self.ownership(id).is_down() || self.was_removed(id)
    }

    /// Nodes of which nothing is admitted, in order of their ids.
    pub fn out(&self) -> Vec<u64> {
        (1..=self.formation.last_node).filter(|id| self.is_out(*id)).collect()
    }

    /// Nodes that were members once, in order of their ids.
    pub fn removed(&self) -> Vec<u64> {
        (1..=self.formation.last_node).filter(|id| self.was_removed(*id)).collect()
    }

    /// Ids are given out in order: one that was given out and is no member was removed.
    pub fn was_removed(&self, id: u64) -> bool {
        id <= self.formation.last_node && !self.nodes.contains_key(&id)
    }

    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.formation.authority.as_ref()
    }
}
