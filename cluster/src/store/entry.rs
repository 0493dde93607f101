//! What a log entry carries: a command with the leader's stamp, encoded once and decoded at most once.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::command::{Command, Outcome};
use crate::name::Timestamp;
use crate::store::codec::{self, Blob, DecodeError, Octets};

/// A command stamped by its leader. Cheap to clone: log, cache and state machine share the bytes.
#[derive(Clone)]
pub struct Stamped {
    at: Timestamp,
    shared: Arc<Shared>,
}

struct Shared {
    encoded: Vec<u8>,
    /// The command itself where it was made by this process and not yet applied.
    parsed: Mutex<Option<Command>>,
}

/// What applying an entry gives back to the one who proposed it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub struct Reply {
    pub at: Timestamp,
    pub outcome: Outcome,
}

impl Stamped {
    /// `encoded` must be the encoding of `command`.
    pub fn new(at: Timestamp, command: Command, encoded: Vec<u8>) -> Self {
        Self { at, shared: Arc::new(Shared { encoded, parsed: Mutex::new(Some(command)) }) }
    }

    pub fn from_encoded(at: Timestamp, encoded: Vec<u8>) -> Self {
        Self { at, shared: Arc::new(Shared { encoded, parsed: Mutex::new(None) }) }
    }

    pub fn at(&self) -> Timestamp {
        self.at
    }

    pub fn encoded(&self) -> &[u8] {
        &self.shared.encoded
    }

    /// Whether this process made the command: somebody here may wait for its outcome.
    pub fn is_own(&self) -> bool {
        self.shared.parsed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The command, without decoding it where this process made it; a second call decodes.
    pub fn command(&self) -> Result<Command, DecodeError> {
        match self.shared.parsed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(command) => Ok(command),
            None => codec::decode("command", &self.shared.encoded),
        }
    }
}

impl fmt::Debug for Stamped {
    /// Without the command: openraft may log entries, and commands hold password hashes and private keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stamped({}, {} bytes)", self.at.0, self.shared.encoded.len())
    }
}

impl PartialEq for Stamped {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at && self.shared.encoded == other.shared.encoded
    }
}

impl Serialize for Stamped {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.at, Octets(&self.shared.encoded)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Stamped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (at, Blob(encoded)) = <(Timestamp, Blob)>::deserialize(deserializer)?;
        Ok(Self::from_encoded(at, encoded))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn the_command_can_be_had_more_than_once_and_after_a_round_trip() {
        let stamped = Stamped::new(Timestamp(5), Command::Tick, codec::encode(&Command::Tick));
        assert_eq!(stamped.command().unwrap(), Command::Tick);
        assert_eq!(stamped.command().unwrap(), Command::Tick);
        let back: Stamped = codec::decode("stamped", &codec::encode(&stamped)).unwrap();
        assert_eq!(back, stamped);
        assert_eq!(back.command().unwrap(), Command::Tick);
    }
}
