//! What is said to the cluster port by those who have no business there, and by members that talk nonsense.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use crate::support::client::{AnyCertificate, letter};
use crate::support::cluster::TestCluster;
use crate::support::node::{TestNode, outgate};
use crate::support::sink::Sink;

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
/// Channels of the greeting, by their numbers.
const RAFT: u32 = 0;
const CONTROL: u32 = 2;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What a node shows and signs with.
struct Papers {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cluster: Vec<u8>,
}

impl Papers {
    fn of(data: &Path) -> Self {
        let read = |name: &str| fs::read(data.join("cluster/network").join(name)).unwrap();
        let own = CertificateDer::from_pem_slice(&read("certificate.pem")).unwrap();
        let parsed = webpki::EndEntityCert::try_from(&own).unwrap();
        let name = parsed.valid_dns_names().next().unwrap().to_owned();
        let id = name.split_once('.').unwrap().1;
        let octet = |at: usize| u8::from_str_radix(&id[at..at + 2], 16).unwrap();
        let authority = CertificateDer::from_pem_slice(&read("authority.pem")).unwrap();
        let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
        Self { chain: vec![own, authority], key, cluster: (0..id.len()).step_by(2).map(octet).collect() }
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
    stream
}

fn dial(address: SocketAddr, papers: Option<&Papers>) -> Stream {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate));
    let config = match papers {
        Some(papers) => builder.with_client_auth_cert(papers.chain.clone(), papers.key.clone_key()).unwrap(),
        None => builder.with_no_client_auth(),
    };
    let name = ServerName::try_from("node").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), tcp(address))
}

fn frame(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_le_bytes()[..], &[0; 8], body].concat()
}

fn hello(cluster: &[u8], node: u64, channel: u32) -> Vec<u8> {
    let versions = [2_u16.to_le_bytes(), 2_u16.to_le_bytes()].concat();
    frame(&[&versions, cluster, &node.to_le_bytes(), &channel.to_le_bytes()].concat())
}

/// Everything that comes until the other end closes, or breaks off.
fn rest(stream: &mut impl Read) -> Vec<u8> {
    let (mut all, mut part) = (Vec::new(), [0; 1024]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => return all,
            Ok(count) => all.extend_from_slice(&part[..count]),
            Err(error) => {
                let timed_out = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&error.kind());
                assert!(!timed_out, "the connection stays open: {all:?}");
                return all;
            }
        }
    }
}

/// A connection that was let in: what is said next is heard.
fn admitted(address: SocketAddr, papers: &Papers, node: u64, channel: u32) -> Stream {
    let mut stream = dial(address, Some(papers));
    stream.write_all(&hello(&papers.cluster, node, channel)).unwrap();
    let mut welcome = [0; 18];
    stream.read_exact(&mut welcome).unwrap();
    assert_eq!(welcome[12..16], [0; 4], "it was turned away");
    stream
}

fn write(node: &TestNode, subject: &str) -> u16 {
    node.login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, subject, "hello")).code
}

#[test]
fn nonsense_on_the_cluster_port_is_cut_off_and_changes_nothing() {
    let sink = Sink::start();
    let cluster = TestCluster::with_alice(&sink);
    let leader = cluster.leader();
    let status = cluster.nodes[0].cluster_status().unwrap();
    let address: SocketAddr = status["nodes"][leader]["address"].as_str().unwrap().parse().unwrap();
    let member = (leader + 1) % 3;
    let (papers, id) = (Papers::of(&cluster.nodes[member].data()), member as u64 + 1);
    let noise: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();

    // No TLS at all, and a handshake that never goes on.
    for said in [&noise[..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = tcp(address);
        // It may be cut off before all is said.
        drop(stream.write_all(said));
        rest(&mut stream);
    }
    let silent: Vec<TcpStream> = (0..20).map(|_| tcp(address)).collect();

    // Strangers: without a certificate, with one of another cluster, with that of another node.
    let mut stream = dial(address, None);
    stream.write_all(&hello(&papers.cluster, id, RAFT)).unwrap();
    assert_eq!(rest(&mut stream)[12..16], 1_u32.to_le_bytes(), "turned away");
    let directory = tempfile::tempdir().unwrap();
    assert!(outgate(&["init", "--data", directory.path().join("data").to_str().unwrap()]).status.success());
    let foreign = Papers::of(&directory.path().join("data"));
    let mut stream = dial(address, Some(&foreign));
    drop(stream.write_all(&hello(&papers.cluster, 1, RAFT)));
    assert!(rest(&mut stream).is_empty(), "not even an answer");
    let mut stream = dial(address, Some(&papers));
    stream.write_all(&hello(&papers.cluster, id % 3 + 1, RAFT)).unwrap();
    assert_eq!(rest(&mut stream)[12..16], 1_u32.to_le_bytes(), "turned away");
    let mut stream = dial(address, Some(&papers));
    stream.write_all(&hello(&foreign.cluster, id, RAFT)).unwrap();
    assert_eq!(rest(&mut stream)[12..16], 1_u32.to_le_bytes(), "turned away");
    let mut stream = dial(address, Some(&papers));
    drop(stream.write_all(&frame(&noise)));
    assert!(rest(&mut stream).is_empty(), "a greeting of that size");

    // A member that has lost its mind.
    let huge = [&u32::MAX.to_le_bytes()[..], &[0; 8]].concat();
    for (channel, said) in [
        (RAFT, huge),
        (RAFT, 3_u32.to_le_bytes().to_vec()),
        (RAFT, frame(&noise)),
        (CONTROL, frame(&noise)),
        (CONTROL, frame(&99_u32.to_le_bytes())),
        (CONTROL, frame(&[])),
    ] {
        let mut stream = admitted(address, &papers, id, channel);
        drop(stream.write_all(&said));
        rest(&mut stream);
    }
    let mut stream = admitted(address, &papers, id, RAFT);
    stream.write_all(&frame(&noise)[..1_000]).unwrap();
    stream.sock.shutdown(std::net::Shutdown::Write).unwrap();
    rest(&mut stream);

    for node in &cluster.nodes {
        assert_eq!(write(node, "after all that"), 250);
        assert_eq!(node.cluster_status().unwrap()["leader"], leader as u64 + 1, "the leader has stayed");
    }
    // Whoever says nothing within five seconds is not waited for.
    silent.into_iter().for_each(|mut stream| drop(rest(&mut stream)));
}
