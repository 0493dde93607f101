//! Settings: what can be set, on which level, and what holds in the end.
//!
//! `table` is THE table: name, type, unit, range, default, help and levels, each written once.
//! Panel, API, CLI, CSV and docs are derived from it. `value` says how texts become values,
//! `patch` how changes are read and kept.
//!
//! Inheritance: cluster → domain → User. A level that sets a value keeps it, even where it equals
//! the value above: raising the default later does not move it. `inherit` takes the value away.
//!
//! Invariant: an override in the state always has a row, a level that fits and a value in range.

mod patch;
mod table;
mod value;

pub(crate) use patch::Overrides;
pub use patch::{Effective, Level, Patch, SettingError};
pub use table::{Row, Settings, rows};
pub use value::{
    IdentificationHeader, IdentificationMethod, LockedResponse, NotifyAdmin, QuarantineResponse, ScannerFailure,
    ValidSender, Value,
};
