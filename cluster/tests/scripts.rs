//! Behaviour of the state machine as text scripts: `cluster/tests/scripts/*`.
//!
//! A script is commands, `---`, and what they answer. Time is set by `at`, in seconds since a fixed
//! moment; every other command happens then. `UPDATE_GOLDENFILES=1 cargo test` writes the answers.
//! After each script the state is put together again from its records and must be the same.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::net::IpAddr;

use goldenscript::{Argument, Context};
use outgate_cluster::command::{Authority, DkimAlgorithm, DomainPatch, LimitUnit, LockState, NewUser, UserPatch};
use outgate_cluster::state::settings::{Level, Patch};
use outgate_cluster::state::{Advice, AuthGate, Key};
use outgate_cluster::{
    Actor, Admission, AdmissionId, AdmissionVerdict, Admit, Charge, Class, Command, DomainName, LockChange, Login,
    Outcome, State, Subject, Timestamp, UserId, Wish,
};

/// Bucket borders of all windows fall on it (a multiple of 12 hours, 168 and 24 minutes).
const START_S: u64 = 1_799_884_800 / 302_400 * 302_400;
type Answer = Result<String, Box<dyn Error>>;

struct Script {
    state: State,
    checkpoint: BTreeMap<Key, Vec<u8>>,
    at: Timestamp,
    sequence: u64,
}

fn run(name: &str) {
    let mut script =
        Script { state: State::default(), checkpoint: BTreeMap::new(), at: Timestamp(START_S * 1_000), sequence: 0 };
    goldenscript::run(&mut script, format!("tests/scripts/{name}")).unwrap();
}

macro_rules! scripts {
    ($( $name:ident )*) => {
        const NAMES: &[&str] = &[$( stringify!($name) ),*];
        $( #[test] fn $name() { run(stringify!($name)); } )*
    };
}

scripts! {
    abuse_mean abuse_off abuse_phish abuse_spam abuse_virus admission_ids auth_block auth_delay contact_passes defaults
    dkim domain_limits domains distinct_recipients identities identity_limits import invalid_recipients
    limit_by_recipients limits_off limits_windows lock_by_hand lock_history lock_on_limit lock_timeout max_unlocks
    networks nodes null_sender ownership settings_levels settings_ranges time_backwards users users_paging refuse_costs_nothing
}

#[test]
fn every_script_is_run() {
    let files = std::fs::read_dir("tests/scripts").unwrap();
    let files: BTreeSet<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(files, NAMES.iter().map(|name| (*name).to_owned()).collect());
}

/// Positional words and `key=value` pairs of one line.
struct Words<'a> {
    words: Vec<&'a str>,
    pairs: Vec<(&'a str, &'a str)>,
}

impl<'a> Words<'a> {
    fn of(command: &'a goldenscript::Command) -> Self {
        let (mut words, mut pairs) = (Vec::new(), Vec::new());
        for argument in &command.args {
            match argument {
                Argument::KeyValue(key, value) => pairs.push((key.as_str(), value.as_str())),
                Argument::Positional(word) => words.push(word.as_str()),
                _ => unreachable!("an argument is one of both"),
            }
        }
        Self { words, pairs }
    }

    fn word(&self, place: usize) -> Result<&'a str, Box<dyn Error>> {
        self.words.get(place).copied().ok_or_else(|| format!("word {place} is missing").into())
    }

    fn login(&self, place: usize) -> Result<Login, Box<dyn Error>> {
        Ok(self.word(place)?.parse()?)
    }

    fn take(&mut self, key: &str) -> Option<&'a str> {
        let place = self.pairs.iter().position(|(known, _)| *known == key)?;
        Some(self.pairs.remove(place).1)
    }

    fn settings(&self, level: Level) -> Result<Patch, Box<dyn Error>> {
        let pairs: Vec<String> = self.pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        Ok(Patch::parse(&pairs, level)?)
    }

    fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }
}

impl goldenscript::Runner for Script {
    type Command = goldenscript::Command;

