//! Walks from the root of a tree to its entries.
//!
//! Owns: what a node must be, for its parent's word to be true.
//! Invariant: every step goes one level down and stays between the keys of its parent, whatever a
//! hostile writer sealed; so walks end, and each key has one place.

use crate::id::ChunkId;
use crate::meta::key::Key;
use crate::meta::tree::build::{Builder, NewNode};
use crate::meta::tree::node::{Child, Form, Node};
use crate::meta::tree::{NodeCache, NodeError, NodeRef, Read, TreeKeys};
use crate::meta::value::Value;
use std::sync::Arc;

/// A tree of which the needed nodes are, or will be, in the cache.
#[derive(Clone)]
pub struct Tree {
    root: NodeRef,
    form: Form,
    cache: Arc<NodeCache>,
}

/// A node as it is known from above: without its content.
pub(super) struct Outline {
    pub first: Vec<u8>,
    pub child: Child,
    /// Where its part of the map ends.
    pub end: Option<Vec<u8>>,
}

/// A node, and where its part of the map ends.
pub(super) struct Place {
    pub node: Arc<Node>,
    pub end: Option<Vec<u8>>,
}

impl Tree {
    pub fn new(root: NodeRef, cache: Arc<NodeCache>) -> Self {
        Self { root, form: Form::Values, cache }
    }

    /// The tree of no entries, whose one node goes to the sink.
    pub fn empty<E>(
        keys: &TreeKeys,
        cache: Arc<NodeCache>,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<Self, E> {
        Ok(Self::new(Builder::new(keys, Form::Values).finish(sink)?, cache))
    }

    /// A spilled run: its leaves hold changes.
    pub(crate) fn of_changes(root: NodeRef, cache: Arc<NodeCache>) -> Self {
        Self { root, form: Form::Changes, cache }
    }

    pub fn root(&self) -> NodeRef {
        self.root
    }

    pub fn cache(&self) -> &Arc<NodeCache> {
        &self.cache
    }

    /// Entries in all.
    pub fn count(&self) -> Result<u64, NodeError> {
        Ok(self.root_node()?.count())
    }

    pub(super) fn root_node(&self) -> Result<Arc<Node>, NodeError> {
        let node = self.cache.get(&self.root).ok_or(NodeError::Missing(self.root))?;
        match node.form() == self.form {
            true => Ok(node),
            false => Err(NodeError::Broken(self.root)),
        }
    }

    /// The node of `level` whose part of the map has `key`.
    pub(super) fn place(&self, level: u8, key: &[u8]) -> Result<Place, NodeError> {
        let mut place = Place { node: self.root_node()?, end: None };
        while place.node.level() > level {
            let i = place.node.floor(key);
            let end = end_of(&place, i);
            let node = self.below(&place.node, i, end.as_deref())?;
            place = Place { node, end };
        }
        Ok(place)
    }

    /// The same node by its parent's word, not loaded: perhaps it is to go as a whole.
    pub(super) fn outline(&self, level: u8, key: &[u8]) -> Result<Outline, NodeError> {
        let root = self.root_node()?;
        if root.level() <= level {
            let first = if root.is_empty() { vec![] } else { root.key(0).to_vec() };
            let child = Child { node: self.root, count: root.count() };
            return Ok(Outline { first, child, end: None });
        }
        let parent = self.place(level + 1, key)?;
        let i = parent.node.floor(key);
        let end = end_of(&parent, i);
        Ok(Outline { first: parent.node.key(i).to_vec(), child: parent.node.child(i), end })
    }

    fn below(&self, parent: &Node, i: usize, end: Option<&[u8]>) -> Result<Arc<Node>, NodeError> {
        let child = parent.child(i);
        let node = self.cache.get(&child.node).ok_or(NodeError::Missing(child.node))?;
        let as_said = node.form() == parent.form()
            && node.level() + 1 == parent.level()
            && !node.is_empty()
            && node.key(0) == parent.key(i)
            && end.is_none_or(|end| node.key(node.len() - 1) < end)
            && node.count() == child.count;
        if as_said { Ok(node) } else { Err(NodeError::Broken(child.node)) }
    }

    /// The leaf whose part of the map has `key`, without what only updates need.
    fn leaf(&self, key: &[u8]) -> Result<Arc<Node>, NodeError> {
        let mut node = self.root_node()?;
        // The ends of all nodes above hold the bound, so the nearest one is kept.
        let mut end: Option<(Arc<Node>, usize)> = None;
        while node.level() > 0 {
            let i = node.floor(key);
            if i + 1 < node.len() {
                end = Some((node.clone(), i + 1));
            }
            let bound = end.as_ref().map(|(node, i)| node.key(*i));
            node = self.below(&node, i, bound)?;
        }
        Ok(node)
    }

    /// What `read` makes of the encoded value under `key`.
    pub(crate) fn raw<T>(
        &self,
        key: &[u8],
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, NodeError> {
        let leaf = self.leaf(key)?;
        Ok(leaf.find(key).ok().map(|i| read(leaf.raw_value(i))))
    }

    /// A walk over `[from, to)`.
    pub(crate) fn entries(&self, from: &[u8], to: &[u8]) -> Entries<'_> {
        Entries { tree: self, from: from.to_vec(), to: to.to_vec(), leaf: None }
    }
}

/// A walk over the entries of a span, leaf by leaf.
pub(crate) struct Entries<'a> {
    tree: &'a Tree,
    from: Vec<u8>,
    to: Vec<u8>,
    leaf: Option<(Place, usize)>,
}

