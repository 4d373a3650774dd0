//! What this process counted since it began, for `/metrics`.
//!
//! Owns: the counters of the process, and the words that may stand in their labels.
//! Never: takes a label from a caller: no name, path, address or key; each label is one of a few
//! words that stand in this program.
//! Invariant: counting costs an atomic addition, never waits, and changes nothing else.

use crate::peer::RaftCall;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::LazyLock;
use std::time::Duration;

/// One for the process: a peer and a mount in it tell of one machine.
pub static COUNTS: LazyLock<Counts> = LazyLock::new(Counts::default);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Request {
    route: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Route {
    route: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Result {
    result: &'static str,
}

type Times<Labels> = Family<Labels, Histogram, fn() -> Histogram>;

pub struct Counts {
    requests: Family<Request, Counter>,
    request_times: Times<Route>,
    received: Family<Route, Counter>,
    sent: Family<Route, Counter>,
    disk_syncs: Times<Result>,
    fsyncs: Times<Result>,
    commits: Family<Result, Counter>,
    chunk_reads: Family<Result, Counter>,
    lies: Counter,
    file_bytes_read: Counter,
    file_bytes_written: Counter,
}

/// From a tenth of a millisecond to 26 s.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 4.0, 10))
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            request_times: Family::new_with_constructor(seconds),
            received: Family::default(),
            sent: Family::default(),
            disk_syncs: Family::new_with_constructor(seconds),
            fsyncs: Family::new_with_constructor(seconds),
            commits: Family::default(),
            chunk_reads: Family::default(),
            lies: Counter::default(),
            file_bytes_read: Counter::default(),
            file_bytes_written: Counter::default(),
        }
    }
}

/// How an operation of ours ended.
fn word<T, E>(result: &std::result::Result<T, E>) -> Result {
    Result { result: if result.is_ok() { "ok" } else { "failed" } }
}

impl Counts {
    /// A request that was answered with `status` after `took`, with the lengths of its bodies.
    pub fn request(&self, path: &str, status: u16, took: Duration, received: u64, sent: u64) {
        let route = route(path);
        self.requests.get_or_create(&Request { route, outcome: outcome(status) }).inc();
        let route = Route { route };
        self.request_times.get_or_create(&route).observe(took.as_secs_f64());
        self.received.get_or_create(&route).inc_by(received);
        self.sent.get_or_create(&route).inc_by(sent);
    }

    /// A log or a file was made durable on a local disk.
    pub fn disk_sync<T, E>(&self, done: &std::result::Result<T, E>, took: Duration) {
        self.disk_syncs.get_or_create(&word(done)).observe(took.as_secs_f64());
    }

    /// An application's fsync of a file of a mount was answered.
    pub fn fsync<T, E>(&self, done: &std::result::Result<T, E>, took: Duration) {
        self.fsyncs.get_or_create(&word(done)).observe(took.as_secs_f64());
    }

    /// A commit of a mount came back `ordered`, `refused` or `unanswered`.
    pub fn commit(&self, result: &'static str) {
        self.commits.get_or_create(&Result { result }).inc();
    }

    /// A mount wanted a chunk, and had it (`hit`) or asked a peer (`miss`).
    pub fn chunk_read(&self, hit: bool) {
        let result = if hit { "hit" } else { "miss" };
        self.chunk_reads.get_or_create(&Result { result }).inc();
    }

    /// A mount wanted a part of a chunk, and asked a peer for no more than the frames that hold it.
    pub fn chunk_read_in_part(&self) {
        self.chunk_reads.get_or_create(&Result { result: "part" }).inc();
    }

    /// A peer answered with what is not the chunk, or not its receipt.
    pub fn lie(&self) {
        self.lies.inc();
    }

    pub fn file_read(&self, bytes: usize) {
        self.file_bytes_read.inc_by(bytes as u64);
    }

    pub fn file_written(&self, bytes: usize) {
        self.file_bytes_written.inc_by(bytes as u64);
    }

