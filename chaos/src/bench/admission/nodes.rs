//! Three nodes in three processes of this very program, joined by tokens as operators join them.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use outgate_cluster::{Cluster, OpenOptions, Token};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::asker::Asked;
use crate::machine::free_port;

const NODES: usize = 3;
/// For anything that a voter is asked, a measurement included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Which nodes the askers are at.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Where {
    All,
    Leader,
    Follower,
}

pub(crate) struct Nodes {
    voters: Vec<Voter>,
}

struct Voter {
    address: String,
    process: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    directory: TempDir,
}

impl Nodes {
    /// Starts them, and waits until all vote.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        let (first_directory, first_address) = (tempfile::tempdir()?, address()?);
        Cluster::init(&OpenOptions::alone(first_directory.path().to_owned(), ANSWER_TIMEOUT))?;
        let mut voters = vec![Voter::start(first_directory, &first_address)?];
        for _ in 1..NODES {
            let token: Token = voters[0].ask("token").await?.parse()?;
            let (directory, own) = (tempfile::tempdir()?, address()?);
            let options = OpenOptions::alone(directory.path().to_owned(), ANSWER_TIMEOUT);
            Cluster::join(&options, &first_address, &token, &own).await?;
            voters.push(Voter::start(directory, &own)?);
        }
        for voter in &mut voters {
            voter.ask("ready").await?;
        }
        voters[0].ask("users").await?;
        Ok(Self { voters })
    }

    pub(crate) async fn measure(mut self, level: usize, place: Where) -> anyhow::Result<Asked> {
        let leader = self.leader().await? + 1;
        let at: Vec<usize> = match place {
            Where::All => (0..NODES).collect(),
            Where::Leader => vec![leader - 1],
            Where::Follower => vec![leader % NODES],
        };
        let cpu_before = self.cpu_seconds().await?;
        for (number, voter) in at.iter().enumerate() {
            // 1 and 16 do not divide by three: the first nodes have one more.
            let share = level / at.len() + usize::from(number < level % at.len());
            self.voters[*voter].say(&format!("load {share}")).await?;
        }
        let (mut durations, mut seconds, mut loading_cpu) = (Vec::new(), 0.0_f64, 0.0);
        for voter in at {
            let voter = &mut self.voters[voter];
            let (voter_seconds, cpu) = voter.take_durations(&mut durations).await?;
            seconds = seconds.max(voter_seconds);
            loading_cpu += cpu;
        }
        // The others' time holds the warm-up as well: their share is scaled to the time that counts.
        let cpu_seconds = match place {
            Where::All => loading_cpu,
            Where::Leader | Where::Follower => {
                let whole = self.cpu_seconds().await? - cpu_before;
                whole * seconds / (seconds + super::WARM_UP.as_secs_f64())
            }
        };
        Ok(Asked { durations, seconds, cpu_seconds })
    }

    /// The position of the leader, as the first node says.
    pub(crate) async fn leader(&mut self) -> anyhow::Result<usize> {
        let id: usize = self.voters[0].ask("leader").await?.parse()?;
        id.checked_sub(1).context("no leader")
    }

    /// Askers at every node from now on.
    pub(crate) async fn keep_busy(&mut self, askers: usize) -> anyhow::Result<()> {
        for voter in &mut self.voters {
            voter.ask(&format!("forever {askers}")).await?;
        }
        Ok(())
    }

    /// SIGKILL.
    pub(crate) async fn kill(&mut self, at: usize) -> anyhow::Result<()> {
        Ok(self.voters[at].process.kill().await?)
    }

    /// When the first of the others has had something decided that was asked for now.
    pub(crate) async fn first_decision_without(&mut self, killed: usize) -> anyhow::Result<Instant> {
        let mut others: Vec<&mut Voter> =
            self.voters.iter_mut().enumerate().filter(|(at, _)| *at != killed).map(|(_, voter)| voter).collect();
        let [one, other] = others.as_mut_slice() else { anyhow::bail!("two are left of three") };
        one.say("once").await?;
        other.say("once").await?;
        // Both are heard, so that no answer is left for the next question.
        let first = tokio::select! {
            answer = one.hear() => answer.map(|_| true),
            answer = other.hear() => answer.map(|_| false),
        }?;
        let decided = Instant::now();
        if first {
            other.hear().await?
        } else {
            one.hear().await?
        };
        Ok(decided)
    }

    /// Starts a killed node again and waits until all are ready.
    pub(crate) async fn restart(&mut self, at: usize, askers: usize) -> anyhow::Result<()> {
        self.voters[at].restart()?;
        for voter in &mut self.voters {
            voter.ask("ready").await?;
        }
        self.voters[at].ask(&format!("forever {askers}")).await.map(drop)
    }

    async fn cpu_seconds(&mut self) -> anyhow::Result<f64> {
        let pids = self.voters.iter().filter_map(|voter| voter.process.id());
        Ok(pids.map(|pid| crate::machine::cpu_seconds(&pid.to_string())).sum())
    }
}

fn address() -> anyhow::Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

impl Voter {
    fn start(directory: TempDir, address: &str) -> anyhow::Result<Self> {
        let (process, input, output) = spawn(directory.path(), address)?;
        Ok(Self { address: address.to_owned(), process, input, output, directory })
    }

    fn restart(&mut self) -> anyhow::Result<()> {
        (self.process, self.input, self.output) = spawn(self.directory.path(), &self.address)?;
        Ok(())
    }
    async fn say(&mut self, line: &str) -> anyhow::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    async fn hear(&mut self) -> anyhow::Result<String> {
        let line = timeout(ANSWER_TIMEOUT, self.output.next_line()).await.context("a voter does not answer")??;
        let line = line.context("a voter has ended")?;
        ensure!(!line.starts_with("error"), "a voter: {line}");
        Ok(line)
    }

    async fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        self.say(line).await?;
        self.hear().await
    }

    /// The answer to `load`: its figures in a line, the durations in a file.
    async fn take_durations(&mut self, durations: &mut Vec<Duration>) -> anyhow::Result<(f64, f64)> {
        let line = self.hear().await?;
        let (seconds, cpu) = line.split_once(' ').context("not two figures")?;
        let bytes = std::fs::read(self.directory.path().join(crate::voter::DURATIONS))?;
        durations
            .extend(bytes.as_chunks().0.iter().map(|micros| Duration::from_micros(u32::from_le_bytes(*micros).into())));
        Ok((seconds.parse()?, cpu.parse()?))
    }
}

type Running = (Child, ChildStdin, Lines<BufReader<ChildStdout>>);

fn spawn(directory: &Path, address: &str) -> anyhow::Result<Running> {
    let mut process = Command::new(std::env::current_exe()?)
        .args(["voter", "--listen", address, "--directory"])
        .arg(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let input = process.stdin.take().context("no input")?;
    let output = BufReader::new(process.stdout.take().context("no output")?).lines();
    Ok((process, input, output))
}
