//! Properties of the state against a naive reference that keeps every timestamp.
//!
//! * Never more than a limit in any interval of a window's length, for several windows at once, for
//!   Users, domains, null senders and distinct recipients, whatever the stamps do.
//! * Never refused where windows longer by 1/60 would still have room.
//! * The same commands give the same records; records put a state together again that goes on alike.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};

use outgate_cluster::command::{DkimAlgorithm, DomainPatch, LimitUnit, LockState, NewUser, UserPatch, Window};
use outgate_cluster::state::settings::{Patch, Value};
use outgate_cluster::state::{Advice, Key};
use outgate_cluster::{
    Actor, Admission, AdmissionId, AdmissionVerdict, Admit, Class, Command, DomainName, Login, Outcome, Scope, State,
    Subject, Timestamp, UserId, Wish,
};

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
const DAY: u64 = 24 * HOUR;
const START: u64 = 1_800_000_000 * SECOND;
const WINDOWS: [(Window, &str, u64); 5] = [
    (Window::Minute, "limit_per_minute", 60 * SECOND),
    (Window::Hour, "limit_per_hour", HOUR),
    (Window::Day, "limit_per_day", DAY),
    (Window::Week, "limit_per_week", 7 * DAY),
    (Window::Month, "limit_per_month", 30 * DAY),
];
const OPERATIONS: u64 = 1_000_000;
const RUNS: u64 = 25;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// Mostly a burst, often a bucket or so, seldom a long silence.
    fn pause(&mut self) -> u64 {
        match self.below(100) {
            0..50 => 0,
            50..70 => self.below(SECOND),
            70..85 => self.below(20 * SECOND),
            85..95 => self.below(10 * 60 * SECOND),
            95..98 => self.below(2 * HOUR),
            98 => self.below(DAY),
            _ => self.below(12 * DAY),
        }
    }
}

/// Everything that was ever accepted: when, and what it cost. Times rise.
#[derive(Default)]
struct Ledger(Vec<(u64, u64)>);

impl Ledger {
    /// What was accepted at `since` or later.
    fn since(&self, since: u64) -> u64 {
        self.0.iter().rev().take_while(|(at, _)| *at >= since).map(|(_, cost)| cost).sum()
    }

    /// In the closed interval of this length that ends now.
    fn within(&self, now: u64, length: u64) -> u64 {
        self.since(now - length)
    }

    /// In the window longer by 1/60, its beginning left out.
    fn within_longer(&self, now: u64, length: u64) -> u64 {
        self.since(now - length / 60 * 61 + 1)
    }
}

struct ModelUser {
    id: UserId,
    unit: LimitUnit,
    limits: [u64; 5],
    distinct_max: u64,
    accepted: Ledger,
    null: Ledger,
    /// Last use of each address.
    recipients: BTreeMap<u64, u64>,
}

impl ModelUser {
    fn distinct(&self, since: u64, more: &[u64]) -> u64 {
        let known = self.recipients.values().filter(|at| **at >= since).count();
        let more: BTreeSet<u64> = more.iter().copied().collect();
        let new = more.iter().filter(|hash| self.recipients.get(hash).is_none_or(|at| *at < since)).count();
        (known + new) as u64
    }
}

struct Model {
    state: State,
    random: Random,
    seed: u64,
    now: u64,
    sequence: u64,
    users: Vec<ModelUser>,
    domain: Ledger,
    domain_limits: [u64; 5],
    null_limit: u64,
    /// An admission that may be asked again, and its verdict.
    asked: Option<(Admit, AdmissionVerdict)>,
    accepted: u64,
    limited: u64,
}

fn domain() -> DomainName {
    DomainName::new("a.example").unwrap()
}

fn login(number: u64) -> Login {
    format!("u{number}@a.example").parse().unwrap()
}

fn number(key: &str, value: u64) -> (String, Option<Value>) {
    (key.to_owned(), Some(Value::Number(value)))
}

