//! What was learned from the records so far: their tree, the last link, and whose keys count.
//!
//! Owns: the step from one verified size to the next, and the form of it that survives a restart.
//! Never: judges what `ledger::verify` judges besides (times, requests, bodies): it only follows
//! the keys, because they decide which checkpoint is believed.
//! Invariant: a trail continues from its own hashes alone, so records that give the root of a newer
//! checkpoint prove that the older tree is a part of the newer one.

use mictlan::codec::DecodeError;
use mictlan::id::{LedgerHash, NetworkId, Position, TimeMs};
use mictlan::ledger::checkpoint::{CheckpointError, Policy, VerifierKey};
use mictlan::ledger::merkle::{self, CompactRange};
use mictlan::ledger::record::{Line, NO_RECORD, RecordError, genesis_hash};
use mictlan::ledger::roster::{Roster, RosterError};
use mictlan::ledger::signed_by;
use serde::{Deserialize, Serialize};

/// The first byte of the file; another one is another program's.
const VERSION: u8 = 1;

/// Why a record cannot be the next one.
#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    #[error("record {at}: {why}")]
    Record { at: u64, why: RecordError },
    #[error("record {at} says it is number {says}")]
    Index { at: u64, says: Position },
    #[error("record {at} does not follow the record before it")]
    Link { at: u64 },
    #[error("record 0 founds the network {found}, not {expected}")]
    OtherNetwork { found: NetworkId, expected: NetworkId },
    #[error("record {at}: {why}")]
    Roster { at: u64, why: RosterError },
    #[error("record {at} changes keys, and its signature is not by its actor's key")]
    Signature { at: u64 },
}

/// Whose signatures were needed from a size on.
#[derive(Clone, Serialize, Deserialize)]
struct Needed {
    from: u64,
    log: String,
    voters: Vec<String>,
    faults: u32,
}

#[derive(Clone, Serialize, Deserialize)]
pub struct Trail {
    network: NetworkId,
    range: CompactRange,
    prev: LedgerHash,
    first_t: TimeMs,
    last_t: TimeMs,
    roster: Option<Roster>,
    /// Ascending by size; an entry a change of voters or of the log's key, which are rare.
    needed: Vec<Needed>,
}

impl Trail {
    pub fn new(network: NetworkId) -> Self {
        Self {
            network,
            range: CompactRange::new(),
            prev: NO_RECORD,
            first_t: TimeMs(0),
            last_t: TimeMs(0),
            roster: None,
            needed: Vec::new(),
        }
    }

    pub fn network(&self) -> NetworkId {
        self.network
    }

    pub fn size(&self) -> u64 {
        self.range.size()
    }

    pub fn root(&self) -> LedgerHash {
        self.range.root()
    }

    /// SHA-256 of the last record.
    pub fn head(&self) -> LedgerHash {
        self.prev
    }

    /// The time of the first record, and of the last one.
    pub fn times(&self) -> (TimeMs, TimeMs) {
        (self.first_t, self.last_t)
    }

    pub fn roster(&self) -> Option<&Roster> {
        self.roster.as_ref()
    }

    /// Takes the next record, LF included. On an error the trail is of no more use.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), TrailError> {
        let at = self.size();
        let line = Line::parse(bytes).map_err(|why| TrailError::Record { at, why })?;
        if line.i != Position(at) {
            return Err(TrailError::Index { at, says: line.i });
        }
        if line.prev != self.prev {
            return Err(TrailError::Link { at });
        }
        match &mut self.roster {
            None => self.begin(&line)?,
            Some(_) if line.p.kind.starts_with("net.") || line.p.kind.starts_with("id.") => {
                self.follow(&line)?;
            }
            Some(_) => {}
        }
        self.prev = line.hash();
        self.last_t = line.t;
        self.range.append(merkle::leaf(bytes));
        Ok(())
    }

    fn begin(&mut self, line: &Line<'_>) -> Result<(), TrailError> {
        let (found, expected) = (genesis_hash(line.p.bytes), self.network);
        if found != expected {
            return Err(TrailError::OtherNetwork { found, expected });
        }
        let wrong = |why| TrailError::Roster { at: 0, why };
        let roster = Roster::genesis(&line.p).map_err(wrong)?;
        let key = roster.key_of(line.p.actor).map_err(wrong)?;
        if !signed_by(&key.0, &line.message(&roster.origin()), &line.sig) {
            return Err(TrailError::Signature { at: 0 });
        }
        self.first_t = line.t;
        self.roster = Some(roster);
        self.need(1);
        Ok(())
    }

    fn follow(&mut self, line: &Line<'_>) -> Result<(), TrailError> {
        let at = self.size();
        let roster = self.roster.as_mut().expect("only called with one");
        let wrong = |why| TrailError::Roster { at, why };
        let key = roster.key_of(line.p.actor).map_err(wrong)?;
        if !signed_by(&key.0, &line.message(&roster.origin()), &line.sig) {
            return Err(TrailError::Signature { at });
        }
        // A kind of a later program changes no key that this one knows.
        let Ok(body) = line.p.body() else { return Ok(()) };
        roster.apply(&line.p.actor_label(), &body).map_err(wrong)?;
        if line.p.kind.starts_with("net.") {
            self.need(at + 1);
        }
        Ok(())
    }

    /// Notes whose signatures are needed from this size on, where that changed.
    fn need(&mut self, from: u64) {
        let Some(roster) = &self.roster else { return };
        let policy = roster.policy();
        let log = policy.log.vkey();
        let voters: Vec<_> = policy.voters.iter().map(VerifierKey::vkey).collect();
        let faults = policy.faults as u32;
        let same =
            |last: &Needed| (&last.log, &last.voters, last.faults) == (&log, &voters, faults);
        if !self.needed.last().is_some_and(same) {
            self.needed.push(Needed { from, log, voters, faults });
        }
    }

    /// Whose signatures a checkpoint of this size needs; `None` for a size that was not reached.
    pub fn policy(&self, size: u64) -> Option<Policy> {
        if size > self.size() {
            return None;
        }
        let needed = self.needed.iter().rfind(|needed| needed.from <= size)?;
        needed.policy().ok()
    }

    /// The file that it is remembered in, with the note that was verified last.
    pub fn encode(&self, note: &[u8]) -> Vec<u8> {
        postcard::to_extend(&(self, note), vec![VERSION]).expect("lengths are known")
    }

    pub fn decode(bytes: &[u8]) -> Result<(Self, Vec<u8>), DecodeError> {
        match bytes {
            [VERSION, body @ ..] => match postcard::take_from_bytes(body) {
                Ok((kept, [])) => Ok(kept),
                Ok(_) => Err(DecodeError::LeftOver),
                Err(_) => Err(DecodeError::NotCanonical("what is remembered of the ledger")),
            },
            [version, ..] => Err(DecodeError::Version(*version)),
            [] => Err(DecodeError::Short("what is remembered of the ledger")),
        }
    }
}

impl Needed {
    fn policy(&self) -> Result<Policy, CheckpointError> {
        let log = VerifierKey::parse(&self.log)?;
        let voters = self.voters.iter().map(|v| VerifierKey::parse(v)).collect::<Result<_, _>>()?;
        Ok(Policy { log, voters, faults: self.faults as usize })
    }
}