    fn run(&mut self, command: &goldenscript::Command, _: &Context) -> Answer {
        let words = Words::of(command);
        match command.name.as_str() {
            "at" => self.set_time(&words),
            "tick" => self.apply(Command::Tick),
            "domain-add" | "domain-set" | "domain-remove" => self.change_domain(&command.name, words),
            "user-add" | "user-set" | "user-remove" => self.change_user(&command.name, words),
            "defaults-set" => self.apply(Command::DefaultsSet { patch: words.settings(Level::Cluster)? }),
            "admit" => self.admit(words),
            "settle" => self.apply(Command::Settle { node: 1, epoch: words.word(0)?.parse()? }),
            "lock" | "unlock" | "reset" => self.lock(&command.name, words),
            "invalid" => self.invalid(words),
            "auth-fail" | "auth-ok" | "auth-unblock" => self.login(&command.name, words),
            "stage" | "commit" => self.import(&command.name, words),
            "dkim-put" | "dkim-remove" => self.dkim(&command.name, words),
            "form" | "token" | "join" | "node-set" | "node-remove" | "node-down" | "node-up" => {
                self.node(&command.name, words)
            }
            reading => self.read(reading, words),
        }
    }

    fn end_script(&mut self) -> Result<(), Box<dyn Error>> {
        for key in self.state.take_dirty() {
            match self.state.record(&key) {
                Some(record) => drop(self.checkpoint.insert(key, record)),
                None => drop(self.checkpoint.remove(&key)),
            }
        }
        let whole: BTreeMap<Key, Vec<u8>> =
            self.state.keys().map(|key| (key.clone(), self.state.record(&key).unwrap())).collect();
        // What was marked dirty along the way is all that changed.
        let mut checkpoint = self.checkpoint.clone();
        checkpoint.entry(Key::Clock).or_insert_with(|| whole[&Key::Clock].clone());
        checkpoint.entry(Key::Defaults).or_insert_with(|| whole[&Key::Defaults].clone());
        assert_eq!(checkpoint, whole);
        let mut again = State::default();
        for (key, record) in &whole {
            again.restore(key.clone(), record).unwrap();
        }
        let restored: BTreeMap<Key, Vec<u8>> =
            again.keys().map(|key| (key.clone(), again.record(&key).unwrap())).collect();
        assert_eq!(restored, whole);
        Ok(())
    }
}

impl Script {
    fn set_time(&mut self, words: &Words<'_>) -> Answer {
        let seconds: f64 = words.word(0)?.trim_end_matches('s').parse()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small times written by hand")]
        let millis = (seconds * 1_000.0) as u64;
        self.at = Timestamp(START_S * 1_000 + millis);
        Ok(String::new())
    }

    fn apply(&mut self, command: Command) -> Answer {
        let outcome = self.state.apply(self.at, command);
        Ok(self.show(&outcome))
    }

    fn change_domain(&mut self, verb: &str, mut words: Words<'_>) -> Answer {
        let name = DomainName::new(words.word(0)?)?;
        let text = |value: Option<&str>| value.map(str::to_owned);
        let patch = DomainPatch {
            enabled: words.take("enabled").map(str::parse).transpose()?,
            contact: text(words.take("contact")),
            route: text(words.take("route")),
            route_auth: text(words.take("route_auth")),
            settings: words.settings(Level::Domain)?,
        };
        self.apply(match verb {
            "domain-add" => Command::DomainAdd { name, patch },
            "domain-set" => Command::DomainSet { name, patch },
            _ => Command::DomainRemove { name },
        })
    }

    fn change_user(&mut self, verb: &str, mut words: Words<'_>) -> Answer {
        let login = words.login(0)?;
        match verb {
            "user-add" => {
                let user = new_user(login, &mut words)?;
                self.apply(Command::UserAdd { user })
            }
            "user-set" => {
                let enabled = words.take("enabled").map(str::parse).transpose()?;
                let password_hash = words.take("password").map(str::to_owned);
                let patch = UserPatch { enabled, password_hash, settings: words.settings(Level::User)? };
                self.apply(Command::UserSet { login, patch })
            }
            _ => self.apply(Command::UserRemove { login }),
        }
    }

