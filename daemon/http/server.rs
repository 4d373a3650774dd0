//! The listening side: from an accepted socket to requests with a proven caller.
//!
//! Owns: accepting, the handshake, HTTP/1.1's limits, and the end of every connection.
//! Never: reads a request before its sender's key is proven (or, on the Unix socket, its token).
//! Invariant: whatever comes in, each connection has an end, and their number a limit.

use crate::http::admission::{Limits, Place, Waiting};
use crate::http::patience::Patient;
use crate::http::routes::{self, App};
use crate::http::tls::{self, TlsError};
use crate::http::unix::Door;
use crate::peer::{Caller, Peer};
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mictlan::id::PrincipalId;
use mictlan::seal::Principal;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

/// After an accept that failed for want of file handles: long enough for others to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// A failure that lasts is told in the log so often.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// One read of a chunk should be one system call where it can.
const READ_BUFFER_BYTES: usize = 1 << 20;
/// How long `stop` waits for requests under way.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// A listening socket's task. It ends when `stop` is called or this is dropped.
pub struct Serving {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Serving {
    /// No new connections; those that are busy get a moment to finish.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(why) = self.task.await {
            warn!(%why, "a listening task ended badly");
        }
    }
}

/// Serves the network's peer port: TLS 1.3 and nothing else.
pub fn serve_tls(
    listener: TcpListener,
    principal: &Arc<Principal>,
    peer: Arc<Peer>,
    limits: Limits,
) -> Result<Serving, TlsError> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server_config(principal)?));
    let port = Port::new(App::new(peer, None, limits), limits);
    Ok(start(move |stop| accept_tcp(listener, acceptor, port, stop)))
}

/// Serves this machine's socket, whose file the caller has made in a directory of its own.
pub fn serve_unix(
    listener: UnixListener,
    principal: &Arc<Principal>,
    peer: Arc<Peer>,
    limits: Limits,
) -> Serving {
    let door = Arc::new(Door::new(principal.clone(), peer.network));
    let port = Port::new(App::new(peer, Some(door), limits), limits);
    start(move |stop| accept_unix(listener, port, stop))
}

fn start<F: Future<Output = ()> + Send + 'static>(
    accept: impl FnOnce(watch::Receiver<bool>) -> F,
) -> Serving {
    let (stop, stopped) = watch::channel(false);
    Serving { stop, task: tokio::spawn(accept(stopped)) }
}

/// What the connections of one socket share.
#[derive(Clone)]
struct Port {
    app: App,
    limits: Limits,
    waiting: Arc<Waiting>,
    connections: Arc<Semaphore>,
}

impl Port {
    fn new(app: App, limits: Limits) -> Self {
        let waiting = Waiting::new(limits.waiting_max);
        let connections = Arc::new(Semaphore::new(limits.connections_max));
        Self { app, limits, waiting, connections }
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        let permit = self.connections.clone().acquire_owned().await;
        permit.expect("the semaphore is never closed")
    }
}

/// Resolves when `stop` was called or its owner is gone.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error is the owner's end, which means the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn accept_tcp(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    port: Port,
    mut stop: watch::Receiver<bool>,
) {
    let mut open = JoinSet::new();
    loop {
        let next = async {
            // The permit comes first: what we have no room for waits in the kernel's queue.
            let permit = port.permit().await;
            (permit, accepted(listener.accept().await.map(|(tcp, _)| tcp)).await)
        };
        let (permit, tcp) = tokio::select! {
            _ = stopped(&mut stop) => break,
            next = next => next,
        };
        let Some(tcp) = tcp else { continue };
        let (acceptor, port, stop) = (acceptor.clone(), port.clone(), stop.clone());
        open.spawn(async move {
            tls_connection(tcp, acceptor, port, stop).await;
            drop(permit);
        });
        while open.try_join_next().is_some() {}
    }
    drop(listener); // who comes now is refused at once, and asks another peer
    finish(open).await;
}

