//! redis-server with an append-only file synced before every answer, asked for the same five windows by a Lua script.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::USERS;
use super::asker::{self, Asked, Asker};
use crate::machine::free_port;

/// Sixty buckets for each of minute, hour, day, week and 30 days; nothing is charged where any window is full.
const SCRIPT: &str = "local now = tonumber(ARGV[1])
local widths = {1, 60, 1440, 10080, 43200}
local limit = 1000000000
for i = 1, 5 do
  local first = math.floor(now / widths[i]) - 59
  local used = 0
  local buckets = redis.call('HGETALL', KEYS[1] .. ':' .. i)
  for j = 1, #buckets, 2 do
    if tonumber(buckets[j]) >= first then used = used + tonumber(buckets[j + 1]) else redis.call('HDEL', KEYS[1] .. ':' .. i, buckets[j]) end
  end
  if used + 1 > limit then return i end
end
for i = 1, 5 do redis.call('HINCRBY', KEYS[1] .. ':' .. i, math.floor(now / widths[i]), 1) end
return 0";

struct Connection {
    stream: TcpStream,
    script: String,
}

pub(super) async fn measure(level: usize) -> anyhow::Result<Asked> {
    let directory = tempfile::tempdir()?;
    let port = free_port()?.to_string();
    let mut server = Command::new("redis-server")
        .args(["--port", &port, "--bind", "127.0.0.1", "--appendonly", "yes", "--appendfsync", "always"])
        .args(["--save", "", "--maxclients", "2048", "--dir"])
        .arg(directory.path())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut first = connect(&port, &mut server).await?;
    let script = match request(&mut first, &["SCRIPT", "LOAD", SCRIPT]).await? {
        answer if answer.starts_with('$') => answer.lines().nth(1).context("no script id")?.to_owned(),
        answer => anyhow::bail!("redis: {answer}"),
    };
    let mut askers = Vec::with_capacity(level);
    for _ in 0..level {
        askers.push(Connection { stream: connect(&port, &mut server).await?, script: script.clone() });
    }
    let pid = server.id().context("redis has ended")?.to_string();
    let asked = asker::measure(askers, &[pid]).await;
    server.kill().await?;
    asked
}

async fn connect(port: &str, server: &mut Child) -> anyhow::Result<TcpStream> {
    for _ in 0..500 {
        if let Ok(stream) = TcpStream::connect(format!("127.0.0.1:{port}")).await {
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
        ensure!(server.try_wait()?.is_none(), "redis-server has ended");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    anyhow::bail!("redis-server does not listen")
}

/// One request and its answer of one or two lines.
async fn request(stream: &mut TcpStream, parts: &[&str]) -> anyhow::Result<String> {
    let mut bytes = format!("*{}\r\n", parts.len());
    parts.iter().for_each(|part| bytes.push_str(&format!("${}\r\n{part}\r\n", part.len())));
    stream.write_all(bytes.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut buffer = [0; 512];
    loop {
        let count = stream.read(&mut buffer).await?;
        ensure!(count > 0, "redis closed the connection");
        answer.extend_from_slice(&buffer[..count]);
        let lines = answer.windows(2).filter(|pair| pair == b"\r\n").count();
        let wanted = if answer.first() == Some(&b'$') { 2 } else { 1 };
        if lines >= wanted {
            return Ok(String::from_utf8_lossy(&answer).into_owned());
        }
    }
}

impl Asker for Connection {
    async fn ask(&mut self, number: u64) -> anyhow::Result<()> {
        let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs().to_string();
        let key = format!("user{}", usize::try_from(number)? % USERS);
        let answer = request(&mut self.stream, &["EVALSHA", &self.script, "1", &key, &seconds]).await?;
        ensure!(answer == ":0\r\n", "redis: {answer}");
        Ok(())
    }
}
