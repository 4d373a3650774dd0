//! `/metrics` and `/health` of a peer or a mount, for this machine alone.
//!
//! Owns: their names and their plain HTTP.
//! Never: listens on anything but loopback, or tells anything of what is stored.
//! Invariant: every user of this machine may ask, and none can hold more than some connections, for
//! some seconds: the newest push out the oldest.

use crate::counts::COUNTS;
use crate::here::Here;
use crate::http::admission::{Place, Waiting};
use crate::http::server::accepted;
use crate::peer::Peer;
use crate::sequencer::Sequencer;
use crate::store::Store;
use crate::volume::Volume;
use axum::Router;
use axum::body::Body;
use axum::http::StatusCode;
use axum::http::header::{self, HeaderName};
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tower::ServiceExt;

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Who asks at a time.
const CONNECTIONS_MAX: usize = 8;
/// How long one may take.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics = {0:?} is no address such as 127.0.0.1:4511")]
    Address(String),
    #[error("metrics = {0}: they are served on loopback only, such as 127.0.0.1:4511")]
    NotLoopback(SocketAddr),
    #[error("metrics at {0}: {1}; nothing was done; choose another port")]
    Listen(SocketAddr, std::io::Error),
}

/// Who is asked: a peer, or a mount.
trait Told: Clone + Send + Sync + 'static {
    fn tell(&self, registry: &mut Registry);
    /// 200 while all is well; 503 and why otherwise.
    fn health(&self) -> (StatusCode, String);
}

/// Serves a peer's until the task is dropped with its runtime.
pub async fn serve(address: &str, here: &Here) -> Result<JoinHandle<()>, MetricsError> {
    let parsed = address.parse().map_err(|_| MetricsError::Address(address.to_owned()))?;
    let peer = OfPeer {
        peer: here.peer.clone(),
        store: here.store.clone(),
        sequencer: here.sequencer.clone(),
    };
    Ok(answer(listen(parsed).await?, peer))
}

/// A place for a mount's, before it is mounted: a port in use is said while nothing is done yet.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    if !address.ip().is_loopback() {
        return Err(MetricsError::NotLoopback(address));
    }
    TcpListener::bind(address).await.map_err(|error| MetricsError::Listen(address, error))
}

/// Serves a mount's, as `serve` does.
pub fn serve_mount(listener: TcpListener, volume: Arc<Volume>) -> JoinHandle<()> {
    answer(listener, OfMount(volume))
}

fn answer(listener: TcpListener, told: impl Told) -> JoinHandle<()> {
    let health = told.clone();
    let routes = Router::new()
        .route("/metrics", get(move || async move { metrics(&told) }))
        .route("/health", get(move || async move { health.health() }));
    tokio::spawn(async move {
        let (open, mut tasks) = (Waiting::new(CONNECTIONS_MAX), JoinSet::new());
        loop {
            let tcp = accepted(listener.accept().await.map(|(tcp, _)| tcp)).await;
            if let Some(tcp) = tcp {
                tasks.spawn(connection(tcp, routes.clone(), open.enter()));
            }
            while tasks.try_join_next().is_some() {}
        }
    })
}

/// One answer, while its place lasts.
async fn connection(tcp: TcpStream, routes: Router, mut place: Place) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        routes.clone().oneshot(request.map(Body::new))
    });
    let served = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(tcp), service);
    tokio::select! {
        _ = place.pushed_out() => {}
        // Its end, or the end of its time: both are the end.
        _ = tokio::time::timeout(CONNECTION_MAX, served) => {}
    }
}

fn metrics(told: &impl Told) -> (StatusCode, [(HeaderName, &'static str); 1], String) {
    let mut registry = Registry::with_prefix("mictlan");
    told.tell(&mut registry);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, TEXT)], text),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, TEXT)], String::new())
        }
    }
}