async fn accept_unix(listener: UnixListener, port: Port, mut stop: watch::Receiver<bool>) {
    let mut open = JoinSet::new();
    loop {
        let next = async {
            let permit = port.permit().await;
            (permit, accepted(listener.accept().await.map(|(unix, _)| unix)).await)
        };
        let (permit, unix) = tokio::select! {
            _ = stopped(&mut stop) => break,
            next = next => next,
        };
        let Some(unix) = unix.filter(same_user) else { continue };
        let (port, mut stop) = (port.clone(), stop.clone());
        open.spawn(async move {
            serve(unix, None, &port, &mut stop).await;
            drop(permit);
        });
        while open.try_join_next().is_some() {}
    }
    drop(listener); // who comes now is refused at once, and asks another peer
    finish(open).await;
}

/// What an accept gave, or a pause when it failed: `EMFILE` would otherwise spin.
pub async fn accepted<S>(accepted: io::Result<S>) -> Option<S> {
    static SAID: Mutex<Option<Instant>> = Mutex::new(None);
    match accepted {
        Ok(stream) => Some(stream),
        Err(why) if why.kind() == io::ErrorKind::ConnectionAborted => None,
        Err(why) => {
            let last = {
                let mut said = SAID.lock().expect("nothing panics while it is locked");
                let last = *said;
                *said = Some(
                    last.filter(|last| last.elapsed() < SAY_EVERY).unwrap_or_else(Instant::now),
                );
                last
            };
            if last.is_none_or(|last| last.elapsed() >= SAY_EVERY) {
                warn!(%why, "no connection can be accepted now; raise `ulimit -n` if this lasts");
            }
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Another user has no business on this socket, whatever its file's mode became.
fn same_user(unix: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    match unix.peer_cred() {
        Ok(other) => other.uid() == own || other.uid() == 0,
        Err(_) => false,
    }
}

async fn finish(mut open: JoinSet<()>) {
    let all = async { while open.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_REQUESTS, all).await.is_err() {
        debug!("requests were cut off at the end");
    }
}

async fn tls_connection(
    tcp: TcpStream,
    acceptor: TlsAcceptor,
    port: Port,
    mut stop: watch::Receiver<bool>,
) {
    let mut place = port.waiting.enter();
    // Small replies must not wait for a full segment.
    if tcp.set_nodelay(true).is_err() {
        return;
    }
    let handshake = tokio::time::timeout(port.limits.handshake, acceptor.accept(tcp));
    let done = tokio::select! {
        _ = place.pushed_out() => return,
        _ = stopped(&mut stop) => return,
        done = handshake => done,
    };
    let Ok(Ok(stream)) = done else {
        debug!("a connection without a handshake");
        return;
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let Some(Ok(principal)) = certificate.map(tls::key_of) else { return };
    match port.app.peer.knows(&principal) {
        true => {
            drop(place);
            serve(stream, Some(principal), &port, &mut stop).await;
        }
        false => stranger(stream, principal, place, &port, &mut stop).await,
    }
}

/// A key that nobody named: it may join, within a short life, and is the first to go.
async fn stranger(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    principal: PrincipalId,
    mut place: Place,
    port: &Port,
    stop: &mut watch::Receiver<bool>,
) {
    let served =
        tokio::time::timeout(port.limits.stranger, serve(stream, Some(principal), port, stop));
    tokio::select! {
        _ = place.pushed_out() => {}
        // Its end, or the end of its time: both are the end.
        _ = served => {}
    }
}

/// HTTP/1.1 on a stream; `principal` is `None` where each request brings its token.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    principal: Option<PrincipalId>,
    port: &Port,
    stop: &mut watch::Receiver<bool>,
) {
    let caller = principal.map(|principal| Caller { principal, local: false });
    let (app, router) = (port.app.clone(), routes::router(port.app.clone()));
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let mut request = request.map(Body::new);
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        let (app, router) = (app.clone(), router.clone());
        async move { Ok::<_, Infallible>(routes::answer(&app, router, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(port.limits.header)
        .max_buf_size(READ_BUFFER_BYTES)
        .serve_connection(TokioIo::new(Patient::new(stream, port.limits.body_pause)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stopped(stop) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(why) = ended {
        debug!(%why, "a connection ended badly");
    }
}
