//! What the sequencer knows of a volume: settings, key epoch, tags, roots. Nothing of its content.
//!
//! Owns: the epoch and who holds its wrap, the tag window, how far roots are behind.
//! Invariant: the window answers only for the current epoch, as tags of another have other keys.

use crate::cluster::certify::Window;
use crate::id::{ChunkId, Epoch, Label, Position};
use crate::ledger::record::body::{Commit, Root, VolumeMade};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};

/// Roots remembered, so that they can be confirmed.
const ROOTS_MAX: usize = 64;

/// Writers wait when no root was made for so long: a mount would start with all that.
pub const BEHIND_COMMITS_MAX: u64 = 100_000;
pub const BEHIND_BYTES_MAX: u64 = 512 << 20;

/// How finely it is known what lies behind a root: within this many commits.
const SAMPLE_COMMITS: u64 = 1_024;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Amount {
    pub commits: u64,
    /// Of payloads.
    pub bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RootMark {
    /// The record that named it.
    pub record: Position,
    pub by: Label,
    /// The last record that is folded in.
    pub position: Position,
    pub address: ChunkId,
    /// Hashed under the meta key of `key_epoch`.
    pub identity: [u8; 32],
    pub key_epoch: Epoch,
    /// Recomputed by another member, or by its builder later.
    pub confirmed: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    pub settings: VolumeMade,
    pub made: Position,
    /// The first position of the current key epoch.
    pub epoch_began: Position,
    pub last_commit: Option<Position>,
    /// The newest epoch that is wrapped for each member, and to which key.
    pub(super) wraps: BTreeMap<Label, (Epoch, [u8; 32])>,
    pub(super) window: Window,
    roots: VecDeque<RootMark>,
    total: Amount,
    /// What there was in all at some positions after the newest root, and at that root or before.
    samples: VecDeque<(Position, Amount)>,
}

impl Volume {
    pub(super) fn new(settings: VolumeMade, made: Position) -> Self {
        Self {
            settings,
            made,
            epoch_began: made,
            last_commit: None,
            wraps: BTreeMap::new(),
            window: Window::starting_at(made),
            roots: VecDeque::new(),
            total: Amount::default(),
            samples: VecDeque::from([(made, Amount::default())]),
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.settings.key_epoch
    }

    pub fn window(&self) -> &Window {
        &self.window
    }

    /// The newest epoch whose ring is wrapped for `member`, to its present key or an earlier one.
    pub fn wrapped(&self, member: &Label) -> Option<Epoch> {
        self.wraps.get(member).map(|(epoch, _)| *epoch)
    }

    pub fn roots(&self) -> impl DoubleEndedIterator<Item = &RootMark> {
        self.roots.iter()
    }

    /// What was committed since the newest root, at most `SAMPLE_COMMITS` too much.
    pub fn behind(&self) -> Amount {
        let at_root = self.samples.front().map_or(Amount::default(), |(_, amount)| *amount);
        Amount {
            commits: self.total.commits - at_root.commits,
            bytes: self.total.bytes - at_root.bytes,
        }
    }

    pub fn is_far_behind(&self) -> bool {
        let behind = self.behind();
        behind.commits >= BEHIND_COMMITS_MAX || behind.bytes >= BEHIND_BYTES_MAX
    }

    pub(super) fn begin_epoch(&mut self, epoch: Epoch, at: Position) {
        self.settings.key_epoch = epoch;
        self.epoch_began = at;
        self.window = Window::starting_at(at);
    }

    pub(super) fn count(&mut self, commit: &Commit, at: Position) {
        self.last_commit = Some(at);
        self.total.commits += 1;
        self.total.bytes = self.total.bytes.saturating_add(commit.payload.size);
        if self.total.commits.is_multiple_of(SAMPLE_COMMITS) {
            self.samples.push_back((at, self.total));
        }
    }

    /// `member` is trusted no more: mounts begin with what others named. Whoever confirmed a root
    /// of its has named it too.
    pub(super) fn forget_roots_of(&mut self, member: &Label) {
        self.roots.retain(|mark| mark.by != *member);
    }

    pub(super) fn add_root(&mut self, by: Label, root: Root, record: Position) {
        let Root { position: folded, address, identity, key_epoch, .. } = root;
        // One sample at or before the root stays: it says how much the root has folded in.
        while self.samples.get(1).is_some_and(|(at, _)| *at <= folded) {
            self.samples.pop_front();
        }
        if let Some(confirmed) = root.confirms
            && let Some(earlier) = self.roots.iter_mut().find(|m| m.record == confirmed)
        {
            earlier.confirmed = true;
        }
        let confirmed = false;
        let position = folded;
        let mark = RootMark { record, by, position, address, identity, key_epoch, confirmed };
        self.roots.push_back(mark);
        if self.roots.len() > ROOTS_MAX {
            self.roots.pop_front();
        }
    }
}
