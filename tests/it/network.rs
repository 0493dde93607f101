//! Three machines on a network whose cables are pulled: real MTAs find the nodes that are left by one name.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::peers::{POSTFIX_MASTER, Running, run_with_input};
use crate::support::client::letter;
use crate::support::cluster::TestCluster;
use crate::support::net::{self, Net};
use crate::support::node::{PASSWORD, TestNode, outgate};
use crate::support::peer;
use crate::support::sink::Sink;
use crate::support::{wait_at_most, wait_for};

const ALICE: &str = "alice@demo.test";
const BOB: &str = "bob@example.net";
/// The machine of the MTA and of its name server.
const MTA: usize = 4;
const PER_FAULT: usize = 30;
const PATIENCE: Duration = Duration::from_secs(90);

fn arrived(sink: &Sink) -> BTreeMap<String, usize> {
    let mut arrived = BTreeMap::new();
    for subject in sink.captured().iter().filter_map(|mail| mail.header("Subject")) {
        *arrived.entry(subject).or_default() += 1;
    }
    arrived
}

/// A name server on the MTA's machine that knows one name with three addresses, and the file that makes it the resolver.
struct Names {
    _server: Running,
    folder: String,
}

impl Names {
    fn start(net: &Net) -> Option<Self> {
        let dnsmasq = peer::find("dnsmasq")?;
        let namespace = net.namespace(MTA);
        let folder = format!("/etc/netns/{namespace}");
        fs::create_dir_all(&folder).unwrap();
        fs::write(format!("{folder}/resolv.conf"), "nameserver 127.0.0.1\noptions timeout:1\n").unwrap();
        let hosts = (1..=3).map(|machine| format!("--host-record=filter.test,{}", net.address(machine)));
        let server = net::command(&namespace, dnsmasq.to_str().unwrap())
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
            (arrived(sink).len() == sent).then_some(())
        });
        println!("{fault}: all there {:?} after the last", began.elapsed());
        match fault {
            "killed" => cluster.nodes[victim].restart(),
            "cut off" => net.heal(victim + 1),
            _ => drop(cluster.nodes[victim].ok(&["resume"])),
        }
        cluster.nodes.iter_mut().for_each(|node| node.wait_until_ready());
    }
    let repeated: usize = arrived(sink).values().map(|count| count - 1).sum();
    assert!(repeated <= PER_FAULT, "{repeated} messages came again: {:?}", arrived(sink));
    let used = cluster.nodes[0].json(&["user", "show", ALICE])["windows"][1]["used"].as_u64().unwrap();
    assert!(used >= sent as u64, "{used} charged of {sent}");
    cluster.nodes[1].ok(&["user", "set", ALICE, &format!("limit_per_hour={}", used + 5)]);
    (0..8).for_each(|number| send(&format!("limit {number}")));
    let of_limit = || arrived(sink).keys().filter(|subject| subject.starts_with("limit")).count();
    wait_at_most(PATIENCE, "what the limit lets pass", || {
        flush();
        (of_limit() == 5).then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    flush();
    assert_eq!(of_limit(), 5, "the limit holds");
}

#[test]
fn postfix_finds_the_nodes_that_are_left() {
    let Some(postfix) = peer::find("postfix") else { return };
    let Some(net) = Net::new(MTA) else { return };
    let Some(_names) = Names::start(&net) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let mut cluster = TestCluster::over(&net, &sink);
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("postfix");
    for part in ["conf", "spool", "data"] {
        fs::create_dir_all(base.join(part)).unwrap();
    }
    let text = format!(
        "compatibility_level = 3.6\nqueue_directory = {base}/spool\ndata_directory = {base}/data\nmyhostname = client.test\nmydestination =\n\
         maillog_file = {base}/log\nmaillog_file_prefixes = {base}\ninet_interfaces = loopback-only\ninet_protocols = ipv4\nrelayhost = [filter.test]:587\n\
         smtp_sasl_auth_enable = yes\nsmtp_sasl_password_maps = texthash:{base}/conf/sasl\nsmtp_sasl_security_options = noanonymous\n\
         smtp_sasl_tls_security_options = noanonymous\nsmtp_tls_security_level = encrypt\nalias_maps =\nlocal_transport = error:none\n\
         minimal_backoff_time = 1s\nmaximal_backoff_time = 2s\nqueue_run_delay = 1s\nsmtp_connect_timeout = 3s\nsmtp_helo_timeout = 5s\n\
         smtp_mail_timeout = 5s\nsmtp_rcpt_timeout = 5s\nsmtp_data_init_timeout = 5s\nsmtp_data_xfer_timeout = 5s\nsmtp_data_done_timeout = 10s\n\
         smtp_starttls_timeout = 5s\nsmtp_quit_timeout = 2s\nsmtp_destination_concurrency_failed_cohort_limit = 1000\n",
        base = base.display()
    );
    fs::write(base.join("conf/main.cf"), text).unwrap();
    fs::write(base.join("conf/sasl"), format!("[filter.test]:587 {ALICE}:{PASSWORD}\n")).unwrap();
    fs::write(base.join("conf/master.cf"), POSTFIX_MASTER).unwrap();
    if !Command::new("chown").args(["-R", "postfix"]).arg(base.join("data")).status().unwrap().success() {
        println!("skipped: only root can run a Postfix");
        return;
    }
    Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()).status().unwrap();
    let conf = base.join("conf").display().to_string();
    let checked = Command::new(postfix).args(["-c", &conf, "check"]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    let master = net::command(&net.namespace(MTA), "/usr/lib/postfix/sbin/master")
        .args(["-c", &conf, "-s", "-d"])
        .env("MAIL_CONFIG", &conf)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _running = Running(master);
    let send = |subject: &str| {
        let mut command = Command::new(peer::find("sendmail").unwrap());
        command.args(["-C", &conf, "-f", ALICE, "-i", BOB]).env("MAIL_CONFIG", &conf);
        run_with_input(&mut command, &letter(ALICE, BOB, subject, "hello").replace("\r\n", "\n"));
    };
    survive(&net, &sink, &mut cluster, &send, &|| {});
}

#[test]
fn exim_finds_the_nodes_that_are_left() {
    let Some(exim) = peer::find("exim4") else { return };
    let Some(net) = Net::new(MTA) else { return };
    let Some(_names) = Names::start(&net) else { return };
    let sink = Sink::start_at(&format!("{}:0", net.address(254)));
    let mut cluster = TestCluster::over(&net, &sink);
    let folder = tempfile::tempdir().unwrap();
    let base = folder.path().join("exim");
    fs::create_dir_all(&base).unwrap();
    if !Command::new("chown").args(["-R", "mail:mail"]).arg(&base).status().unwrap().success() {
        println!("skipped: only root can run an Exim");
        return;
    }
    Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()).status().unwrap();
    let file = folder.path().join("exim.conf");
    fs::write(&file, exim_configuration(&exim, &base)).unwrap();
    Command::new("chmod").arg("644").arg(&file).status().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = net::command(&net.namespace(MTA), exim.to_str().unwrap());
        command.arg("-C").arg(&file).args(arguments);
        command
    };
    // Left in the queue at first: many go over at once with the next run.
    let send = |subject: &str| {
        let text = letter(ALICE, BOB, subject, "hello").replace("\r\n", "\n");
        run_with_input(&mut run(&["-odb", "-i", "-f", ALICE, BOB]), &text);
    };
    let flush = || {
        run(&["-qf"]).output().unwrap();
    };
    survive(&net, &sink, &mut cluster, &send, &flush);
}