fn domain_key(key: &str) -> String {
    format!("domain_{key}")
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut model = Self {
            state: State::default(),
            random: Random(seed),
            seed,
            now: START,
            sequence: 0,
            users: Vec::new(),
            domain: Ledger::default(),
            domain_limits: [0; 5],
            null_limit: 0,
            asked: None,
            accepted: 0,
            limited: 0,
        };
        model.apply(Command::DomainAdd { name: domain(), patch: DomainPatch::default() });
        for place in 0..4 {
            let unit = if model.random.one_in(2) { LimitUnit::Messages } else { LimitUnit::Recipients };
            let user = NewUser {
                login: login(place),
                owner: None,
                password_hash: Some("$".to_owned()),
                settings: Patch(vec![("limit_unit".to_owned(), Some(Value::Text(unit.as_str().to_owned())))]),
            };
            let Outcome::UserAdded(id) = model.apply(Command::UserAdd { user }) else { panic!("not added") };
            let (limits, recipients) = ([0; 5], BTreeMap::new());
            let (accepted, null) = (Ledger::default(), Ledger::default());
            model.users.push(ModelUser { id, unit, limits, distinct_max: 1, accepted, null, recipients });
            model.set_limits(usize::try_from(place).unwrap());
        }
        model.set_cluster_limits();
        model
    }

    fn apply(&mut self, command: Command) -> Outcome {
        // The state takes the latest stamp it has seen.
        let stamp = if self.random.one_in(20) { self.now - self.random.below(3 * HOUR) } else { self.now };
        self.state.apply(Timestamp(stamp), command)
    }

    fn limits(&mut self) -> [u64; 5] {
        [30, 60, 120, 200, 400].map(|most| if self.random.one_in(4) { 0 } else { 1 + self.random.below(most) })
    }

    fn set_limits(&mut self, place: usize) {
        let limits = self.limits();
        let distinct_max = 1 + self.random.below(60);
        let mut patch: Vec<_> = WINDOWS.iter().zip(limits).map(|((_, key, _), limit)| number(key, limit)).collect();
        patch.push(number("max_recipients_per_day", distinct_max));
        let patch = UserPatch { settings: Patch(patch), ..UserPatch::default() };
        let login = login(place as u64);
        assert_eq!(self.apply(Command::UserSet { login, patch }), Outcome::Done);
        self.users[place].limits = limits;
        self.users[place].distinct_max = distinct_max;
    }

    fn set_cluster_limits(&mut self) {
        self.domain_limits = self.limits().map(|limit| limit * 3);
        let rows = WINDOWS.iter().zip(self.domain_limits);
        let patch = Patch(rows.map(|((_, key, _), limit)| number(&domain_key(key), limit)).collect());
        let patch = DomainPatch { settings: patch, ..DomainPatch::default() };
        assert_eq!(self.apply(Command::DomainSet { name: domain(), patch }), Outcome::Done);
        self.null_limit = self.random.below(20);
        let patch = Patch(vec![number("null_sender_limit_per_hour", self.null_limit)]);
        assert_eq!(self.apply(Command::DefaultsSet { patch }), Outcome::Done);
    }

    fn step(&mut self) {
        self.now += self.random.pause();
        match self.random.below(2_000) {
            0 => self.set_cluster_limits(),
            1..5 => {
                let place = self.random.below(4);
                self.set_limits(usize::try_from(place).unwrap());
            }
            5..50 => self.ask_again(),
            _ => self.admit(),
        }
    }

    fn admit(&mut self) {
        // The clock of the state is the latest stamp; make sure that it is ours.
        self.state.apply(Timestamp(self.now), Command::Tick);
        self.sequence += 1;
        let place = usize::try_from(self.random.below(4)).unwrap();
        let count = 1 + self.random.below(4);
        let admit = Admit {
            id: AdmissionId { node: 1, epoch: 1, sequence: self.sequence },
            settled_below: self.sequence.saturating_sub(50),
            user: self.users[place].id,
            identity: self.random.one_in(10).then(|| "anna".to_owned()),
            wish: if self.random.one_in(20) { Wish::Refuse } else { Wish::Accept },
            class: Class::Clean,
            score: 0,
            recipients: (0..count).map(|_| self.random.below(80)).collect(),
            null_sender: self.random.one_in(30),
            to_contact: false,
            message: "m".to_owned(),
        };
        let Outcome::Admission(Admission { verdict, .. }) = self.apply(Command::Admit(admit.clone())) else {
            panic!("no admission")
        };
        self.check(place, &admit, &verdict);
        self.asked = Some((admit, verdict));
    }

    /// Asked again, even much later, the answer is the same and costs nothing (which the other checks would see).
    fn ask_again(&mut self) {
        let Some((admit, before)) = self.asked.clone() else { return };
        let Outcome::Admission(Admission { verdict, .. }) = self.apply(Command::Admit(admit)) else {
            panic!("no admission")
        };
        assert_eq!(verdict, before, "seed {}", self.seed);
    }

    fn check(&mut self, place: usize, admit: &Admit, verdict: &AdmissionVerdict) {
        let accepted = match verdict {
            AdmissionVerdict::Recorded => return assert_eq!(admit.wish, Wish::Refuse),
            AdmissionVerdict::Accepted => true,
            AdmissionVerdict::Limit { .. } | AdmissionVerdict::DistinctRecipients { .. } => false,
            AdmissionVerdict::Locked { .. } | AdmissionVerdict::NoUser | AdmissionVerdict::Stale => {
                panic!("seed {}: {verdict:?}", self.seed)
            }
        };
        self.retry_is_in_range(verdict);
        let (over, over_longer) = self.over(place, admit);
        let context = || format!("seed {} sequence {} {verdict:?}", self.seed, self.sequence);
        assert!(!accepted || over.is_none(), "accepted over {over:?}: {}", context());
        assert!(accepted || over_longer.is_some(), "refused although it fits: {}", context());
        if accepted {
            self.accepted += 1;
            self.note(place, admit);
        } else {
            self.limited += 1;
        }
    }

    fn retry_is_in_range(&self, verdict: &AdmissionVerdict) {
        let (retry, length) = match verdict {
            AdmissionVerdict::Limit { window, retry_after_s, .. } => {
                (*retry_after_s, WINDOWS.iter().find(|row| row.0 == *window).unwrap().2)
            }
            AdmissionVerdict::DistinctRecipients { retry_after_s, .. } => (*retry_after_s, DAY),
            AdmissionVerdict::Accepted
            | AdmissionVerdict::Recorded
            | AdmissionVerdict::Locked { .. }
            | AdmissionVerdict::NoUser
            | AdmissionVerdict::Stale => return,
        };
        assert!((1..=length / 60 * 61 / SECOND).contains(&retry), "seed {}: {verdict:?}", self.seed);
    }

    /// What the message would exceed: by exact windows, and by those longer by 1/60.
    fn over(&self, place: usize, admit: &Admit) -> (Option<Scope>, Option<Scope>) {
        let (user, now) = (&self.users[place], self.now);
        if admit.null_sender {
            let over = |used: u64| (self.null_limit > 0 && used + 1 > self.null_limit).then_some(Scope::NullSender);
            return (over(user.null.within(now, HOUR)), over(user.null.within_longer(now, HOUR)));
        }
        let (mut over, mut over_longer) = (None, None);
        let count = admit.recipients.len() as u64;
        let cost = if user.unit == LimitUnit::Messages { 1 } else { count };
        let checks =
            [(Scope::User, &user.accepted, user.limits, cost), (Scope::Domain, &self.domain, self.domain_limits, 1)];
        for (scope, ledger, limits, cost) in checks {
            for ((_, _, length), limit) in WINDOWS.iter().zip(limits).filter(|(_, limit)| *limit > 0) {
                if ledger.within(now, *length) + cost > limit {
                    over = Some(scope);
                }
                if ledger.within_longer(now, *length) + cost > limit {
                    over_longer = Some(scope);
                }
            }
        }
        if user.distinct(now - DAY, &admit.recipients) > user.distinct_max {
            over = Some(Scope::User);
        }
        if user.distinct(now - DAY / 60 * 61 + 1, &admit.recipients) > user.distinct_max {
            over_longer = Some(Scope::User);
        }
        (over, over_longer)
    }

    fn note(&mut self, place: usize, admit: &Admit) {
        let (user, now) = (&mut self.users[place], self.now);
        if admit.null_sender {
            user.null.0.push((now, 1));
            return;
        }
        let cost = if user.unit == LimitUnit::Messages { 1 } else { admit.recipients.len() as u64 };
        user.accepted.0.push((now, cost));
        self.domain.0.push((now, 1));
        user.recipients.extend(admit.recipients.iter().map(|hash| (*hash, now)));
    }
}

