//! Snapshot roots that others made, before anything here rests on them.
//!
//! Owns: making the tree of a root's position again from what was applied here, the comparison,
//! the look whether all of it is there, and the change of this view's tree to the root.
//! Invariant: a view never goes over to a root that is not what it would have built itself; a root
//! that is another ends belief. Nor to one of which a chunk is missing: addresses are in no
//! identity, so whoever named it may have stored nothing at them.

use super::Volume;
use super::belief::Disbelief;
use super::nodes::NodeLost;
use futures::future::try_join_all;
use mictlan::hash;
use mictlan::id::{ChunkId, Label, NodeIdentity, Position};
use mictlan::ledger::roots::Claim;
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{NewNode, NodeRef, Tree, Unshared};
use mictlan::meta::view::{OVERLAY_MAX, View};
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Roots that wait for their check; builders are minutes apart.
const WAITING_MAX: usize = 64;
/// How often an ended volume is noticed.
const LOOK: Duration = Duration::from_secs(5);
/// Nodes that are brought at a time: together no more than 2 MiB.
const AT_ONCE: usize = 16;

/// Roots that records named, oldest first.
#[derive(Default)]
pub(super) struct Named {
    claims: Mutex<VecDeque<Claim>>,
    came: Notify,
}

impl Named {
    pub fn add(&self, claim: Claim) {
        let mut claims = self.claims.lock().expect("nothing panics while it is locked");
        if claims.len() == WAITING_MAX {
            claims.pop_front();
        }
        claims.push_back(claim);
        self.came.notify_one();
    }

    /// Removed: what it named is nobody's beginning any more, so nothing depends on it.
    pub fn forget(&self, member: &Label) {
        let mut claims = self.claims.lock().expect("nothing panics while it is locked");
        claims.retain(|claim| claim.by != *member);
    }

    fn next(&self) -> Option<Claim> {
        self.claims.lock().expect("nothing panics while it is locked").pop_front()
    }
}

/// Why a view does not go over to a root.
#[derive(Debug, thiserror::Error)]
enum NotWhole {
    #[error(transparent)]
    New(#[from] NodeLost),
    #[error("the tree that this mount rests on cannot be read now: {0}")]
    Old(#[from] FsError),
}

impl Volume {
    /// Checks roots as they are named, until the volume ends or belief does.
    pub(super) async fn check_roots(self: Arc<Self>) {
        while !self.ending.load(Ordering::Relaxed) && self.believed().is_ok() && self.is_member() {
            let Some(claim) = self.named.next() else {
                let _ = tokio::time::timeout(LOOK, self.named.came.notified()).await;
                continue;
            };
            if let Err(error) = self.check_root(&claim).await {
                tracing::warn!(record = %claim.record, by = %claim.by, %error,
                    "a snapshot root was not checked, and nothing here rests on it");
            }
        }
    }

    async fn check_root(&self, claim: &Claim) -> Result<(), FsError> {
        // One that was made here is this view's tree by then.
        let _turn = self.snapshotting.lock().await;
        let Some(identity) = self.identity_at(claim.position).await? else { return Ok(()) };
        let ring = self.ring();
        let Some(keys) = ring.epoch(claim.epoch) else { return Ok(()) };
        if hash::keyed(keys.root_key(), &[&identity.0]) != claim.identity {
            let (record, by, position) = (claim.record, claim.by.clone(), claim.position);
            self.disbelieve(Disbelief::Root { record, by, position });
            return Ok(());
        }
        if claim.position == self.trail.from() {
            return Ok(());
        }
        let root = NodeRef { identity, address: claim.address };
        if let Err(why) = self.look_at_all_of(root).await {
            tracing::warn!(record = %claim.record, by = %claim.by, %why,
                "a snapshot root is right, but not all of its tree can be had: this mount stays \
                 with the one that it rests on, and nothing is lost");
            return Ok(());
        }
        self.adopt(root, claim.position).await
    }

    /// Brings each node of the tree that this view's has not, and so finds what is missing before
    /// anything rests on it. What both have was found when this view went over to it.
    async fn look_at_all_of(&self, root: NodeRef) -> Result<(), NotWhole> {
        let old = self.core().view.tree().clone();
        let mut unshared = Unshared::new(&old, root);
        loop {
            let nodes = unshared.next(AT_ONCE);
            if nodes.is_empty() {
                return Ok(());
            }
            let brought = nodes.into_iter().map(|node| self.node_of_peers(node));
            for node in try_join_all(brought).await? {
                while let Err(error) = unshared.add(&node) {
                    self.have_node(error).await?;
                }
            }
        }
    }

    /// The identity of the tree that the commits up to `position` make. `None` where this view
    /// cannot say: its tree has later ones, or not all are at hand.
    async fn identity_at(&self, position: Position) -> Result<Option<NodeIdentity>, FsError> {
        let from = self.trail.from();
        let mut tree = self.core().view.tree().clone();
        let Some(mut steps) = self.trail.steps(from, position).filter(|_| position >= from) else {
            return Ok(None);
        };
        let mut writing = self.spill.begin().map_err(on_disk)?;
        let mut sink = |new: NewNode| -> io::Result<ChunkId> {
            let address = writing.keep(&new)?;
            self.nodes.insert(NodeRef { identity: new.identity, address }, new.node);
            Ok(address)
        };
        while let Some(part) = steps.batch(&self.spill).map_err(on_disk)? {
            let root = self.update(&tree, &part, &mut sink).await?;
            tree = Tree::new(root, self.nodes.clone());
        }
        Ok(Some(tree.root().identity))
    }

    /// The same view over `root`, which is the map at `position`. What lay over the tree until
    /// there is let go of, in memory and on the local disk.
    async fn adopt(&self, root: NodeRef, position: Position) -> Result<(), FsError> {
        let applying = self.applying.lock().await;
        let now = self.core().view.position();
        let steps = self.trail.steps(position, now);
        // Nothing else is applied meanwhile, so there must not be many. A later root has more of
        // them.
        let Some(mut steps) = steps.filter(|steps| steps.bytes() <= OVERLAY_MAX) else {
            return Ok(());
        };
        let mut fresh = View::new(Tree::new(root, self.nodes.clone()), position);
        while let Some((at, writes)) = steps.next(&self.spill).map_err(on_disk)? {
            fresh.apply(at, &writes);
            self.spill_of(&mut fresh).map_err(on_disk)?;
        }
        if fresh.position() < now {
            fresh.apply(now, &Default::default());
        }
        self.core().view.adopt(fresh);
        self.trail.rests_on(position);
        self.spill_what_is_too_much();
        drop(applying);
        // Whoever waits for memory looks again.
        self.progress.send_modify(|_| {});
        Ok(())
    }
}

fn on_disk(error: io::Error) -> FsError {
    tracing::warn!(%error, "the local disk does not keep, or give back, what was applied");
    FsError::Io
}