    /// `admit LOGIN [identity=] [class=] [score=] [to=NAMES] [id=EPOCH.SEQ] [settled=] [xN] [refuse] [null] [contact]`
    fn admit(&mut self, mut words: Words<'_>) -> Answer {
        let user = self.id(words.word(0)?);
        let times = words.words.iter().find_map(|word| word.strip_prefix('x')?.parse().ok()).unwrap_or(1);
        let id = words.take("id").map(str::to_owned);
        let settled_below = words.take("settled").map_or(Ok(0), str::parse)?;
        let class: Class = serde_json::from_value(words.take("class").unwrap_or("clean").into())?;
        let score = words.take("score").map_or(Ok(0), str::parse)?;
        let recipients: Vec<u64> = words.take("to").unwrap_or("someone").split(',').map(hash).collect();
        let identity = words.take("identity").map(str::to_owned);
        let mut answers: Vec<(String, u32)> = Vec::new();
        for _ in 0..times {
            self.sequence += 1;
            let mut admission = AdmissionId { node: 1, epoch: 1, sequence: self.sequence };
            if let Some((epoch, sequence)) = id.as_deref().and_then(|id| id.split_once('.')) {
                admission = AdmissionId { node: 1, epoch: epoch.parse()?, sequence: sequence.parse()? };
            }
            let admit = Admit {
                id: admission,
                settled_below,
                user,
                identity: identity.clone(),
                wish: if words.has("refuse") { Wish::Refuse } else { Wish::Accept },
                class,
                score,
                recipients: recipients.clone(),
                null_sender: words.has("null"),
                to_contact: words.has("contact"),
                message: format!("m{}", admission.sequence),
            };
            let answer = self.apply(Command::Admit(admit))?;
            match answers.last_mut().filter(|(last, _)| *last == answer) {
                Some((_, count)) => *count += 1,
                None => answers.push((answer, 1)),
            }
        }
        Ok(answers.into_iter().fold(String::new(), |text, (answer, count)| {
            text + &if count == 1 { answer } else { format!("{count} × {answer}") }
        }))
    }

    fn lock(&mut self, verb: &str, mut words: Words<'_>) -> Answer {
        let subject = Subject { login: words.login(0)?, identity: words.take("identity").map(str::to_owned) };
        let actor = Actor(words.take("by").unwrap_or("root").to_owned());
        let reason = words.take("reason").unwrap_or("").to_owned();
        self.apply(match verb {
            "lock" => Command::Lock { subject, actor, reason },
            "unlock" => Command::Unlock { subject, actor },
            _ => Command::Reset { subject, actor },
        })
    }

    fn invalid(&mut self, mut words: Words<'_>) -> Answer {
        let user = self.id(words.word(0)?);
        let identity = words.take("identity").map(str::to_owned);
        self.apply(Command::InvalidRecipients { user, identity, count: words.word(1)?.parse()? })
    }

    fn login(&mut self, verb: &str, mut words: Words<'_>) -> Answer {
        let user = words.take("user").map(|login| self.id(login));
        let times = words.words.iter().find_map(|word| word.strip_prefix('x')?.parse().ok()).unwrap_or(1);
        let address: IpAddr = words.word(0)?.parse()?;
        let command = match verb {
            "auth-fail" => Command::AuthFailed { user, address },
            "auth-ok" => Command::AuthSucceeded { user: user.ok_or("user= is missing")?, address },
            _ => Command::AuthUnblock { address, actor: Actor("root".to_owned()) },
        };
        for _ in 1..times {
            self.apply(command.clone())?;
        }
        self.apply(command)
    }

    fn import(&mut self, verb: &str, mut words: Words<'_>) -> Answer {
        let import = words.word(0)?.parse()?;
        if verb == "commit" {
            return self.apply(Command::ImportCommit { import, strict: words.has("strict") });
        }
        let owner = words.take("owner");
        let user = |login: &&str| NewUser {
            login: login.parse().unwrap(),
            owner: owner.map(|owner| owner.parse().unwrap()),
            password_hash: Some("$hash".to_owned()),
            settings: Patch::default(),
        };
        let users = words.words[1..].iter().map(user).collect();
        self.apply(Command::ImportStage { import, users })
    }

