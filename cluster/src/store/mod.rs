//! How the state survives: log and vote in segment files, a sled checkpoint, snapshot files.

pub mod codec;
