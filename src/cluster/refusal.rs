//! Why the sequencer does not order something: one sentence each, with what to do where it helps.
//!
//! Owns: the words and numbers of every refusal.
//! Invariant: a refused item leaves no record; at most it ends an attempt (`ends_attempt`).

use crate::cluster::session::Turn;
use crate::id::{Epoch, Label, Position, PrincipalId, SessionId, TimeMs, VolumeId};
use crate::ledger::record::time;
use crate::meta::tag::Tag;
use serde::{Deserialize, Serialize};

/// Strings are reasons for people: programs branch on the variant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    // The request itself.
    #[error("the request is malformed: {0}")]
    Malformed(String),
    #[error("a record of {bytes} bytes; at most 16,384 are allowed")]
    RecordTooLarge { bytes: usize },
    #[error("no actor {actor} is known in this network")]
    UnknownActor { actor: Label },
    #[error("the signature is not by the key of {actor}")]
    BadSignature { actor: Label },
    #[error("{actor} may not do this: {why}")]
    NotAllowed { actor: Label, why: String },
    #[error("the request's time is not within 10 minutes of {}; set the clock, or sign it again",
        time::format(*.now))]
    ReqTooOld { now: TimeMs },
    #[error("the request's name was used for another request, which is record {position}")]
    ReqReused { position: Position },
    #[error("more requests came in the last 20 minutes than can be remembered; try again later")]
    TooManyRequests,
    #[error("it does not fit the state of the network: {0}")]
    Unfit(String),

    // Things that are named and not there.
    #[error("no volume {volume}")]
    UnknownVolume { volume: VolumeId },
    #[error("no principal has the key {principal}")]
    UnknownKey { principal: PrincipalId },

    // Sessions.
    #[error("session {session} was never opened")]
    UnknownSession { session: SessionId },
    #[error("session {session} was closed")]
    SessionEnded { session: SessionId },
    #[error("the session was fenced by record {at}{}", named(*.successor))]
    Fenced { at: Position, successor: Option<SessionId> },
    #[error("session {successor} cannot succeed the fenced one: {why}")]
    UnfitSuccessor { successor: SessionId, why: String },
    #[error("there are {limit} sessions already; unmount one")]
    TooManySessions { limit: u32 },
    #[error("request {turn} belongs to an ended attempt; the next is {expected}")]
    OldAttempt { turn: Turn, expected: Turn },
    #[error("request {turn} came before {expected}; send it again after that one")]
    OutOfOrder { turn: Turn, expected: Turn },
    #[error("request {turn} is record {position} already, and says something else")]
    TurnReused { turn: Turn, position: Position },
    #[error("request {turn} was answered long ago; its answer is no longer remembered")]
    Forgotten { turn: Turn },

    // Certification.
    #[error("it conflicts with record {position} on tag {tag:?}")]
    Conflict { tag: Tag, position: Position },
    #[error("base {base} is before {floor}, where the window begins; certify from the log")]
    StaleBase { base: Position, floor: Position },
    #[error("base {base} goes back behind {last}, the base of the request before")]
    BaseGoesBack { base: Position, last: Position },
    #[error("base {base} is not ordered yet; the ledger has {size} records")]
    BaseAhead { base: Position, size: u64 },
    #[error("key epoch {epoch} is not the current one, {current}; seal again")]
    WrongEpoch { epoch: Epoch, current: Epoch },
    #[error("the oldest receipt is from {}, over 6 hours ago; stamp the chunks again",
        time::format(*.stamp))]
    StaleReceipt { stamp: TimeMs },
    #[error("the newest root of volume {volume} is too far behind; wait until one is made")]
    Behind { volume: VolumeId },
}

impl Refusal {
    /// Whether a session's request that was next in turn is answered for good by this. Otherwise
    /// the turn is still free: the same request may come again, and those after it wait for it.
    pub fn ends_attempt(&self) -> bool {
        matches!(
            self,
            Self::NotAllowed { .. }
                | Self::RecordTooLarge { .. }
                | Self::UnknownVolume { .. }
                | Self::WrongEpoch { .. }
                | Self::BaseGoesBack { .. }
                | Self::BaseAhead { .. }
                | Self::StaleBase { .. }
                | Self::Conflict { .. }
        )
    }
}

fn named(successor: Option<SessionId>) -> String {
    successor.map_or_else(String::new, |id| format!(", and session {id} goes on in its place"))
}
