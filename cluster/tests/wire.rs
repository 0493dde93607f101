//! The bytes of commands and outcomes on the wire and in the log: a variant that moves breaks a rolling upgrade.
//!
//! Append only. A new variant gets a new row at the end of its list; a row is never changed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use outgate_cluster::command::{
    Authority, DkimAlgorithm, DomainPatch, ImportReport, LimitUnit, LockState, NewUser, UserPatch, Window,
};
use outgate_cluster::state::Key;
use outgate_cluster::state::settings::{IdentificationHeader, Patch, Value};
use outgate_cluster::store::codec;
use outgate_cluster::{
    Actor, Admission, AdmissionId, AdmissionVerdict, Admit, Charge, Class, Command, DomainName, LockCause, LockChange,
    Login, Outcome, Refusal, Scope, Subject, Timestamp, UserId, Wish,
};
use serde::{Serialize, de::DeserializeOwned};

const FILE: &str = "tests/wire.txt";

/// One line per value: its name and its bytes in hex.
#[test]
fn bytes_are_pinned() {
    let mut text = String::new();
    for (name, command) in commands() {
        line(&mut text, name, &command);
    }
    for (name, outcome) in outcomes() {
        line(&mut text, name, &outcome);
    }
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let pinned = std::fs::read_to_string(FILE).unwrap();
    for (now, pinned) in text.lines().zip(pinned.lines()) {
        assert_eq!(now, pinned);
    }
    assert_eq!(text, pinned, "a row is missing in one of both");
}

/// The compiler asks here for a row whenever a variant is added.
#[test]
fn every_variant_has_a_row_in_the_order_of_its_position() {
    for (name, command) in commands() {
        assert_eq!(position(&command), command_position(&command), "{name}");
    }
    for (name, outcome) in outcomes() {
        assert_eq!(position(&outcome), outcome_position(&outcome), "{name}");
    }
    let commands: BTreeSet<u32> = commands().iter().map(|(_, command)| position(command)).collect();
    assert_eq!(commands, (0..31).collect());
    let outcomes: BTreeSet<u32> = outcomes().iter().map(|(_, outcome)| position(outcome)).collect();
    assert_eq!(outcomes, (0..9).collect());
}

fn line<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(text: &mut String, name: &str, value: &T) {
    let bytes = codec::encode(value);
    let again: T = codec::decode("row", &bytes).unwrap();
    assert_eq!(&again, value, "{name}");
    let hex = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    writeln!(text, "{name} {hex}").unwrap();
}

fn position(value: &impl Serialize) -> u32 {
    u32::from_le_bytes(codec::encode(value)[..4].try_into().unwrap())
}

fn command_position(command: &Command) -> u32 {
    match command {
        Command::Batch(_) => 0,
        Command::Tick => 1,
        Command::Admit(_) => 2,
        Command::Settle { .. } => 3,
        Command::DomainAdd { .. } => 4,
        Command::DomainSet { .. } => 5,
        Command::DomainRemove { .. } => 6,
        Command::UserAdd { .. } => 7,
        Command::UserSet { .. } => 8,
        Command::UserRemove { .. } => 9,
        Command::ImportStage { .. } => 10,
        Command::ImportCommit { .. } => 11,
        Command::DefaultsSet { .. } => 12,
        Command::Lock { .. } => 13,
        Command::Unlock { .. } => 14,
        Command::Reset { .. } => 15,
        Command::AuthFailed { .. } => 16,
        Command::AuthSucceeded { .. } => 17,
        Command::AuthUnblock { .. } => 18,
        Command::InvalidRecipients { .. } => 19,
        Command::DkimPut { .. } => 20,
        Command::DkimRemove { .. } => 21,
        Command::Form { .. } => 22,
        Command::TokenPut { .. } => 23,
        Command::Join { .. } => 24,
        Command::NodeSet { .. } => 25,
        Command::NodeRemove { .. } => 26,
        Command::NodeDown { .. } => 27,
        Command::NodeUp { .. } => 28,
        Command::StateHash => 29,
        Command::Restore { .. } => 30,
    }
}

