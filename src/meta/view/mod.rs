//! A volume as one session sees it now: a tree, the commits after it, and its own operations.
//!
//! Owns: the layers over the tree and their order; what is committed and what is still local.
//! Never: decides what may be committed, fetches, or writes a file.
//! Invariant: newest wins. From oldest to newest: the tree of a snapshot; layers, each a write set
//! in memory or a run that was spilled; the newest commits; local operations, which stay on top
//! until they are committed, whatever others commit meanwhile.

mod run;
#[cfg(test)]
mod tests;
mod walk;

use crate::id::Position;
use crate::meta::key::{Key, KeyBytes};
use crate::meta::tree::{NodeError, NodeRef, Read, Tree, decoded};
use crate::meta::value::Value;
use crate::meta::write::{Change, Merge, WriteSet};
pub use run::Run;
use std::collections::VecDeque;
use std::sync::Arc;
use walk::Walk;

/// A commit overlay above this is worth spilling.
pub const OVERLAY_MAX: usize = 16 << 20;

/// Commits that are in no tree yet, oldest first.
#[derive(Clone)]
enum Layer {
    Set(Arc<WriteSet>),
    Run(Arc<Run>),
}

impl Layer {
    /// Where the range deletes are; a run keeps its own in memory.
    fn ranges(&self) -> &WriteSet {
        match self {
            Self::Set(set) => set,
            Self::Run(run) => run.ranges(),
        }
    }
}

/// What was committed since the root of the tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behind {
    pub bytes: usize,
    pub commits: u64,
}

impl Behind {
    fn plus(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, commits: self.commits + other.commits }
    }
}

/// What a snapshot is built from: `parts` applied in turn to `base` give the map at `position`.
pub struct Frozen {
    pub base: Tree,
    pub position: Position,
    parts: Vec<Layer>,
}

impl Frozen {
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The `i`th write set; a spilled one is read back, at most [`OVERLAY_MAX`] or so.
    pub fn part(&self, i: usize) -> Result<Arc<WriteSet>, NodeError> {
        match &self.parts[i] {
            Layer::Set(set) => Ok(set.clone()),
            Layer::Run(run) => run.load().map(Arc::new),
        }
    }
}

pub struct View {
    tree: Tree,
    /// Of the newest commit in it.
    position: Position,
    layers: Vec<(Layer, Behind)>,
    /// So many of the layers are in the snapshot that is being built, up to the position.
    frozen: Option<(usize, Position)>,
    committed: WriteSet,
    /// What was composed into it.
    newest: Behind,
    /// All of `operations` composed.
    local: WriteSet,
    operations: VecDeque<(u64, Arc<WriteSet>)>,
    operations_bytes: usize,
}

