//! Which requests were accepted lately, so that each is applied once.
//!
//! Owns: the memory of (request name, actor) for 20 minutes of the ledger's time.
//! Invariant: what it forgets is refused by its age, so nothing is ever applied twice.

use crate::cluster::refusal::Refusal;
use crate::id::{Position, TimeMs};
use crate::ledger::record::Ulid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How far a request's time may be from the ledger's: more than clocks differ and requests wait.
pub const SKEW_MAX_MS: u64 = 10 * 60_000;

/// A request named 10 minutes ahead can come until 20 minutes from now.
const REMEMBERED_MS: u64 = 2 * SKEW_MAX_MS;

/// About 150 MB at worst. It holds 1,700 records a second without end, 10,000 for three minutes.
const REMEMBERED_MAX: usize = 1 << 21;

/// The number of an actor in this state: shorter than its name, and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ActorNo(pub u32);

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Seen {
    position: Position,
    /// The start of the SHA-256 of `p`: only its actor could find two that agree, and gain nothing.
    digest: [u8; 8],
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Requests {
    /// A ULID begins with its time, so the oldest come first.
    seen: BTreeMap<(Ulid, ActorNo), Seen>,
}

impl Requests {
    /// Where the request was accepted before, if it was.
    pub fn find(
        &self,
        req: Ulid,
        actor: ActorNo,
        p_hash: &[u8; 32],
    ) -> Result<Option<Position>, Refusal> {
        match self.seen.get(&(req, actor)) {
            None => Ok(None),
            Some(seen) if seen.digest == p_hash[..8] => Ok(Some(seen.position)),
            Some(seen) => Err(Refusal::ReqReused { position: seen.position }),
        }
    }

    /// Whether a new request may be accepted at `now`.
    pub fn admit(&self, req: Ulid, now: TimeMs) -> Result<(), Refusal> {
        if req.time().0.abs_diff(now.0) > SKEW_MAX_MS {
            return Err(Refusal::ReqTooOld { now });
        }
        let all_young = || match self.seen.first_key_value() {
            Some(((oldest, _), _)) => !is_over(*oldest, now),
            None => false,
        };
        if self.seen.len() >= REMEMBERED_MAX && all_young() {
            return Err(Refusal::TooManyRequests);
        }
        Ok(())
    }

    pub fn record(&mut self, req: Ulid, actor: ActorNo, p_hash: &[u8; 32], at: (Position, TimeMs)) {
        let (position, now) = at;
        while let Some(first) = self.seen.first_entry()
            && is_over(first.key().0, now)
        {
            first.remove();
        }
        let mut digest = [0; 8];
        digest.copy_from_slice(&p_hash[..8]);
        self.seen.insert((req, actor), Seen { position, digest });
    }
}

fn is_over(req: Ulid, now: TimeMs) -> bool {
    req.time().0.saturating_add(REMEMBERED_MS) < now.0
}
