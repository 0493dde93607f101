//! Being a mirror: keeps copies for other nodes, and takes over from those that are down.

mod parts;
mod quarantine;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use outgate_cluster::Cluster;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, oneshot};

use super::damage::Given;
use super::letter::{self, Answer, Claim, IDS_MAX, Id, Mark, Question, Store, What};
use super::taken::Taken;
use super::{Mirrors, sessions};
use crate::mail::MessageId;
use crate::quarantine::Quarantine;
use crate::spool::{Found, Spool, SpoolError, Then, Whose};
use parts::Parts;

/// Between a node's word that it returns and its owning mail again.
const RETURN_MAX: Duration = Duration::from_secs(10);
/// Between the moment as of which a node is known to be down and taking over from it. Shorter than [`RETURN_MAX`]: if it
/// came back in between, its word was heard in time.
const TAKING_MAX: Duration = Duration::from_secs(5);

pub(super) struct Keeper {
    spool: Spool,
    quarantine: Quarantine,
    cluster: Cluster,
    parts: Mutex<Parts>,
    /// Held from the moment at which messages are listed as taken until the spool has heard of it, so that nobody is told
    /// the one without the other.
    taken: Arc<AsyncMutex<Taken>>,
    /// The same of the quarantine.
    taken_held: Arc<AsyncMutex<Taken>>,
    /// Nodes that ask what became of their messages: what they did not hear of is theirs.
    returning: Mutex<BTreeMap<u64, Return>>,
    back: AtomicBool,
    given: Mutex<Given>,
}

/// When a node last told that it returns.
struct Return {
    told: Instant,
    /// It owned mail by then.
    is_up: bool,
}

/// Answers the questions of other nodes from now on.
pub(super) fn serve(mirrors: &Arc<Mirrors>, cluster: &Cluster) {
    let mirrors = Arc::downgrade(mirrors);
    cluster.serve(Arc::new(move |owner, body| {
        let mirrors = mirrors.upgrade();
        Box::pin(async move {
            let answer = match (mirrors, letter::decode(&body)) {
                (Some(mirrors), Ok(Question::Log(question))) => {
                    let answered = mirrors.answer_about_log(owner, question).await;
                    answered.unwrap_or_else(|error| Answer::Refused(error.to_string()))
                }
                (Some(mirrors), Ok(Question::Sessions)) => sessions::answer(&mirrors.sessions),
                (Some(mirrors), Ok(question)) => mirrors.keeper.answer(owner, question).await,
                (None, _) => Answer::Refused("this node is stopping".to_owned()),
                (_, Err(error)) => Answer::Refused(format!("the question cannot be read: {error}")),
            };
            letter::encode(&answer).unwrap_or_default()
        })
    }));
}

impl Keeper {
    pub(super) async fn open(
        directory: &Path,
        spool: Spool,
        cluster: Cluster,
        quarantine: Quarantine,
    ) -> Result<Self, SpoolError> {
        let (path, failed) = (directory.to_owned(), |error| SpoolError::Io(directory.to_owned(), error));
        let open = move || Ok((Taken::open(&path.join("taken"))?, Taken::open(&path.join("taken-held"))?));
        let opened = tokio::task::spawn_blocking(open).await;
        let (taken, taken_held) = opened.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
        Ok(Self {
            spool,
            quarantine,
            cluster,
            parts: Mutex::default(),
            taken: Arc::new(AsyncMutex::new(taken)),
            taken_held: Arc::new(AsyncMutex::new(taken_held)),
            returning: Mutex::default(),
            given: Mutex::default(),
            back: AtomicBool::new(false),
        })
    }

    async fn answer(&self, owner: u64, question: Question) -> Answer {
        let answered = match question {
            Question::Part { id, offset, bytes } => self.keep_part(owner, id.into(), offset, &bytes),
            Question::Store(store) => self.keep(owner, store).await,
            Question::Marks(marks) => self.note(owner, marks).await,
            Question::Inventory { after } => self.inventory(owner, after.map(Into::into)).await,
            Question::Claims { of, ids } => self.claims(owner, of, ids).await,
            Question::Returning => self.note_return(owner).await,
            Question::Taken => Ok(taken_from(&self.taken, owner).await),
            Question::Hold(hold) => self.hold(owner, hold).await,
            Question::LetOut { ids } => self.let_out(owner, ids).await,
            Question::HeldInventory { after } => self.held_inventory(owner, after.map(Into::into)).await,
            Question::HeldTaken => Ok(taken_from(&self.taken_held, owner).await),
            Question::Yours { ids } => {
                self.given().add(owner, ids.into_iter().map(MessageId::from));
                Ok(Answer::Done)
            }
            Question::Log(_) | Question::Sessions => Err("this is not asked of a mirror".to_owned()),
        };
        answered.unwrap_or_else(Answer::Refused)
    }

