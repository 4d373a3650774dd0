//! The bytes of one consensus entry.
//!
//! Owns: the difference between record 0, which makes the state, and all that follows.
//! Invariant: what is not the exact encoding of a group is skipped by every voter alike.

use bytes::Bytes;
use mictlan::cluster::state::{Entry, Outcome, State, Submission};
use mictlan::id::TimeMs;
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
pub enum Grouped {
    /// Record 0. Later ones, which two founders of one network would make, change nothing.
    Genesis {
        t: TimeMs,
        submission: Submission,
    },
    Entry(Entry),
}

impl Grouped {
    pub fn encode(&self) -> Bytes {
        let bytes = postcard::to_extend(self, vec![VERSION]);
        Bytes::from(bytes.expect("a group encodes into memory"))
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let [VERSION, body @ ..] = bytes else { return None };
        match postcard::take_from_bytes(body) {
            Ok((group, [])) => Some(group),
            _ => None,
        }
    }

    /// Carries the group out; one outcome an item, none when the group has no meaning here.
    pub fn apply(&self, state: &mut Option<State>) -> Vec<Outcome> {
        match (self, state) {
            (Self::Genesis { t, submission }, state @ None) => {
                match State::genesis(*t, &submission.p, &submission.sig) {
                    Ok((first, record)) => {
                        *state = Some(first);
                        vec![Outcome::Accepted { position: mictlan::id::Position(0), record }]
                    }
                    Err(why) => vec![Outcome::Refused(why)],
                }
            }
            (Self::Entry(entry), Some(state)) => state.apply(entry),
            _ => Vec::new(),
        }
    }
}
