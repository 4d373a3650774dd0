//! Who may hold a connection while nobody knows who they are.
//!
//! Owns: the limits of a listening socket, and the queue of connections without a known key.
//! Never: decides by address: on one host, or behind one router, all come from the same.
//! Invariant: strangers hold at most `waiting_max` connections. One more pushes out the oldest,
//! so that a crowd which opens connections and says nothing cannot keep a member out: a member's
//! handshake takes milliseconds, and the crowd would have to replace itself within them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;

/// Handles kept for files, the store's segments, and what we dial ourselves.
const RESERVED_FILES: u64 = 32;
const CONNECTIONS_MIN: u64 = 8;
const CONNECTIONS_MAX: u64 = 4096;

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections_max: usize,
    /// How many of them may be strangers'.
    pub waiting_max: usize,
    pub handshake: Duration,
    /// From the first byte to the end of a request's head, and how long a connection may be idle.
    pub header: Duration,
    /// How long a connection of an unknown key lives in all: `join` takes two calls.
    pub stranger: Duration,
    /// The longest pause within a request's body.
    pub body_pause: Duration,
    /// Bytes of bodies that are held at a time, over all connections: of arriving chunks.
    pub inbound_bytes_max: usize,
    /// Of members' messages, of those between voters, of strangers' joins, and of replies: chunks,
    /// and pages of the log.
    pub message_bytes_max: usize,
    pub voter_bytes_max: usize,
    pub stranger_bytes_max: usize,
    pub reply_bytes_max: usize,
    pub page_bytes_max: usize,
    /// How long a request waits for its share of them.
    pub budget_wait: Duration,
}

impl Limits {
    /// For a process that may have `files` file handles.
    pub fn for_files(files: u64) -> Self {
        let share = files.saturating_sub(RESERVED_FILES) / 2;
        let connections_max = share.clamp(CONNECTIONS_MIN, CONNECTIONS_MAX) as usize;
        Self {
            connections_max,
            waiting_max: (connections_max / 2).min(64),
            handshake: Duration::from_secs(5),
            header: Duration::from_secs(30),
            stranger: Duration::from_secs(20),
            body_pause: Duration::from_secs(15),
            inbound_bytes_max: 128 << 20,
            message_bytes_max: 32 << 20,
            // Two of the largest, so that a snapshot on its way keeps no entry from coming in.
            voter_bytes_max: 64 << 20,
            stranger_bytes_max: 2 << 20,
            reply_bytes_max: 128 << 20,
            page_bytes_max: 64 << 20,
            budget_wait: Duration::from_secs(10),
        }
    }

    /// For the limit that this process has now (`ulimit -n`).
    pub fn of_process() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Self::for_files(limit.current.unwrap_or(u64::MAX))
    }
}

/// Connections whose key is not known yet, oldest first.
pub struct Waiting {
    max: usize,
    /// Covers the queue only.
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    next: u64,
    open: BTreeMap<u64, oneshot::Sender<()>>,
}

/// A place in the queue; given back when it is dropped.
pub struct Place {
    waiting: Arc<Waiting>,
    number: u64,
    pushed_out: oneshot::Receiver<()>,
}

impl Waiting {
    pub fn new(max: usize) -> Arc<Self> {
        assert!(max > 0, "somebody must be able to knock");
        Arc::new(Self { max, queue: Mutex::default() })
    }

    pub fn enter(self: &Arc<Self>) -> Place {
        let mut queue = self.queue.lock().expect("no holder of the queue panics");
        if queue.open.len() >= self.max {
            // Dropping the sender is what the oldest hears.
            queue.open.pop_first();
        }
        let number = queue.next;
        queue.next += 1;
        let (sender, pushed_out) = oneshot::channel();
        queue.open.insert(number, sender);
        Place { waiting: self.clone(), number, pushed_out }
    }
}

impl Place {
    /// Resolves when this connection has to go for a newer one.
    pub async fn pushed_out(&mut self) {
        // The sender never sends: its end is the message.
        let _ = (&mut self.pushed_out).await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = self.waiting.queue.lock().expect("no holder of the queue panics");
        queue.open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn gone(place: &mut Place) -> bool {
        place.pushed_out().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_stranger_makes_room_for_the_newest() {
        let waiting = Waiting::new(2);
        let (mut first, mut second) = (waiting.enter(), waiting.enter());
        assert!(!gone(&mut first) && !gone(&mut second));
        let mut third = waiting.enter();
        assert!(gone(&mut first) && !gone(&mut second) && !gone(&mut third));
        drop(second);
        let _fourth = waiting.enter();
        assert!(!gone(&mut third), "a place that was given back is free");
    }

    #[test]
    fn few_file_handles_mean_few_connections_but_some() {
        let limits = Limits::for_files(64);
        assert_eq!((limits.connections_max, limits.waiting_max), (16, 8));
        assert_eq!(Limits::for_files(0).connections_max, CONNECTIONS_MIN as usize);
        assert_eq!(Limits::for_files(1 << 20).connections_max, CONNECTIONS_MAX as usize);
    }
}