    fn dkim(&mut self, verb: &str, words: Words<'_>) -> Answer {
        let (domain, selector) = (DomainName::new(words.word(0)?)?, words.word(1)?.to_owned());
        self.apply(match verb {
            "dkim-put" => {
                let algorithm: DkimAlgorithm = serde_json::from_value(words.word(2)?.into())?;
                Command::DkimPut { domain, selector, algorithm, private_key: format!("PEM {}", words.word(2)?) }
            }
            _ => Command::DkimRemove { domain, selector },
        })
    }

    fn node(&mut self, verb: &str, mut words: Words<'_>) -> Answer {
        let hash = |words: &Words<'_>, place| Ok::<_, Box<dyn Error>>([words.word(place)?.parse::<u8>()?; 32]);
        let actor = Actor("cli".to_owned());
        let address = words.take("address").map(str::to_owned);
        let command = match verb {
            "form" => {
                let authority = Authority { certificate: "PEM".to_owned(), private_key: "PEM".to_owned() };
                Command::Form { authority, address: words.word(0)?.to_owned() }
            }
            "token" => {
                let valid_s: u64 = words.word(1)?.parse()?;
                Command::TokenPut { token: hash(&words, 0)?, valid_ms: valid_s * 1_000, actor }
            }
            "join" => {
                Command::Join { token: hash(&words, 0)?, key: hash(&words, 1)?, address: words.word(2)?.to_owned() }
            }
            "node-set" => Command::NodeSet {
                node: words.word(0)?.parse()?,
                address,
                draining: words.take("draining").map(str::parse).transpose()?,
            },
            "node-down" => Command::NodeDown { node: words.word(0)?.parse()?, owner_epoch: words.word(1)?.parse()? },
            "node-up" => Command::NodeUp { node: words.word(0)?.parse()?, owner_epoch: words.word(1)?.parse()? },
            _ => Command::NodeRemove { node: words.word(0)?.parse()?, actor },
        };
        self.apply(command)
    }

    fn read(&mut self, what: &str, mut words: Words<'_>) -> Answer {
        match what {
            "domain-list" => Ok(lines(self.state.domains().into_iter().map(|domain| format!("{domain:?}")))),
            "dkim-list" => {
                let domain = words.words.first().map(|name| DomainName::new(name)).transpose()?;
                let keys = self.state.dkim_keys(domain.as_ref()).into_iter();
                Ok(lines(
                    keys.map(|key| format!("{} {} {:?} {}", key.domain, key.selector, key.algorithm, key.private_key)),
                ))
            }
            "node-list" => Ok(lines(self.state.nodes().into_iter().map(|node| format!("{node:?}")))),
            "removed" => Ok(self.state.was_removed(words.word(0)?.parse()?).to_string()),
            "settings" => self.read_settings(&words),
            "user-list" => self.read_users(&mut words),
            "network" => {
                let found = self.state.network(words.word(0)?.parse()?);
                Ok(found.map_or("nobody".to_owned(), |user| format!("{} of {}", user.login, user.domain)))
            }
            "blocks" => {
                let blocks = self.state.auth_blocks().into_iter();
                Ok(lines(blocks.map(|(address, until)| format!("{address} until {}", clock(until)))))
            }
            "gate" => {
                let user = words.take("user").map(|login| self.id(login));
                Ok(match self.state.auth_gate(words.word(0)?.parse()?, user, self.at) {
                    AuthGate::Open => "open".to_owned(),
                    AuthGate::Delay { millis } => format!("delay {millis} ms"),
                    AuthGate::Blocked { until } => format!("blocked until {}", clock(until)),
                })
            }
            _ => self.read_of_user(what, words),
        }
    }

