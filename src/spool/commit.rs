//! The thread that commits the index, about once a second, and looks at the free room meanwhile.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Shared;
use super::index::{Commit, Index, Position};

const ROOM_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The writer's side.
pub(super) struct Committer {
    commits: SyncSender<Commit>,
    thread: JoinHandle<()>,
    state: Arc<State>,
    last: Option<Position>,
}

#[derive(Default)]
struct State {
    committed_segment: AtomicU64,
    busy: AtomicBool,
}

impl Committer {
    pub(super) fn start(index: Index, committed: Option<Position>, shared: Arc<Shared>) -> io::Result<Self> {
        let state = Arc::new(State::default());
        state.committed_segment.store(committed.map_or(0, |position| position.segment), Ordering::Release);
        let (commits, waiting) = sync_channel(1);
        let of_thread = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("spool-index".to_owned())
            .spawn(move || run(&index, &waiting, &of_thread, &shared))?;
        Ok(Self { commits, thread, state, last: committed })
    }

    /// Segments below are no longer needed by the index.
    pub(super) fn committed_segment(&self) -> u64 {
        self.state.committed_segment.load(Ordering::Acquire)
    }

    pub(super) fn last_position(&self) -> Option<Position> {
        self.last
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.state.busy.load(Ordering::Acquire)
    }

    /// Only while it is idle.
    pub(super) fn submit(&mut self, commit: Commit) {
        self.last = Some(commit.position);
        self.state.busy.store(true, Ordering::Release);
        if self.commits.send(commit).is_err() {
            tracing::error!("the thread of the queue's index has ended");
        }
    }

    /// Commits the last one and ends the thread.
    pub(super) fn finish(self, commit: Commit) {
        let sent = self.commits.send(commit);
        drop(self.commits);
        if sent.is_err() || self.thread.join().is_err() {
            tracing::error!("the last commit of the queue's index failed; the next start reads the segments");
        }
    }
}

fn run(index: &Index, commits: &Receiver<Commit>, state: &State, shared: &Shared) {
    let mut failed = false;
    loop {
        shared.check_room();
        let commit = match commits.recv_timeout(ROOM_CHECK_INTERVAL) {
            Ok(commit) => commit,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut committed = commit.position.segment;
        let result = if failed { Ok(()) } else { index.commit(commit) };
        if let Err(error) = result {
            tracing::error!(%error, "the queue's index cannot be written; the next start reads the segments");
            failed = true;
        }
        if failed {
            // The segments hold everything, so they may go without the index. Its position is stale for good: segments
            // go oldest first, so the next start either finds the position's segment gone or all that is behind it.
            committed = u64::MAX;
        }
        state.committed_segment.store(committed, Ordering::Release);
        state.busy.store(false, Ordering::Release);
    }
}

/// Free bytes for unprivileged processes on the file system of `directory`.
pub(super) fn free_bytes(directory: &PathBuf) -> io::Result<u64> {
    let status = rustix::fs::statvfs(directory)?;
    Ok(status.f_bavail.saturating_mul(status.f_frsize))
}