/// A number as it is now.
fn say(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Gauge::<u64, AtomicU64>::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

#[derive(Clone)]
struct OfPeer {
    peer: Arc<Peer>,
    store: Arc<Store>,
    sequencer: Arc<Sequencer>,
}

impl Told for OfPeer {
    fn tell(&self, registry: &mut Registry) {
        let mut say = |name, help, value| say(registry, name, help, value);
        let stat = self.store.stat();
        say("store_chunks", "Chunks in this peer's store", stat.chunks);
        say("store_damaged_chunks", "Chunks found damaged and not replaced yet", stat.damaged);
        say("store_used_bytes", "Bytes that the store uses", stat.used);
        say("store_capacity_bytes", "Bytes that the store may use", stat.space);
        let out = u64::from(stat.out_of_service.is_some());
        say("store_out_of_service", "1 if the store takes no writes", out);
        let missing = self.peer.copies_missing();
        say("copies_missing_chunks", "Chunks whose other copies it did not find", missing);
        let size = self.sequencer.with_state(|state| state.head().size).unwrap_or(0);
        say("ledger_records", "Records that this peer has applied", size);
        let published = self.sequencer.published().map_or(0, |published| published.size);
        say("ledger_published_records", "Records under a published checkpoint", published);
        let votes = self.sequencer.voters().contains(&self.sequencer.id());
        say("votes", "1 if this peer votes, 0 if it stores and follows", u64::from(votes));
        say("leads", "1 if this peer leads", u64::from(self.sequencer.leads()));
        let leader = self.sequencer.leader().map_or(0, |leader| leader.0);
        say("leader", "The peer that leads; 0 if none is known", leader);
        COUNTS.register_peer(registry);
    }

    /// While this peer takes writes and knows a leader.
    fn health(&self) -> (StatusCode, String) {
        if let Some(why) = self.store.stat().out_of_service {
            return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
        }
        match self.sequencer.leader() {
            Some(_) => (StatusCode::OK, "ok\n".to_owned()),
            None => (StatusCode::SERVICE_UNAVAILABLE, "no leader is known\n".to_owned()),
        }
    }
}

#[derive(Clone)]
struct OfMount(Arc<Volume>);

impl Told for OfMount {
    fn tell(&self, registry: &mut Registry) {
        let Self(volume) = self;
        let mut say = |name, help, value| say(registry, name, help, value);
        let help = "Chunks that are durable and not yet at all their copies";
        say("copies_owed_chunks", help, volume.copies_owed() as u64);
        say("ledger_applied_records", "The position up to which this mount has the log", {
            volume.applied_position().0
        });
        let help = "Files that are open, or have bytes that are not on their peers";
        say("open_files", help, volume.open_files() as u64);
        let severe = volume.troubles().iter().filter(|trouble| trouble.severe).count();
        say("troubles", "Problems of this mount that need attention", severe as u64);
        COUNTS.register_mount(registry);
    }

    /// While nothing of it needs attention.
    fn health(&self) -> (StatusCode, String) {
        let Self(volume) = self;
        match volume.troubles().into_iter().find(|trouble| trouble.severe) {
            None => (StatusCode::OK, "ok\n".to_owned()),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", why.code)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[derive(Clone)]
    struct Nothing;

    impl Told for Nothing {
        fn tell(&self, registry: &mut Registry) {
            say(registry, "nothing", "Nothing", 0);
        }
        fn health(&self) -> (StatusCode, String) {
            (StatusCode::OK, "ok\n".to_owned())
        }
    }

    #[tokio::test]
    async fn a_crowd_that_never_ends_its_request_keeps_nobody_from_the_metrics() {
        let listener = listen((Ipv4Addr::LOCALHOST, 0).into()).await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let serving = answer(listener, Nothing);
        let mut crowd = Vec::new();
        for _ in 0..3 * CONNECTIONS_MAX {
            let mut one = TcpStream::connect(address).await.expect("connected");
            one.write_all(b"GET /metrics HTTP/1.1\r\nx: ").await.expect("sent");
            crowd.push(one);
        }
        let mut asking = TcpStream::connect(address).await.expect("connected");
        asking.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut text = String::new();
        asking.read_to_string(&mut text).await.expect("answered, and closed");
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("mictlan_nothing 0"), "{text}");
        // All but those that came last were pushed out; the reset of some is their end as well.
        for one in &mut crowd[..2 * CONNECTIONS_MAX] {
            assert!(matches!(one.read(&mut [0; 8]).await, Ok(0) | Err(_)), "it is closed");
        }
        serving.abort();
    }
}
