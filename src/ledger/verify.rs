//! Verification of a whole log from its bytes: records in, findings out.
//!
//! Owns: every rule that can be checked without a volume's keys and without trust in a peer.
//! Never: stops at the first fault, or reads anything itself; records come one after another.
//! Invariant: no memory grows with the log; only request names of the last minutes are kept.
//!
//! Hashes, links, times, keys and checkpoints are checked in `push`. Signatures and bodies cost
//! thirty times that, so they come back as a `Deferred`, which any thread may check.

use super::checkpoint::{Checkpoint, CheckpointError};
use super::merkle::{self, CompactRange};
use super::record::{Body, Line, NO_RECORD, Origin, RecordError, genesis_message, record_message};
use super::roster::{Roster, RosterError};
use super::signed_by;
use crate::id::{LedgerHash, NetworkId, Position, PrincipalId, TimeMs};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// A request's name may be this far from the record's time, in either direction.
const REQ_WINDOW_MS: u64 = 600_000;
/// More findings than this are counted, not kept: the log is wrong, and memory is bounded.
const FINDINGS_MAX: usize = 1_000;

/// What is wrong at an index.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the bytes are not a record: {0}")]
    Record(#[from] RecordError),
    #[error("the record says it is number {0}")]
    Index(Position),
    #[error("prev is {found}, but the record before hashes to {expected}")]
    Link { found: LedgerHash, expected: LedgerHash },
    #[error("the time is {0} ms before that of the record before")]
    Time(u64),
    #[error("the request's name is {0} ms away from the record's time")]
    RequestTime(u64),
    #[error("the same request of the same actor stands in the log twice")]
    Repeated,
    #[error("the network's hash is {found}, not {expected}")]
    OtherNetwork { found: NetworkId, expected: NetworkId },
    #[error("{0}")]
    Roster(#[from] RosterError),
    #[error("the signature is not by the key of {0}")]
    Signature(String),
    #[error("the checkpoint of this size is not acceptable: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("the checkpoint of size {size} has the root {said}, but the records give {found}")]
    Root { size: u64, said: LedgerHash, found: LedgerHash },
    #[error(
        "the checkpoint of size {size} that was verified before has the root {said}, but the \
         records now give {found}: the history was rewritten"
    )]
    Rewritten { size: u64, said: LedgerHash, found: LedgerHash },
    #[error("the log ends here, but a checkpoint of size {0} exists: records are missing")]
    Truncated(u64),
    /// A file of a copy that is not what the bundles of records give.
    #[error("{0}")]
    Copy(String),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("record {index}: {fault}")]
pub struct Finding {
    pub index: u64,
    pub fault: Fault,
}

/// What the log must agree with when it has reached a size.
enum Expected {
    /// A note that claims to be published: signatures, quorum and root are checked.
    Note(Vec<u8>),
    /// What was verified before: the root must be the same.
    Remembered(LedgerHash),
}

pub struct Verifier {
    range: CompactRange,
    prev: LedgerHash,
    last_t: TimeMs,
    network: Option<NetworkId>,
    roster: Option<Roster>,
    origin: Option<Arc<Origin>>,
    requests: Requests,
    expected: BTreeMap<u64, Vec<Expected>>,
    checkpoints: u64,
    findings: Vec<Finding>,
    dropped: u64,
}

/// The outcome, once all records were pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub size: u64,
    pub root: LedgerHash,
    /// `prev` of the record that would come next.
    pub head: LedgerHash,
    /// Checkpoints that were accepted.
    pub checkpoints: u64,
    pub findings: Vec<Finding>,
    /// Findings beyond those that are kept.
    pub more: u64,
}

impl Verifier {
    /// `network` is the hash that the reader has from elsewhere; without it the log can only be
    /// shown to agree with itself.
    pub fn new(network: Option<NetworkId>) -> Self {
        Self {
            range: CompactRange::new(),
            prev: NO_RECORD,
            last_t: TimeMs(0),
            network,
            roster: None,
            origin: None,
            requests: Requests::default(),
            expected: BTreeMap::new(),
            checkpoints: 0,
            findings: Vec::new(),
            dropped: 0,
        }
    }

