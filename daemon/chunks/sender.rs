//! Chunks on their way to one peer: what waits together travels together.
//!
//! Owns: one peer's queue and how many requests are on their way to it.
//! Invariant: a chunk waits only while all the peer's requests are in use, never for a timer.

use crate::link::{Link, LinkError, Trouble};
use bytes::Bytes;
use mictlan::cluster::place::Copies;
use mictlan::cluster::put::Failure;
use mictlan::id::ChunkId;
use mictlan::wire::{self, Failure as Said};
use std::sync::{Arc, Weak};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Enough to keep one peer's disk and one core's TLS busy; more would only queue there.
const REQUESTS_MAX: usize = 4;
/// A batch is sent as soon as a request is free; a batch of this many bytes is large enough.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_CHUNKS: usize = 256;

struct Job {
    chunk: ChunkId,
    /// Held by whoever waits for the receipt: when nobody does, there is nothing to send.
    bytes: Weak<Bytes>,
    /// How many there shall be, if the peer is to know.
    copies: Option<Copies>,
    done: Answer,
}

/// The queue to one peer; it ends when the last of these is dropped.
#[derive(Clone)]
pub struct Sender(mpsc::UnboundedSender<Job>);

impl Sender {
    /// The queue is not bounded by itself, and holds no bytes: those are charged to a `Budget` by
    /// whoever waits for the chunk.
    pub fn start(link: Link) -> Self {
        let (queue, jobs) = mpsc::unbounded_channel();
        tokio::spawn(send_all(link, jobs));
        Self(queue)
    }

    /// Waits for the peer's receipt of `chunk`, whose bytes these are.
    pub async fn send(
        &self,
        chunk: ChunkId,
        bytes: Bytes,
        copies: Option<Copies>,
    ) -> Result<(), Failure> {
        let (done, answer) = oneshot::channel();
        let bytes = Arc::new(bytes);
        if self.0.send(Job { chunk, bytes: Arc::downgrade(&bytes), copies, done }).is_err() {
            return Err(Failure::Unreachable);
        }
        let answer = answer.await.unwrap_or(Err(Failure::Unreachable));
        drop(bytes);
        answer
    }
}

type Answer = oneshot::Sender<Result<(), Failure>>;
type Batch = Vec<(Bytes, (ChunkId, Answer))>;

async fn send_all(link: Link, mut jobs: mpsc::UnboundedReceiver<Job>) {
    let free = Arc::new(Semaphore::new(REQUESTS_MAX));
    let mut held = None;
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        let first = match held.take() {
            Some(job) => job,
            None => match jobs.recv().await {
                Some(job) => job,
                None => return,
            },
        };
        let copies = first.copies;
        let mut next = Some(first);
        let (mut size, mut batch) = (0, Batch::default());
        while let Some(job) = next.take() {
            if let Some(bytes) = job.bytes.upgrade() {
                let too_large = size > 0 && size + bytes.len() > wire::chunks::BATCH_BYTES_MAX;
                // The peer is told one number for a whole batch.
                if too_large || job.copies != copies {
                    held = Some(job);
                    break;
                }
                size += bytes.len();
                batch.push((Bytes::clone(&bytes), (job.chunk, job.done)));
            }
            if size < BATCH_BYTES && batch.len() < BATCH_CHUNKS {
                next = jobs.try_recv().ok();
            }
        }
        if batch.is_empty() {
            continue;
        }
        let link = link.clone();
        tokio::spawn(async move {
            send_batch(&link, batch, copies).await;
            drop(permit);
        });
    }
}

async fn send_batch(link: &Link, batch: Batch, copies: Option<Copies>) {
    let (bytes, asked): (Vec<Bytes>, Vec<_>) = batch.into_iter().unzip();
    let (chunks, waiting): (Vec<ChunkId>, Vec<Answer>) = asked.into_iter().unzip();
    let count = chunks.len();
    match link.put_of(bytes, copies).await {
        // One for something else is no word about what was sent.
        Ok(receipts) if receipts.iter().map(|receipt| &receipt.chunk).eq(&chunks) => {
            for done in waiting {
                // Whoever asked may have gone on to other peers meanwhile.
                let _ = done.send(Ok(()));
            }
        }
        Ok(_) => answer_all(waiting, Failure::Lied),
        Err(error) => {
            tracing::debug!(%error, chunks = count, "chunks were not stored by a peer");
            answer_all(waiting, failure(&error));
        }
    }
}

fn answer_all(waiting: Vec<Answer>, why: Failure) {
    for done in waiting {
        let _ = done.send(Err(why));
    }
}

fn failure(error: &LinkError) -> Failure {
    match error {
        LinkError::Refused { .. } => Failure::Refused,
        LinkError::FailedHere { why: Trouble::Said(said), .. } => match said {
            Said::StoreFull => Failure::Full,
            Said::StoreFailed(_) => Failure::OutOfService,
            _ => Failure::Unreachable,
        },
        LinkError::FailedHere { .. } | LinkError::Unknown { .. } => Failure::Unreachable,
    }
}
