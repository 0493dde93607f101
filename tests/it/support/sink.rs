//! A next hop that keeps what it gets, byte for byte, and answers as it is told.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::wait_at_most;

#[derive(Clone, Debug)]
pub struct Captured {
    pub reverse_path: String,
    pub recipients: Vec<String>,
    /// With dots unstuffed, CRLF line ends.
    pub data: Vec<u8>,
}

impl Captured {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.data).into_owned()
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let unfolded = self.text().split("\r\n\r\n").next().unwrap().replace("\r\n ", " ").replace("\r\n\t", " ");
        unfolded.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    }
}

/// Decides the reply to a verb line; `None` = the usual one.
type Script = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

#[derive(Clone)]
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    captured: Mutex<Vec<Captured>>,
    connections: Mutex<usize>,
    script: Mutex<Script>,
}

impl Sink {
    pub fn start() -> Self {
        Self::start_at("127.0.0.1:0")
    }

    pub fn start_at(address: &str) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let shared = Arc::new(Shared {
            captured: Mutex::default(),
            connections: Mutex::default(),
            script: Mutex::new(Box::new(|_| None)),
        });
        let sink = Self { address: listener.local_addr().unwrap(), shared: shared.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                *shared.connections.lock().unwrap() += 1;
                let shared = shared.clone();
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        sink
    }

    /// One that takes nothing until the flag is set.
    pub fn closed() -> (Self, Arc<AtomicBool>) {
        let (sink, open) = (Self::start(), Arc::new(AtomicBool::new(false)));
        let is_open = Arc::clone(&open);
        sink.script(move |verb| {
            (verb.starts_with("MAIL") && !is_open.load(Ordering::Relaxed)).then(|| "451 4.3.0 later".to_owned())
        });
        (sink, open)
    }

    /// How often each subject arrived.
    pub fn subjects(&self) -> BTreeMap<String, usize> {
        let mut arrived = BTreeMap::new();
        for subject in self.captured().iter().filter_map(|mail| mail.header("Subject")) {
            *arrived.entry(subject).or_default() += 1;
        }
        arrived
    }

    /// Messages that came more than once, each time counted.
    pub fn repeated(&self) -> usize {
        self.subjects().values().map(|count| count - 1).sum()
    }

    /// From now on verb lines (`MAIL FROM:<…>`, `RCPT TO:<…>`, `DATA`, `.` for the end of DATA) may get other replies.
    pub fn script(&self, script: impl Fn(&str) -> Option<String> + Send + Sync + 'static) {
        *self.shared.script.lock().unwrap() = Box::new(script);
    }

    pub fn captured(&self) -> Vec<Captured> {
        self.shared.captured.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        *self.shared.connections.lock().unwrap()
    }

    pub fn wait(&self, count: usize) -> Vec<Captured> {
        wait_at_most(Duration::from_secs(30), &format!("{count} messages at the sink"), || {
            Some(self.captured()).filter(|all| all.len() >= count)
        })
    }
}

fn serve(stream: TcpStream, shared: &Shared) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let mut output = stream.try_clone().ok()?;
    let mut input = BufReader::new(stream);
    let mut message = Captured { reverse_path: String::new(), recipients: Vec::new(), data: Vec::new() };
    output.write_all(reply(shared, "CONNECT", "220 sink ESMTP").as_bytes()).ok()?;
    loop {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line).ok().filter(|count| *count > 0)?;
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = line.split([' ', ':']).next()?.to_ascii_uppercase();
        let usual = match verb.as_str() {
            "EHLO" => "250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-DSN\r\n250 SIZE",
            "DATA" => "354 go on",
            "QUIT" => "221 bye",
            _ => "250 2.0.0 ok",
        };
        let answer = reply(shared, &line, usual);
        match verb.as_str() {
            "MAIL" => message = Captured { reverse_path: path_of(&line), recipients: Vec::new(), data: Vec::new() },
            "RCPT" if answer.starts_with('2') => message.recipients.push(path_of(&line)),
            _ => {}
        }
        output.write_all(answer.as_bytes()).ok()?;
        if verb == "DATA" && answer.starts_with('3') {
            message.data = read_data(&mut input)?;
            let answer = reply(shared, ".", "250 2.0.0 kept");
            if answer.starts_with('2') {
                shared.captured.lock().unwrap().push(message.clone());
            }
            output.write_all(answer.as_bytes()).ok()?;
        }
        if verb == "QUIT" || answer.starts_with("421") {
            return None;
        }
    }
}

fn reply(shared: &Shared, line: &str, usual: &str) -> String {
    let text = (shared.script.lock().unwrap())(line).unwrap_or_else(|| usual.to_owned());
    format!("{text}\r\n")
}

fn path_of(line: &str) -> String {
    let start = line.find('<').map_or(0, |at| at + 1);
    let end = line.rfind('>').unwrap_or(line.len());
    line[start..end.max(start)].to_owned()
}

fn read_data(input: &mut BufReader<TcpStream>) -> Option<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let mut line = Vec::new();
        input.read_until(b'\n', &mut line).ok().filter(|count| *count > 0)?;
        if line == b".\r\n" {
            return Some(data);
        }
        data.extend_from_slice(line.strip_prefix(b".").unwrap_or(&line));
    }
}
