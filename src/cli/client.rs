//! The client of a node's control socket.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{Method, Request, Response, StatusCode, header};
use clap::Args;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;

use super::failure::Failure;
use super::output::Output;

/// Octets of an answer: an export of millions of users.
const ANSWER_MAX: usize = 1 << 30;
/// An import may hash passwords for long; everything else is quick.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
const LONG_ANSWER_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// Entries that are asked for at a time.
const PAGE: usize = 1_000;

/// What every admin verb takes.
#[derive(Args, Clone, Debug)]
pub(super) struct Admin {
    /// The node's control socket
    #[arg(
        long,
        global = true,
        env = "OUTGATE_SOCKET",
        default_value = "/var/lib/outgate/control.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
    /// Form of the answer
    #[arg(long, global = true, env = "OUTGATE_OUTPUT", value_enum, default_value_t = Output::Table)]
    pub(super) output: Output,
}

/// One node's API.
pub(super) struct Client {
    socket: PathBuf,
}

/// Runs an admin verb; one thread is enough.
pub(super) fn block_on<T>(verb: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| Failure::failed(format!("cannot begin: {error}")))?.block_on(verb)
}

impl Admin {
    pub(super) fn client(&self) -> Client {
        Client::new(self.socket.clone())
    }
}

impl Client {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::GET, path, None).await
    }

    /// The whole of a list that is served in pages, whose entries are known by `key`.
    pub(super) async fn get_all(&self, path: &str, query: &Query, key: &str) -> Result<Value, Failure> {
        let mut all = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = query.clone().and("after", after.as_deref()).and("count", Some(PAGE.to_string().as_str()));
            let Value::Array(entries) = self.get(&page.of(path)).await? else { break };
            let full = entries.len() >= PAGE;
            after = entries.last().and_then(|last| last[key].as_str()).map(str::to_owned);
            all.extend(entries);
            if !full || after.is_none() {
                break;
            }
        }
        Ok(Value::Array(all))
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::POST, path, Some(body)).await
    }

    pub(super) async fn patch(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::PATCH, path, Some(body)).await
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Result<Value, Failure> {
        self.json(Method::PUT, path, Some(body)).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Value, Failure> {
        self.json(Method::DELETE, path, None).await
    }

    /// Bytes as they are: a message or CSV.
    pub(super) async fn download(&self, path: &str) -> Result<Bytes, Failure> {
        self.fetch(path).await.map(Response::into_body)
    }

    /// The same with its headers.
    pub(super) async fn fetch(&self, path: &str) -> Result<Response<Bytes>, Failure> {
        self.fetch_within(path, ANSWER_TIMEOUT).await
    }

    /// The same where it may take its time.
    pub(super) async fn fetch_within(&self, path: &str, patience: Duration) -> Result<Response<Bytes>, Failure> {
        let answer = self.send(Method::GET, path, Bytes::new(), "application/json", patience).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(refused(answer.status(), answer.body())) }
    }

    /// Sends CSV; the answer is JSON, with a conflict (409) as well.
    pub(super) async fn upload(&self, path: &str, csv: Vec<u8>) -> Result<(StatusCode, Value), Failure> {
        let answer = self.send(Method::POST, path, csv.into(), "text/csv", LONG_ANSWER_TIMEOUT).await?;
        let (status, bytes) = (answer.status(), answer.into_body());
        if status.is_success() || status == StatusCode::CONFLICT {
            Ok((status, parse(&bytes)?))
        } else {
            Err(refused(status, &bytes))
        }
    }

    async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, Failure> {
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        let answer = self.send(method, path, body, "application/json", ANSWER_TIMEOUT).await?;
        let (status, bytes) = (answer.status(), answer.into_body());
        if !status.is_success() {
            return Err(refused(status, &bytes));
        }
        if bytes.is_empty() { Ok(Value::Null) } else { parse(&bytes) }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        kind: &str,
        patience: Duration,
    ) -> Result<Response<Bytes>, Failure> {
        let name = path.split('?').next().unwrap_or_default();
        if name.ends_with('/') || name.contains("//") {
            return Err(Failure::wrong("a name is empty: give a login, a domain, an address or a message id"));
        }
        let socket = self.socket.display();
        let gone =
            |error: &dyn std::fmt::Display| Failure::failed(format!("the node behind {socket} broke off: {error}"));
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| {
            Failure::failed(format!(
                "cannot reach a node at {socket}: {error}: is it running? name its socket with --socket"
            ))
        })?;
        let exchange = async {
            let handshake = hyper::client::conn::http1::handshake::<_, Body>(TokioIo::new(stream)).await;
            let (mut sender, connection) = handshake.map_err(|error| gone(&error))?;
            tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(format!("/api/v1{path}"))
                .header(header::HOST, "localhost")
                .header(header::CONTENT_TYPE, kind)
                .body(Body::from(body))
                .map_err(|error| Failure::wrong(format!("cannot ask for {path}: {error}")))?;
            let answer = sender.send_request(request).await.map_err(|error| gone(&error))?;
            let (head, body) = answer.into_parts();
            let bytes = to_bytes(Body::new(body), ANSWER_MAX).await.map_err(|error| gone(&error))?;
            Ok(Response::from_parts(head, bytes))
        };
        let late =
            |_| Failure::failed(format!("the node behind {socket} did not answer within {} s", patience.as_secs()));
        tokio::time::timeout(patience, exchange).await.map_err(late)?
    }
}

pub(super) fn parse(bytes: &[u8]) -> Result<Value, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::failed(format!("the node's answer is no JSON: {error}")))
}

/// 400 = wrong input, everything else = refused or failed.
fn refused(status: StatusCode, bytes: &[u8]) -> Failure {
    let told = serde_json::from_slice::<Value>(bytes).ok();
    let plain = String::from_utf8_lossy(bytes);
    let plain = if plain.trim().is_empty() { status.as_str() } else { plain.trim() };
    let text = told.as_ref().and_then(|value| value["error"].as_str()).unwrap_or(plain);
    if status == StatusCode::BAD_REQUEST || status == StatusCode::PAYLOAD_TOO_LARGE {
        Failure::wrong(text)
    } else {
        Failure::failed(text)
    }
}

/// One part of a path, with everything escaped that is not plainly a letter.
pub(super) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Parameters of a request.
#[derive(Clone, Default)]
pub(super) struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Adds a parameter that was given.
    pub(super) fn and(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.0.extend(value.map(|value| (name, value.to_owned())));
        self
    }

    pub(super) fn of(&self, path: &str) -> String {
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
        if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
    }
}
