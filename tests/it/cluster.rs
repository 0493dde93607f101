//! Three nodes, one truth: what clients of any node see while nodes come and go.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::{Client, letter};
use crate::support::cluster::{TestCluster, assert_never_refused};
use crate::support::node::{PASSWORD, TestNode, outgate};
use crate::support::sink::Sink;
use crate::support::{peer, wait_at_most, wait_for};

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
/// Of what a node knows of the sessions at the others.
const COUNTS_AGE_MAX: Duration = Duration::from_secs(1);

fn write(client: &mut Client, subject: &str) -> crate::support::client::Answer {
    client.mail(ALICE, BOB, &letter(ALICE, BOB, subject, "hello"))
}

#[test]
fn exactly_the_limit_gets_through_over_all_nodes() {
    let sink = Sink::start();
    let cluster = TestCluster::with_alice(&sink);
    cluster.nodes[1].ok(&["user", "set", ALICE, "limit_per_minute=10"]);
    let accepted = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for session in 0..9 {
            let (accepted, node) = (&accepted, &cluster.nodes[session % 3]);
            let mut client = node.login(ALICE);
            scope.spawn(move || {
                for number in 0..5 {
                    let answer = write(&mut client, &format!("{session}/{number}"));
                    accepted.fetch_add(usize::from(answer.code == 250), Ordering::Relaxed);
                    assert!(answer.code == 250 || answer.text.starts_with("451 4.7.1 limit of 10"), "{answer:?}");
                }
            });
        }
    });
    assert_eq!(accepted.into_inner(), 10);
    sink.wait(10);
    for node in &cluster.nodes {
        assert_eq!(node.json(&["user", "show", ALICE])["windows"][0]["used"], 10);
    }
}

#[test]
fn sessions_are_counted_over_all_nodes_and_a_dead_node_has_none() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    cluster.nodes[0].ok(&["user", "set", ALICE, "max_connections=2"]);
    let held = [cluster.nodes[0].login(ALICE), cluster.nodes[1].login(ALICE)];
    std::thread::sleep(COUNTS_AGE_MAX);
    for node in &cluster.nodes {
        assert_eq!(try_login(node), 421);
    }
    let [first, second] = held;
    drop(first);
    wait_for("a place that came free elsewhere", || (try_login(&cluster.nodes[2]) == 235).then_some(()));
    let again = cluster.nodes[0].login(ALICE);
    std::thread::sleep(COUNTS_AGE_MAX);
    assert_eq!(try_login(&cluster.nodes[2]), 421);
    cluster.nodes[1].kill();
    wait_for("the places of a dead node", || (try_login(&cluster.nodes[2]) == 235).then_some(()));
    drop((second, again));
}

fn try_login(node: &TestNode) -> u16 {
    Client::secured(node.submission).auth(ALICE, PASSWORD).code
}

#[test]
fn a_lock_through_one_node_holds_at_the_others_from_the_moment_it_returns() {
    let sink = Sink::start();
    let cluster = TestCluster::with_alice(&sink);
    let mut clients: Vec<Client> = cluster.nodes.iter().map(|node| node.login(ALICE)).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(write(client, &format!("before {at}")).code, 250);
    }
    cluster.nodes[0].ok(&["user", "lock", ALICE]);
    for (at, client) in clients.iter_mut().enumerate() {
        let refused = write(client, &format!("locked {at}"));
        assert!(refused.text.starts_with("451 4.7.1 alice@demo.test is locked"), "{refused:?}");
    }
    cluster.nodes[1].ok(&["user", "unlock", ALICE]);
    for (at, client) in clients.iter_mut().enumerate() {
        assert_eq!(write(client, &format!("after {at}")).code, 250);
    }
    sink.wait(6);
    assert_eq!(cluster.nodes[2].lock_of(ALICE)["state"], "unlocked");
}

/// Sends over one node after the other until told to stop, as a client of a round-robin name does; notes what got 250.
fn send_round_robin(addresses: &[SocketAddr], session: usize, accepted: &Mutex<BTreeSet<String>>, stop: &AtomicBool) {
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let address = addresses[(session + number) % addresses.len()];
        let subject = format!("{session}-{number}");
        if try_send(address, &subject).is_some_and(|code| code == 250) {
            accepted.lock().unwrap().insert(subject);
        }
    }
}

/// One message over a connection of its own; `None` where it broke off.
fn try_send(address: SocketAddr, subject: &str) -> Option<u16> {
    let mut client = Client::try_login(address, ALICE, PASSWORD)?;
    client.try_mail(ALICE, BOB, &letter(ALICE, BOB, subject, "hello")).map(|answer| answer.code)
}

