//! What an operator does first: the commands of the README, and the configurations that come with the program, as they are.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::net::{self, Net};
use crate::support::node::outgate;
use crate::support::peer::Running;
use crate::support::wait_at_most;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/three-nodes");
const PATIENCE: Duration = Duration::from_secs(30);

/// One line of a shell, which must succeed; what it printed.
fn shell(namespace: Option<&str>, line: &str) -> String {
    let output = net::command(namespace, "sh").args(["-c", line]).output().unwrap();
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn run(namespace: Option<&str>, config: &Path) -> Running {
    let mut command = net::command(namespace, env!("CARGO_BIN_EXE_outgate"));
    command.arg("run").arg("--config").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Running(command.spawn().unwrap())
}

/// By the node with this data directory.
fn voters(data: &Path) -> Option<usize> {
    let socket = data.join("control.sock");
    let output = outgate(&["cluster", "status", "--socket", socket.to_str()?, "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let nodes = status["nodes"].as_array()?;
    Some(nodes.iter().filter(|node| node["role"] != "learner" && node["state"] == "up").count())
}

fn wait_for_voters(data: &Path, count: usize) {
    wait_at_most(PATIENCE, "voters", || (voters(data)? == count).then_some(()));
}

/// The lines of the README that make a cluster, without their remarks.
fn lines_that_make_a_cluster() -> Vec<String> {
    let readme = fs::read_to_string(README).unwrap();
    let is_one = |line: &&str| line.starts_with("outgate init --data") || line.starts_with("outgate join");
    let lines = readme.lines().filter(is_one).map(|line| line.split('#').next().unwrap().trim().to_owned());
    lines.collect()
}

#[test]
fn the_three_commands_of_the_readme_make_a_cluster() {
    let Some(net) = Net::new(3) else { return };
    let base = tempfile::tempdir().unwrap();
    let lines = lines_that_make_a_cluster();
    assert_eq!(lines.len(), 3);
    let (mut nodes, mut told) = (Vec::new(), String::new());
    for (machine, line) in (1..).zip(&lines) {
        let data = base.path().join(machine.to_string());
        let mut tokens = told.split_whitespace().filter(|word| word.starts_with("og1-"));
        let token = tokens.nth(machine.max(2) - 2).unwrap_or_default();
        let line = line
            .replacen("outgate", env!("CARGO_BIN_EXE_outgate"), 1)
            .replace("/var/lib/outgate", data.to_str().unwrap())
            .replace("192.0.2.1", &net.address(1))
            .replace("og1-…", token);
        let namespace = net.namespace(machine);
        let printed = shell(Some(&namespace), &line);
        told = if machine == 1 { printed } else { told };
        nodes.push(run(Some(&namespace), &data.join("outgate.toml")));
        wait_at_most(PATIENCE, "a node that answers", || voters(&data));
    }
    wait_for_voters(&base.path().join("1"), 3);
    for machine in 1..=3 {
        let knock = format!("exec 3<>/dev/tcp/{}/587", net.address(machine));
        let knock = || Command::new("bash").args(["-c", &knock]).output().unwrap().status.success();
        wait_at_most(PATIENCE, "mail on port 587", || knock().then_some(()));
    }
}

#[test]
fn the_configurations_for_three_nodes_run_as_they_are() {
    if ["127.0.0.1:7587", "127.0.0.1:2587", "127.0.0.1:8080"].iter().any(|address| TcpListener::bind(address).is_err())
    {
        println!("skipped: another program has a port of theirs");
        return;
    }
    let base = tempfile::tempdir().unwrap();
    let data = |node: usize| base.path().join(node.to_string());
    let mut nodes = Vec::new();
    for node in 1..=3 {
        let (own, cluster) = (data(node), format!("127.0.0.{node}:7587"));
        let mut words = vec!["init".to_owned()];
        if node > 1 {
            let socket = data(1).join("control.sock");
            let line =
                format!("{} cluster token --socket {} --output json", env!("CARGO_BIN_EXE_outgate"), socket.display());
            let token: serde_json::Value = serde_json::from_str(&shell(None, &line)).unwrap();
            words = ["join", "127.0.0.1:7587", "--token", token["token"].as_str().unwrap()].map(str::to_owned).into();
        }
        words.extend(["--data", own.to_str().unwrap(), "--cluster", &cluster].map(str::to_owned));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let made = outgate(&words);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = fs::read_to_string(format!("{CONFIG}/node{node}.toml")).unwrap();
        let config = base.path().join(format!("node{node}.toml"));
        fs::write(&config, text.replace("/tmp/outgate", base.path().to_str().unwrap())).unwrap();
        nodes.push(run(None, &config));
        wait_at_most(PATIENCE, "a node that answers", || voters(&own));
    }
    wait_for_voters(&data(1), 3);
}