fn exim_configuration(exim: &Path, base: &Path) -> String {
    format!(
        "primary_hostname = client.test\nexim_path = {exim}\ndeliver_drop_privilege = true\nexim_user = mail\nexim_group = mail\nspool_directory = {base}/spool\nlog_file_path = {base}/%slog\ntls_advertise_hosts =\nkeep_environment =\ntrusted_users = root\n\
         begin routers\nsmart:\n driver = manualroute\n transport = smarthost\n route_list = * filter.test byname\n self = send\n\
         begin transports\nsmarthost:\n driver = smtp\n port = 587\n connect_timeout = 3s\n command_timeout = 5s\n data_timeout = 5s\n final_timeout = 10s\n hosts_require_auth = *\n hosts_require_tls = *\n tls_verify_certificates =\n\
         begin authenticators\nplain:\n driver = plaintext\n public_name = PLAIN\n client_send = ^{ALICE}^{PASSWORD}\n\
         begin retry\n* * F,1h,1s\n",
        exim = exim.display(),
        base = base.display()
    )
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
        net::command(&net.namespace(lonely + 1), "bash").args(["-c", &knock]).output().unwrap().status.success()
    };
    wait_for("refused connections", || (!knock()).then_some(()));
    println!("the minority refuses after {:?}", cut.elapsed());
    assert!(cut.elapsed() < Duration::from_secs(2), "{:?}", cut.elapsed());
    let refused = cluster.nodes[lonely].cli(&["user", "lock", ALICE]);
    assert!(!refused.status.success(), "a minority decides nothing");
    wait_for("mail at the majority", || TcpStream::connect(cluster.nodes[second].submission).ok());
    wait_for("another leader", || (cluster.nodes[second].cluster_status()?["leader"] != lonely + 1).then_some(()));
    for number in 0..4 {
        assert_eq!(write([second, third][number % 2], &format!("majority {number}")).code, 250);
    }
    net.heal(lonely + 1);
    let healed = Instant::now();
    wait_for("mail at the healed node", || knock().then_some(()));
    println!("the healed node is back after {:?}", healed.elapsed());
    assert_eq!(write(lonely, "after").code, 250);
    let over = write(lonely, "one too many");
    assert!(over.text.starts_with("451 4.7.1 limit of 6"), "{over:?}");
    sink.wait(6);
    let hash = |node: usize, of: usize| {
        cluster.nodes[node].cluster_status()?["nodes"][of]["state_hash"].as_str().map(str::to_owned)
    };
    let begun = hash(second, second);
    wait_at_most(Duration::from_secs(40), "equal hashes of all states", || {
        let all: Vec<String> = (0..3).map(|of| hash(second, of)).collect::<Option<_>>()?;
        (Some(&all[0]) != begun.as_ref() && all.iter().all(|hash| *hash == all[0])).then_some(())
    });
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