    /// Checks a published note when its size is reached. To be called before that.
    pub fn expect_note(&mut self, note: &[u8]) -> Result<u64, CheckpointError> {
        let text = super::checkpoint::Note::parse(note)?.text;
        let size = Checkpoint::parse(text)?.size;
        assert!(
            size > self.range.size() || size == 0,
            "notes are named before their size is reached"
        );
        self.expected.entry(size).or_default().push(Expected::Note(note.to_vec()));
        Ok(size)
    }

    /// Compares with a checkpoint that was verified before, when its size is reached.
    pub fn expect_remembered(&mut self, checkpoint: &Checkpoint) {
        let root = Expected::Remembered(checkpoint.root);
        let size = checkpoint.size;
        assert!(
            size > self.range.size() || size == 0,
            "notes are named before their size is reached"
        );
        self.expected.entry(size).or_default().push(root);
    }

    pub fn size(&self) -> u64 {
        self.range.size()
    }

    /// Whose keys count after the records so far; `None` before a good record 0.
    pub fn roster(&self) -> Option<&Roster> {
        self.roster.as_ref()
    }

    pub fn find(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.dropped += 1;
        }
    }

    fn fault(&mut self, fault: impl Into<Fault>) {
        self.find(Finding { index: self.range.size(), fault: fault.into() });
    }

    /// Takes the next record's bytes, LF included. What it costs to check the signature and the
    /// body is left to the caller, who may do without.
    pub fn push<'a>(&mut self, bytes: &'a [u8]) -> Option<Deferred<'a>> {
        let deferred = match Line::parse(bytes) {
            Ok(line) => self.line(&line),
            Err(error) => {
                self.fault(error);
                None
            }
        };
        self.prev = super::record::record_hash(bytes);
        self.range.append(merkle::leaf(bytes));
        self.reached();
        deferred
    }

    fn line<'a>(&mut self, line: &Line<'a>) -> Option<Deferred<'a>> {
        let index = self.range.size();
        if line.i != Position(index) {
            self.fault(Fault::Index(line.i));
        }
        if line.prev != self.prev {
            self.fault(Fault::Link { found: line.prev, expected: self.prev });
        }
        if line.t < self.last_t {
            self.fault(Fault::Time(self.last_t.0 - line.t.0));
        }
        self.last_t = self.last_t.max(line.t);
        if index == 0 {
            self.first(line);
        }
        let key = self.roster.as_ref().map(|roster| roster.key_of(line.p.actor));
        let key = match key {
            Some(Ok(key)) => key,
            Some(Err(error)) => {
                self.fault(error);
                return None;
            }
            // Record 0 was no genesis, which is a finding of its own; no key can be known.
            None => return None,
        };
        let apart = line.p.req.time().0.abs_diff(line.t.0);
        if apart > REQ_WINDOW_MS {
            // Not remembered either: a hostile log would choose how much we keep.
            self.fault(Fault::RequestTime(apart));
        } else if !self.requests.first_time(line, &key) {
            self.fault(Fault::Repeated);
        }
        if index > 0 && (line.p.kind.starts_with("net.") || line.p.kind.starts_with("id.")) {
            self.follow(line);
        }
        let origin = self.origin.clone().filter(|_| index > 0);
        Some(Deferred { index, line: *line, key, origin })
    }

    fn first(&mut self, line: &Line<'_>) {
        let found = super::record::genesis_hash(line.p.bytes);
        if let Some(expected) = self.network.filter(|expected| *expected != found) {
            self.fault(Fault::OtherNetwork { found, expected });
        }
        match Roster::genesis(&line.p) {
            Ok(roster) => {
                self.origin = Some(Arc::new(roster.origin()));
                self.roster = Some(roster);
            }
            Err(error) => self.fault(error),
        }
    }

    /// Keys change with this record, so its body is read at once.
    fn follow(&mut self, line: &Line<'_>) {
        let Ok(body) = line.p.body() else {
            // An unreadable body changes nothing; `Deferred` reports it.
            return;
        };
        let applied = match &mut self.roster {
            Some(roster) => roster.apply(&line.p.actor_label(), &body),
            None => Ok(()),
        };
        if let Err(error) = applied {
            self.fault(error);
        }
    }

    /// Compares with what is expected at the size just reached.
    fn reached(&mut self) {
        let size = self.range.size();
        // The empty tree says nothing.
        self.expected.remove(&0);
        if self.expected.first_key_value().is_none_or(|(next, _)| *next != size) {
            return;
        }
        let (_, expected) = self.expected.pop_first().expect("it was just looked at");
        let found = self.range.root();
        // The fault belongs to the last record of that size.
        let index = size - 1;
        for expected in expected {
            let fault = match expected {
                Expected::Remembered(said) if said == found => None,
                Expected::Remembered(said) => Some(Fault::Rewritten { size, said, found }),
                Expected::Note(note) => self.note(&note, size, found),
            };
            match fault {
                None => self.checkpoints += 1,
                Some(fault) => self.find(Finding { index, fault }),
            }
        }
    }

    fn note(&self, note: &[u8], size: u64, found: LedgerHash) -> Option<Fault> {
        let Some(roster) = &self.roster else {
            // Without keys nothing can be believed.
            return Some(RosterError::NoGenesis.into());
        };
        match roster.policy().accept(note) {
            Err(error) => Some(error.into()),
            Ok(accepted) if accepted.checkpoint.root == found => None,
            Ok(accepted) => Some(Fault::Root { size, said: accepted.checkpoint.root, found }),
        }
    }

    pub fn finish(mut self) -> Report {
        if self.range.size() == 0 {
            self.fault(RosterError::NoGenesis);
        }
        for size in std::mem::take(&mut self.expected).into_keys().filter(|size| *size > 0) {
            self.fault(Fault::Truncated(size));
        }
        Report {
            size: self.range.size(),
            root: self.range.root(),
            head: self.prev,
            checkpoints: self.checkpoints,
            findings: self.findings,
            more: self.dropped,
        }
    }
}