impl Entries<'_> {
    /// Goes on at `from`, which is ahead.
    pub fn seek(&mut self, from: &[u8]) {
        self.from = from.to_vec();
        self.leaf = None;
    }

    /// Gives the next entry, if there is one, to `read`.
    pub fn next<T>(
        &mut self,
        read: impl FnOnce(&[u8], &[u8]) -> T,
    ) -> Result<Option<T>, NodeError> {
        loop {
            if self.from >= self.to {
                return Ok(None);
            }
            let (place, i) = match &mut self.leaf {
                Some((place, i)) => (place, i),
                leaf => {
                    let place = self.tree.place(0, &self.from)?;
                    let i = place.node.find(&self.from).unwrap_or_else(|i| i);
                    let (place, i) = leaf.insert((place, i));
                    (place, i)
                }
            };
            if *i < place.node.len() {
                let key = place.node.key(*i);
                if key >= self.to.as_slice() {
                    return Ok(None);
                }
                let found = read(key, place.node.raw_value(*i));
                *i += 1;
                return Ok(Some(found));
            }
            let Some(end) = place.end.take() else { return Ok(None) };
            self.from = end;
            self.leaf = None;
        }
    }
}

impl Read for Tree {
    fn get(&self, key: &Key) -> Result<Option<Value>, NodeError> {
        self.raw(&key.encode(), |bytes| decoded(key, bytes))
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, NodeError> {
        let mut entries = self.entries(from, to);
        let mut found = vec![];
        while found.len() < limit {
            let entry = entries.next(|key, value| {
                let key = Key::decode(key).expect("checked at decoding");
                let value = decoded(&key, value);
                (key, value)
            })?;
            match entry {
                Some(entry) => found.push(entry),
                None => break,
            }
        }
        Ok(found)
    }
}

/// Where the part of `place`'s `i`th child ends.
fn end_of(place: &Place, i: usize) -> Option<Vec<u8>> {
    match i + 1 < place.node.len() {
        true => Some(place.node.key(i + 1).to_vec()),
        false => place.end.clone(),
    }
}

pub(crate) fn decoded(key: &Key, bytes: &[u8]) -> Value {
    Value::decode(key, bytes).expect("checked at decoding")
}
