//! Snapshot roots: the commits so far as a tree, named in the ledger.
//!
//! Owns: when one is built, its nodes on their way to the peers, and its `fs.root` record.
//!
//! The order of durability: nodes durable (crash: nothing refers to them), record ordered (crash:
//! the next mount starts there), then this view rests on it. A snapshot that fails changes nothing.

use super::Volume;
use super::start::OpenError;
use super::state::Mode;
use crate::chunks::{Charges, Put};
use mictlan::cluster::state::Outcome;
use mictlan::hash;
use mictlan::id::{ChunkId, Position};
use mictlan::ledger::record::body::{Body, Root};
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{NewNode, NodeError, NodeRef, Tree, Update, UpdateError};
use mictlan::meta::view::{Behind, Frozen};
use mictlan::meta::write::WriteSet;
use mictlan::seal::{self, Codec, Kind, SealError};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// A root is built when so much has been committed since the last one, or so long ago.
const BYTES: usize = 32 << 20;
const COMMITS: u64 = 10_000;
const EVERY: Duration = Duration::from_secs(300);
/// How often it is looked at.
const LOOK: Duration = Duration::from_secs(5);

fn is_due(behind: Behind, since: Duration, times: u32) -> bool {
    behind.bytes / times as usize >= BYTES
        || behind.commits / u64::from(times) >= COMMITS
        || since / times >= EVERY
}

impl Volume {
    /// Builds roots until the volume ends.
    pub(super) async fn snapshots(self: Arc<Self>) {
        let mut last = Instant::now();
        loop {
            let mut wanted = false;
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                () = self.snapshot_wanted.notified() => wanted = true,
            }
            let (mode, behind) = {
                let core = self.core();
                (core.session.mode, core.view.behind())
            };
            let due = match mode {
                Mode::Lost => return,
                Mode::Reader => false,
                Mode::Leased { .. } => is_due(behind, last.elapsed(), 1),
                // Others may be about to build one, and of two at once one is for nothing.
                Mode::Synchronous => is_due(behind, last.elapsed(), 2),
            };
            if due || wanted {
                last = Instant::now();
                self.snapshot_or_say().await;
            }
        }
    }

    /// The root at unmount, so that the next mount starts at once. Not building it loses nothing.
    pub(super) async fn last_snapshot(&self) {
        if matches!(self.core().session.mode, Mode::Leased { .. }) {
            self.snapshot_or_say().await;
        }
    }

    async fn snapshot_or_say(&self) {
        if let Err(error) = self.snapshot().await {
            tracing::warn!(%error, "no snapshot root was made; mounting takes longer until one is");
        }
    }

    /// Builds and records one root. With nothing committed since the last one it does nothing.
    pub(super) async fn snapshot(&self) -> Result<(), FsError> {
        let _turn = self.snapshotting.lock().await;
        let frozen = self.core().view.freeze();
        if frozen.parts() == 0 {
            self.core().view.thaw();
            return Ok(());
        }
        match self.build_and_record(&frozen).await {
            Ok(root) => {
                self.core().view.rebase(root, frozen.position);
                self.trail.rests_on(frozen.position);
                // Whoever waits for memory looks again.
                self.progress.send_modify(|_| {});
                Ok(())
            }
            Err(error) => {
                self.core().view.thaw();
                Err(error)
            }
        }
    }

    async fn build_and_record(&self, frozen: &Frozen) -> Result<NodeRef, FsError> {
        let (mut puts, copies): (Vec<Put>, _) = (Vec::new(), self.chunks.copies());
        let mut sink = |new: NewNode| -> Result<_, SealError> {
            let (bytes, links) = (new.node.bytes(), new.node.links());
            let ring = self.ring();
            let sealed = seal::seal(ring.current(), Kind::Node, Codec::Stored, &links, bytes)?;
            let address = sealed.address;
            puts.push(self.chunks.put(sealed, copies, Charges::new()));
            self.nodes.insert(NodeRef { identity: new.identity, address }, new.node);
            Ok(address)
        };
        let root = self.fold(frozen, &mut sink).await?;
        for put in &puts {
            let durable = tokio::time::timeout(self.options.deadline, put.durable()).await;
            durable.map_err(|_| FsError::TimedOut)?.map_err(|_| FsError::Io)?;
        }
        self.record_root(root, frozen.position, None).await?;
        Ok(root)
    }

    /// The root of what is frozen; its new nodes go to `sink`.
    pub(super) async fn fold<E: Display>(
        &self,
        frozen: &Frozen,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<NodeRef, FsError> {
        let mut tree = frozen.base.clone();
        for i in 0..frozen.parts() {
            let part = loop {
                match frozen.part(i) {
                    Ok(part) => break part,
                    Err(error) => self.have_node(error).await?,
                }
            };
            let root = self.update(&tree, &part, sink).await?;
            tree = Tree::new(root, self.nodes.clone());
        }
        Ok(tree.root())
    }

    pub(super) async fn update<E: Display>(
        &self,
        tree: &Tree,
        writes: &WriteSet,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<NodeRef, FsError> {
        let mut update = Update::new(&self.tree_keys, tree, writes);
        loop {
            match update.run(sink) {
                Ok(root) => return Ok(root),
                Err(UpdateError::Node(error)) => self.have_node(error).await?,
                Err(UpdateError::Sink(error)) => {
                    tracing::error!(%error, "a tree node cannot be kept");
                    return Err(FsError::Io);
                }
            }
        }
    }

    pub(super) async fn have_node(&self, error: NodeError) -> Result<(), FsError> {
        match error {
            NodeError::Missing(node) => self.fetch_node(node).await,
            error => {
                tracing::error!(%error, "the tree is not sound");
                Err(FsError::Io)
            }
        }
    }

    /// Names `root` as the map at `position`; with `confirms`, as the same one that this record
    /// names. Where the new record stands.
    pub(super) async fn record_root(
        &self,
        root: NodeRef,
        position: Position,
        confirms: Option<Position>,
    ) -> Result<Option<Position>, FsError> {
        let ring = self.ring();
        let keys = ring.current();
        let body = Body::Root(Root {
            address: root.address,
            confirms,
            identity: hash::keyed(keys.root_key(), &[&root.identity.0]),
            key_epoch: keys.epoch(),
            position,
            volume: self.id,
        });
        let sign = |req| Ok::<_, OpenError>(self.sign(req, body.clone())?.into());
        match self.network.order(self.options.deadline, sign).await {
            Ok(taken @ (Outcome::Accepted { .. } | Outcome::Repeated { .. })) => {
                Ok(taken.position())
            }
            Ok(other) => {
                tracing::error!(?other, "the sequencer did not take a root");
                Err(FsError::Io)
            }
            Err(error) => {
                tracing::warn!(%error, "the root was not ordered");
                Err(FsError::TimedOut)
            }
        }
    }
}
