//! What a log says of one volume's snapshot roots.
//!
//! Owns: which records claim a root, and whose keys counted when the volume was made.
//! Never: judges a root; that takes the volume's keys.

use super::record::Line;
use super::record::body::{Body, Root};
use super::roster::Roster;
use crate::id::{ChunkId, Epoch, Label, Position, VolumeId};

/// An `fs.root`, by whoever signed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub record: Position,
    pub by: Label,
    /// The last record that is folded in.
    pub position: Position,
    pub address: ChunkId,
    /// Hashed under the meta key of `epoch`.
    pub identity: [u8; 32],
    pub epoch: Epoch,
    pub confirms: Option<Position>,
}

impl Claim {
    pub fn of(record: Position, by: Label, body: &Root) -> Self {
        Self {
            record,
            by,
            position: body.position,
            address: body.address,
            identity: body.identity,
            epoch: body.key_epoch,
            confirms: body.confirms,
        }
    }
}

/// Takes the records of a whole log, one after another.
#[derive(Debug)]
pub struct Claims {
    volume: VolumeId,
    made: Option<(Position, Roster)>,
    roots: Vec<Claim>,
    commits: u64,
}

impl Claims {
    pub fn of(volume: VolumeId) -> Self {
        Self { volume, made: None, roots: Vec::new(), commits: 0 }
    }

    /// The next record's bytes, and whose keys count before it.
    pub fn see(&mut self, bytes: &[u8], roster: Option<&Roster>) {
        // What is no record is found by whoever verifies the log.
        let Ok(line) = Line::parse(bytes) else { return };
        if !line.p.kind.starts_with("fs.") {
            return;
        }
        match line.p.body() {
            Ok(Body::Volume(body)) if body.volume == self.volume && self.made.is_none() => {
                self.made = roster.map(|roster| (line.i, roster.clone()));
            }
            Ok(Body::Commit(body)) if body.volume == self.volume => self.commits += 1,
            Ok(Body::Root(body)) if body.volume == self.volume => {
                self.roots.push(Claim::of(line.i, line.p.actor_label(), &body));
            }
            _ => {}
        }
    }

    /// The record that made the volume, and whose keys counted before it.
    pub fn made(&self) -> Option<&(Position, Roster)> {
        self.made.as_ref()
    }

    pub fn commits(&self) -> u64 {
        self.commits
    }

    /// In the order of their records.
    pub fn roots(&self) -> &[Claim] {
        &self.roots
    }
}
