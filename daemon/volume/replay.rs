//! A volume's log, folded again from nothing, and its snapshot roots compared with that.
//!
//! Owns: which records are folded, where their tree is while that goes on, and what is said of
//! each root.
//! Never: begins with a root, or believes a voter: the log is the one whose checkpoint was
//! verified before, because its last record is, and each names the one before it.
//! Invariant: nothing is said of any root before the whole log was seen to be that one.

use super::Volume;
use super::beginning::before;
use super::belief::Belief;
use super::follow::FollowError;
use super::secrets::roster_before;
use super::start::{Ground, Held, OpenError, Start, assemble, find_volume};
use super::void::Voids;
use crate::link::Link;
use mictlan::hash;
use mictlan::id::{ChunkId, Epoch, LedgerHash, NodeIdentity, Position, VolumeId};
use mictlan::ledger::roots::{Claim, Claims};
use mictlan::meta::error::FsError;
use mictlan::meta::key::Span;
use mictlan::meta::tree::{Builder, Form, NewNode, NodeError, NodeRef, Read};
use mictlan::wire::{Follow, Followed, VolumeInfo};
use std::fs::File;
use std::io;
use std::sync::Arc;

/// One page of the log.
const PAGE_BYTES: u32 = 4 << 20;
/// The tree is written anew when nodes that it no longer has take so much of the local disk, or
/// three times its own size.
const GARBAGE_BYTES: u64 = 256 << 20;
/// Entries of the tree read at a time.
const ENTRIES: usize = 256;

/// What the replay came to.
#[derive(Debug)]
pub struct Replayed {
    pub volume: VolumeId,
    pub commits: u64,
    /// The last record that was folded in.
    pub position: Position,
    /// Roots that are what the commits make.
    pub right: Vec<Claim>,
    pub wrong: Vec<Wrong>,
    pub voids: Voids,
    /// The record that was ordered to confirm the newest root.
    pub confirmed_by: Option<Position>,
}

/// A root that is not what the commits make.
#[derive(Debug)]
pub struct Wrong {
    pub claim: Claim,
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("volume {0} is in no record that a checkpoint covers yet; try again in some seconds")]
    NotMade(VolumeId),
    /// Nothing is wrong with the root; it cannot be known.
    #[error(
        "it could not be finished: {0}; start the peers that are away (mictlan status) and try again"
    )]
    Missing(FollowError),
    #[error("the voters do not show the log whose checkpoint was verified: {0}")]
    Record(FollowError),
    #[error("no voter shows record {0}; nothing is said of the volume")]
    NoVoter(Position),
    #[error(
        "the voters show another log than the one whose checkpoint was verified; nothing is said \
         of the volume; find the voter that lies (mictlan ledger verify, asking each)"
    )]
    AnotherLog,
    #[error("this key has no secrets of epoch {0}; ask an owner for access again")]
    NoKey(Epoch),
    #[error("the local disk could not keep what was folded: {0}")]
    Disk(#[from] io::Error),
    #[error("the tree that was folded could not be read back: {0}")]
    Tree(FsError),
    #[error(
        "every root is right, but none was confirmed ({0}); that takes a writer's or an owner's \
         key, and the root's own chunk"
    )]
    NotConfirmed(FsError),
}

/// What `mictlan verify` knows of a volume before its log is read.
pub struct Replay {
    start: Start,
    info: VolumeInfo,
}

impl Replay {
    pub async fn of(start: Start) -> Result<Self, ReplayError> {
        let info = find_volume(&start).await?;
        Ok(Self { start, info })
    }

    pub fn volume(&self) -> VolumeId {
        self.info.id
    }

    /// Folds the first `size` records, the last of which hashes to `head`. `claims` saw them all.
    /// With `confirm`, and every root right, the newest one is confirmed unless it is already.
    pub async fn run(
        self,
        claims: &Claims,
        size: u64,
        head: LedgerHash,
        confirm: bool,
        told: &(dyn Fn(Position) + Sync),
    ) -> Result<Replayed, ReplayError> {
        let mut fold = Fold::begin(&self, claims).await?;
        while fold.next().await.0 < size {
            fold.advance(size).await?;
            told(fold.next().await);
        }
        let applied = fold.volume.applying.lock().await;
        if applied.chain != Some(head) {
            return Err(ReplayError::AnotherLog);
        }
        drop(applied);
        let voids = fold.volume.voids().clone();
        let mut wrong = fold.wrong;
        wrong.extend(fold.claims.iter().map(|claim| Wrong {
            claim: claim.clone(),
            why: format!("it names record {}, which is not before it", claim.position),
        }));
        wrong.sort_by_key(|wrong| wrong.claim.record);
        fold.right.sort_by_key(|claim| claim.record);
        let newest = claims.roots().last().filter(|_| confirm && wrong.is_empty());
        let confirmed_by = match newest.filter(|newest| !is_confirmed(claims, newest)) {
            Some(newest) => fold.volume.confirm(newest, fold.newest).await?,
            None => None,
        };
        Ok(Replayed {
            volume: self.info.id,
            commits: claims.commits(),
            position: Position(size.saturating_sub(1)),
            right: fold.right,
            wrong,
            voids,
            confirmed_by,
        })
    }
}

