//! What a volume knows at this moment: one lock's worth.
//!
//! Owns: the view, the open files, and the operations that are not committed, in batches.
//! Invariant: `queue` is in the order of the operations' numbers, without gaps; every operation in
//! it is in the view's local overlay and in the journal.

use super::conflict::Replan;
use super::file::OpenFile;
use super::journal::{Holds, Seq};
use super::unproven::Unproven;
use crate::chunks::Put;
use mictlan::cluster::place::Copies;
use mictlan::id::{Attempt, Epoch, Ino, Position, SessionId};
use mictlan::meta::error::FsError;
use mictlan::meta::gather::Gathered;
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::Op;
use mictlan::meta::tag::Facts;
use mictlan::meta::view::View;
use mictlan::seal::Sealed;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use tokio::time::Instant;

pub struct Core {
    pub view: View,
    pub files: HashMap<Ino, Arc<OpenFile>>,
    pub session: Session,
    pub queue: VecDeque<Batch>,
    /// What left it, until a checkpoint covers it.
    pub unproven: Unproven,
    /// Operations on their way from a refused attempt into the next. Nothing else is placed meanwhile.
    pub replan: Option<Replan>,
    /// Operations that were refused and whose callers do not know yet.
    pub refused: HashSet<Seq>,
    /// Inode numbers of this session's block that were given out.
    pub inodes_made: u32,
    pub next_handle: u64,
    /// Something that was acknowledged was refused for good: the next call that can wait says so.
    pub broken_promise: Option<FsError>,
}

/// Who this mount is to the sequencer, and what it may do without asking.
pub struct Session {
    pub id: SessionId,
    pub attempt: Attempt,
    /// The number of the next commit in this attempt.
    pub n: u64,
    pub mode: Mode,
    /// A refusal ended this attempt, or an epoch did: nothing more is proposed in it.
    pub attempt_ended: bool,
    /// An epoch did: chunks are sealed again.
    pub epoch_moved: bool,
    /// Chunks that were sealed under an older one are not placed.
    pub epoch: Epoch,
    /// The request on its way, and the operations before which it holds all.
    pub waiting: Option<(Attempt, u64, Seq)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// A read-only mount: follows, changes nothing.
    Reader,
    /// The write lease on the whole volume, until then: changes are local and committed behind.
    Leased { until: Instant },
    /// No lease: every change is a commit of its own, every look asks for the read position.
    Synchronous,
    /// The session was fenced, or its key revoked: nothing more can be committed.
    Lost,
}

/// An operation in a batch, for when it has to be planned again.
#[derive(Clone)]
pub struct Placed {
    pub seq: Seq,
    pub now: Stamp,
    pub holds: Holds,
    pub op: Op,
    /// Its caller has no answer yet and will ask again.
    pub waited_for: bool,
    /// It was acknowledged under the lease.
    pub leased: bool,
}

/// A chunk that travels inside a commit, and how many copies it gets where it does not.
pub type Inline = (Sealed, Copies);

/// Operations that become one commit.
pub struct Batch {
    pub placed: Vec<Placed>,
    pub gathered: Gathered,
    /// Every operation before it and not in an earlier batch is in here.
    pub until: Seq,
    /// The oldest entry of the journal that a replay of this batch needs.
    pub floor: Seq,
    /// Where the log stood for the first operation.
    pub base: Position,
    /// Chunks that must be durable before it is proposed.
    pub puts: Vec<Put>,
    /// At most 64 KiB of data that travels beside the payload.
    pub inline: Option<Inline>,
    pub since: Instant,
    /// Something in it was acknowledged under the lease, when nobody else could change anything.
    pub leased: bool,
    /// Proposed, or about to be: no operation is added any more.
    pub closed: bool,
}

/// Room is left for the facts of one more operation: a rename has the most.
const FACTS_MAX: usize = 4_096 - 64;
/// A write set of this size is worth a commit.
pub const BATCH_BYTES: usize = 1 << 20;
/// Above so many waiting batches, whoever changes something waits.
pub const BATCHES_MAX: usize = 16;

impl Batch {
    pub fn new(base: Position, until: Seq) -> Self {
        Self {
            placed: Vec::new(),
            gathered: Gathered::default(),
            until,
            floor: until,
            base,
            puts: Vec::new(),
            inline: None,
            since: Instant::now(),
            leased: false,
            closed: false,
        }
    }

    pub fn takes(&self, facts: &Facts) -> bool {
        let more = facts.reads.len() + facts.writes.len() + facts.adds.len();
        !self.closed
            && self.gathered.facts_count() + more <= FACTS_MAX
            && self.gathered.writes.size_bytes() < BATCH_BYTES
    }
}

/// How far the commits are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Every operation before it is committed.
    pub committed: Seq,
    /// Every operation before it should be committed now: somebody waits.
    pub wanted: Seq,
    /// A writer waits for memory: what is dirty should go out, however young.
    pub room_wanted: bool,
    /// The view holds everything before this.
    pub applied: Position,
    /// How often operations had to be planned again because another session was first.
    pub conflicts: u64,
    /// Why the last try did not get on, while it does not.
    pub stuck: Option<FsError>,
}

impl Core {
    /// The batch that takes an operation with `facts`, a new one if need be.
    pub fn batch(&mut self, facts: &Facts, seq: Seq) -> &mut Batch {
        let base = self.view.position();
        let fits = self.queue.back().is_some_and(|batch| batch.takes(facts));
        if !fits {
            if let Some(last) = self.queue.back_mut() {
                last.closed = true;
            }
            self.queue.push_back(Batch::new(base, seq));
        }
        self.queue.back_mut().expect("one was just made sure of")
    }

    /// What was refused is not yet placed again.
    pub fn is_between_attempts(&self) -> bool {
        self.session.attempt_ended || self.replan.is_some()
    }

    pub fn file(&mut self, ino: Ino) -> Arc<OpenFile> {
        self.files.entry(ino).or_insert_with(|| Arc::new(OpenFile::new(ino))).clone()
    }
}

impl Progress {
    pub fn new(applied: Position) -> Self {
        Self { applied, ..Self::default() }
    }
}