/// What is left to check of one record, on any thread.
pub struct Deferred<'a> {
    index: u64,
    line: Line<'a>,
    key: PrincipalId,
    /// Absent for record 0.
    origin: Option<Arc<Origin>>,
}

impl Deferred<'_> {
    /// The signature, and that the body fits its kind where this program knows the kind.
    pub fn check(&self) -> Result<(), Finding> {
        let found = |fault| Finding { index: self.index, fault };
        let p = &self.line.p;
        let message = match &self.origin {
            None => genesis_message(p.bytes),
            Some(origin) => record_message(origin, p.bytes),
        };
        if !signed_by(&self.key.0, &message, &self.line.sig) {
            return Err(found(Fault::Signature(p.actor.to_owned())));
        }
        match p.body() {
            Err(error) if Body::KINDS.contains(&p.kind) => Err(found(error.into())),
            _ => Ok(()),
        }
    }
}

/// The requests of the last minutes, by the minute in their names: a name is accepted for ten
/// minutes around its own time only, so an older minute can be forgotten.
#[derive(Default)]
struct Requests {
    minutes: BTreeMap<u64, HashSet<(super::record::Ulid, u64)>>,
}

impl Requests {
    fn first_time(&mut self, line: &Line<'_>, key: &PrincipalId) -> bool {
        const MINUTE_MS: u64 = 60_000;
        let oldest = line.t.0.saturating_sub(REQ_WINDOW_MS) / MINUTE_MS;
        while let Some(first) = self.minutes.first_entry().filter(|first| *first.key() < oldest) {
            first.remove();
        }
        let [a, b, c, d, e, f, g, h, ..] = key.0;
        let actor = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
        let minute = line.p.req.time().0 / MINUTE_MS;
        self.minutes.entry(minute).or_default().insert((line.p.req, actor))
    }
}
