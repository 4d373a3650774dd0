//! `/metrics` and `/health` of a peer, for this machine alone.
//!
//! Owns: their names and their plain HTTP.
//! Never: listens on anything but loopback, or tells anything of what is stored.

use crate::here::Here;
use crate::sequencer::Sequencer;
use crate::store::Store;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("metrics = {0:?} is no address such as 127.0.0.1:4511")]
    Address(String),
    #[error("metrics = {0}: they are served on loopback only, such as 127.0.0.1:4511")]
    NotLoopback(SocketAddr),
    #[error("metrics at {0}: {1}")]
    Listen(SocketAddr, std::io::Error),
}

#[derive(Clone)]
struct Seen {
    store: Arc<Store>,
    sequencer: Arc<Sequencer>,
}

/// Serves them until the task is dropped with its runtime.
pub async fn serve(address: &str, here: &Here) -> Result<JoinHandle<()>, MetricsError> {
    let parsed: SocketAddr =
        address.parse().map_err(|_| MetricsError::Address(address.to_owned()))?;
    if !parsed.ip().is_loopback() {
        return Err(MetricsError::NotLoopback(parsed));
    }
    let listener = TcpListener::bind(parsed).await;
    let listener = listener.map_err(|error| MetricsError::Listen(parsed, error))?;
    let seen = Seen { store: here.store.clone(), sequencer: here.sequencer.clone() };
    let health = seen.clone();
    let routes = Router::new()
        .route("/metrics", get(move || async move { metrics(&seen) }))
        .route("/health", get(move || async move { answer(&health) }));
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, routes).await {
            tracing::warn!(%error, "metrics are served no more");
        }
    }))
}

fn metrics(seen: &Seen) -> impl IntoResponse + use<> {
    let mut registry = Registry::with_prefix("mictlan");
    let mut say = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<u64, AtomicU64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    let stat = seen.store.stat();
    say("store_chunks", "Chunks in this peer's store", stat.chunks);
    say("store_damaged_chunks", "Chunks found damaged and not replaced yet", stat.damaged);
    say("store_used_bytes", "Bytes that the store uses", stat.used);
    say("store_capacity_bytes", "Bytes that the store may use", stat.space);
    let out = u64::from(stat.out_of_service.is_some());
    say("store_out_of_service", "1 if the store takes no writes", out);
    let size = seen.sequencer.with_state(|state| state.head().size).unwrap_or(0);
    say("ledger_records", "Records that this peer has applied", size);
    let published = seen.sequencer.published().map_or(0, |published| published.size);
    say("ledger_published_records", "Records under a published checkpoint", published);
    say("leads", "1 if this peer leads", u64::from(seen.sequencer.leads()));
    let leader = seen.sequencer.leader().map_or(0, |leader| leader.0);
    say("leader", "The peer that leads; 0 if none is known", leader);
    let mut text = String::new();
    match encode(&mut text, &registry) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, TEXT)], text),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, TEXT)], String::new())
        }
    }
}

/// 200 while this peer takes writes and knows a leader; 503 and why otherwise.
fn answer(seen: &Seen) -> (StatusCode, String) {
    if let Some(why) = seen.store.stat().out_of_service {
        return (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    }
    match seen.sequencer.leader() {
        Some(_) => (StatusCode::OK, "ok\n".to_owned()),
        None => (StatusCode::SERVICE_UNAVAILABLE, "no leader is known\n".to_owned()),
    }
}