#[test]
fn killed_nodes_cost_no_accepted_message_and_no_limit() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    for window in ["minute", "hour", "day", "week", "month"] {
        cluster.nodes[0].ok(&["user", "set", ALICE, &format!("limit_per_{window}=1000000")]);
    }
    let accepted = Mutex::new(BTreeSet::new());
    for round in 0..3 {
        let victim = if round == 2 { (cluster.leader() + 1) % 3 } else { cluster.leader() };
        let (addresses, stop) = (cluster.addresses(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for session in 0..4 {
                let (addresses, accepted, stop) = (&addresses, &accepted, &stop);
                scope.spawn(move || send_round_robin(addresses, round * 10 + session, accepted, stop));
            }
            let count = || accepted.lock().unwrap().len();
            let more = |what: &str, by: usize| {
                let goal = count() + by;
                wait_at_most(Duration::from_secs(30), what, || (count() > goal).then_some(()));
            };
            more("load", 40);
            cluster.nodes[victim].kill();
            let killed = Instant::now();
            more("the others go on", 40);
            println!("round {round}: 40 more after {:?}", killed.elapsed());
            stop.store(true, Ordering::Relaxed);
        });
        cluster.nodes[victim].restart();
    }
    let accepted = accepted.into_inner().unwrap();
    wait_at_most(Duration::from_secs(60), "every accepted message", || {
        let arrived: BTreeSet<_> = sink.captured().iter().filter_map(|mail| mail.header("Subject")).collect();
        accepted.is_subset(&arrived).then_some(())
    });
    for node in &cluster.nodes {
        let used = node.json(&["user", "show", ALICE])["windows"][2]["used"].as_u64().unwrap();
        assert!(used >= accepted.len() as u64, "{used} charged, {} accepted", accepted.len());
    }
}

#[test]
fn the_death_of_the_leader_makes_no_other_refuse() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    let leader = cluster.leader();
    cluster.nodes[leader].kill();
    let others = [(leader + 1) % 3, (leader + 2) % 3].map(|node| cluster.nodes[node].submission);
    assert_never_refused(&others, Duration::from_secs(4));
    assert_eq!(write(&mut cluster.nodes[(leader + 1) % 3].login(ALICE), "behind another leader").code, 250);
    sink.wait(1);
}

/// Whether this is in the node's copy of another node's log.
fn keeps_log(node: &TestNode, of: usize, id: &str) -> bool {
    let segments = std::fs::read_dir(node.data().join(format!("maillog/of-{of}"))).into_iter().flatten().flatten();
    segments.into_iter().any(|segment| std::fs::read_to_string(segment.path()).is_ok_and(|text| text.contains(id)))
}

#[test]
fn a_search_says_whose_log_may_lack_something_and_finds_what_others_keep_of_it() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    let (dead, asked) = ((cluster.leader() + 1) % 3, cluster.leader());
    assert_eq!(write(&mut cluster.nodes[dead].login(ALICE), "by a node that dies").code, 250);
    sink.wait(1);
    let records = cluster.nodes[asked].json(&["log", "search", "--status", "accepted"]);
    let id = records[0]["id"].as_str().unwrap().to_owned();
    wait_for("a copy of the log", || cluster.nodes.iter().any(|node| keeps_log(node, dead + 1, &id)).then_some(()));
    cluster.nodes[dead].kill();
    let silent = format!("node {} does not answer", dead + 1);
    let run = |arguments: &[&str]| {
        let ran = cluster.nodes[asked].cli(arguments);
        (ran.status.success(), String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap())
    };
    for arguments in [["log", "search", "--id", &id].as_slice(), &["log", "search"], &["why", &id]] {
        let (is_ok, told, warned) = run(arguments);
        assert!(is_ok && told.contains("by a node that dies") && warned.contains(&silent), "{told}{warned}");
    }
    let (is_ok, _, told) = run(&["why", "01ARZ3NDEKTSV4RRFFQ69G5FAV"]);
    assert!(!is_ok && told.contains(&format!("node {} does not: try again", dead + 1)), "{told}");
}

