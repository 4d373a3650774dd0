//! Chunks that were just looked for in vain until a deadline.
//!
//! Owns: for how long such a chunk is not looked for again.
//! Invariant: one call of a program waits for one deadline: what the kernel asks for again at once,
//! a page at a time, gets the answer that it just got; a moment later all is tried anew.

use super::GetError;
use mictlan::id::ChunkId;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Far longer than the kernel needs to ask again, and shorter than a peer needs to come back.
const FOR: Duration = Duration::from_secs(1);

#[derive(Default)]
pub struct Vain(HashMap<ChunkId, (Instant, GetError)>);

impl Vain {
    /// What came of the look for `chunk` that just ended, if it was waited for in vain.
    pub fn just_now(&mut self, chunk: ChunkId, now: Instant) -> Option<GetError> {
        self.0.retain(|_, (ended, _)| now < *ended + FOR);
        self.0.get(&chunk).map(|(_, error)| error.clone())
    }

    pub fn note(&mut self, chunk: ChunkId, now: Instant, error: &GetError) {
        if matches!(error, GetError::NotInTime { .. }) {
            self.0.insert(chunk, (now, error.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_waited_for_in_vain_is_answered_alike_for_a_moment_and_then_looked_for_anew() {
        let (mut vain, now) = (Vain::default(), Instant::now());
        let (a, b) = (ChunkId([1; 32]), ChunkId([2; 32]));
        let failed = || "peer 3 cannot be reached".to_owned();
        vain.note(a, now, &GetError::NotInTime { chunk: a, failed: failed() });
        vain.note(b, now, &GetError::NoGoodCopy { chunk: b, failed: failed() });
        let soon = now + FOR / 2;
        assert!(matches!(vain.just_now(a, soon), Some(GetError::NotInTime { .. })));
        assert!(vain.just_now(b, soon).is_none(), "nobody waited for that");
        assert!(vain.just_now(a, now + FOR).is_none());
        assert!(vain.0.is_empty(), "and nothing is kept of it");
    }
}
