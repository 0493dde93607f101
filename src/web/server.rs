//! The two servers: bind, serve, stop.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;

use super::{Parts, api, health};

/// Open connections of one server; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 256;
/// A connection to the health server on which nothing was read or written for so long is closed. The control
/// socket has no such limit: an import may compute password hashes for minutes.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// Patience with running requests at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// Both servers, running.
pub struct Servers {
    /// With the port that was bound.
    pub http: SocketAddr,
    pub control_socket: PathBuf,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// A server could not begin.
#[derive(thiserror::Error, Debug)]
pub enum WebError {
    #[error("cannot listen on http.address {0}: {1}")]
    Http(SocketAddr, std::io::Error),
    #[error("cannot make the control socket {0}: {1}")]
    Socket(PathBuf, std::io::Error),
    #[error("the control socket {0} belongs to a running node")]
    SocketInUse(PathBuf),
}

impl Servers {
    /// Binds and serves both; on an error nothing is left bound.
    pub async fn start(mut parts: Parts) -> Result<Self, WebError> {
        let asked = parts.http;
        let wrong = |error| WebError::Http(asked, error);
        let tcp = TcpListener::bind(asked).await.map_err(wrong)?;
        let http = tcp.local_addr().map_err(wrong)?;
        parts.http = http;
        let control_socket = parts.control_socket.clone();
        let unix = bind_private(&control_socket).await?;
        let (stop, stopped) = watch::channel(false);
        let tasks = vec![
            serve(Bounded::new(tcp, Some(IDLE_MAX)), health::router(parts.clone()), stopped.clone()),
            serve(Bounded::new(unix, None), api::router(parts), stopped),
        ];
        Ok(Self { http, control_socket, stop, tasks })
    }

    /// Finishes running requests for a moment, then stops and removes the socket.
    pub async fn shutdown(self) {
        self.stop.send_replace(true);
        for mut task in self.tasks {
            if tokio::time::timeout(SHUTDOWN_TIMEOUT, &mut task).await.is_err() {
                task.abort();
            }
        }
        if let Err(error) = std::fs::remove_file(&self.control_socket) {
            tracing::debug!(%error, "the control socket was gone already");
        }
    }
}

/// A socket that nobody but its owner can open, from its first moment on: it is made under another name,
/// restricted, and then moved to its place. A file that a killed node left is replaced.
async fn bind_private(path: &Path) -> Result<UnixListener, WebError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(WebError::SocketInUse(path.to_owned()));
    }
    let bind = || {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", std::process::id()));
        let fresh = PathBuf::from(name);
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    };
    bind().map_err(|error| WebError::Socket(path.to_owned(), error))
}

fn serve<L>(listener: Bounded<L>, router: Router, mut stopped: watch::Receiver<bool>) -> JoinHandle<()>
where
    L: Listener,
    L::Addr: std::fmt::Debug,
{
    let until = async move {
        // The sender lives until shutdown; its end means the same.
        if stopped.wait_for(|stop| *stop).await.is_err() {
            tracing::debug!("the servers were dropped");
        }
    };
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(until).await {
            tracing::error!(%error, "an HTTP server ended");
        }
    })
}

/// A listener with a bound on open connections, each of which ends when it idles.
struct Bounded<L> {
    inner: L,
    idle_max: Option<Duration>,
    places: Arc<Semaphore>,
}

impl<L> Bounded<L> {
    fn new(inner: L, idle_max: Option<Duration>) -> Self {
        Self { inner, idle_max, places: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }
}

impl<L: Listener> Listener for Bounded<L> {
    type Io = Placed<L::Io>;
    type Addr = L::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        // The semaphore is never closed: without a place the connection is simply not counted.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (io, address) = self.inner.accept().await;
        let idle = self.idle_max.map(|max| (max, Box::pin(tokio::time::sleep(max))));
        (Placed { io, idle, _place: place }, address)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.inner.local_addr()
    }
}

/// A connection with its place among [`CONNECTIONS_MAX`].
struct Placed<I> {
    io: I,
    idle: Option<(Duration, Pin<Box<tokio::time::Sleep>>)>,
    _place: Option<OwnedSemaphorePermit>,
}

impl<I> Placed<I> {
    /// Notes activity, or ends the connection where there was none for too long.
    fn watch<T>(&mut self, context: &mut Context<'_>, step: Poll<std::io::Result<T>>) -> Poll<std::io::Result<T>> {
        let Some((max, idle)) = &mut self.idle else { return step };
        if step.is_ready() {
            idle.as_mut().reset(tokio::time::Instant::now() + *max);
            return step;
        }
        match idle.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(std::io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Placed<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let step = Pin::new(&mut self.io).poll_read(context, buffer);
        self.watch(context, step)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Placed<I> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let step = Pin::new(&mut self.io).poll_write(context, bytes);
        self.watch(context, step)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