    /// What a peer counts.
    pub fn register_peer(&self, registry: &mut Registry) {
        let Self { requests, request_times, received, sent, .. } = self;
        let help = "Requests that came by a socket, by what was asked and how it ended";
        registry.register("requests", help, requests.clone());
        let help = "Time from a request's head to the head of its answer";
        registry.register_with_unit("request", help, Unit::Seconds, request_times.clone());
        let help = "Bodies of requests, as announced";
        registry.register_with_unit("received", help, Unit::Bytes, received.clone());
        registry.register_with_unit("sent", "Bodies of answers", Unit::Bytes, sent.clone());
        self.register_both(registry);
    }

    /// What a mount counts.
    pub fn register_mount(&self, registry: &mut Registry) {
        let help = "Commits, by what the sequencer said of them";
        registry.register("commits", help, self.commits.clone());
        let help = "Time that fsync(2) took, with copies and commit";
        registry.register_with_unit("fsync", help, Unit::Seconds, self.fsyncs.clone());
        let help = "Chunks that were wanted, by whether they were in memory or read in part";
        registry.register("chunk_reads", help, self.chunk_reads.clone());
        let help = "Bytes that programs read";
        registry.register_with_unit("file_read", help, Unit::Bytes, self.file_bytes_read.clone());
        let (help, written) = ("Bytes that programs wrote", self.file_bytes_written.clone());
        registry.register_with_unit("file_written", help, Unit::Bytes, written);
        self.register_both(registry);
    }

    fn register_both(&self, registry: &mut Registry) {
        let help =
            "Answers of peers that were not the chunk that was asked for, or not its receipt";
        registry.register("lies", help, self.lies.clone());
        let help = "Time that a log or file took to become durable on this machine's disk";
        registry.register_with_unit("disk_sync", help, Unit::Seconds, self.disk_syncs.clone());
    }
}

/// The route of a path, as one of a few words: whatever a stranger asks for is `other`.
fn route(path: &str) -> &'static str {
    const MESSAGES: [&str; 12] = [
        "append",
        "follow",
        "head",
        "hello",
        "join",
        "prove",
        "query",
        "read-position",
        "sessions/close",
        "sessions/heartbeat",
        "sessions/open",
        "status",
    ];
    let Some(path) = path.strip_prefix("/api/v4/") else { return "other" };
    if let Some(known) = MESSAGES.into_iter().find(|known| *known == path) {
        return known;
    }
    let mut parts = path.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some("chunks"), Some("put"), None) => "chunks/put",
        (Some("chunks"), Some("have"), None) => "chunks/have",
        (Some("chunks"), Some(_), None) => "chunks/one",
        (Some("chunks"), Some(_), Some("proof")) => "chunks/proof",
        (Some("ledger"), Some(_), _) => "ledger",
        (Some("raft"), Some(call), None) => {
            let known = RaftCall::ALL.into_iter().find(|known| known.path() == call);
            known.map_or("other", |_| "raft")
        }
        (Some(address), None, None) if address.len() == 64 => "chunks/one",
        _ => "other",
    }
}

fn outcome(status: u16) -> &'static str {
    match status {
        204 => "nothing",
        200..=299 => "ok",
        503 => "busy",
        504 => "late",
        421 => "not-leader",
        400..=499 => "refused",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_asked_for_the_words_in_labels_stay_few() {
        let address = "5f".repeat(32);
        let words: Vec<&str> = [
            "/api/v4/append",
            "/api/v4/raft/vote",
            "/api/v4/raft/secret",
            "/api/v4/sessions/open",
            "/api/v4/ledger/tile/0/000",
            &format!("/api/v4/{address}"),
            &format!("/api/v4/chunks/{address}"),
            &format!("/api/v4/chunks/{address}/proof/0/1"),
            "/api/v4/alice",
            "/etc/passwd",
        ]
        .into_iter()
        .map(route)
        .collect();
        let one = "chunks/one";
        assert_eq!(words[..5], ["append", "raft", "other", "sessions/open", "ledger"]);
        assert_eq!(words[5..], [one, one, "chunks/proof", "other", "other"]);
        let outcomes: Vec<&str> = [200, 204, 206, 403, 421, 500, 503, 504].map(outcome).into();
        let ends = ["ok", "nothing", "ok", "refused", "not-leader", "failed", "busy", "late"];
        assert_eq!(outcomes, ends);
    }
}
