//! A tree with changes made to it: the nodes on the changed paths anew, all others as they were.
//!
//! Owns: rebuilding, level by level, each changed stretch from the start of its first node until
//! node ends agree with the old ones again.
//! Invariant: the result is the tree that a build of the whole changed map would give. A missing
//! node leaves all as it was: fetch it and go on; nothing is done, or handed out, twice.

use crate::id::{ChunkId, NodeIdentity};
use crate::meta::key::{Key, KeyBytes};
use crate::meta::tree::build::{Bud, Builder, NewNode, seal};
use crate::meta::tree::node::{Child, Form, Node};
use crate::meta::tree::read::{Outline, decoded};
use crate::meta::tree::{NodeError, NodeRef, Tree, TreeKeys};
use crate::meta::write::{Change, WriteSet};
use std::collections::{BTreeMap, HashMap, HashSet};

/// After every key: letters end below it.
const END: &[u8] = &[0xff];

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError<E> {
    /// `Missing`: fetch it and call `run` again. `Broken`: give up.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The sink's own; the update is of no more use.
    #[error("a new tree node could not be kept: {0}")]
    Sink(E),
}

/// What became of a node of the level that was just rebuilt, under its first key.
#[derive(Default)]
struct Edit {
    old: Option<Child>,
    new: Option<Child>,
}

/// An update under way.
pub struct Update<'a> {
    keys: &'a TreeKeys,
    old: &'a Tree,
    writes: &'a WriteSet,
    level: u8,
    /// Changes of this level's entries; those of leaves are in `writes`.
    edits: BTreeMap<Vec<u8>, Edit>,
    /// What this level's changes mean for the next one.
    out: BTreeMap<Vec<u8>, Edit>,
    /// The node being filled, and where the next entries come from while it is not empty.
    bud: Bud,
    /// Changes before this are done.
    from: Vec<u8>,
    fresh: HashSet<NodeIdentity>,
    /// New nodes of one child: if one becomes the root, its child is.
    single: HashMap<NodeIdentity, Child>,
    root: Option<NodeRef>,
}

/// The entries of a stretch of the map: keys and encoded values.
type Stretch = Vec<(Vec<u8>, Vec<u8>)>;

impl<'a> Update<'a> {
    pub fn new(keys: &'a TreeKeys, old: &'a Tree, writes: &'a WriteSet) -> Self {
        Self {
            keys,
            old,
            writes,
            level: 0,
            edits: BTreeMap::new(),
            out: BTreeMap::new(),
            bud: Bud::new(Form::Values, 0),
            from: vec![],
            fresh: HashSet::new(),
            single: HashMap::new(),
            root: None,
        }
    }

