//! Everything in the state that a client can make grow stops growing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};

use outgate_cluster::command::{DomainPatch, NewUser};
use outgate_cluster::state::settings::{Patch, Value};
use outgate_cluster::state::{AuthGate, Key};
use outgate_cluster::{
    Actor, Admission, AdmissionId, AdmissionVerdict, Admit, Class, Command, DomainName, Login, Outcome, Refusal, State,
    Subject, Timestamp, UserId, Wish,
};

const START: Timestamp = Timestamp(1_800_000_000_000);

fn login(number: u32) -> Login {
    format!("u{number}@a.example").parse().unwrap()
}

fn new_user(number: u32) -> NewUser {
    NewUser { login: login(number), owner: None, password_hash: Some("$".to_owned()), settings: Patch::default() }
}

fn state() -> (State, UserId) {
    let mut state = State::default();
    let name = DomainName::new("a.example").unwrap();
    state.apply(START, Command::DomainAdd { name, patch: DomainPatch::default() });
    let unlimited = Patch(vec![("limits_enabled".to_owned(), Some(Value::Bool(false)))]);
    state.apply(START, Command::DefaultsSet { patch: unlimited });
    let Outcome::UserAdded(id) = state.apply(START, Command::UserAdd { user: new_user(0) }) else {
        panic!("not added")
    };
    (state, id)
}

fn admit(user: UserId, sequence: u64, identity: Option<String>) -> Admit {
    Admit {
        id: AdmissionId { node: 1, epoch: 1, sequence },
        settled_below: 0,
        user,
        identity,
        wish: Wish::Accept,
        class: Class::Clean,
        score: 0,
        recipients: vec![1],
        null_sender: false,
        to_contact: false,
        message: "m".to_owned(),
    }
}

fn verdict(state: &mut State, admit: Admit) -> AdmissionVerdict {
    let outcome = state.apply(START, Command::Admit(admit));
    let Outcome::Admission(Admission { verdict, .. }) = outcome else { panic!("{outcome:?}") };
    verdict
}

#[test]
fn identities_beyond_the_bound_share_one() {
    let (mut state, user) = state();
    for number in 0..50_010 {
        let mut admit = admit(user, number, Some(format!("i{number}")));
        admit.settled_below = number;
        assert_eq!(verdict(&mut state, admit), AdmissionVerdict::Accepted);
    }
    let identities = state.identities(user);
    assert_eq!(identities.len(), 50_000);
    assert_eq!(identities[0].identity, "*");
    assert_eq!(state.limits(user, Some("i50005")).windows[0].used, 11);
    assert_eq!(state.limits(user, Some("i49998")).windows[0].used, 1);
}

#[test]
fn identities_with_endless_names_share_one() {
    let (mut state, user) = state();
    for (sequence, length) in (0..).zip([320, 321, 10_000]) {
        let admit = admit(user, sequence, Some("x".repeat(length)));
        assert_eq!(verdict(&mut state, admit), AdmissionVerdict::Accepted);
    }
    let names: Vec<usize> = state.identities(user).iter().map(|identity| identity.identity.len()).collect();
    assert_eq!(names, [1, 320]);
}

#[test]
fn a_node_that_settles_nothing_is_told_stale() {
    let (mut state, user) = state();
    for sequence in 0..1 << 17 {
        assert_eq!(verdict(&mut state, admit(user, sequence, None)), AdmissionVerdict::Accepted);
    }
    assert_eq!(verdict(&mut state, admit(user, 1 << 17, None)), AdmissionVerdict::Stale);
    // What is remembered is still answered, and settling one makes room for one.
    assert_eq!(verdict(&mut state, admit(user, 5, None)), AdmissionVerdict::Accepted);
    let mut next = admit(user, 1 << 17, None);
    next.settled_below = 1;
    assert_eq!(verdict(&mut state, next), AdmissionVerdict::Accepted);
    assert_eq!(state.limits(user, None).windows[0].used, (1 << 17) + 1);
}