    fn read_of_user(&mut self, what: &str, mut words: Words<'_>) -> Answer {
        let id = self.id(words.word(0)?);
        let identity = words.take("identity");
        match what {
            "lock-state" => {
                let lock = self.state.lock(id, identity);
                let reason = lock.reason.map_or_else(String::new, |reason| format!(": {reason}"));
                Ok(format!("{}, {} unlocks used{reason}", state(lock.state), lock.unlocks_used))
            }
            "history" => Ok(lines(self.state.lock(id, identity).history.iter().map(change))),
            "limits" => {
                let limits = self.state.limits(id, identity);
                let (distinct, invalid) = (limits.distinct_recipients, limits.invalid_recipients);
                let mut text = lines(limits.windows.iter().map(charge));
                writeln!(text, "{distinct} different recipients, {invalid} invalid")?;
                Ok(text)
            }
            "identities" => Ok(lines(self.state.identities(id).into_iter().map(|identity| {
                let seen = clock(identity.last_seen);
                format!(
                    "{} {}, {} unlocks used, seen {seen}",
                    identity.identity,
                    state(identity.lock),
                    identity.unlocks_used
                )
            }))),
            "advise" => Ok(match self.state.advise(id, identity, self.at) {
                Advice::Pass => "pass".to_owned(),
                Advice::Limit { scope, window, unit, limit, retry_after_s } => {
                    format!(
                        "{scope:?} limit of {limit} {} per {}, retry after {retry_after_s} s",
                        units(unit),
                        window.as_str()
                    )
                }
                Advice::Locked { scope, state: lock } => format!("{scope:?} {}", state(lock)),
            }),
            "fits" => {
                let before = words.take("new").map_or(Ok(0), str::parse)?;
                Ok(self.state.recipient_fits(id, hash(words.word(1)?), before, self.at).to_string())
            }
            _ => Err(format!("{what} is not a command").into()),
        }
    }

    fn read_settings(&self, words: &Words<'_>) -> Answer {
        let (of, keys) = (words.words.first(), words.words.get(1..).unwrap_or_default());
        let wanted = |key: &&str| keys.is_empty() || keys.contains(key);
        let effective = match of {
            None | Some(&"cluster") => {
                let settings = self.state.defaults();
                let rows = settings.values().filter(|(key, _)| wanted(key));
                return Ok(lines(rows.map(|(key, value)| format!("{key} = {}", value.to_json()))));
            }
            Some(name) if name.starts_with('@') => {
                self.state.domain_settings_with_origin(&DomainName::new(&name[1..])?)
            }
            Some(login) => self.state.settings_with_origin(self.id(login)),
        };
        let rows = effective.into_iter().filter(|row| wanted(&row.key));
        Ok(lines(rows.map(|row| format!("{} = {} from {}", row.key, row.value.to_json(), row.from))))
    }

    fn read_users(&self, words: &mut Words<'_>) -> Answer {
        let domain = words.take("domain").map(DomainName::new).transpose()?;
        let after = words.take("after").map(str::parse::<Login>).transpose()?;
        let count = words.take("count").map_or(Ok(100), str::parse)?;
        let users = self.state.users(domain.as_ref(), after.as_ref(), count).into_iter();
        Ok(lines(users.map(|user| {
            let (enabled, domain_enabled) = (user.enabled, user.domain_enabled);
            let password = user.password_hash.as_deref().unwrap_or("none");
            format!(
                "{} {} {} of {} enabled={enabled}/{domain_enabled} password={password}",
                user.id.0,
                user.login.kind(),
                user.login,
                user.domain
            )
        })))
    }

    /// 0 for nobody.
    fn id(&self, login: &str) -> UserId {
        login.parse().ok().and_then(|login| self.state.user(&login)).map_or(UserId(0), |user| user.id)
    }

