//! A name server with the zone of a test.

use std::net::{SocketAddr, UdpSocket};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, MX};
use hickory_proto::rr::{Name, RData, Record, RecordType};

/// Lines such as `example.com MX 10 mx.example.com`, `mx.example.com A 127.0.0.1`, `broken.test SERVFAIL`.
/// A name that no line begins with does not exist.
pub fn serve(zone: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let answer = answer(zone, &Message::from_vec(&buffer[..length]).unwrap());
            socket.send_to(&answer.to_vec().unwrap(), client).unwrap();
        }
    });
    address
}

fn answer(zone: &str, request: &Message) -> Message {
    let question = request.queries[0].clone();
    let name = question.name().to_utf8().trim_end_matches('.').to_lowercase();
    let lines: Vec<Vec<&str>> = zone
        .lines()
        .map(|line| line.split_whitespace().collect())
        .filter(|words: &Vec<&str>| words.first() == Some(&name.as_str()))
        .collect();
    let mut message = Message::response(request.metadata.id, OpCode::Query);
    message.metadata.authoritative = true;
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    if lines.is_empty() {
        message.metadata.response_code = ResponseCode::NXDomain;
    } else if lines.iter().any(|words| words[1] == "SERVFAIL") {
        message.metadata.response_code = ResponseCode::ServFail;
    }
    let records =
        lines.iter().filter_map(|words| record(question.name(), question.query_type(), words)).collect::<Vec<_>>();
    message.add_query(question);
    message.add_answers(records);
    message
}

fn record(name: &Name, wanted: RecordType, words: &[&str]) -> Option<Record> {
    let data = match (words[1], wanted) {
        ("A", RecordType::A) => RData::A(A(words[2].parse().unwrap())),
        ("MX", RecordType::MX) => RData::MX(MX::new(words[2].parse().unwrap(), Name::from_utf8(words[3]).unwrap())),
        _ => return None,
    };
    Some(Record::from_rdata(name.clone(), 60, data))
}