#[test]
fn never_over_a_limit_and_never_more_than_a_sixtieth_early() {
    let (mut accepted, mut limited) = (0, 0);
    for seed in 0..RUNS {
        let mut model = Model::new(seed);
        for _ in 0..OPERATIONS / RUNS {
            model.step();
        }
        accepted += model.accepted;
        limited += model.limited;
    }
    // Both sides of the border were really visited.
    assert!(accepted > OPERATIONS / 10 && limited > OPERATIONS / 10, "{accepted} accepted, {limited} limited");
}

/// A random command of any kind about few things, so that they meet.
fn any_command(random: &mut Random, sequence: u64) -> Command {
    let domains = ["a.example", "b.example"];
    let name = DomainName::new(random.pick(&domains)).unwrap();
    let logins = ["u0@a.example", "u1@a.example", "u2@b.example", "b.example", "192.0.2.0/24", "2001:db8::/32"];
    let login: Login = random.pick(&logins).parse().unwrap();
    let identity = random.pick(&[None, None, Some("anna"), Some("bert")]).map(str::to_owned);
    let subject = Subject { login: login.clone(), identity: identity.clone() };
    let actor = Actor("root".to_owned());
    let user = UserId(1 + random.below(12));
    let address = random.pick(&["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"]).parse().unwrap();
    match random.below(40) {
        0 => Command::DomainAdd { name, patch: DomainPatch::default() },
        1 => Command::DomainSet { name, patch: DomainPatch { settings: any_patch(random), ..DomainPatch::default() } },
        2 => Command::DomainRemove { name },
        3..7 => Command::UserAdd { user: any_user(random, login, name) },
        7..9 => Command::UserSet { login, patch: UserPatch { settings: any_patch(random), ..UserPatch::default() } },
        9 => {
            let enabled = Some(!random.one_in(3));
            Command::UserSet { login, patch: UserPatch { enabled, ..UserPatch::default() } }
        }
        10 if random.one_in(4) => Command::UserRemove { login },
        11 => Command::ImportStage { import: random.below(3), users: vec![any_user(random, login, name)] },
        12 => Command::ImportCommit { import: random.below(3), strict: random.one_in(2) },
        13 => Command::DefaultsSet { patch: any_patch(random) },
        14 => Command::Lock { subject, actor, reason: "r".to_owned() },
        15 => Command::Unlock { subject, actor },
        16 => Command::Reset { subject, actor },
        17..19 => Command::AuthFailed { user: Some(user).filter(|_| random.one_in(2)), address },
        19 => Command::AuthSucceeded { user, address },
        20 => Command::AuthUnblock { address, actor },
        21 => Command::InvalidRecipients { user, identity, count: 1 + u32::try_from(random.below(30)).unwrap() },
        22 => {
            let (selector, algorithm) = ("s".to_owned(), DkimAlgorithm::Ed25519Sha256);
            Command::DkimPut { domain: name, selector, algorithm, private_key: "k".to_owned() }
        }
        23 => Command::DkimRemove { domain: name, selector: "s".to_owned() },
        24 => Command::Tick,
        25 if random.one_in(20) => Command::Settle { node: random.below(2), epoch: sequence / 500 },
        _ => any_admit(random, user, identity, sequence),
    }
}

