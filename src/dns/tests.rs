#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::SocketAddr;

use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::rdata::{A, CNAME, MX};
use hickory_proto::rr::{Record, RecordType as Kind};
use tokio::net::UdpSocket;

use super::*;

/// What the small server knows: records by name and type; `servfail.*` fails, `silent.*` gets no answer, the rest is NXDOMAIN.
fn records(name: &str, kind: Kind) -> Option<Vec<RData>> {
    let name_of = |text: &str| Name::from_ascii(text).unwrap();
    let mx = |preference, host: &str| RData::MX(MX::new(preference, name_of(host)));
    let a = |last| RData::A(A::new(127, 0, 0, last));
    Some(match (name, kind) {
        ("many.test.", Kind::MX) => vec![mx(20, "c.test."), mx(10, "A.test."), mx(10, "b.test.")],
        ("null.test.", Kind::MX) => vec![mx(0, ".")],
        ("host.test.", Kind::A) => vec![a(1), a(2)],
        ("half.test.", Kind::A) => vec![a(1)],
        ("alias.test.", _) => vec![RData::CNAME(CNAME(name_of("host.test.")))],
        ("many.test." | "null.test." | "host.test." | "empty.test." | "half.test.", _) => Vec::new(),
        _ => return None,
    })
}

/// A server on a port of its own.
pub(crate) async fn serve() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut bytes = [0; 1500];
        while let Ok((length, client)) = socket.recv_from(&mut bytes).await {
            let query = Message::from_vec(&bytes[..length]).unwrap();
            let question = query.queries[0].clone();
            let name = question.name().to_ascii().to_ascii_lowercase();
            let mut answer = query.clone();
            answer.metadata.message_type = MessageType::Response;
            answer.metadata.response_code = ResponseCode::NoError;
            match records(&name, question.query_type()) {
                _ if name.starts_with("silent.") => continue,
                _ if name.starts_with("servfail.") || (name == "half.test." && question.query_type() == Kind::AAAA) => {
                    answer.metadata.response_code = ResponseCode::ServFail;
                }
                None => answer.metadata.response_code = ResponseCode::NXDomain,
                Some(found) => {
                    for data in found {
                        answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
                    }
                }
            }
            socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
        }
    });
    address
}

async fn dns() -> Dns {
    Dns::new(&DnsConfig { servers: vec![serve().await], timeout_s: 1 }).unwrap()
}

#[tokio::test]
async fn exchangers_come_by_preference_and_equals_in_any_order() {
    let mut firsts = std::collections::BTreeSet::new();
    let dns = dns().await;
    for _ in 0..64 {
        let Exchangers::Hosts(hosts) = dns.exchangers("many.test").await.unwrap() else { panic!("no hosts") };
        assert_eq!((hosts.len(), hosts[2].as_str()), (3, "c.test"));
        firsts.insert(hosts[0].clone());
    }
    assert_eq!(firsts.into_iter().collect::<Vec<_>>(), ["a.test", "b.test"]);
}

#[tokio::test]
async fn what_is_surely_absent_is_told_from_what_was_not_answered() {
    let dns = dns().await;
    assert_eq!(dns.exchangers("null.test").await, Ok(Exchangers::Null));
    assert_eq!(dns.exchangers("host.test").await, Ok(Exchangers::Hosts(vec!["host.test".to_owned()])));
    assert_eq!(dns.exchangers("empty.test").await, Ok(Exchangers::None));
    assert_eq!(dns.exchangers("missing.test").await, Ok(Exchangers::None));
    assert_eq!(dns.exchangers("not a name..test").await, Ok(Exchangers::None));
    for name in ["servfail.test", "silent.test"] {
        assert_eq!(dns.exchangers(name).await, Err(DnsError { name: name.to_owned() }));
    }
}

#[tokio::test]
async fn addresses_follow_aliases_and_one_family_is_enough() {
    let dns = dns().await;
    let v4 = |last| IpAddr::from([127, 0, 0, last]);
    let mut both = dns.addresses("host.test").await.unwrap();
    both.sort_unstable();
    assert_eq!(both, [v4(1), v4(2)]);
    assert_eq!(dns.addresses("half.test").await, Ok(vec![v4(1)]));
    assert_eq!(dns.addresses("alias.test").await.map(|found| found.len()), Ok(2));
    assert_eq!(dns.addresses("empty.test").await, Ok(vec![]));
    assert_eq!(dns.addresses("192.0.2.1").await, Ok(vec![IpAddr::from([192, 0, 2, 1])]));
    assert!(dns.addresses("servfail.test").await.is_err());
}

#[tokio::test]
async fn so_many_questions_are_asked_at_once_and_no_more() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let servers = vec![server.local_addr().unwrap()];
    let dns = Dns::new(&DnsConfig { servers, timeout_s: 60 }).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..QUESTIONS_AT_ONCE_MAX + 1 {
        let dns = dns.clone();
        tasks.spawn(async move { dns.mail_exchangers(&format!("n{number}.test")).await });
    }
    let mut bytes = [0; 1500];
    let mut asked = std::collections::BTreeMap::new();
    while asked.len() < QUESTIONS_AT_ONCE_MAX {
        let (length, client) = server.recv_from(&mut bytes).await.unwrap();
        let query = Message::from_vec(&bytes[..length]).unwrap();
        asked.insert(query.queries[0].name().to_ascii(), (query, client));
    }
    // One is left over, which waits for a turn; who has a bound of his own does not.
    assert_eq!((dns.questions.available_permits(), tasks.len()), (0, QUESTIONS_AT_ONCE_MAX + 1));
    let apart = dns.with_own_bound();
    tokio::spawn(async move { apart.mail_exchangers("apart.test").await });
    let next = |asked: std::collections::BTreeSet<String>| {
        let server = &server;
        async move {
            let mut bytes = [0; 1500];
            loop {
                let (length, _) = server.recv_from(&mut bytes).await.unwrap();
                let name = Message::from_vec(&bytes[..length]).unwrap().queries[0].name().to_ascii();
                if !asked.contains(&name) {
                    return name;
                }
            }
        }
    };
    let names: std::collections::BTreeSet<String> = asked.keys().cloned().collect();
    assert_eq!(next(names.clone()).await, "apart.test.");
    let (mut answer, client) = asked.into_values().next().unwrap();
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.response_code = ResponseCode::NXDomain;
    server.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
    assert!(matches!(tasks.join_next().await, Some(Ok(Ok(_)))));
    let known = names.into_iter().chain(["apart.test.".to_owned()]).collect();
    assert!(next(known).await.starts_with('n'));
}