    /// Goes on until the new root is known. Each new node goes to `sink`, children before their
    /// parents; now and then one that the root does not reach, when the tree loses a level.
    pub fn run<E>(
        &mut self,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<NodeRef, UpdateError<E>> {
        let top = self.old.root_node()?.level();
        while self.root.is_none() {
            if let Some(at) = self.next_place() {
                self.step(&at, top, sink)?;
            } else {
                self.finish_level(top, sink)?;
            }
        }
        self.lowest_root().map_err(UpdateError::Node)
    }

    /// Where the next old node to take in begins, or has its changes.
    fn next_place(&self) -> Option<Vec<u8>> {
        if self.from == END {
            return None;
        }
        if !self.bud.is_empty() {
            return Some(self.from.clone());
        }
        if self.level > 0 {
            return self.edits.range(self.from.clone()..).next().map(|(key, _)| key.clone());
        }
        let change = self.writes.changes_in(&self.from, END).next().map(|(key, _)| key.to_vec());
        let range = match self.writes.is_in_range(&self.from) {
            true => Some(self.from.clone()),
            false => self.writes.ranges_from(&self.from).next().map(<[u8]>::to_vec),
        };
        [change, range].into_iter().flatten().min()
    }

    /// Takes in the old node that has `at`, with its changes.
    fn step<E>(
        &mut self,
        at: &[u8],
        top: u8,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<(), UpdateError<E>> {
        let Outline { first, child, end } = self.old.outline(self.level, at)?;
        let bound = end.as_deref().unwrap_or(END);
        if self.goes_whole(&first, end.as_deref()) {
            self.out.entry(first).or_default().old = Some(child);
            self.from = bound.to_vec();
            return Ok(());
        }
        let place = self.old.place(self.level, at)?;
        let stretch = self.changed(&place.node, bound);
        self.out.entry(first).or_default().old = Some(child);
        for (key, value) in stretch {
            if self.bud.push(self.keys, &key, &value) {
                self.flush(sink)?;
            }
        }
        self.from = bound.to_vec();
        let collapses = self.level == top && self.level > 0 && self.bud.len() == 1;
        if end.is_none() && collapses && self.out.values().all(|edit| edit.new.is_none()) {
            // The only entry of the topmost level: it is the root itself, without a node above.
            self.root = Some(self.bud.only_child().node);
        } else if end.is_none() && !self.bud.is_empty() {
            self.flush(sink)?;
        }
        Ok(())
    }

    /// Whether one range delete covers the leaf from `first` to `end`, and nothing else touches it.
    fn goes_whole(&self, first: &[u8], end: Option<&[u8]>) -> bool {
        let Some(end) = end else { return false };
        self.level == 0
            && self.writes.range_over(first).is_some_and(|to| to >= end)
            && self.writes.changes_in(&self.from, end).next().is_none()
    }

    /// The entries of `node`, with the changes from where we are up to `bound`.
    fn changed(&self, node: &Node, bound: &[u8]) -> Stretch {
        let mut entries = Stretch::with_capacity(node.len());
        let mut i = 0;
        // Old entries before `key` stay, but for those that a range delete takes.
        let mut keep_to = |key: &[u8], entries: &mut Stretch| {
            while i < node.len() && node.key(i) < key {
                if self.level > 0 || !self.writes.is_in_range(node.key(i)) {
                    entries.push((node.key(i).to_vec(), node.raw_value(i).to_vec()));
                }
                i += 1;
            }
            let here = i < node.len() && node.key(i) == key;
            i += usize::from(here);
            here.then(|| i - 1)
        };
        if self.level == 0 {
            for (key, change) in self.writes.changes_in(&self.from, bound) {
                let old = keep_to(key, &mut entries).map(|i| node.raw_value(i));
                if let Some(value) = self.value(key, change, old) {
                    entries.push((key.to_vec(), value));
                }
            }
        } else {
            for (key, edit) in self.edits.range(self.from.clone()..bound.to_vec()) {
                keep_to(key, &mut entries);
                if let Some(child) = edit.new {
                    entries.push((key.clone(), child.encode().to_vec()));
                }
            }
        }
        keep_to(END, &mut entries);
        entries
    }

    /// The new encoded value under `key`, where `old` was.
    fn value(&self, key: &KeyBytes, change: &Change, old: Option<&[u8]>) -> Option<Vec<u8>> {
        match change {
            Change::Put(value) => Some(value.encode()),
            Change::Delete => None,
            Change::Merge(merge) => {
                let old = old.filter(|_| !self.writes.is_in_range(key));
                let key: Key = key.key();
                let value = merge.apply(old.map(|bytes| decoded(&key, bytes)))?;
                Some(value.encode())
            }
        }
    }

    /// Ends the node in hand: as it was, if it is what it was.
    fn flush<E>(
        &mut self,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<(), UpdateError<E>> {
        let node = self.bud.take();
        let edit = self.out.entry(node.key(0).to_vec()).or_default();
        let identity = node.identity(self.keys);
        if let Some(old) = edit.old.filter(|old| old.node.identity == identity) {
            edit.new = Some(old);
            return Ok(());
        }
        let only = (node.level() > 0 && node.len() == 1).then(|| node.child(0));
        let (_, child) = seal(self.keys, node, sink).map_err(UpdateError::Sink)?;
        edit.new = Some(child);
        self.fresh.insert(identity);
        self.single.extend(only.map(|only| (identity, only)));
        Ok(())
    }

    /// Goes one level up, or says the root.
    fn finish_level<E>(
        &mut self,
        top: u8,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<(), UpdateError<E>> {
        let same = |edit: &Edit| edit.old == edit.new;
        self.out.retain(|_, edit| !same(edit));
        if self.out.is_empty() {
            self.root = Some(self.old.root());
            return Ok(());
        }
        let out = std::mem::take(&mut self.out);
        if self.level < top {
            self.level += 1;
            self.edits = out;
            self.bud = Bud::new(Form::Values, self.level);
            self.from = vec![];
            return Ok(());
        }
        let made: Vec<(Vec<u8>, Child)> =
            out.into_iter().filter_map(|(first, edit)| Some((first, edit.new?))).collect();
        self.root = Some(match made.as_slice() {
            [] if self.old.count()? == 0 => self.old.root(),
            [] => Builder::new(self.keys, Form::Values).finish(sink).map_err(UpdateError::Sink)?,
            [(_, only)] => only.node,
            _ => {
                let mut above = Builder::above(self.keys, Form::Values, self.level + 1);
                for (first, child) in &made {
                    above.push(first, &child.encode(), sink).map_err(UpdateError::Sink)?;
                }
                above.finish(sink).map_err(UpdateError::Sink)?
            }
        });
        Ok(())
    }

    /// A root with one child stands for nothing: the child is the root.
    fn lowest_root(&mut self) -> Result<NodeRef, NodeError> {
        let mut root = self.root.expect("the levels are done");
        while root != self.old.root() {
            root = if let Some(child) = self.single.get(&root.identity) {
                child.node
            } else if self.fresh.contains(&root.identity) {
                break;
            } else {
                let cache = self.old.cache();
                let node = cache.get(&root).ok_or(NodeError::Missing(root))?;
                if node.level() == 0 || node.len() > 1 {
                    break;
                }
                node.child(0).node
            };
        }
        Ok(root)
    }
}
