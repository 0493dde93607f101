//! Policy: the only place that turns findings into consequences. Pure: values in, values out.
//!
//! * [`sender`]: may this User write as this address?
//! * [`identity`]: which person inside a smarthost's mail is writing?
//! * [`verdict`]: all findings → one class, one score.
//! * `disposition`: verdict, settings and the cluster's decision → what is done and what the client hears.
//!
//! Never here: I/O, clocks, reply texts, the findings' making.

pub mod disposition;
pub mod identity;
pub mod sender;
pub mod verdict;

pub use disposition::{Disposition, Intent, disposition, intent};
pub use verdict::{Bands, Verdict, judge};