impl View {
    /// `tree` is the map at `position`.
    pub fn new(tree: Tree, position: Position) -> Self {
        Self {
            tree,
            position,
            layers: vec![],
            frozen: None,
            committed: WriteSet::new(),
            newest: Behind::default(),
            local: WriteSet::new(),
            operations: VecDeque::new(),
            operations_bytes: 0,
        }
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Another session's commit, or one of ours from before this view.
    pub fn apply(&mut self, position: Position, writes: &WriteSet) {
        self.advance(position);
        if !writes.is_empty() {
            self.newest.commits += 1;
            self.newest.bytes += writes.size_bytes();
            self.committed.then(writes);
        }
    }

    /// An operation of ours that is done here and not yet committed.
    pub fn push_local(&mut self, seq: u64, writes: Arc<WriteSet>) {
        assert!(self.operations.back().is_none_or(|(last, _)| *last < seq), "operations in turn");
        self.local.then(&writes);
        self.operations_bytes += writes.size_bytes();
        self.operations.push_back((seq, writes));
    }

    /// Our operations up to `up_to` were committed at `position`.
    pub fn commit_local(&mut self, up_to: u64, position: Position) {
        self.advance(position);
        self.newest.commits += 1;
        if self.operations.back().is_some_and(|(last, _)| *last <= up_to) {
            // The usual end of a commit: all that is local, composed already.
            self.operations.clear();
            self.newest.bytes += std::mem::take(&mut self.operations_bytes);
            let local = std::mem::take(&mut self.local);
            match self.committed.is_empty() {
                true => self.committed = local,
                false => self.committed.then(&local),
            }
            return;
        }
        let done = self.operations.partition_point(|(seq, _)| *seq <= up_to);
        for (_, writes) in self.operations.drain(..done) {
            self.operations_bytes -= writes.size_bytes();
            self.newest.bytes += writes.size_bytes();
            self.committed.then(&writes);
        }
        self.compose_local();
    }

    /// Our operations from `from` on were refused: they never happened.
    pub fn drop_local(&mut self, from: u64) -> Vec<u64> {
        let kept = self.operations.partition_point(|(seq, _)| *seq < from);
        let dropped: Vec<_> = self.operations.drain(kept..).collect();
        for (_, writes) in &dropped {
            self.operations_bytes -= writes.size_bytes();
        }
        self.compose_local();
        dropped.into_iter().map(|(seq, _)| seq).collect()
    }

    /// How many operations are not committed.
    pub fn local_len(&self) -> usize {
        self.operations.len()
    }

    /// Sets the commits so far aside for a snapshot; later ones go on above them.
    pub fn freeze(&mut self) -> Frozen {
        assert!(self.frozen.is_none(), "one snapshot is built at a time");
        self.set_aside();
        self.frozen = Some((self.layers.len(), self.position));
        let parts = self.layers.iter().map(|(layer, _)| layer.clone()).collect();
        Frozen { base: self.tree.clone(), position: self.position, parts }
    }

    /// The frozen snapshot was built, and `root` is it.
    pub fn rebase(&mut self, root: NodeRef, position: Position) {
        let (layers, at) = self.frozen.take().expect("a snapshot was begun");
        assert_eq!(at, position, "the snapshot is the one that was frozen");
        self.layers.drain(..layers);
        self.tree = Tree::new(root, self.tree.cache().clone());
    }

    /// The snapshot was not built: its layers stay, and a later one includes them.
    pub fn thaw(&mut self) {
        self.frozen = None;
    }

    /// Goes over to `fresh`, which has the same commits over another session's snapshot.
    pub fn adopt(&mut self, fresh: View) {
        assert_eq!(fresh.position, self.position, "the same commits");
        assert!(fresh.operations.is_empty(), "only this view has local operations");
        self.tree = fresh.tree;
        self.layers = fresh.layers;
        self.committed = fresh.committed;
        self.newest = fresh.newest;
        self.frozen = None;
    }

    /// What the layers and local operations take in memory.
    pub fn overlay_bytes(&self) -> usize {
        let layers = self.layers.iter().map(|(layer, _)| layer.ranges().size_bytes());
        let now = self.committed.size_bytes() + self.local.size_bytes();
        layers.sum::<usize>() + now + self.operations_bytes
    }

    /// What of it could be spilled.
    pub fn spillable_bytes(&self) -> usize {
        let frozen = self.frozen.map_or(0, |(layers, _)| layers);
        let sets = self.layers[frozen..].iter().map(|(layer, _)| match layer {
            Layer::Set(set) => set.size_bytes(),
            Layer::Run(_) => 0,
        });
        sets.sum::<usize>() + self.committed.size_bytes()
    }

    /// How far the tree is behind.
    pub fn behind(&self) -> Behind {
        self.layers.iter().fold(self.newest, |sum, (_, behind)| sum.plus(*behind))
    }

    /// The oldest commits that are in memory and in no snapshot that is being built: what is to be
    /// made a [`Run`] of. It stays where it is until [`View::spilled`].
    pub fn spillable(&mut self) -> Option<Arc<WriteSet>> {
        self.set_aside();
        let frozen = self.frozen.map_or(0, |(layers, _)| layers);
        self.layers[frozen..].iter().find_map(|(layer, _)| match layer {
            Layer::Set(set) => Some(set.clone()),
            Layer::Run(_) => None,
        })
    }

    /// `run` has what [`View::spillable`] gave, and takes its place, unless a snapshot did already.
    pub fn spilled(&mut self, set: &Arc<WriteSet>, run: Run) {
        let place = self.layers.iter_mut().find_map(|(layer, _)| match layer {
            Layer::Set(there) if Arc::ptr_eq(there, set) => Some(layer),
            _ => None,
        });
        if let Some(layer) = place {
            *layer = Layer::Run(Arc::new(run));
        }
    }

    /// Later commits go on in a layer above.
    fn set_aside(&mut self) {
        if !self.committed.is_empty() {
            let set = Arc::new(std::mem::take(&mut self.committed));
            self.layers.push((Layer::Set(set), std::mem::take(&mut self.newest)));
        }
    }

    fn advance(&mut self, position: Position) {
        assert!(position > self.position, "commits come in the order of the log");
        self.position = position;
    }

    fn compose_local(&mut self) {
        self.local = WriteSet::new();
        for (_, writes) in &self.operations {
            self.local.then(writes);
        }
    }

    /// What is not committed, of all operations of ours.
    pub fn local(&self) -> &WriteSet {
        &self.local
    }

    /// The value without what is not committed: that at [`View::position`].
    pub fn committed(&self, key: &Key) -> Result<Option<Value>, NodeError> {
        Ok(self.beneath(&[&self.committed], key, &key.encode())?.value())
    }

    /// The value of `bytes` below the sets in memory that `merges` were found in.
    fn beneath(
        &self,
        in_memory: &[&WriteSet],
        key: &Key,
        bytes: &KeyBytes,
    ) -> Result<Found, NodeError> {
        let mut merges = vec![];
        for set in in_memory {
            if let Some(found) = look(set.get(bytes), set, bytes, &mut merges) {
                return Ok(Found { value: found, merges });
            }
        }
        for (layer, _) in self.layers.iter().rev() {
            let found = match layer {
                Layer::Set(set) => look(set.get(bytes), set, bytes, &mut merges),
                Layer::Run(run) => {
                    look(run.change(bytes)?.as_ref(), run.ranges(), bytes, &mut merges)
                }
            };
            if let Some(value) = found {
                return Ok(Found { value, merges });
            }
        }
        let value = self.tree.raw(bytes, |raw| decoded(key, raw))?;
        Ok(Found { value, merges })
    }
}

struct Found {
    value: Option<Value>,
    /// To be made to it, newest first.
    merges: Vec<Merge>,
}

impl Found {
    fn value(self) -> Option<Value> {
        let merged = |value, merge: &Merge| merge.apply(value);
        self.merges.iter().rev().fold(self.value, merged)
    }
}

/// The value that this layer settles, if it does; a merge waits for what is beneath.
fn look(
    change: Option<&Change>,
    set: &WriteSet,
    key: &[u8],
    merges: &mut Vec<Merge>,
) -> Option<Option<Value>> {
    match change {
        Some(Change::Put(value)) => return Some(Some(value.clone())),
        Some(Change::Delete) => return Some(None),
        Some(Change::Merge(merge)) => merges.push(merge.clone()),
        None => (),
    }
    set.is_in_range(key).then_some(None)
}

impl Read for View {
    fn get(&self, key: &Key) -> Result<Option<Value>, NodeError> {
        Ok(self.beneath(&[&self.local, &self.committed], key, &key.encode())?.value())
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, NodeError> {
        let mut walk = Walk::new(self, from, to)?;
        let mut found = vec![];
        while found.len() < limit {
            match walk.next()? {
                Some(entry) => found.push(entry),
                None => break,
            }
        }
        Ok(found)
    }
}