fn outcome_position(outcome: &Outcome) -> u32 {
    match outcome {
        Outcome::Done => 0,
        Outcome::Batch(_) => 1,
        Outcome::Admission(_) => 2,
        Outcome::UserAdded(_) => 3,
        Outcome::Imported(_) => 4,
        Outcome::Lock(_) => 5,
        Outcome::AuthFailure { .. } => 6,
        Outcome::Refused(_) => 7,
        Outcome::Joined(_) => 8,
    }
}

fn domain() -> DomainName {
    DomainName::new("a.example").unwrap()
}

fn login() -> Login {
    "u@a.example".parse().unwrap()
}

fn subject(identity: Option<&str>) -> Subject {
    Subject { login: login(), identity: identity.map(str::to_owned) }
}

fn address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))
}

fn settings() -> Patch {
    let header = IdentificationHeader { name: "X".to_owned(), regex: Some("r".to_owned()), remove: true };
    Patch(vec![
        ("a".to_owned(), None),
        ("b".to_owned(), Some(Value::Bool(true))),
        ("n".to_owned(), Some(Value::Number(5))),
        ("t".to_owned(), Some(Value::Text("x".to_owned()))),
        ("l".to_owned(), Some(Value::List(vec!["y".to_owned()]))),
        ("h".to_owned(), Some(Value::Headers(vec![header]))),
    ])
}

fn domain_patch() -> DomainPatch {
    let text = |text: &str| Some(text.to_owned());
    DomainPatch {
        enabled: Some(true),
        contact: text("c"),
        route: text("r"),
        route_auth: text("u"),
        settings: settings(),
    }
}

fn new_user(login: &str) -> NewUser {
    let (owner, password_hash) = (Some(domain()), Some("$".to_owned()));
    NewUser { login: login.parse().unwrap(), owner, password_hash, settings: Patch::default() }
}

fn admit(class: Class, wish: Wish, identity: Option<&str>) -> Command {
    Command::Admit(Admit {
        id: AdmissionId { node: 1, epoch: 2, sequence: 3 },
        settled_below: 4,
        user: UserId(5),
        identity: identity.map(str::to_owned),
        wish,
        class,
        score: 6,
        recipients: vec![7, 8],
        null_sender: false,
        to_contact: true,
        message: "m".to_owned(),
    })
}

