//! The command line: one file per subcommand.
//!
//! Admin verbs are clients of the control socket's API and do nothing by themselves. Exit codes: 0 done,
//! 1 refused or failed, 2 wrong use or wrong input. Errors are lines on stderr that begin with `outgate: `;
//! what was asked for goes to stdout, and nothing else does.

mod auth_blocks;
mod backup;
mod check;
mod client;
mod cluster;
mod dev;
mod dkim;
mod domain;
mod failure;
mod identity;
mod init;
mod join;
mod limits;
mod log;
mod output;
mod pairs;
mod quarantine;
mod queue;
mod run;
mod settings;
mod user;
mod users_csv;
mod why;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

type Outcome = Result<(), Failure>;

/// A filter for outgoing mail that runs as a cluster.
#[derive(Parser)]
#[command(name = "outgate", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Try it on this machine: a node, a domain, users, a sink and some traffic
    Dev(Box<dev::Args>),
    /// Run a node
    Run(run::Args),
    /// Examine configuration and surroundings; changes nothing
    Check(check::Args),
    /// Make the data directory of a new cluster's first node
    Init(init::NewNode),
    /// Make the data directory of a node that joins a cluster
    Join(join::Args),
    /// Domains
    Domain(domain::Args),
    /// Outgoing users
    User(user::Args),
    /// Cluster defaults
    Settings(settings::Args),
    /// The people inside a smarthost's mail
    Identity(identity::Args),
    /// Windows and what is used of them
    Limits(limits::Args),
    /// The delivery queue
    Queue(queue::Args),
    /// Messages that are held
    Quarantine(quarantine::Args),
    /// The mail log
    Log(log::Args),
    /// Signing keys
    Dkim(dkim::Args),
    /// Explain a decision: what came of a message, or how a user stands
    Why(why::Args),
    /// This node in one look
    Status(cluster::StatusArgs),
    /// The cluster's nodes
    Cluster(cluster::Args),
    /// The replicated state in a file
    Backup(backup::Args),
    /// Have this node take no more mail, and deliver what it has
    Drain(cluster::StatusArgs),
    /// Have this node take mail again
    Resume(cluster::StatusArgs),
    /// Addresses that failed to log in too often
    AuthBlocks(auth_blocks::Args),
}

/// Reads the process's arguments, does what they ask, and tells how it went.
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

/// The same with arguments of the caller, the program's name first.
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let verb = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.verb,
        Err(error) if error.use_stderr() => return misused(&error),
        // Help and version.
        Err(error) => error.exit(),
    };
    match execute(verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The parser's own words, which repeat what was given.
fn misused(error: &clap::Error) -> ExitCode {
    let lines = error.render().to_string();
    let lines = lines.trim_end().lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    Failure::wrong_lines(lines).report()
}

fn execute(verb: Verb) -> Outcome {
    match verb {
        Verb::Dev(args) => dev::execute(*args),
        Verb::Run(args) => run::execute(&args),
        Verb::Check(args) => check::execute(&args),
        Verb::Init(args) => init::execute(&args),
        Verb::Join(args) => join::execute(&args),
        Verb::Domain(args) => client::block_on(domain::execute(args)),
        Verb::User(args) => client::block_on(user::execute(args)),
        Verb::Settings(args) => client::block_on(settings::execute(args)),
        Verb::Identity(args) => client::block_on(identity::execute(args)),
        Verb::Limits(args) => client::block_on(limits::execute(args)),
        Verb::Queue(args) => client::block_on(queue::execute(args)),
        Verb::Quarantine(args) => client::block_on(quarantine::execute(args)),
        Verb::Log(args) => client::block_on(log::execute(args)),
        Verb::Dkim(args) => client::block_on(dkim::execute(args)),
        Verb::Why(args) => client::block_on(why::execute(args)),
        Verb::Status(args) => client::block_on(cluster::status(args)),
        Verb::Cluster(args) => client::block_on(cluster::execute(args)),
        Verb::Backup(args) => backup::execute(args),
        Verb::Drain(args) => client::block_on(cluster::set_draining(args, true)),
        Verb::Resume(args) => client::block_on(cluster::set_draining(args, false)),
        Verb::AuthBlocks(args) => client::block_on(auth_blocks::execute(args)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_documented_forms_are_understood() {
        let forms = [
            "dev --nodes 1 --data d --submission-port 2587 --submissions-port 2465 --http-port 8080 --relay h:25 --no-traffic --ready-file f",
            "dev restart 1 --data d",
            "run --config c",
            "backup create f --socket s",
            "backup verify f",
            "backup restore f --data d --hostname h --cluster a:1",
            "check --config c",
            "init --data d --hostname h --cluster h:7587",
            "join h:7587 --token t --data d --hostname h --cluster h:7587",
            "user add a@b.test --password p limit_per_minute=5 --socket s",
            "user add 192.0.2.0/24 --domain b.test --output json",
            "user add a@b.test --password-stdin",
            "user set a@b.test lock_timeout=5 max_unlocks=0",
            "user password a@b.test --password-stdin",
            "user lock a@b.test --identity i --reason r",
            "user unlock a@b.test",
            "user reset a@b.test",
            "user disable a@b.test",
            "user enable a@b.test",
            "user remove a@b.test",
            "user list --domain b.test --output csv",
            "user show a@b.test",
            "user import f --strict --dry-run",
            "user export --domain b.test",
            "domain add b.test contact=p@b.test route=h:25 route_auth=u:p",
            "domain list",
            "settings show",
            "settings set limit_per_minute=5",
            "identity list a@b.test",
            "limits show a@b.test",
            "queue list",
            "queue remove 01ARZ3NDEKTSV4RRFFQ69G5FAV --notify",
            "quarantine release 01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "log search --user u --domain d --class spam --status queued --since 1h --until 2d --text t --id 01ARZ3NDEKTSV4RRFFQ69G5FAV --limit 5",
            "dkim create b.test --selector s --algorithm both",
            "why a@b.test",
            "status",
            "cluster status",
            "cluster token --valid 5",
            "cluster remove 3",
            "cluster drain 3",
            "cluster resume 3",
            "drain",
            "resume --socket s",
            "auth-blocks remove 192.0.2.1",
        ];
        for form in forms {
            let words = std::iter::once("outgate").chain(form.split(' '));
            assert!(Cli::try_parse_from(words).is_ok(), "{form}");
        }
    }

    #[test]
    fn wrong_use_is_refused_with_exit_code_2() {
        for form in [
            "user",
            "user add",
            "user list --output xml",
            "nonsense",
            "user add a@b.test --password p --password-stdin",
            "run --nonsense",
        ] {
            let words = std::iter::once("outgate").chain(form.split(' '));
            assert_eq!(Cli::try_parse_from(words).err().map(|error| error.exit_code()), Some(2), "{form}");
        }
    }
}
