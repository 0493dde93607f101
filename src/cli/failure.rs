//! How a verb that did not succeed ends.

use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use crate::web::echo;

/// Lines for stderr and the exit code.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    lines: Vec<String>,
}

impl Failure {
    /// Refused or failed: exit code 1.
    pub(super) fn failed(message: impl Display) -> Self {
        Self { code: 1, lines: vec![message.to_string()] }
    }

    /// Wrong use or wrong input: exit code 2.
    pub(super) fn wrong(message: impl Display) -> Self {
        Self { code: 2, lines: vec![message.to_string()] }
    }

    /// Several faults of one input.
    pub(super) fn wrong_lines(lines: Vec<String>) -> Self {
        Self { code: 2, lines }
    }

    /// Everything was told on stdout; only the exit code is left to say.
    pub(super) fn silent(code: u8) -> Self {
        Self { code, lines: Vec::new() }
    }

    pub(super) fn report(&self) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        for line in &self.lines {
            if writeln!(stderr, "outgate: {}", echo::line(line)).is_err() {
                // Nobody listens; the exit code still tells.
                break;
            }
        }
        ExitCode::from(self.code)
    }

    #[cfg(test)]
    pub(super) fn code(&self) -> u8 {
        self.code
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.lines.join("; "))
    }
}

impl std::error::Error for Failure {}
