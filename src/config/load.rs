//! File and environment to a typed configuration, all errors at once.

use std::path::Path;

use super::Config;

/// Every fault of a configuration, one line each: what, where, how to mend it.
#[derive(thiserror::Error, Debug)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

/// Reads `path`, then `OUTGATE_…` variables over it.
pub fn load(_path: &Path) -> Result<Config, ConfigError> {
    todo!()
}
