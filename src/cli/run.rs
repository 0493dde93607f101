//! `outgate run`: a node in the foreground, until a signal ends it.

use std::path::PathBuf;

use outgate_cluster::OpenError;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use super::Outcome;
use super::failure::Failure;
use super::init;
use crate::config::{self, Config, LogConfig, LogFormat};
use crate::node::Node;
use crate::tls::TlsError;
use crate::web::WebError;

/// Parts that tell more than an operator wants to know; `log.level` may name them again.
const QUIETER: &str = "openraft=warn,sled=warn,hickory_resolver=warn";

#[derive(clap::Args)]
pub(super) struct Args {
    /// The node's configuration
    #[arg(long, env = "OUTGATE_CONFIG", value_name = "FILE", default_value = "/etc/outgate/outgate.toml")]
    config: PathBuf,
    /// End when standard input ends: a parent that dies takes the node with it
    #[arg(long, hide = true)]
    end_with_stdin: bool,
}

pub(super) fn execute(args: &Args) -> Outcome {
    let config = config::load(&args.config).map_err(|error| Failure::wrong_lines(error.0))?;
    log_to_stderr(&config.log)?;
    if let Some(fault) = without_node(&config) {
        return Err(Failure::wrong(fault));
    }
    init::make_private(&config.node.data_dir)
        .map_err(|error| Failure::wrong(format!("cannot use {}: {error}", config.node.data_dir.display())))?;
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot begin: {error}")))?;
    runtime.block_on(Box::pin(run(config, args.end_with_stdin)))
}

/// What is wrong where the data directory was never initialised.
pub(super) fn without_node(config: &Config) -> Option<String> {
    let data = config.node.data_dir.display();
    (!config.node.cluster_dir().exists()).then(|| {
        format!("{data} holds no node: `outgate init --data {data}` makes the first one of a cluster, `outgate join` any other; \
            a member that lost its disk is removed first: `outgate cluster remove ID` on another node")
    })
}

fn log_to_stderr(config: &LogConfig) -> Outcome {
    let filter = EnvFilter::try_new(format!("{QUIETER},{}", config.level))
        .map_err(|error| Failure::wrong(format!("log.level: {error}: give info, or info,outgate::delivery=debug")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    match config.format {
        LogFormat::Text => builder.with_ansi(terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
    Ok(())
}

/// A socket and at times a file for each session: as many as the system lets this process have.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }) {
        tracing::warn!(%error, open_files = limit.current, "cannot raise the limit of open files");
    }
}

async fn run(config: Config, end_with_stdin: bool) -> Outcome {
    // Signals are caught from the first moment on, so that none is lost while the stores open.
    let mut signals = Signals::new().map_err(|error| Failure::failed(format!("cannot catch signals: {error}")))?;
    let node = tokio::select! {
        started = Node::start(config) => started.map_err(|error| not_started(&error))?,
        () = signals.end() => return Ok(()),
    };
    let mut parent_gone = std::pin::pin!(parent_gone(end_with_stdin));
    let failure = loop {
        tokio::select! {
            caught = signals.next() => match caught {
                Caught::End => break None,
                Caught::HangUp => reload(&node),
            },
            () = &mut parent_gone => break None,
            reason = node.failed() => break Some(reason),
        }
    };
    node.shutdown().await;
    failure.map_or(Ok(()), |reason| Err(Failure::failed(format!("the node has stopped: {reason}"))))
}

fn reload(node: &Node) {
    match node.reload_tls() {
        Ok(()) => tracing::info!("certificate read again"),
        Err(error) => tracing::error!(%error, "the old certificate stays"),
    }
}

/// Resolves when standard input ends; never, where nobody asked for that.
async fn parent_gone(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (gone, told) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own: a read that never ends must not hold up the runtime's shutdown.
    std::thread::spawn(move || {
        if let Err(error) = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()) {
            tracing::debug!(%error, "standard input broke off");
        }
        drop(gone);
    });
    if told.await.is_err() {
        tracing::info!("standard input ended: so does this node");
    }
}

/// What a signal asks for.
enum Caught {
    End,
    HangUp,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.terminate.recv() => Caught::End,
            _ = self.interrupt.recv() => Caught::End,
            _ = self.hang_up.recv() => Caught::HangUp,
        }
    }

    /// A hang-up before there is a node has nothing to reload.
    async fn end(&mut self) {
        while !matches!(self.next().await, Caught::End) {}
    }
}

/// What the operator can mend is exit code 2: ports, certificate, data directory.
fn not_started(error: &anyhow::Error) -> Failure {
    let text = format!("{error:#}").replace('\n', ", ");
    let operators = error.chain().any(|cause| {
        cause.is::<TlsError>()
            || cause.is::<WebError>()
            || cause.is::<OpenError>()
            || cause.downcast_ref::<std::io::Error>().is_some_and(is_surroundings)
    });
    if operators { Failure::wrong(text) } else { Failure::failed(text) }
}

fn is_surroundings(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{AddrInUse, AddrNotAvailable, NotFound, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), AddrInUse | AddrNotAvailable | NotFound | PermissionDenied | ReadOnlyFilesystem)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_an_operator_can_mend_is_exit_code_2() {
        let in_use = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let error = Err::<(), _>(in_use).context("127.0.0.1:587").err();
        assert_eq!(error.map(|error| not_started(&error).code()), Some(2));
        let taken = anyhow::Error::from(OpenError::InUse(PathBuf::from("/data")));
        assert_eq!(not_started(&taken).code(), 2);
        assert_eq!(not_started(&anyhow::anyhow!("anything else")).code(), 1);
    }
}