    fn show(&self, outcome: &Outcome) -> String {
        let text = match outcome {
            Outcome::Done => "done".to_owned(),
            Outcome::Batch(outcomes) => outcomes.iter().map(|outcome| self.show(outcome)).collect(),
            Outcome::Admission(admission) => show_admission(admission),
            Outcome::UserAdded(id) => format!("user {}", id.0),
            Outcome::Joined(node) => format!("node {node}"),
            Outcome::Imported(report) => {
                let refused = report.refused.iter().map(|(place, why)| format!("; {place}: {why}"));
                format!("{} added{}", report.added, refused.collect::<String>())
            }
            Outcome::Lock(None) => "no change".to_owned(),
            Outcome::Lock(Some(step)) => change(step),
            Outcome::AuthFailure { blocked_until: None } => "not blocked".to_owned(),
            Outcome::AuthFailure { blocked_until: Some(until) } => format!("blocked until {}", clock(*until)),
            Outcome::Refused(refusal) => format!("refused: {refusal}"),
        };
        text + "\n"
    }
}

fn new_user(login: Login, words: &mut Words<'_>) -> Result<NewUser, Box<dyn Error>> {
    let owner = words.take("owner").map(DomainName::new).transpose()?;
    let password = words.take("password").map(str::to_owned);
    let default = login.domain().map(|_| "$hash".to_owned());
    Ok(NewUser { login, owner, password_hash: password.or(default), settings: words.settings(Level::User)? })
}

fn show_admission(admission: &Admission) -> String {
    let verdict = match &admission.verdict {
        AdmissionVerdict::Accepted => "accepted".to_owned(),
        AdmissionVerdict::Recorded => "recorded".to_owned(),
        AdmissionVerdict::Limit { scope, window, unit, limit, retry_after_s } => {
            format!(
                "{scope:?} limit of {limit} {} per {}, retry after {retry_after_s} s",
                units(*unit),
                window.as_str()
            )
        }
        AdmissionVerdict::DistinctRecipients { limit, retry_after_s } => {
            format!("limit of {limit} different recipients, retry after {retry_after_s} s")
        }
        AdmissionVerdict::Locked { scope, state: lock } => format!("{scope:?} {}", state(*lock)),
        AdmissionVerdict::NoUser => "no user".to_owned(),
        AdmissionVerdict::Stale => "stale".to_owned(),
    };
    admission.lock.iter().fold(verdict, |text, step| format!("{text}; {}", change(step)))
}

fn change(step: &LockChange) -> String {
    let messages = if step.messages.is_empty() { String::new() } else { format!(" [{}]", step.messages.join(" ")) };
    let (from, to) = (state(step.from), state(step.to));
    format!(
        "{} {:?} {from} -> {to}, {} unlocks used: {}{messages}",
        clock(step.at),
        step.scope,
        step.unlocks_used,
        step.cause
    )
}

fn charge(charge: &Charge) -> String {
    let limit = if charge.limit == 0 { "unlimited".to_owned() } else { charge.limit.to_string() };
    let Charge { scope, window, used, next_free_s, .. } = charge;
    format!("{scope:?} {}: {used} of {limit}, next in {next_free_s} s", window.as_str())
}

fn state(state: LockState) -> String {
    match state {
        LockState::Unlocked => "unlocked".to_owned(),
        LockState::Locked { until } => format!("locked until {}", clock(until)),
        LockState::LockedPermanently => "locked permanently".to_owned(),
        LockState::LockedManually => "locked manually".to_owned(),
    }
}

fn units(unit: LimitUnit) -> &'static str {
    match unit {
        LimitUnit::Messages => "messages",
        LimitUnit::Recipients => "recipients",
    }
}

/// Seconds since the script's beginning.
fn clock(at: Timestamp) -> String {
    let millis = at.0 - START_S * 1_000;
    if millis.is_multiple_of(1_000) {
        format!("{}s", millis / 1_000)
    } else {
        format!("{}.{:03}s", millis / 1_000, millis % 1_000)
    }
}

fn hash(name: &str) -> u64 {
    name.bytes().fold(7, |hash: u64, byte| hash.wrapping_mul(31).wrapping_add(byte.into()))
}

fn lines(rows: impl Iterator<Item = String>) -> String {
    rows.fold(String::new(), |text, row| text + &row + "\n")
}
