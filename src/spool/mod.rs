//! Durable bytes of messages in segment files.

use std::path::PathBuf;

#[derive(thiserror::Error, Debug)]
pub enum SpoolError {
    #[error("the disk under {0} is full")]
    Full(PathBuf),
    #[error("cannot use {0}: {1}")]
    Io(PathBuf, std::io::Error),
    #[error("the spool has stopped after a disk error")]
    Stopped,
}
