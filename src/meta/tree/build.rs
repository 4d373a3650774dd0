//! A tree from sorted entries, in one pass and in the memory of one node a level.
//!
//! Owns: where a node ends, and the builder.
//! Invariant: where a node ends follows from its start and the entries up to its end alone, so a
//! change is felt only from the node that it falls into, until the ends agree again.

use crate::hash;
use crate::id::{ChunkId, NodeIdentity};
use crate::meta::key::KEY_MAX;
use crate::meta::tree::node::{self, Child, Form, HEADER, Node, Slot};
use crate::meta::tree::{NODE_MAX, NodeRef, TreeKeys};
use crate::meta::value::XATTR_VALUE_MAX;

/// No node but the last of its level is smaller.
pub const NODE_MIN: usize = 8 << 10;
/// Above the minimum, a boundary comes after so many bytes on average: about 32 KiB in all.
const NODE_SPREAD: u64 = 24 << 10;
/// A node that reached this ends. The largest entry still fits below [`NODE_MAX`] after it, so
/// that the end need not look at the entry that comes next.
const NODE_FULL: usize = 64_000;
/// What an entry takes beside its key and value, at most.
const ENTRY: usize = 8;
const _: () = assert!(HEADER + NODE_FULL + KEY_MAX + XATTR_VALUE_MAX + 2 * ENTRY <= NODE_MAX);

/// A node that was built; the sink seals it and says at which address.
pub struct NewNode {
    pub identity: NodeIdentity,
    pub node: Node,
}

/// The node of one level that entries are now put into.
pub(super) struct Bud {
    level: u8,
    form: Form,
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    size: usize,
    count: u64,
}

impl Bud {
    pub fn new(form: Form, level: u8) -> Self {
        let bytes = node::header(form, level);
        Self { level, form, bytes, slots: vec![], size: 0, count: 0 }
    }

    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The child of the first entry, for a level that turned out to have only that one.
    pub fn only_child(&self) -> Child {
        let slot = self.slots[0];
        let value = &self.bytes[slot.value as usize..][..slot.value_len as usize];
        Child::read(value)
    }

    /// Whether the node ends with this entry.
    pub fn push(&mut self, keys: &TreeKeys, key: &[u8], value: &[u8]) -> bool {
        let weight = key.len() + value.len() + ENTRY;
        self.size += weight;
        self.count += if self.level == 0 { 1 } else { Child::read(value).count };
        let key_at = self.put(key);
        let value_at = self.put(value);
        self.slots.push(Slot {
            key: key_at as u32,
            key_len: key.len() as u16,
            value: value_at as u32,
            value_len: value.len() as u32,
        });
        self.size >= NODE_FULL
            || self.size >= NODE_MIN && is_boundary(keys, self.level, key, weight)
    }

    /// The node, and an empty bud in its place.
    pub fn take(&mut self) -> Node {
        let mut full = std::mem::replace(self, Self::new(self.form, self.level));
        let entries = full.slots.len() as u32;
        full.bytes[3..HEADER].copy_from_slice(&entries.to_le_bytes());
        assert!(full.bytes.len() <= NODE_MAX, "no entry is larger than a value may be");
        Node {
            form: full.form,
            level: full.level,
            bytes: full.bytes,
            slots: full.slots,
            count: full.count,
        }
    }

    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut len = bytes.len();
        while len >= 0x80 {
            self.bytes.push(len as u8 | 0x80);
            len >>= 7;
        }
        self.bytes.push(len as u8);
        self.bytes.extend_from_slice(bytes);
        self.bytes.len() - bytes.len()
    }
}

/// In proportion to the entry's size, so that nodes of small and of large entries are alike.
fn is_boundary(keys: &TreeKeys, level: u8, key: &[u8], weight: usize) -> bool {
    let digest = hash::keyed(&keys.boundary, &[&[level], key]);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    let below = (weight as u64).saturating_mul(u64::MAX / NODE_SPREAD);
    u64::from_le_bytes(first) < below
}

/// Builds a tree from entries in key order.
pub struct Builder<'k> {
    keys: &'k TreeKeys,
    form: Form,
    /// The level of `levels[0]`.
    base: u8,
    levels: Vec<Level>,
    last: Vec<u8>,
}

struct Level {
    bud: Bud,
    made: u64,
    newest: Option<Child>,
}

impl<'k> Builder<'k> {
    pub fn new(keys: &'k TreeKeys, form: Form) -> Self {
        Self { keys, form, base: 0, levels: vec![], last: vec![] }
    }

    /// A builder of what stands above the nodes of level `base - 1`; there are two or more.
    pub(super) fn above(keys: &'k TreeKeys, form: Form, base: u8) -> Self {
        Self { keys, form, base, levels: vec![], last: vec![] }
    }

    /// The next entry. After an error of the sink the builder is of no more use.
    pub fn push<E>(
        &mut self,
        key: &[u8],
        value: &[u8],
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<(), E> {
        assert!(self.last.as_slice() < key, "entries come in the order of their keys");
        self.last.clear();
        self.last.extend_from_slice(key);
        self.push_at(0, key, value, sink)
    }

    /// The root of all that was pushed; of nothing it is an empty leaf.
    pub fn finish<E>(
        mut self,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<NodeRef, E> {
        if self.levels.is_empty() {
            let node = Bud::new(self.form, 0).take();
            return Ok(seal(self.keys, node, sink)?.1.node);
        }
        let mut at = 0;
        loop {
            if !self.levels[at].bud.is_empty() {
                self.flush(at, sink)?;
            }
            let level = &self.levels[at];
            match level.newest {
                Some(root) if level.made == 1 => return Ok(root.node),
                _ => at += 1,
            }
        }
    }

    fn push_at<E>(
        &mut self,
        at: usize,
        key: &[u8],
        value: &[u8],
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<(), E> {
        if at == self.levels.len() {
            let bud = Bud::new(self.form, self.base + at as u8);
            self.levels.push(Level { bud, made: 0, newest: None });
        }
        match self.levels[at].bud.push(self.keys, key, value) {
            true => self.flush(at, sink),
            false => Ok(()),
        }
    }

    fn flush<E>(
        &mut self,
        at: usize,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<(), E> {
        let level = &mut self.levels[at];
        let (first, child) = seal(self.keys, level.bud.take(), sink)?;
        level.made += 1;
        level.newest = Some(child);
        self.push_at(at + 1, &first, &child.encode(), sink)
    }
}

/// Hands a node to the sink; its first key, and how its parent refers to it.
pub(super) fn seal<E>(
    keys: &TreeKeys,
    node: Node,
    sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
) -> Result<(Vec<u8>, Child), E> {
    let first = if node.is_empty() { vec![] } else { node.key(0).to_vec() };
    let (identity, count) = (node.identity(keys), node.count());
    let address = sink(NewNode { identity, node })?;
    Ok((first, Child { node: NodeRef { identity, address }, count }))
}