    fn keep_part(&self, owner: u64, id: MessageId, offset: u64, bytes: &[u8]) -> Result<Answer, String> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if offset == 0 {
            parts.begin(owner, id)?;
        }
        parts.append(owner, id, offset, bytes)?;
        Ok(Answer::Done)
    }

    /// Only from a node that owns mail under that epoch: nobody would look for what came later.
    async fn keep(&self, owner: u64, store: Store) -> Result<Answer, String> {
        let Store { owner_epoch, id, accepted, meta, progress, offset, bytes } = store;
        let id = MessageId::from(id);
        self.may_keep(owner, owner_epoch)?;
        let body = self.whole(owner, id, offset, bytes)?;
        let name = (id, Whose::Of(owner));
        self.spool.store(name, meta.to_vec(), body, accepted).await.map_err(|error| error.to_string())?;
        if let Some(progress) = progress {
            self.spool.progress(name, progress.to_vec(), None);
        }
        Ok(Answer::Done)
    }

    /// The message whose last part this is.
    fn whole(&self, owner: u64, id: MessageId, offset: u64, bytes: Bytes) -> Result<Bytes, String> {
        match offset {
            0 => Ok(bytes),
            offset => self.parts.lock().unwrap_or_else(PoisonError::into_inner).end(owner, id, offset, &bytes),
        }
    }

    fn may_keep(&self, owner: u64, owner_epoch: u64) -> Result<(), String> {
        let ownership = self.cluster.read(|state| state.ownership(owner));
        if !ownership.up || ownership.epoch != owner_epoch {
            return Err(format!("node {owner} does not own mail under epoch {owner_epoch}"));
        }
        if self.spool.has_room() { Ok(()) } else { Err("the disk is nearly full".to_owned()) }
    }

    /// Returns when all of it is on disk.
    async fn note(&self, owner: u64, marks: Vec<Mark>) -> Result<Answer, String> {
        let (done, noted) = oneshot::channel::<()>();
        let mut last: Option<Then> = Some(Box::new(move || answer_noted(done)));
        let count = marks.len();
        for (number, Mark { id, what }) in (1..).zip(marks) {
            let name = (id.into(), Whose::Of(owner));
            let then = if number == count { last.take() } else { None };
            match what {
                What::Accepted => self.spool.accept(name, then),
                What::Progress(state) => self.spool.progress(name, state.to_vec(), then),
                What::Done => self.spool.done(name, then),
            }
        }
        last.into_iter().for_each(|nothing_to_note| nothing_to_note());
        noted.await.map(|()| Answer::Done).map_err(|_| SpoolError::Stopped.to_string())
    }

    async fn inventory(&self, owner: u64, after: Option<MessageId>) -> Result<Answer, String> {
        let _no_half_take_over = self.taken.lock().await;
        let found = self.spool.list(Whose::Of(owner)).await.map_err(|error| error.to_string())?;
        let behind = found.into_iter().filter(|found| after.is_none_or(|after| found.id > after));
        Ok(Answer::Inventory(behind.take(IDS_MAX).map(|found| (Id::from(found.id), found.accepted)).collect()))
    }

    /// What of `of`'s messages this node has or had. Of two nodes that both keep a copy of what may be taken over, the one
    /// with the smaller number takes it.
    async fn claims(&self, asker: u64, of: u64, ids: Vec<Id>) -> Result<Answer, String> {
        let taken = self.taken.lock().await;
        let ids = ids.into_iter().map(MessageId::from).collect();
        let found = self.spool.look_up(ids).await.map_err(|error| error.to_string())?;
        let here = self.cluster.node_id();
        let takes_first = asker != of && here < asker;
        let claim = |(id, found): (MessageId, Option<(Whose, bool)>)| match found {
            Some((Whose::Ours, _)) => Some((id, Claim::Mine)),
            Some((Whose::Of(node), accepted)) => (node == of && takes_first && accepted).then_some((id, Claim::Soon)),
            // From whomever: it may have changed hands twice.
            None => taken.holds(id).then_some((id, Claim::Done)),
        };
        Ok(Answer::Claims(found.into_iter().filter_map(claim).map(|(id, claim)| (id.into(), claim)).collect()))
    }

    /// Two that return at once must not both hand over the same to each other: the one with the smaller number does first.
    async fn note_return(&self, node: u64) -> Result<Answer, String> {
        if !self.is_back() && node > self.cluster.node_id() {
            return Err("this node comes back first".to_owned());
        }
        self.cluster.barrier().await.map_err(|error| error.to_string())?;
        let is_up = self.cluster.read(|state| state.ownership(node)).up;
        self.returning().insert(node, Return { told: Instant::now(), is_up });
        Ok(Answer::Done)
    }

    /// Whether this node owns mail and has let go of what others have of it, as far as it ever ceased to own it.
    pub(super) fn is_back(&self) -> bool {
        self.back.load(Ordering::Acquire)
    }

    pub(super) fn set_back(&self, is_back: bool) {
        self.back.store(is_back, Ordering::Release);
    }

    pub(super) fn given(&self) -> MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn returning(&self) -> MutexGuard<'_, BTreeMap<u64, Return>> {
        self.returning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_returning(&self, owner: u64) -> bool {
        self.returning().get(&owner).is_some_and(|last| last.told.elapsed() < RETURN_MAX)
    }

    /// It has told so when it owned mail already, and asked what was taken behind that.
    fn has_come_back(&self, owner: u64) -> bool {
        self.returning().get(&owner).is_some_and(|last| last.is_up)
    }

    /// It knows all that was taken from it.
    pub(super) fn knows_what_was_taken(&self, owner: u64) -> bool {
        let owns_mail = self.cluster.read(|state| state.ownership(owner)).up;
        owns_mail && self.has_come_back(owner) && !self.given().is_recent(owner)
    }

    /// The copies that are kept for `owner` and may be taken over; none while it is about to come back.
    pub(super) async fn copies_of(&self, owner: u64) -> Result<Vec<Found>, SpoolError> {
        if self.is_returning(owner) {
            return Ok(Vec::new());
        }
        self.spool.list(Whose::Of(owner)).await
    }

    /// Old owners whose messages were taken over.
    pub(super) async fn taken_owners(&self) -> Vec<u64> {
        let mut owners = self.taken.lock().await.owners();
        owners.extend(self.taken_held.lock().await.owners());
        owners.sort_unstable();
        owners.dedup();
        owners
    }

    /// Finishes what an earlier life listed as taken over: its old owner has let go of that, or will. Before anybody is
    /// answered, so that none of it is dropped as somebody else's.
    pub(super) async fn finish(&self) -> Result<(), SpoolError> {
        for owner in self.taken_owners().await {
            let taken = Arc::clone(&self.taken).lock_owned().await;
            let listed = taken.of(owner).cloned().unwrap_or_default();
            let copies = self.spool.list(Whose::Of(owner)).await?.into_iter().map(|found| found.id);
            let half_taken: Vec<MessageId> = copies.filter(|id| listed.contains(id)).collect();
            if !half_taken.is_empty() {
                tracing::warn!(owner, messages = half_taken.len(), "finishing a take-over");
                self.adopt(taken, owner, half_taken).await?;
            }
            self.finish_held(owner)
                .await
                .map_err(|error| SpoolError::Io("quarantine".into(), io::Error::other(error)))?;
        }
        Ok(())
    }

    /// Makes `owner`'s messages ours; they are on disk as such when it returns. Returns those that are: none where it owns
    /// mail again or is about to, or this node does not know.
    pub(super) async fn take(&self, owner: u64, ids: Vec<MessageId>) -> Result<BTreeSet<MessageId>, SpoolError> {
        let Some(as_of) = self.up_to_date().await else { return Ok(BTreeSet::new()) };
        let taken = Arc::clone(&self.taken).lock_owned().await;
        if !self.may_take(owner, as_of) {
            return Ok(BTreeSet::new());
        }
        self.adopt(taken, owner, ids).await
    }

    /// The same of what it gave away itself.
    pub(super) async fn take_given(&self, owner: u64, ids: Vec<MessageId>) -> Result<BTreeSet<MessageId>, SpoolError> {
        self.adopt(Arc::clone(&self.taken).lock_owned().await, owner, ids).await
    }

    /// What is read behind it is no older than the moment that it returns.
    async fn up_to_date(&self) -> Option<Instant> {
        let begun = Instant::now();
        self.cluster.barrier().await.is_ok().then_some(begun)
    }

    /// For whoever holds a list of what is taken. A node that comes back says so and asks once more when it owns mail again,
    /// before it delivers any: either its word is heard before this, or what is listed now is told in the answer.
    fn may_take(&self, owner: u64, as_of: Instant) -> bool {
        self.cluster.read(|state| state.is_out(owner))
            && !self.is_returning(owner)
            && self.cluster.holds_lease()
            && as_of.elapsed() < TAKING_MAX
    }

    /// In the list first. Returns what is ours by then: a copy may be gone since it was asked for.
    async fn adopt(
        &self,
        taken: OwnedMutexGuard<Taken>,
        owner: u64,
        ids: Vec<MessageId>,
    ) -> Result<BTreeSet<MessageId>, SpoolError> {
        let new: Vec<MessageId> =
            ids.iter().copied().filter(|id| !taken.of(owner).is_some_and(|known| known.contains(id))).collect();
        let taken = on_disk(taken, move |taken| taken.add(owner, &new)).await?;
        let (done, mut noted) = tokio::sync::mpsc::unbounded_channel::<()>();
        for id in ids.iter().copied() {
            let done = done.clone();
            self.spool.adopt(id, owner, Some(Box::new(move || drop(done))));
        }
        drop((taken, done));
        // Ends when the last call has been made.
        while noted.recv().await.is_some() {}
        if self.spool.has_failed() {
            return Err(SpoolError::Stopped);
        }
        let found = self.spool.look_up(ids).await?.into_iter();
        Ok(found.filter(|(_, found)| matches!(found, Some((Whose::Ours, _)))).map(|(id, _)| id).collect())
    }

    /// `owner`'s copy is of no use; with a node, that is whose message it is by now.
    pub(super) fn let_go_of(&self, owner: u64, id: MessageId, node: Option<u64>) {
        let copy = (id, Whose::Of(owner));
        match node {
            Some(node) => self.spool.hand_over(copy, node, None),
            None => self.spool.done(copy, None),
        }
    }

    /// These are passed on to other nodes.
    pub(super) async fn strike_taken(&self, ids: BTreeSet<MessageId>) -> Result<(), SpoolError> {
        let taken = Arc::clone(&self.taken).lock_owned().await;
        on_disk(taken, move |taken| taken.strike(&ids)).await.map(drop)
    }

    /// The old owner is back and has let go of what was taken.
    pub(super) async fn forget_taken(&self, owner: u64) {
        for list in [&self.taken, &self.taken_held] {
            let taken = Arc::clone(list).lock_owned().await;
            if let Err(error) = on_disk(taken, move |taken| taken.forget(owner)).await {
                tracing::warn!(owner, %error, "the list of what was taken over stays");
            }
        }
    }
}

async fn taken_from(list: &AsyncMutex<Taken>, owner: u64) -> Answer {
    let taken = list.lock().await;
    Answer::Ids(taken.of(owner).into_iter().flatten().take(IDS_MAX).map(|id| Id::from(*id)).collect())
}

fn answer_noted(done: oneshot::Sender<()>) {
    if done.send(()).is_err() {
        tracing::debug!("nobody waited for marks to be noted");
    }
}

/// Changes the list on a thread that may block, and gives it back.
async fn on_disk(
    mut taken: OwnedMutexGuard<Taken>,
    change: impl FnOnce(&mut Taken) -> io::Result<()> + Send + 'static,
) -> Result<OwnedMutexGuard<Taken>, SpoolError> {
    let failed = |error| SpoolError::Io("taken".into(), error);
    let changed = tokio::task::spawn_blocking(move || change(&mut taken).map(|()| taken)).await;
    changed.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
}

#[cfg(test)]
mod tests;