#[test]
fn without_a_majority_tcp_is_refused_and_mail_comes_back_by_itself() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    let left = (cluster.leader() + 1) % 3;
    let mut open = cluster.nodes[left].login(ALICE);
    let others: Vec<usize> = (0..3).filter(|at| *at != left).collect();
    for at in &others {
        cluster.nodes[*at].kill();
    }
    let (killed, address) = (Instant::now(), cluster.nodes[left].submission);
    wait_for("refused connections", || TcpStream::connect(address).is_err().then_some(()));
    assert!(killed.elapsed() < Duration::from_millis(2_000), "{:?}", killed.elapsed());
    let refused = write(&mut open, "without a majority");
    assert!(refused.text.starts_with("421 4.3.2"), "{refused:?}");
    let told = cluster.nodes[left].cli(&["user", "show", ALICE]);
    assert!(!told.status.success() && String::from_utf8_lossy(&told.stderr).contains("no quorum"), "{told:?}");
    assert_eq!(cluster.nodes[left].get("/readyz").0, 503);
    cluster.nodes[others[0]].spawn();
    let began = Instant::now();
    wait_for("mail is taken again", || TcpStream::connect(address).is_ok().then_some(()));
    println!("back after {:?}", began.elapsed());
    assert_eq!(write(&mut cluster.nodes[left].login(ALICE), "with a majority").code, 250);
    cluster.nodes[others[1]].restart();
    sink.wait(1);
}

/// What it kept would be decided when nobody expects it any more.
#[test]
fn a_leader_that_nobody_follows_takes_no_orders() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    let left = cluster.leader();
    let others = [(left + 1) % 3, (left + 2) % 3];
    others.iter().for_each(|at| cluster.nodes[*at].kill());
    let address = cluster.nodes[left].submission;
    wait_for("refused connections", || TcpStream::connect(address).is_err().then_some(()));
    let removal = cluster.nodes[left].cli(&["cluster", "remove", &(others[0] + 1).to_string()]);
    assert!(String::from_utf8_lossy(&removal.stderr).contains("no quorum"), "{removal:?}");
    others.iter().for_each(|at| cluster.nodes[*at].spawn());
    wait_for("mail is taken again", || TcpStream::connect(address).is_ok().then_some(()));
    assert_eq!(cluster.nodes[left].json(&["cluster", "status"])["nodes"].as_array().unwrap().len(), 3);
}

/// The machine of one node is two hours ahead: its limits and those of the others end no earlier, even when it leads.
#[test]
fn a_wrong_clock_moves_no_window_even_at_the_leader() {
    let Some(library) = peer::faketime() else { return };
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    cluster.nodes[0].ok(&["user", "set", ALICE, "limit_per_hour=3"]);
    for number in 0..3 {
        assert_eq!(write(&mut cluster.nodes[0].login(ALICE), &format!("{number}")).code, 250);
    }
    let wrong = (cluster.leader() + 1) % 3;
    let node = &mut cluster.nodes[wrong];
    node.set_clock(&library, "+2h");
    node.restart();
    for _ in 0..20 {
        let leader = cluster.leader();
        if leader == wrong {
            break;
        }
        // One that is back at once would go on leading; and each life draws its patience with a silent leader anew.
        cluster.nodes[wrong].restart();
        cluster.nodes[leader].kill();
        wait_for("another leader", || (cluster.leader() != leader).then_some(()));
        cluster.nodes[leader].restart();
    }
    assert_eq!(cluster.leader(), wrong, "the node with the wrong clock never led");
    let status = cluster.nodes[(wrong + 1) % 3].cluster_status().unwrap();
    let ahead_ms = status["nodes"][wrong]["clock_offset_ms"].as_i64().unwrap();
    assert!((7_190_000..7_210_000).contains(&ahead_ms), "{status}");
    for node in &cluster.nodes {
        let refused = write(&mut node.login(ALICE), "one too many");
        assert!(refused.text.starts_with("451 4.7.1 limit of 3 messages per hour reached"), "{refused:?}");
    }
    assert!(cluster.nodes[wrong].log().contains("this machine's clock is wrong"), "nobody said so");
    sink.wait(3);
}

#[test]
fn a_drained_node_refuses_tcp_until_it_resumes() {
    let sink = Sink::start();
    let cluster = TestCluster::with_alice(&sink);
    let address = cluster.nodes[1].submission;
    cluster.nodes[0].ok(&["cluster", "drain", "2"]);
    wait_for("refused connections", || TcpStream::connect(address).is_err().then_some(()));
    let status = cluster.nodes[2].json(&["cluster", "status"]);
    assert_eq!(status["nodes"][1]["state"], "draining");
    assert_eq!(write(&mut cluster.nodes[2].login(ALICE), "elsewhere").code, 250);
    cluster.nodes[1].ok(&["resume"]);
    wait_for("mail is taken again", || TcpStream::connect(address).is_ok().then_some(()));
    sink.wait(1);
}