#[test]
fn the_oldest_source_of_failed_logins_gives_way() {
    let (mut state, _) = state();
    let address = |number: u32| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number));
    for number in 0..100_005_u32 {
        let at = START.plus_millis(number.into());
        for _ in 0..2 {
            state.apply(at, Command::AuthFailed { user: None, address: address(number) });
        }
    }
    assert_eq!(state.keys().filter(|key| matches!(key, Key::Source(_))).count(), 100_000);
    assert_eq!(state.auth_gate(address(4), None, START), AuthGate::Open);
    assert_eq!(state.auth_gate(address(5), None, START), AuthGate::Delay { millis: 500 });
}

#[test]
fn history_keeps_the_newest_hundred() {
    let (mut state, user) = state();
    let subject = Subject { login: login(0), identity: None };
    for round in 0..60 {
        let actor = Actor(format!("admin {round}"));
        state.apply(START, Command::Lock { subject: subject.clone(), actor: actor.clone(), reason: String::new() });
        state.apply(START, Command::Unlock { subject: subject.clone(), actor });
    }
    let history = state.lock(user, None).history;
    assert_eq!(history.len(), 100);
    assert!(format!("{:?}", history[0]).contains("admin 10"));
    assert!(format!("{:?}", history[99]).contains("admin 59"));
}

#[test]
fn an_import_takes_a_million_users_at_most() {
    let (mut state, _) = state();
    let part: Vec<NewUser> = (0..250_000).map(new_user).collect();
    for _ in 0..4 {
        assert_eq!(state.apply(START, Command::ImportStage { import: 1, users: part.clone() }), Outcome::Done);
    }
    let one = vec![new_user(1)];
    let refused = Outcome::Refused(Refusal::ImportTooLarge(1_000_000));
    assert_eq!(state.apply(START, Command::ImportStage { import: 1, users: one }), refused);
}

#[test]
fn strikes_beyond_the_largest_rule_are_not_kept() {
    let (mut state, user) = state();
    let off = ["abuse_spam_count", "abuse_mean_10_minutes", "abuse_mean_hour", "abuse_mean_day"];
    let patch = Patch(off.map(|key| (key.to_owned(), Some(Value::Number(0)))).to_vec());
    assert_eq!(state.apply(START, Command::DefaultsSet { patch }), Outcome::Done);
    let mut size = |from: u64| {
        for sequence in from..from + 200 {
            let admit = Admit { class: Class::Spam, wish: Wish::Refuse, ..admit(user, sequence, None) };
            assert_eq!(verdict(&mut state, admit), AdmissionVerdict::Recorded);
        }
        state.record(&Key::Conduct(user)).unwrap().len()
    };
    assert_eq!(size(0), size(200));
}

#[test]
fn a_batch_in_a_batch_is_refused() {
    let (mut state, _) = state();
    let inner = Command::Batch(vec![Command::Tick]);
    let outcome = state.apply(START, Command::Batch(vec![inner, Command::Tick]));
    assert_eq!(outcome, Outcome::Batch(vec![Outcome::Refused(Refusal::NestedBatch), Outcome::Done]));
}

/// A command that another version let through changes nothing.
#[test]
fn settings_are_checked_where_they_are_applied() {
    let (mut state, _) = state();
    let before = state.defaults();
    for (key, value) in
        [("colour", Value::Bool(true)), ("lock_timeout", Value::Number(0)), ("spam_score", Value::Bool(true))]
    {
        let patch = Patch(vec![("limit_per_hour".to_owned(), Some(Value::Number(1))), (key.to_owned(), Some(value))]);
        let outcome = state.apply(START, Command::DefaultsSet { patch });
        assert_eq!(outcome, Outcome::Refused(Refusal::BadSetting(key.to_owned())));
    }
    assert_eq!(state.defaults(), before);
}

/// A record without its owner is damage, not a panic.
#[test]
fn damaged_records_are_refused() {
    let (state, user) = state();
    let mut empty = State::default();
    let record = state.record(&Key::User(user)).unwrap();
    assert!(empty.restore(Key::User(user), &record).is_err());
    assert!(empty.restore(Key::Clock, &record).is_err());
    assert!(empty.restore(Key::Conduct(user), &[]).is_err());
}
