//! Three machines on a network whose cables are pulled: real MTAs find the nodes that are left by one name.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::client::letter;
use crate::support::cluster::{TestCluster, assert_never_refused};
use crate::support::exim::Exim;
use crate::support::net::{self, Net};
use crate::support::node::{PASSWORD, TestNode, outgate};
use crate::support::peer::{self, Running};
use crate::support::postfix::Postfix;
use crate::support::sink::Sink;
use crate::support::{wait_at_most, wait_for};

const ALICE: &str = "alice@demo.test";
/// Six seconds without a word, and the time to notice.
const LEASES_ARE_OVER: Duration = Duration::from_secs(9);
const BOB: &str = "bob@example.net";
/// The machine of the MTA and of its name server.
pub const MTA: usize = 4;
/// One second is promised, and two for the way back; the rest is for a machine that does other things.
const REFUSES_WITHIN: Duration = Duration::from_millis(1_500);
const IS_BACK_WITHIN: Duration = Duration::from_millis(3_000);
const PER_FAULT: usize = 30;
const PATIENCE: Duration = Duration::from_secs(90);

/// A name server on the MTA's machine that knows one name with three addresses, and the file that makes it the resolver.
pub struct Names {
    _server: Running,
    folder: String,
}

impl Names {
    pub fn start(net: &Net) -> Option<Self> {
        let dnsmasq = peer::find("dnsmasq")?;
        let namespace = net.namespace(MTA);
        let folder = format!("/etc/netns/{namespace}");
        fs::create_dir_all(&folder).unwrap();
        fs::write(format!("{folder}/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1\n").unwrap();
        let hosts = (1..=3).map(|machine| format!("--host-record=filter.test,{}", net.address(machine)));
        let server = net::command(Some(&namespace), dnsmasq.to_str().unwrap())
            .args(["--no-daemon", "--no-resolv", "--no-hosts", "--listen-address=127.0.0.1", "--bind-interfaces"])
            .args(["--conf-file=/dev/null", "--user=root", "--local=/test/", "--local-ttl=1", "--pid-file="])
            .args(hosts)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Some(Self { _server: Running(server), folder })
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// Sends through the MTA while one node after the other fails in another way; everything must arrive, and the limit hold.
fn survive(net: &Net, sink: &Sink, cluster: &mut TestCluster, send: &dyn Fn(&str), flush: &dyn Fn()) {
    cluster.nodes[0].ok(&["user", "set", ALICE, "limit_per_minute=0"]);
    let mut sent = 0;
    for fault in ["killed", "cut off", "draining"] {
        let victim = if fault == "killed" { cluster.leader() } else { (cluster.leader() + 1) % 3 };
        for number in 0..PER_FAULT {
            if number == PER_FAULT / 3 {
                match fault {
                    "killed" => cluster.nodes[victim].kill(),
                    "cut off" => net.cut(victim + 1),
                    _ => drop(cluster.nodes[victim].ok(&["drain"])),
                }
            }
            send(&format!("{fault} {number}"));
        }
        sent += PER_FAULT;
        let began = Instant::now();
        wait_at_most(PATIENCE, &format!("every message while one node is {fault}"), || {
            flush();
            (sink.subjects().len() == sent).then_some(())
        });
        println!("{fault}: all there {:?} after the last", began.elapsed());
        match fault {
            "killed" => cluster.nodes[victim].restart(),
            "cut off" => net.heal(victim + 1),
            _ => drop(cluster.nodes[victim].ok(&["resume"])),
        }
        cluster.nodes.iter_mut().for_each(|node| node.wait_until_ready());
    }
    assert!(sink.repeated() <= PER_FAULT, "{} messages came again: {:?}", sink.repeated(), sink.subjects());
    let used = cluster.nodes[0].json(&["user", "show", ALICE])["windows"][1]["used"].as_u64().unwrap();
    assert!(used >= sent as u64, "{used} charged of {sent}");
    cluster.nodes[1].ok(&["user", "set", ALICE, &format!("limit_per_hour={}", used + 5)]);
    (0..8).for_each(|number| send(&format!("limit {number}")));
    let of_limit = || sink.subjects().keys().filter(|subject| subject.starts_with("limit")).count();
    wait_at_most(PATIENCE, "what the limit lets pass", || {
        flush();
        (of_limit() == 5).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    flush();
    assert_eq!(of_limit(), 5, "the limit holds");
}

/// Postfix waits for minutes by default, also for a node that it will never hear of again.
const IMPATIENT: &str = "minimal_backoff_time = 1s\nmaximal_backoff_time = 2s\nqueue_run_delay = 1s\nsmtp_connect_timeout = 3s\n\
    smtp_helo_timeout = 5s\nsmtp_mail_timeout = 5s\nsmtp_rcpt_timeout = 5s\nsmtp_data_init_timeout = 5s\nsmtp_data_xfer_timeout = 5s\n\
    smtp_data_done_timeout = 10s\nsmtp_starttls_timeout = 5s\nsmtp_quit_timeout = 2s\n\
    smtp_destination_concurrency_failed_cohort_limit = 1000\n";

pub fn mail(subject: &str) -> String {
    letter(ALICE, BOB, subject, "hello").replace("\r\n", "\n")
}

#[test]
fn postfix_finds_the_nodes_that_are_left() {
    let Some(net) = Net::new(MTA) else { return };
    let Some(_names) = Names::start(&net) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let mut cluster = TestCluster::over(&net, &sink);
    let (folder, machine, relay) = (tempfile::tempdir().unwrap(), net.namespace(MTA), "[filter.test]:587");
    let logins = format!("{relay} {ALICE}:{PASSWORD}\n");
    let Some(postfix) = Postfix::start(folder.path(), Some(&machine), relay, &logins, IMPATIENT) else { return };
    survive(&net, &sink, &mut cluster, &|subject| postfix.send(ALICE, BOB, &mail(subject)), &|| {});
}

#[test]
fn exim_finds_the_nodes_that_are_left() {
    let Some(net) = Net::new(MTA) else { return };
    let Some(_names) = Names::start(&net) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let mut cluster = TestCluster::over(&net, &sink);
    let (folder, machine) = (tempfile::tempdir().unwrap(), net.namespace(MTA));
    let logins = format!("{ALICE}: {PASSWORD}\n");
    let Some(exim) = Exim::start(folder.path(), Some(&machine), "filter.test", 587, &logins) else { return };
    // In the background, so that deliveries overlap.
    let send = |subject: &str| exim.send(&["-odb"], ALICE, BOB, &mail(subject));
    survive(&net, &sink, &mut cluster, &send, &|| exim.flush());
}

#[test]
fn a_minority_refuses_and_after_healing_all_states_are_equal() {
    let Some(net) = Net::new(3) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let cluster = TestCluster::over(&net, &sink);
    cluster.nodes[0].ok(&["user", "set", ALICE, "limit_per_hour=6"]);
    let write = |node: usize, subject: &str| {
        cluster.nodes[node].login(ALICE).mail(ALICE, BOB, &letter(ALICE, BOB, subject, "hello"))
    };
    assert_eq!(write(0, "before").code, 250);
    let lonely = cluster.leader();
    let (second, third) = ((lonely + 1) % 3, (lonely + 2) % 3);
    net.cut(lonely + 1);
    let cut = Instant::now();
    // The machine's own clients are refused as well.
    let knock = || {
        let knock = format!("exec 3<>/dev/tcp/{}/587", net.address(lonely + 1));
        net::command(Some(&net.namespace(lonely + 1)), "bash").args(["-c", &knock]).output().unwrap().status.success()
    };
    wait_for("refused connections", || (!knock()).then_some(()));
    println!("the minority refuses after {:?}", cut.elapsed());
    assert!(cut.elapsed() < REFUSES_WITHIN, "{:?}", cut.elapsed());
    let refused = cluster.nodes[lonely].cli(&["user", "lock", ALICE]);
    assert!(!refused.status.success(), "a minority decides nothing");
    wait_for("mail at the majority", || TcpStream::connect(cluster.nodes[second].submission).ok());
    wait_for("another leader", || (cluster.nodes[second].cluster_status()?["leader"] != lonely + 1).then_some(()));
    for number in 0..4 {
        assert_eq!(write([second, third][number % 2], &format!("majority {number}")).code, 250);
    }
    // Long enough for the old leader to hold all others to be down.
    std::thread::sleep(LEASES_ARE_OVER.saturating_sub(cut.elapsed()));
    net.heal(lonely + 1);
    let healed = Instant::now();
    wait_for("mail at the healed node", || knock().then_some(()));
    println!("the healed node is back after {:?}", healed.elapsed());
    assert!(healed.elapsed() < IS_BACK_WITHIN, "{:?}", healed.elapsed());
    assert_eq!(write(lonely, "after").code, 250);
    let over = write(lonely, "one too many");
    assert!(over.text.starts_with("451 4.7.1 limit of 6"), "{over:?}");
    sink.wait(6);
    let hash = |node: usize, of: usize| {
        cluster.nodes[node].cluster_status()?["nodes"][of]["state_hash"].as_str().map(str::to_owned)
    };
    let begun = hash(second, second);
    cluster.nodes[lonely].ok(&["user", "set", ALICE, "limit_per_day=1000"]);
    wait_at_most(Duration::from_secs(40), "equal hashes of all states", || {
        let all: Vec<String> = (0..3).map(|of| hash(second, of)).collect::<Option<_>>()?;
        (Some(&all[0]) != begun.as_ref() && all.iter().all(|hash| *hash == all[0])).then_some(())
    });
    let status = cluster.nodes[second].cluster_status().unwrap();
    let owner_epochs = [lonely, second, third].map(|node| status["nodes"][node]["owner_epoch"].as_u64());
    assert_eq!(owner_epochs, [Some(2), Some(1), Some(1)], "only the node that was cut off was declared down");
}

/// Nor a follower that comes back, which calls for a vote in a newer term and so ends the leader's.
#[test]
fn a_leader_that_is_cut_off_makes_no_other_refuse() {
    let Some(net) = Net::new(3) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let cluster = TestCluster::over(&net, &sink);
    let others = |lonely: usize| [(lonely + 1) % 3, (lonely + 2) % 3].map(|node| cluster.nodes[node].submission);
    let leader = cluster.leader();
    net.cut(leader + 1);
    assert_never_refused(&others(leader), Duration::from_secs(4));
    net.heal(leader + 1);
    wait_for("the node that led", || TcpStream::connect(cluster.nodes[leader].submission).ok());
    let lonely = (cluster.leader() + 1) % 3;
    net.cut(lonely + 1);
    std::thread::sleep(Duration::from_secs(4));
    net.heal(lonely + 1);
    assert_never_refused(&others(lonely), Duration::from_secs(3));
    wait_for("the node that was away", || TcpStream::connect(cluster.nodes[lonely].submission).ok());
}

#[test]
fn every_address_of_the_machine_is_served_but_those_that_are_excluded() {
    let Some(net) = Net::new(1) else { return };
    let config = |lists: &str| {
        format!(
            "[[listener]]\naddress = \"0.0.0.0:587\"\nmode = \"submission\"\n{lists}[[listener]]\naddress = \"0.0.0.0:465\"\nmode = \"submissions\"\n"
        )
    };
    let exclude = format!("exclude = [\"{}/32\"]\n", net.address(50));
    let mut node = TestNode::prepare(tempfile::tempdir().unwrap(), &config(&exclude));
    node.within = Some(net.namespace(1));
    assert!(outgate(&["init", "--data", node.data().to_str().unwrap(), "--hostname", "filter.test"]).status.success());
    node.restart();
    // What a client hears first; nothing where it is reset or refused.
    let greeting = |address: &str, port: u16| {
        let stream = TcpStream::connect((address, port)).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok().filter(|count| *count > 0).map(|_| line)
    };
    assert!(greeting(&net.address(1), 587).unwrap().starts_with("220 "));
    let (later, excluded) = (net.add_address(1, 40), net.add_address(1, 50));
    wait_for("the new address", || greeting(&later, 587));
    // The address itself is there: another listener of the same machine serves it.
    wait_for("the excluded address", || TcpStream::connect((excluded.as_str(), 465)).ok());
    assert_eq!(greeting(&excluded, 587), None);
    let only = format!("only = [\"{}/32\"]\n", net.address(40));
    fs::write(node.path().join("outgate.toml"), {
        let text = fs::read_to_string(node.path().join("outgate.toml")).unwrap();
        text.replace(&exclude, &only)
    })
    .unwrap();
    node.restart();
    assert_eq!(greeting(&net.address(1), 587), None);
    assert!(greeting(&later, 587).unwrap().starts_with("220 "));
}