/// A replay under way.
struct Fold {
    volume: Arc<Volume>,
    local: Local,
    /// Those that were not reached, the next one last.
    claims: Vec<Claim>,
    right: Vec<Claim>,
    wrong: Vec<Wrong>,
    /// The root that the newest record names, and was folded here.
    newest: Option<(Position, NodeIdentity)>,
}

/// Whether it confirms another, which is then the same, or another confirms it.
fn is_confirmed(claims: &Claims, root: &Claim) -> bool {
    let confirms = |claim: &Claim| claim.confirms == Some(root.record);
    root.confirms.is_some() || claims.roots().iter().any(confirms)
}

impl Volume {
    /// Names a root that was folded here once more, so that it has two to answer for it.
    async fn confirm(
        &self,
        claim: &Claim,
        folded: Option<(Position, NodeIdentity)>,
    ) -> Result<Option<Position>, ReplayError> {
        let folded = folded.filter(|(record, _)| *record == claim.record);
        let (_, identity) = folded.expect("a root that is right was folded");
        let root = NodeRef { identity, address: claim.address };
        // A mount that begins there must find it.
        self.have_node(NodeError::Missing(root)).await.map_err(ReplayError::NotConfirmed)?;
        let recorded = self.record_root(root, claim.position, Some(claim.record)).await;
        recorded.map_err(ReplayError::NotConfirmed)
    }
}

/// The files that have the tree's nodes. They have no names, so an end of any kind removes them.
#[derive(Default)]
struct Local {
    files: Vec<Arc<File>>,
    bytes: u64,
    /// Of the tree alone, when it was last written anew.
    tree_bytes: u64,
}

impl Fold {
    async fn begin(replay: &Replay, log: &Claims) -> Result<Self, ReplayError> {
        let Replay { start, info } = replay;
        let (made, roster) = log.made().cloned().ok_or(ReplayError::NotMade(info.id))?;
        let known = roster_before(&start.network, start.options.deadline, made).await?;
        let held = Held::of(start, info, &known.roster, &known.wraps)?;
        let ground = Ground {
            tree: held.empty_tree(),
            position: before(made),
            next: made,
            roster,
            belief: Belief::new(start.ledger.clone(), None, true),
            session: None,
            journal: None,
            coherent: None,
        };
        let info = VolumeInfo { made, root: None, ..info.clone() };
        let (volume, _) = assemble(start, &info, held, ground)?;
        volume.trail.switch_off();
        let mut claims = log.roots().to_vec();
        claims.sort_by_key(|claim| std::cmp::Reverse(claim.position));
        let mut fold = Self {
            volume,
            local: Local::default(),
            claims,
            right: vec![],
            wrong: vec![],
            newest: None,
        };
        // The sequencer takes no root of before the volume was made.
        while fold.claims.last().is_some_and(|claim| claim.position < made) {
            let claim = fold.claims.pop().expect("there is one");
            let why = format!("it names record {}, before the volume was made", claim.position);
            fold.wrong.push(Wrong { claim, why });
        }
        Ok(fold)
    }

    async fn next(&self) -> Position {
        self.volume.applying.lock().await.next
    }

