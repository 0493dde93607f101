//! Three nodes as operators run them: three processes, joined by tokens.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::net::Net;
use super::node::{PASSWORD, TestNode};
use super::peer;
use super::sink::Sink;

pub struct TestCluster {
    pub nodes: Vec<TestNode>,
}

impl TestCluster {
    /// Three voters that deliver everything to `sink`, with the domain `demo.test` and the mailbox user `alice@demo.test`.
    pub fn with_alice(sink: &Sink) -> Self {
        Self::in_directories(sink, || tempfile::tempdir().unwrap())
    }

    /// The same with the nodes' data in these directories.
    pub fn in_directories(sink: &Sink, mut directory: impl FnMut() -> TempDir) -> Self {
        Self::found(|_| prepare(sink, directory()))
    }

    /// The same on machines whose clocks are wrong by this. `None`, said aloud, where no clock can be.
    pub fn with_clocks(sink: &Sink, offsets: [&str; 3]) -> Option<Self> {
        let library = peer::faketime()?;
        Some(Self::found(|number| {
            let (mut node, address) = prepare(sink, tempfile::tempdir().unwrap());
            node.set_clock(&library, offsets[number]);
            (node, address)
        }))
    }

    fn found(mut prepare: impl FnMut(usize) -> (TestNode, String)) -> Self {
        let mut cluster = Self { nodes: Vec::new() };
        let (first, address) = prepare(0);
        let init = run(&first, &["init", "--data", first.data().to_str().unwrap(), "--cluster", &address]);
        cluster.nodes.push(first);
        cluster.nodes[0].restart();
        for line in init.lines().filter_map(|line| line.trim().strip_prefix("outgate join ")) {
            let words: Vec<&str> = line.split(' ').collect();
            let (mut node, address) = prepare(cluster.nodes.len());
            let data = node.data();
            let own = ["--data", data.to_str().unwrap(), "--cluster", &address];
            run(&node, &[&["join"], words.as_slice(), &own].concat());
            node.restart();
            cluster.nodes.push(node);
        }
        assert_eq!(cluster.nodes.len(), 3, "{init}");
        cluster.wait_for_voters();
        cluster.add_alice();
        cluster
    }

    /// The same on machines 1 to 3 of a network, at port 587 of each.
    pub fn over(net: &Net, sink: &Sink) -> Self {
        let mut cluster = Self { nodes: Vec::new() };
        for machine in 1..=3 {
            let host = net.address(machine);
            let config = format!(
                "[delivery]\nrelay = \"{}\"\n[cluster]\nlisten = \"{host}:7587\"\n[[listener]]\naddress = \"{host}:587\"\nmode = \"submission\"\n[[listener]]\naddress = \"{host}:465\"\nmode = \"submissions\"\n",
                sink.address
            );
            let mut node = TestNode::prepare(tempfile::tempdir().unwrap(), &config);
            node.within = Some(net.namespace(machine));
            let data = node.data();
            let (address, first) = (format!("{host}:7587"), format!("{}:7587", net.address(1)));
            let own = ["--data", data.to_str().unwrap(), "--cluster", &address];
            if let Some(member) = cluster.nodes.first() {
                let token = member.json(&["cluster", "token"])["token"].as_str().unwrap().to_owned();
                run(&node, &[["join", &first, "--token", &token].as_slice(), &own].concat());
            } else {
                run(&node, &[["init"].as_slice(), &own].concat());
            }
            node.restart();
            cluster.nodes.push(node);
        }
        cluster.wait_for_voters();
        cluster.add_alice();
        cluster
    }

    fn add_alice(&self) {
        let node = &self.nodes[2];
        node.ok(&["domain", "add", "demo.test", "contact=postmaster@demo.test"]);
        node.ok(&["settings", "set", "valid_sender_required=off"]);
        node.ok(&["user", "add", "alice@demo.test", "--password", PASSWORD]);
    }

    pub fn wait_for_voters(&self) {
        super::wait_for("three voters", || {
            let status = self.nodes[0].json(&["cluster", "status"]);
            let voters = status["nodes"].as_array()?.iter().filter(|node| node["role"] != "learner").count();
            (voters == 3).then_some(())
        });
    }

    /// The position of the leader, as a node that runs says.
    pub fn leader(&self) -> usize {
        super::wait_for("a leader", || {
            let status = self.nodes.iter().find_map(TestNode::cluster_status)?;
            usize::try_from(status["leader"].as_u64()?).ok()?.checked_sub(1)
        })
    }

    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.submission).collect()
    }
}

fn prepare(sink: &Sink, directory: TempDir) -> (TestNode, String) {
    // A port that was free a moment ago: the others must find it again after a restart.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = format!("[delivery]\nrelay = \"{}\"\n[cluster]\nlisten = \"{address}\"\n", sink.address);
    (TestNode::prepare(directory, &config), address)
}

/// The program on the node's machine, before there is a node.
fn run(node: &TestNode, arguments: &[&str]) -> String {
    let output = node.program().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Knocks for as long.
pub fn assert_never_refused(addresses: &[SocketAddr], patience: Duration) {
    let began = Instant::now();
    while began.elapsed() < patience {
        for address in addresses {
            let knock = TcpStream::connect(address);
            assert!(knock.is_ok(), "{address} refused after {:?}: {knock:?}", began.elapsed());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
