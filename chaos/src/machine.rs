//! What the machine says about itself: load, CPU time of processes, which programs are installed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context;

/// `USER_HZ`, the unit of `/proc/*/stat`: 100 on every Linux that Rust runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// The load average over one minute, as `/proc/loadavg` has it; 0 where there is none.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// CPU seconds (user and system) that a process has used so far, itself or with threads; `self` for this one.
pub(crate) fn cpu_seconds(pid: &str) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The second field is the program's name in parentheses and may hold spaces.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

/// CPU seconds of a process with all of its descendants, living and reaped: Postfix is many processes.
pub(crate) fn tree_cpu_seconds(pid: u32) -> f64 {
    let all = processes();
    let within = |mut at: u32| {
        while at != pid && at > 1 {
            at = all.get(&at).map_or(0, |process| process.parent);
        }
        at == pid
    };
    let ticks: f64 = all.iter().filter(|(id, _)| within(**id)).map(|(_, process)| process.ticks).sum();
    ticks / TICKS_PER_SECOND
}

struct Process {
    parent: u32,
    /// User and system time, its own and that of children it waited for.
    ticks: f64,
}

fn processes() -> BTreeMap<u32, Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?))).collect()
}

/// proc(5): behind the name in parentheses the parent is the 2nd field, utime to cstime are the 12th to 15th.
fn process(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    Some(Process { parent: fields.get(1)?.parse().ok()?, ticks })
}

/// Where a program is, if it is installed.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// A port that is free now; a peer that cannot be told port 0 gets it at once.
pub(crate) fn free_port() -> std::io::Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

pub(crate) fn resident_mib(pid: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