#[test]
fn a_removed_node_takes_no_mail_and_its_data_is_no_way_back() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    cluster.nodes[0].ok(&["cluster", "remove", "3"]);
    let address = cluster.nodes[2].submission;
    wait_for("refused connections", || TcpStream::connect(address).is_err().then_some(()));
    let status = cluster.nodes[0].cli(&["cluster", "status"]);
    assert!(String::from_utf8_lossy(&status.stderr).contains("warning: a cluster of two"), "{status:?}");
    cluster.nodes[2].spawn();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(write(&mut cluster.nodes[1].login(ALICE), "two are left").code, 250);
    assert_eq!(cluster.nodes[2].cluster_status().unwrap()["quorum"], false);
    sink.wait(1);
}

#[test]
fn wrong_ways_to_join_are_one_line_and_change_nothing() {
    let sink = Sink::start();
    let cluster = TestCluster::with_alice(&sink);
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("new");
    let member = cluster.nodes[0].json(&["cluster", "status"])["nodes"][0]["address"].as_str().unwrap().to_owned();
    let used = cluster.nodes[0].json(&["cluster", "token"])["token"].as_str().unwrap().to_owned();
    let join = |member: &str, token: &str, data: &str, address: &str| {
        let output = outgate(&["join", member, "--token", token, "--data", data, "--cluster", address]);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let fresh = data.to_str().unwrap();
    let other = directory.path().join("other");
    assert_eq!(join(&member, &used, other.to_str().unwrap(), "127.0.0.1:1").0, Some(0));
    let own = cluster.nodes[1].data();
    let cases = [
        (join(&member, &used, fresh, "127.0.0.1:2"), "unknown, used or expired"),
        (join(&member, "og1-zz", fresh, "127.0.0.1:2"), "this is not a token"),
        (join(&member, &used, fresh, "nowhere"), "give --cluster host:port"),
        (join("127.0.0.1:1", &used, fresh, "127.0.0.1:2"), "cannot reach 127.0.0.1:1"),
        (join(&member, &used, own.to_str().unwrap(), "127.0.0.1:2"), "already holds a node"),
        (join(&member, &format!("{}0", &used[..used.len() - 1]), fresh, "127.0.0.1:2"), "unknown, used or expired"),
        (join(&member, &used.replace(&used[4..8], "0000"), fresh, "127.0.0.1:2"), "does not belong to the cluster"),
    ];
    for ((code, text), part) in cases {
        assert!(text.contains(part) && text.lines().count() == 1, "`{part}` in {text}");
        assert_eq!(code, Some(2), "{text}");
    }
    assert!(!data.join("cluster").join("identity").exists());
    // A node that lost its disk is no node: it must join anew.
    let nobody = TestNode::prepare(tempfile::tempdir().unwrap(), "");
    let output = outgate(&["run", "--config", nobody.path().join("outgate.toml").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_log_or_a_queue_of_another_node_is_refused() {
    let sink = Sink::start();
    let mut cluster = TestCluster::with_alice(&sink);
    cluster.nodes.iter_mut().for_each(TestNode::kill);
    let foreign = cluster.nodes[1].data();
    for part in ["cluster/log", "cluster/snapshot", "queue", "quarantine", "maillog"] {
        let node = &mut cluster.nodes[0];
        let (own, aside) = (node.data().join(part), node.path().join("aside"));
        std::fs::rename(&own, &aside).unwrap();
        std::process::Command::new("cp").arg("-r").args([foreign.join(part), own.clone()]).status().unwrap();
        let output = outgate(&["run", "--config", node.path().join("outgate.toml").to_str().unwrap()]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("belongs to another node, number 2"), "{part}: {text}");
        assert_eq!(output.status.code(), Some(2), "{part}: {text}");
        std::fs::remove_dir_all(&own).unwrap();
        std::fs::rename(&aside, &own).unwrap();
    }
    cluster.nodes.iter_mut().for_each(TestNode::spawn);
    cluster.nodes.iter_mut().for_each(TestNode::wait_until_ready);
}

#[test]
fn dev_runs_three_processes_that_end_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let (data, ready) = (directory.path().join("d"), directory.path().join("ready.json"));
    let mut dev = std::process::Command::new(env!("CARGO_BIN_EXE_outgate"))
        .args([
            "dev",
            "--no-traffic",
            "--submission-port",
            "0",
            "--submissions-port",
            "0",
            "--http-port",
            "0",
            "--data",
        ])
        .arg(&data)
        .arg("--ready-file")
        .arg(&ready)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let read = || serde_json::from_slice::<serde_json::Value>(&std::fs::read(&ready).ok()?).ok();
    let told = wait_at_most(Duration::from_secs(60), "the ready file", read);
    let nodes = told["nodes"].as_array().unwrap();
    let hosts: Vec<&str> =
        nodes.iter().map(|node| node["submission"].as_str().unwrap().split(':').next().unwrap()).collect();
    assert_eq!(hosts, ["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
    for node in nodes {
        TcpStream::connect(node["submission"].as_str().unwrap()).unwrap();
    }
    let kill = |told: &serde_json::Value, node: usize| {
        let pid = told["nodes"][node]["pid"].to_string();
        std::process::Command::new("kill").args(["-9", &pid]).status().unwrap();
    };
    let data = data.to_str().unwrap();
    let restart = |id: &str| {
        wait_for("the restart", || {
            let restart = outgate(&["dev", "restart", id, "--data", data]);
            restart.status.success().then_some(restart)
        })
    };
    kill(&told, 1);
    let again = restart("2");
    assert!(String::from_utf8_lossy(&again.stdout).starts_with("node 2 runs as process "));
    assert!(again.stderr.is_empty(), "the others run: {again:?}");
    let told = read().unwrap();
    (0..3).for_each(|node| kill(&told, node));
    let alone = restart("1");
    assert!(String::from_utf8_lossy(&alone.stderr).contains("a majority of the nodes must run"), "{alone:?}");
    assert!(restart("2").stderr.is_empty() && restart("3").stderr.is_empty());
    let told = read().unwrap();
    std::process::Command::new("kill").args(["-TERM", &dev.id().to_string()]).status().unwrap();
    assert!(wait_for("the end of dev", || dev.try_wait().unwrap()).success());
    for node in told["nodes"].as_array().unwrap() {
        assert!(!std::path::Path::new(&format!("/proc/{}", node["pid"])).exists(), "{node}");
    }
}

#[test]
fn a_backup_makes_a_new_cluster_with_the_same_users_and_limits() {
    let sink = Sink::start();
    let cluster = TestCluster::with_alice(&sink);
    cluster.nodes[0].ok(&["user", "set", ALICE, "limit_per_hour=2"]);
    assert_eq!(write(&mut cluster.nodes[1].login(ALICE), "before").code, 250);
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("backup");
    let path = file.to_str().unwrap();
    let told = cluster.nodes[2].ok(&["backup", "create", path]);
    assert!(told.contains("1 domains, 1 users"), "{told}");
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions()) & 0o777, 0o600);
    let again = cluster.nodes[2].cli(&["backup", "create", path]);
    assert_eq!(again.status.code(), Some(2), "nothing is overwritten: {again:?}");
    assert!(outgate(&["backup", "verify", path]).status.success());
    let broken = base.path().join("broken");
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&broken, bytes).unwrap();
    let mut node = TestNode::prepare(
        tempfile::tempdir().unwrap(),
        &format!("[delivery]\nrelay = \"{}\"\n[cluster]\nlisten = \"127.0.0.1:0\"\n", sink.address),
    );
    let data = node.data();
    let restore = |from: &std::path::Path| {
        let to = ["--data", data.to_str().unwrap(), "--cluster", "127.0.0.1:7587"];
        outgate(&[&["backup", "restore", from.to_str().unwrap()], to.as_slice()].concat())
    };
    let refused = restore(&broken);
    let text = String::from_utf8_lossy(&refused.stderr);
    assert!(
        refused.status.code() == Some(2) && text.lines().count() == 1 && text.contains("no whole backup"),
        "{text}"
    );
    assert!(!data.exists(), "a refused backup makes nothing");
    let restored = restore(&file);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(String::from_utf8_lossy(&restored.stdout).contains("outgate join 127.0.0.1:7587 --token og1-"));
    assert_eq!(restore(&file).status.code(), Some(2), "there is a node already");
    node.restart();
    let mut client = node.login(ALICE);
    assert_eq!(write(&mut client, "the second of this hour").code, 250);
    assert!(write(&mut client, "the third").text.starts_with("451 4.7.1 limit of 2 messages per hour"));
    assert_eq!(node.json(&["cluster", "status"])["nodes"].as_array().unwrap().len(), 1);
    sink.wait(2);
}
