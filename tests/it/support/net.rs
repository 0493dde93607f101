//! Machines of their own: network namespaces on one switch, whose cables the test can pull.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::peer;

static MADE: AtomicU32 = AtomicU32::new(0);

pub struct Net {
    name: String,
    /// Of `10.77.subnet.0/24`.
    subnet: u32,
    machines: usize,
}

/// `program` on the machine of that namespace, or on this one.
pub fn command(namespace: Option<&str>, program: &str) -> Command {
    let Some(namespace) = namespace else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, program]);
    command
}

impl Net {
    /// `None`, said aloud, where namespaces cannot be made.
    pub fn new(machines: usize) -> Option<Self> {
        peer::find("ip")?;
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("og{}x{number}", std::process::id());
        let net = Self { name, subnet: (std::process::id() + number * 7) % 250 + 1, machines };
        if !ip(&["netns", "add", &net.hub()]) {
            println!("skipped: network namespaces cannot be made here");
            return None;
        }
        net.lay_cables();
        Some(net)
    }

    fn lay_cables(&self) {
        let (hub, outer) = (self.hub(), self.outer());
        let must = |arguments: &[&str]| assert!(ip(arguments), "ip {arguments:?}");
        must(&["-n", &hub, "link", "add", "switch", "type", "bridge"]);
        must(&["-n", &hub, "link", "set", "switch", "up"]);
        must(&["link", "add", &outer, "type", "veth", "peer", "name", "test", "netns", &hub]);
        must(&["-n", &hub, "link", "set", "test", "master", "switch", "up"]);
        must(&["addr", "add", &format!("{}/24", self.address(254)), "dev", &outer]);
        must(&["link", "set", &outer, "up"]);
        for machine in 1..=self.machines {
            let (namespace, port) = (self.namespace(machine), format!("port{machine}"));
            must(&["netns", "add", &namespace]);
            must(&["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
            must(&["-n", &hub, "link", "set", &port, "master", "switch", "up"]);
            must(&["-n", &namespace, "link", "set", "lo", "up"]);
            must(&["-n", &namespace, "addr", "add", &format!("{}/24", self.address(machine)), "dev", "eth0"]);
            must(&["-n", &namespace, "link", "set", "eth0", "up"]);
        }
    }

    /// Of a machine, counted from 1; the test itself is 254.
    pub fn address(&self, machine: usize) -> String {
        format!("10.77.{}.{machine}", self.subnet)
    }

    /// Gives the machine another address.
    pub fn add_address(&self, machine: usize, host: usize) -> String {
        let address = self.address(host);
        let cable = ["addr", "add", &format!("{address}/24"), "dev", "eth0"];
        assert!(ip(&[["-n", &self.namespace(machine)].as_slice(), &cable].concat()));
        address
    }

    pub fn namespace(&self, machine: usize) -> String {
        format!("{}-{machine}", self.name)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }

    fn outer(&self) -> String {
        self.name.clone()
    }

    /// The machine drops these packets from its cable, `incoming` and `outgoing` by a match of nftables each (nothing where
    /// it is empty), until it passes them again. False, said aloud, where nothing can be dropped.
    pub fn drop_packets(&self, machine: usize, incoming: &str, outgoing: &str) -> bool {
        let Some(nft) = peer::find("nft") else { return false };
        let mut script = String::from("add table inet fault\n");
        for (hook, packets) in
            [("input", incoming), ("output", outgoing)].into_iter().filter(|(_, which)| !which.is_empty())
        {
            script += &format!("add chain inet fault {hook} {{ type filter hook {hook} priority 0; }}\n");
            script += &format!("add rule inet fault {hook} {packets} drop\n");
        }
        let mut command = command(Some(&self.namespace(machine)), nft.to_str().unwrap());
        let works = peer::takes_input(command.args(["-f", "-"]), &script);
        if !works {
            println!("skipped: nft cannot drop packets here");
        }
        works
    }

    pub fn pass_packets(&self, machine: usize) {
        let mut command = command(Some(&self.namespace(machine)), "nft");
        assert!(command.args(["delete", "table", "inet", "fault"]).status().unwrap().success());
    }

    /// Pulls the machine's cable.
    pub fn cut(&self, machine: usize) {
        assert!(ip(&["-n", &self.hub(), "link", "set", &format!("port{machine}"), "down"]));
    }

    pub fn heal(&self, machine: usize) {
        assert!(ip(&["-n", &self.hub(), "link", "set", &format!("port{machine}"), "up"]));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for machine in 1..=self.machines {
            ip(&["netns", "del", &self.namespace(machine)]);
        }
        ip(&["link", "del", &self.outer()]);
        ip(&["netns", "del", &self.hub()]);
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip").args(arguments).output().is_ok_and(|output| output.status.success())
}