    /// Folds what one voter shows next. What is wrong with its page may be right in another's.
    async fn advance(&mut self, size: u64) -> Result<(), ReplayError> {
        let peers = self.volume.network.peers();
        let mut why = None;
        for known in peers.iter().filter(|known| known.info.voter) {
            match self.page(&known.link, size).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(ReplayError::Record(error)) => why = Some(error),
                Err(error) => return Err(error),
            }
        }
        match why {
            Some(error) => Err(ReplayError::Record(error)),
            None => Err(ReplayError::NoVoter(self.next().await)),
        }
    }

    /// Whether there was a record in it.
    async fn page(&mut self, link: &Link, size: u64) -> Result<bool, ReplayError> {
        let from = self.next().await;
        // Every record, so that none can be left out: each names the one before it.
        let follow = Follow { volume: None, from, max_bytes: PAGE_BYTES, wait_ms: 0 };
        let deadline = self.volume.options.deadline;
        let Ok(Ok(page)) = tokio::time::timeout(deadline, link.follow(follow)).await else {
            return Ok(false);
        };
        let mut taken = false;
        for entry in page.entries.into_iter().take_while(|entry| entry.position.0 < size) {
            if entry.position != self.next().await {
                break;
            }
            self.take(entry).await?;
            taken = true;
        }
        Ok(taken)
    }

    async fn take(&mut self, entry: Followed) -> Result<(), ReplayError> {
        let at = entry.position;
        let volume = self.volume.clone();
        let folded = volume.fold_in(&mut *volume.applying.lock().await, entry).await;
        folded.map_err(|error| match error {
            FollowError::Missing { .. } => ReplayError::Missing(error),
            FollowError::NoKey { epoch, .. } => ReplayError::NoKey(epoch),
            error => ReplayError::Record(error),
        })?;
        volume.spill_what_is_too_much();
        if self.claims.last().is_some_and(|claim| claim.position == at) {
            let identity = self.fold().await?;
            while let Some(claim) = self.claims.pop_if(|claim| claim.position == at) {
                self.judge(claim, identity)?;
            }
        }
        Ok(())
    }

    fn judge(&mut self, claim: Claim, identity: NodeIdentity) -> Result<(), ReplayError> {
        let ring = self.volume.ring();
        let keys = ring.epoch(claim.epoch).ok_or(ReplayError::NoKey(claim.epoch))?;
        if hash::keyed(keys.root_key(), &[&identity.0]) == claim.identity {
            if self.newest.is_none_or(|(record, _)| record < claim.record) {
                self.newest = Some((claim.record, identity));
            }
            self.right.push(claim);
        } else {
            let at = claim.position;
            let why = format!("it names a tree that the commits up to record {at} do not make");
            self.wrong.push(Wrong { claim, why });
        }
        Ok(())
    }

    /// The identity of the tree of all that was taken so far.
    async fn fold(&mut self) -> Result<NodeIdentity, ReplayError> {
        let volume = self.volume.clone();
        let frozen = volume.core().view.freeze();
        let mut writing = volume.spill.begin()?;
        let nodes = volume.nodes.clone();
        let mut sink = |new: NewNode| {
            let address = writing.keep(&new)?;
            nodes.insert(NodeRef { identity: new.identity, address }, new.node);
            Ok::<ChunkId, io::Error>(address)
        };
        let root = volume.fold(&frozen, &mut sink).await.map_err(ReplayError::Tree)?;
        let (file, bytes) = writing.kept();
        if bytes > 0 {
            self.local.files.push(file);
            self.local.bytes += bytes;
        }
        volume.core().view.rebase(root, frozen.position);
        if self.local.bytes > self.local.tree_bytes * 4 + GARBAGE_BYTES {
            self.write_anew().await?;
        }
        Ok(root.identity)
    }

    /// The same tree in a file of its own; those that it was in are let go of.
    async fn write_anew(&mut self) -> Result<(), ReplayError> {
        let volume = self.volume.clone();
        let tree = volume.core().view.tree().clone();
        let mut writing = volume.spill.begin()?;
        let nodes = volume.nodes.clone();
        let mut sink = |new: NewNode| {
            let address = writing.keep(&new)?;
            nodes.insert(NodeRef { identity: new.identity, address }, new.node);
            Ok::<ChunkId, io::Error>(address)
        };
        let mut builder = Builder::new(&volume.tree_keys, Form::Values);
        let all = Span::all();
        let mut from = all.from().to_vec();
        loop {
            let entries = loop {
                match tree.range(&from, all.to(), ENTRIES) {
                    Ok(entries) => break entries,
                    Err(error) => volume.have_node(error).await.map_err(ReplayError::Tree)?,
                }
            };
            let Some((last, _)) = entries.last() else { break };
            from = last.encode().as_bytes().to_vec();
            from.push(0);
            for (key, value) in &entries {
                builder.push(&key.encode(), &value.encode(), &mut sink)?;
            }
        }
        let root = builder.finish(&mut sink)?;
        assert_eq!(root.identity, tree.root().identity, "the same map is the same tree");
        let (file, bytes) = writing.kept();
        self.local = Local { files: vec![file], bytes, tree_bytes: bytes };
        let mut core = volume.core();
        let position = core.view.freeze().position;
        core.view.rebase(root, position);
        Ok(())
    }
}