fn commands() -> Vec<(&'static str, Command)> {
    let actor = || Actor("root".to_owned());
    let classes = [
        ("admit-clean", Class::Clean, Wish::Accept),
        ("admit-unsure", Class::Unsure, Wish::Accept),
        ("admit-spam", Class::Spam, Wish::Refuse),
        ("admit-phish", Class::Phish, Wish::Refuse),
        ("admit-virus", Class::Virus, Wish::Refuse),
        ("admit-blocked", Class::Blocked, Wish::Refuse),
        ("admit-locked", Class::Locked, Wish::Refuse),
        ("admit-limit", Class::Limit, Wish::Refuse),
        ("admit-oversize", Class::Oversize, Wish::Refuse),
    ];
    let mut rows = vec![("batch", Command::Batch(vec![Command::Tick, Command::Tick])), ("tick", Command::Tick)];
    rows.extend(classes.map(|(name, class, wish)| (name, admit(class, wish, None))));
    rows.push(("admit-identity", admit(Class::Clean, Wish::Accept, Some("i"))));
    rows.extend([
        ("settle", Command::Settle { node: 1, epoch: 2 }),
        ("domain-add", Command::DomainAdd { name: domain(), patch: domain_patch() }),
        ("domain-set", Command::DomainSet { name: domain(), patch: DomainPatch::default() }),
        ("domain-remove", Command::DomainRemove { name: domain() }),
        ("user-add-mailbox", Command::UserAdd { user: new_user("u@a.example") }),
        ("user-add-domain", Command::UserAdd { user: new_user("a.example") }),
        ("user-add-network-4", Command::UserAdd { user: new_user("192.0.2.0/24") }),
        ("user-add-network-6", Command::UserAdd { user: new_user("2001:db8::/32") }),
        ("user-set", Command::UserSet { login: login(), patch: UserPatch::default() }),
        ("user-remove", Command::UserRemove { login: login() }),
        ("import-stage", Command::ImportStage { import: 1, users: vec![new_user("u@a.example")] }),
        ("import-commit", Command::ImportCommit { import: 1, strict: true }),
        ("defaults-set", Command::DefaultsSet { patch: settings() }),
        ("lock", Command::Lock { subject: subject(Some("i")), actor: actor(), reason: "why".to_owned() }),
        ("unlock", Command::Unlock { subject: subject(None), actor: actor() }),
        ("reset", Command::Reset { subject: subject(None), actor: actor() }),
        ("auth-failed", Command::AuthFailed { user: Some(UserId(1)), address: address() }),
        ("auth-succeeded", Command::AuthSucceeded { user: UserId(1), address: "2001:db8::1".parse().unwrap() }),
        ("auth-unblock", Command::AuthUnblock { address: address(), actor: actor() }),
        ("invalid-recipients", Command::InvalidRecipients { user: UserId(1), identity: None, count: 2 }),
        ("dkim-put-rsa", dkim(DkimAlgorithm::RsaSha256)),
        ("dkim-put-ed25519", dkim(DkimAlgorithm::Ed25519Sha256)),
        ("dkim-remove", Command::DkimRemove { domain: domain(), selector: "s".to_owned() }),
        ("form", Command::Form { authority: authority(), address: "a:1".to_owned() }),
        ("token-put", Command::TokenPut { token: [7; 32], valid_ms: 1, actor: actor() }),
        ("join", Command::Join { token: [7; 32], key: [8; 32], address: "a:1".to_owned() }),
        ("node-set", Command::NodeSet { node: 1, address: Some("a:1".to_owned()), draining: Some(true) }),
        ("node-remove", Command::NodeRemove { node: 1, actor: actor() }),
        ("node-down", Command::NodeDown { node: 1, owner_epoch: 2 }),
        ("node-up", Command::NodeUp { node: 1, owner_epoch: 2 }),
        ("state-hash", Command::StateHash),
        ("restore", Command::Restore { records: vec![(Key::Clock, codec::Blob(vec![1, 2]))] }),
    ]);
    rows
}

fn authority() -> Authority {
    Authority { certificate: "c".to_owned(), private_key: "k".to_owned() }
}

fn dkim(algorithm: DkimAlgorithm) -> Command {
    Command::DkimPut { domain: domain(), selector: "s".to_owned(), algorithm, private_key: "k".to_owned() }
}

fn admission(verdict: AdmissionVerdict) -> Outcome {
    let charge = Charge { scope: Scope::Domain, window: Window::Week, used: 1, limit: 2, next_free_s: 3 };
    Outcome::Admission(Admission { verdict, charges: vec![charge], lock: None })
}

fn limit(scope: Scope, window: Window, unit: LimitUnit) -> Outcome {
    admission(AdmissionVerdict::Limit { scope, window, unit, limit: 1, retry_after_s: 2 })
}

fn lock(from: LockState, to: LockState, cause: LockCause) -> Outcome {
    let (at, scope, messages) = (Timestamp(1), Scope::User, vec!["m".to_owned()]);
    Outcome::Lock(Some(LockChange { at, scope, from, to, unlocks_used: 2, cause, messages }))
}