fn any_admit(random: &mut Random, user: UserId, identity: Option<String>, sequence: u64) -> Command {
    let (class, score) = random.pick(&[
        (Class::Clean, 0),
        (Class::Clean, 300),
        (Class::Unsure, 850),
        (Class::Spam, 950),
        (Class::Phish, 990),
        (Class::Virus, 1_000),
    ]);
    Command::Admit(Admit {
        id: AdmissionId {
            node: random.below(2),
            epoch: 1 + sequence / 500,
            sequence: sequence - random.below(5).min(sequence),
        },
        settled_below: sequence.saturating_sub(300),
        user,
        identity,
        wish: if class == Class::Clean { Wish::Accept } else { Wish::Refuse },
        class: if random.one_in(4) { class } else { Class::Clean },
        score,
        recipients: (0..1 + random.below(3)).map(|_| random.below(20)).collect(),
        null_sender: random.one_in(10),
        to_contact: random.one_in(10),
        message: format!("m{sequence}"),
    })
}

fn any_user(random: &mut Random, login: Login, name: DomainName) -> NewUser {
    let owner = login.domain().is_none().then_some(name);
    NewUser { login, owner, password_hash: Some("$".to_owned()), settings: any_patch(random) }
}

fn any_patch(random: &mut Random) -> Patch {
    let keys = ["limit_per_minute", "limit_per_day", "max_recipients_per_day", "lock_timeout", "max_unlocks"];
    let key = random.pick(&keys).to_owned();
    Patch(vec![(key, Some(Value::Number(1 + random.below(9))).filter(|_| !random.one_in(4)))])
}

