//! What `outgate dev` serves by itself: the captured mail on loopback, and a socket that takes `restart`.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{mpsc, oneshot};

use super::sink::Sink;

pub(super) const CAPTURED: &str = "/api/v1/dev/captured";
/// Requests that wait for their turn.
const RESTARTS_MAX: usize = 4;

pub(super) struct Serve {
    pub(super) http: SocketAddr,
    pub(super) restarts: mpsc::Receiver<Restart>,
}

/// A wish to start a node again.
pub(super) struct Restart {
    pub(super) id: u64,
    pub(super) answer: oneshot::Sender<Result<Restarted, String>>,
}

pub(super) struct Restarted {
    pub(super) pid: Option<u32>,
    /// Whether it takes mail, which may need the others.
    pub(super) ready: bool,
}

impl Serve {
    pub(super) async fn start(sink: &Sink, control: &Path) -> std::io::Result<Self> {
        let captured = Router::new().route(CAPTURED, get(captured)).with_state(sink.clone());
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let http = tcp.local_addr()?;
        if control.exists() {
            std::fs::remove_file(control)?;
        }
        let unix = UnixListener::bind(control)?;
        std::fs::set_permissions(control, std::fs::Permissions::from_mode(0o600))?;
        let (wishes, restarts) = mpsc::channel(RESTARTS_MAX);
        let restart = Router::new().route("/api/v1/dev/restart/{id}", post(restart)).with_state(wishes);
        tokio::spawn(async move { axum::serve(tcp, captured).await });
        tokio::spawn(async move { axum::serve(unix, restart).await });
        Ok(Self { http, restarts })
    }
}

/// Oldest first.
async fn captured(State(sink): State<Sink>) -> Response {
    let list: Vec<_> = sink
        .captured()
        .iter()
        .map(|mail| {
            json!({
                "sender": mail.sender,
                "recipients": mail.recipients,
                "data": String::from_utf8_lossy(&mail.data),
            })
        })
        .collect();
    Json(list).into_response()
}

async fn restart(
    State(wishes): State<mpsc::Sender<Restart>>,
    axum::extract::Path(id): axum::extract::Path<u64>,
) -> Response {
    let error = |status: StatusCode, text: &str| (status, Json(json!({ "error": text }))).into_response();
    let (answer, answered) = oneshot::channel();
    if wishes.try_send(Restart { id, answer }).is_err() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too many restarts at once");
    }
    match answered.await {
        Ok(Ok(Restarted { pid, ready })) => Json(json!({ "id": id, "pid": pid, "ready": ready })).into_response(),
        Ok(Err(reason)) => error(StatusCode::CONFLICT, &reason),
        Err(_) => error(StatusCode::SERVICE_UNAVAILABLE, "outgate dev is ending"),
    }
}
