//! The volume's log, read backwards: what voters show of it, checked against the verified ledger.
//!
//! Owns: the records of a bundle that concern the volume, and the few bundles that were read last.
//! Never: believes a voter. Each record's leaf is that of the verified tree, so none can be left
//! out or put in, and the tag list and payload beside it are what the record names.
//! Invariant: no lock is held while the network is asked; what is kept has a bound in bytes, and
//! so has what is under way.

use super::Volume;
use super::read::not_read;
use crate::ledger::{LedgerError, Seen};
use crate::link::{Link, LinkError};
use bytes::Bytes;
use mictlan::cluster::state::INSIDE_MAX;
use mictlan::hash;
use mictlan::id::{PeerId, Position};
use mictlan::ledger::merkle;
use mictlan::ledger::record::body::{Body, Commit};
use mictlan::ledger::record::{Line, RecordError};
use mictlan::ledger::tile::WIDTH;
use mictlan::meta::error::FsError;
use mictlan::meta::tag::TagList;
use mictlan::wire::{Follow, Followed};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::{Instant, timeout, timeout_at};

/// One page of the log.
const PAGE_BYTES: u32 = 1 << 20;
/// A voter that has not answered within this is passed over for another; in each round longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two rounds over all voters.
const PAUSE: Duration = Duration::from_secs(1);
/// What the bundles may hold in memory that were read last.
const KEPT_BYTES_MAX: usize = 4 << 20;

/// A record that concerns the volume.
pub(super) struct Past {
    pub at: Position,
    /// LF included.
    pub line: Vec<u8>,
    pub what: What,
}

pub(super) enum What {
    /// The volume began, and with it its root directory.
    Made,
    Commit(Box<PastCommit>),
}

pub(super) struct PastCommit {
    pub body: Commit,
    pub tags: TagList,
    /// The sealed payload, where it travelled beside the record.
    sealed: Option<Bytes>,
}

/// The records from a bundle's first one up to `end`.
pub(super) struct Bundle {
    end: u64,
    /// Ascending.
    pub records: Vec<Past>,
    bytes: usize,
}

/// What was read of the log backwards.
#[derive(Default)]
pub(super) struct Shelf {
    /// Covers the bundles by their number, the one used last at the end.
    kept: Mutex<VecDeque<(u64, Arc<Bundle>)>>,
    /// The voter that answered last; 0 at first.
    voter: AtomicU64,
}

impl Shelf {
    fn get(&self, number: u64, end: u64) -> Option<Arc<Bundle>> {
        let mut kept = self.kept.lock().expect("nothing panics while it is locked");
        let at = kept.iter().position(|(n, bundle)| *n == number && bundle.end >= end)?;
        let found = kept.remove(at)?;
        kept.push_back(found.clone());
        Some(found.1)
    }

    fn put(&self, number: u64, bundle: Arc<Bundle>) {
        let mut kept = self.kept.lock().expect("nothing panics while it is locked");
        kept.retain(|(n, _)| *n != number);
        kept.push_back((number, bundle));
        let mut bytes: usize = kept.iter().map(|(_, bundle)| bundle.bytes).sum();
        while bytes > KEPT_BYTES_MAX
            && let Some((_, oldest)) = kept.pop_front()
        {
            bytes -= oldest.bytes;
        }
    }
}

/// Why what a voter shows of the log is not used.
#[derive(Debug, thiserror::Error)]
enum NotShown {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("it did not answer in time")]
    Late,
    #[error("record {0} is not in its page")]
    Gap(Position),
    #[error("record {0} is not the one that is signed")]
    Another(Position),
    #[error("record {at}: {error}")]
    NotARecord { at: Position, error: RecordError },
    #[error("record {0}: its tag list is not the one that was signed")]
    OtherTags(Position),
}