fn records(state: &State) -> BTreeMap<Key, Vec<u8>> {
    let keys: Vec<Key> = state.keys().collect();
    assert!(keys.is_sorted());
    keys.into_iter().map(|key| (key.clone(), state.record(&key).unwrap())).collect()
}

/// Tells the first record in which they differ.
fn assert_same(left: &BTreeMap<Key, Vec<u8>>, right: &BTreeMap<Key, Vec<u8>>, context: &str) {
    let keys: BTreeSet<&Key> = left.keys().chain(right.keys()).collect();
    for key in keys {
        assert_eq!(left.get(key), right.get(key), "{key:?}: {context}");
    }
}

fn restored(records: &BTreeMap<Key, Vec<u8>>) -> State {
    let mut state = State::default();
    for (key, record) in records {
        state.restore(key.clone(), record).unwrap();
    }
    state
}

/// What readers see, as text.
fn readings(state: &State, at: Timestamp) -> String {
    let users = state.users(None, None, 100);
    let of_user = users.iter().map(|user| {
        let advice: Advice = state.advise(user.id, Some("anna"), at);
        let (lock, limits) = (state.lock(user.id, None), state.limits(user.id, Some("anna")));
        format!("{user:?} {lock:?} {limits:?} {advice:?} {:?}\n", state.identities(user.id))
    });
    of_user.collect::<String>() + &format!("{:?} {:?} {:?}", state.domains(), state.auth_blocks(), state.defaults())
}

#[test]
fn records_hold_all_of_the_state() {
    let mut locks = 0;
    for seed in 100..140 {
        let mut random = Random(seed);
        let (mut state, mut checkpoint) = (State::default(), BTreeMap::new());
        // Another node that was restored from records again and again.
        let mut other = State::default();
        let mut at = START;
        for sequence in 0..3_000 {
            at += random.pause() / 4;
            let stamp = Timestamp(if random.one_in(10) { at - random.below(HOUR) } else { at });
            let command = any_command(&mut random, sequence);
            let outcome = state.apply(stamp, command.clone());
            assert_eq!(other.apply(stamp, command), outcome, "seed {seed} sequence {sequence}");
            let locked = |state| matches!(state, LockState::Locked { .. });
            locks += u64::from(
                matches!(&outcome, Outcome::Admission(admission) if admission.lock.as_ref().is_some_and(|lock| locked(lock.to))),
            );
            if random.one_in(100) {
                for key in state.take_dirty() {
                    match state.record(&key) {
                        Some(record) => drop(checkpoint.insert(key, record)),
                        None => drop(checkpoint.remove(&key)),
                    }
                }
                let (whole, context) = (records(&state), format!("seed {seed} sequence {sequence}"));
                checkpoint.entry(Key::Defaults).or_insert_with(|| whole[&Key::Defaults].clone());
                assert_same(&checkpoint, &whole, &context);
                assert_same(&records(&other), &whole, &context);
                other = restored(&whole);
                assert_same(&records(&other), &whole, &context);
                assert_eq!(readings(&other, stamp), readings(&state, stamp), "{context}");
            }
        }
    }
    assert!(locks > 100, "{locks} locks");
}

#[test]
fn a_batch_is_its_commands_in_order() {
    for seed in 200..210 {
        let mut random = Random(seed);
        let (mut one_by_one, mut batched) = (State::default(), State::default());
        let mut at = START;
        for round in 0..200 {
            at += random.pause();
            let commands: Vec<Command> = (0..20).map(|place| any_command(&mut random, round * 20 + place)).collect();
            let outcomes: Vec<Outcome> =
                commands.iter().map(|command| one_by_one.apply(Timestamp(at), command.clone())).collect();
            assert_eq!(batched.apply(Timestamp(at), Command::Batch(commands)), Outcome::Batch(outcomes));
        }
        assert_same(&records(&batched), &records(&one_by_one), &format!("seed {seed}"));
    }
}
