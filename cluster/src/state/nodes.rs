//! Which nodes there are, who vouches for them, and the tokens by which new ones join.
//!
//! A node is a member from the entry that names it to the entry that removes it; raft's own membership follows this table
//! and never leads it. Ids come from the log and are never given twice, so that a removed node's certificate stays
//! worthless for ever.

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

    /// What it had asked the cluster to remember goes with it.
    pub(super) fn node_remove(&mut self, id: u64) -> Result<Outcome, Refusal> {
        if self.nodes.len() == 1 && self.nodes.contains_key(&id) {
            return Err(Refusal::LastNode(id));
        }
        self.nodes.remove(&id).ok_or(Refusal::UnknownNode(id))?;
        self.touch(Key::Node(id));
        Ok(Outcome::Done)
    }

    /// In the order of their ids.
    pub fn nodes(&self) -> Vec<NodeView> {
        self.nodes.iter().map(|(id, node)| view(*id, node)).collect()
    }

    pub fn node(&self, id: u64) -> Option<NodeView> {
        self.nodes.get(&id).map(|node| view(id, node))
    }

    /// Ids are given out in order: one that was given out and is no member was removed.
    pub fn was_removed(&self, id: u64) -> bool {
        id <= self.formation.last_node && !self.nodes.contains_key(&id)
    }

    pub(crate) fn authority(&self) -> Option<&Authority> {
        self.formation.authority.as_ref()
    }
}

fn view(id: u64, node: &Node) -> NodeView {
    NodeView { id, address: node.address.clone(), joined: node.joined, draining: node.draining }
}