fn outcomes() -> Vec<(&'static str, Outcome)> {
    let mut rows = vec![
        ("=done", Outcome::Done),
        ("=batch", Outcome::Batch(vec![Outcome::Done])),
        ("=accepted", admission(AdmissionVerdict::Accepted)),
        ("=recorded", admission(AdmissionVerdict::Recorded)),
        ("=limit-user-minute", limit(Scope::User, Window::Minute, LimitUnit::Messages)),
        ("=limit-identity-hour", limit(Scope::Identity, Window::Hour, LimitUnit::Recipients)),
        ("=limit-domain-day", limit(Scope::Domain, Window::Day, LimitUnit::Messages)),
        ("=limit-null-month", limit(Scope::NullSender, Window::Month, LimitUnit::Messages)),
        ("=distinct", admission(AdmissionVerdict::DistinctRecipients { limit: 1, retry_after_s: 2 })),
        ("=locked", admission(AdmissionVerdict::Locked { scope: Scope::User, state: LockState::LockedManually })),
        ("=no-user", admission(AdmissionVerdict::NoUser)),
        ("=stale", admission(AdmissionVerdict::Stale)),
        ("=user-added", Outcome::UserAdded(UserId(1))),
        ("=imported", Outcome::Imported(ImportReport { added: 1, refused: vec![(2, Refusal::OwnerMissing)] })),
        ("=lock-none", Outcome::Lock(None)),
    ];
    let until = Timestamp(9);
    rows.extend([
        ("=lock-virus", lock(LockState::Unlocked, LockState::Locked { until }, LockCause::Virus)),
        (
            "=lock-phish",
            lock(LockState::Unlocked, LockState::Locked { until }, LockCause::Phish { count: 1, minutes: 2 }),
        ),
        (
            "=lock-spam",
            lock(LockState::Unlocked, LockState::Locked { until }, LockCause::Spam { count: 1, minutes: 2 }),
        ),
        (
            "=lock-mean",
            lock(LockState::Unlocked, LockState::Unlocked, LockCause::MeanScore { mean: 1, count: 2, minutes: 3 }),
        ),
        ("=lock-invalid", lock(LockState::Unlocked, LockState::Unlocked, LockCause::InvalidRecipients { count: 1 })),
        (
            "=lock-limit",
            lock(LockState::Unlocked, LockState::Unlocked, LockCause::Limit { window: Window::Day, limit: 1 }),
        ),
        ("=lock-timeout", lock(LockState::Locked { until }, LockState::LockedPermanently, LockCause::Timeout)),
        ("=lock-manual", lock(LockState::Unlocked, LockState::LockedManually, manual())),
        ("=auth-blocked", Outcome::AuthFailure { blocked_until: Some(until) }),
    ]);
    rows.extend(refusals().map(|(name, refusal)| (name, Outcome::Refused(refusal))));
    rows.push(("=joined", Outcome::Joined(1)));
    rows
}

fn manual() -> LockCause {
    LockCause::Manual { actor: Actor("root".to_owned()), reason: "why".to_owned() }
}

fn refusals() -> [(&'static str, Refusal); 25] {
    let text = || "t".to_owned();
    [
        ("=unknown-domain", Refusal::UnknownDomain(domain())),
        ("=domain-exists", Refusal::DomainExists(domain())),
        ("=domain-in-use", Refusal::DomainInUse(domain())),
        ("=unknown-user", Refusal::UnknownUser(login())),
        ("=user-exists", Refusal::UserExists(login())),
        ("=network-taken", Refusal::NetworkTaken("192.0.2.1".parse().unwrap(), domain())),
        ("=unknown-identity", Refusal::UnknownIdentity(login(), text())),
        ("=owner-missing", Refusal::OwnerMissing),
        ("=password-missing", Refusal::PasswordMissing),
        ("=unknown-import", Refusal::UnknownImport(1)),
        ("=import-refused", Refusal::ImportRefused(1, text())),
        ("=unknown-dkim-key", Refusal::UnknownDkimKey(domain(), text())),
        ("=not-blocked", Refusal::NotBlocked { address: address() }),
        ("=owner-differs", Refusal::OwnerDiffers(login(), domain())),
        ("=bad-setting", Refusal::BadSetting(text())),
        ("=import-too-large", Refusal::ImportTooLarge(1)),
        ("=too-many-imports", Refusal::TooManyImports(1)),
        ("=nested-batch", Refusal::NestedBatch),
        ("=formed-already", Refusal::FormedAlready),
        ("=unknown-token", Refusal::UnknownToken),
        ("=too-many-tokens", Refusal::TooManyTokens(1)),
        ("=address-taken", Refusal::AddressTaken(text(), 1)),
        ("=unknown-node", Refusal::UnknownNode(1)),
        ("=last-node", Refusal::LastNode(1)),
        ("=not-new", Refusal::NotNew),
    ]
}
