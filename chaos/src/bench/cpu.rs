//! CPU seconds of a process with all of its descendants, living and reaped.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

/// `/proc` counts in hundredths of a second on every Linux that matters (USER_HZ).
const TICKS_PER_S: f64 = 100.0;

struct Process {
    parent: u32,
    ticks: u64,
}

/// User and system time of `pid`, its descendants, and those of them that were waited for.
pub(crate) fn tree_seconds(pid: u32) -> Result<f64> {
    let all = processes()?;
    let within = |mut at: u32| {
        while at != pid && at > 1 {
            at = all.get(&at).map_or(0, |process| process.parent);
        }
        at == pid
    };
    let ticks: u64 = all.iter().filter(|(id, _)| within(**id)).map(|(_, process)| process.ticks).sum();
    Ok(ticks as f64 / TICKS_PER_S)
}

fn processes() -> Result<BTreeMap<u32, Process>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if let Some(process) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().and_then(|text| parse(&text)) {
            all.insert(pid, process);
        }
    }
    Ok(all)
}

/// proc(5): the fields behind the name in parentheses; parent is the 4th, utime to cstime are the 14th to 17th.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11..15)?.iter().map(|field| field.parse::<u64>().unwrap_or(0)).sum();
    Some(Process { parent: fields.get(1)?.parse().ok()?, ticks })
}