impl Volume {
    /// The records of the bundle that record `last` is in, at least up to it.
    pub(super) async fn past_bundle(
        &self,
        seen: &Seen,
        last: Position,
        until: Instant,
    ) -> Result<Arc<Bundle>, FsError> {
        let number = last.0 / WIDTH;
        if let Some(bundle) = self.shelf.get(number, last.0 + 1) {
            return Ok(bundle);
        }
        let first = PeerId(self.shelf.voter.load(Ordering::Relaxed));
        let mut voters = self.network.peers().to_vec();
        voters.retain(|known| known.info.voter);
        voters.sort_by_key(|known| known.info.id != first);
        for round in 0.. {
            for known in &voters {
                let left = until.saturating_duration_since(Instant::now());
                let patience = left.min(PATIENCE * (round + 1));
                let shown = timeout(patience, self.show_bundle(&known.link, seen, number)).await;
                match shown.unwrap_or(Err(NotShown::Late)) {
                    Ok(bundle) => {
                        self.shelf.voter.store(known.info.id.0, Ordering::Relaxed);
                        let bundle = Arc::new(bundle);
                        self.shelf.put(number, bundle.clone());
                        return Ok(bundle);
                    }
                    Err(why) if round == 0 => tracing::warn!(peer = %known.info.id, %why,
                        "a voter does not show an old part of the log; the next one is asked"),
                    Err(why) => tracing::debug!(peer = %known.info.id, %why, "nor now"),
                }
            }
            if Instant::now() + PAUSE >= until {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        tracing::warn!(record = %last,
            "no voter shows this part of the log now; mictlan status says who is away");
        Err(FsError::TimedOut)
    }

    async fn show_bundle(&self, link: &Link, seen: &Seen, number: u64) -> Result<Bundle, NotShown> {
        let end = seen.size().min((number + 1) * WIDTH);
        let (mut next, mut records, mut bytes) = (Position(number * WIDTH), Vec::new(), 0);
        while next.0 < end {
            // Every record, so that none can be left out.
            let follow = Follow { volume: None, from: next, max_bytes: PAGE_BYTES, wait_ms: 0 };
            let asked = next;
            for entry in link.follow(follow).await?.entries {
                if entry.position != next || next.0 == end {
                    break;
                }
                if self.ledger().leaf(seen, next).await? != merkle::leaf(&entry.line) {
                    return Err(NotShown::Another(next));
                }
                let (payload, tags) = (entry.payload.as_ref(), entry.tags.as_ref());
                let beside = payload.map_or(0, Vec::len) + tags.map_or(0, Vec::len);
                let len = size_of::<Past>() + entry.line.len() + beside;
                if let Some(past) = self.past_record(entry)? {
                    bytes += len;
                    records.push(past);
                }
                next.0 += 1;
            }
            if next == asked {
                return Err(NotShown::Gap(next));
            }
        }
        Ok(Bundle { end, records, bytes })
    }

    /// `None`: it says nothing of this volume's files.
    fn past_record(&self, entry: Followed) -> Result<Option<Past>, NotShown> {
        let Followed { position: at, line, tags, payload, .. } = entry;
        let wrong = |error| NotShown::NotARecord { at, error };
        let parsed = Line::parse(&line).map_err(wrong)?;
        if !parsed.p.kind.starts_with("fs.") {
            return Ok(None);
        }
        let body = match parsed.p.body() {
            Ok(body) => body,
            // What this program does not know changes no file.
            Err(_) if parsed.p.kind != "fs.commit" => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        let what = match body {
            Body::Commit(body) if body.volume == self.id => {
                let tags = tags.as_deref().map(TagList::decode).transpose().ok().flatten();
                let tags = tags.filter(|tags| tags.b3() == body.tags.b3);
                let tags = tags.ok_or(NotShown::OtherTags(at))?;
                // Larger ones never travel beside a record, and would not be bounded in sum.
                let sealed = payload.filter(|bytes| bytes.len() <= INSIDE_MAX);
                let sealed = sealed.filter(|bytes| hash::address(bytes) == body.payload.b3);
                let sealed = sealed.map(Bytes::from);
                What::Commit(Box::new(PastCommit { body, tags, sealed }))
            }
            Body::Volume(made) if made.volume == self.id && at == self.made => What::Made,
            _ => return Ok(None),
        };
        Ok(Some(Past { at, line, what }))
    }

    /// The sealed payload of an old commit: from beside its record, or from its peers.
    pub(super) async fn past_payload(
        &self,
        commit: &PastCommit,
        until: Instant,
    ) -> Result<Bytes, FsError> {
        if let Some(sealed) = &commit.sealed {
            return Ok(sealed.clone());
        }
        let left = until.saturating_duration_since(Instant::now());
        let fetched = timeout_at(until, self.chunks.get(commit.body.payload.b3, left)).await;
        let fetched = fetched.map_err(|_| FsError::TimedOut)?;
        fetched.map_err(|error| {
            tracing::warn!(%error, "what an old commit changed cannot be read now");
            not_read(&error)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(end: u64, bytes: usize) -> Arc<Bundle> {
        Arc::new(Bundle { end, records: Vec::new(), bytes })
    }

    #[test]
    fn what_is_kept_of_the_log_is_bounded_and_used_last_stays() {
        let shelf = Shelf::default();
        for number in 0..4 {
            shelf.put(number, bundle(256 * (number + 1), KEPT_BYTES_MAX / 4));
        }
        assert!(shelf.get(0, 256).is_some());
        shelf.put(4, bundle(1_100, KEPT_BYTES_MAX / 4));
        assert!(shelf.get(1, 512).is_none(), "it was used longest ago");
        assert!(shelf.get(0, 256).is_some());
        assert!(shelf.get(4, 1_101).is_none(), "the log has grown since");
        shelf.put(5, bundle(1_300, KEPT_BYTES_MAX + 1));
        assert!(shelf.kept.lock().expect("one thread").is_empty(), "too much even alone");
    }
}
