//! One node of the tree: its bytes, checked once and then searched in place.
//!
//! Owns: the format of a node, its identity and the links of its chunk.
//! Invariant: a node that was decoded is sorted, within every limit, and its entries decode; what
//! it claims of its children is checked by whoever walks from it to them.
//!
//! ```text
//! 0 version u8 = 1
//! 1 form u8: 0 a tree's node, 1 a node of a spilled run (its leaves hold changes, not values)
//! 2 level u8: 0 a leaf, else one more than its children's
//! 3 count u32
//! 7 entries, sorted by key: key (varint length, bytes) | value (varint length, bytes)
//!   in a leaf the value as `meta::value` (a change as in a payload);
//!   else the child: identity [32] | address [32] | count u64 of the entries in leaves below
//! ```

use crate::codec::{DecodeError, Reader};
use crate::file::Extent;
use crate::hash;
use crate::id::{ChunkId, NodeIdentity};
use crate::meta::key::{KEY_MAX, Key, KeyBytes};
use crate::meta::payload;
use crate::meta::tree::{NODE_MAX, NodeRef, TreeKeys};
use crate::meta::value::{Value, XATTR_VALUE_MAX};
use crate::meta::write::Change;

const VERSION: u8 = 1;
pub(super) const HEADER: usize = 7;
/// With 23 or more entries in all nodes but the last of a level, no real tree comes near it.
const LEVEL_MAX: u8 = 16;
/// A change of the largest attribute, with its own length before it.
const VALUE_MAX: usize = XATTR_VALUE_MAX + 8;
const CHILD_BYTES: usize = 72;

/// What the leaves hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Values = 0,
    Changes = 1,
}

/// A child as its parent knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Child {
    pub node: NodeRef,
    /// Entries in the leaves below it.
    pub count: u64,
}

impl Child {
    pub(super) fn encode(&self) -> [u8; CHILD_BYTES] {
        let mut out = [0; CHILD_BYTES];
        out[..32].copy_from_slice(&self.node.identity.0);
        out[32..64].copy_from_slice(&self.node.address.0);
        out[64..].copy_from_slice(&self.count.to_le_bytes());
        out
    }

    /// Of bytes that are known to be a child.
    pub(super) fn read(bytes: &[u8]) -> Self {
        Self::decode(bytes).expect("checked when the node was made")
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let identity = NodeIdentity(input.array("child identity")?);
        let address = ChunkId(input.array("child address")?);
        let count = input.u64("child count")?;
        input.finish()?;
        Ok(Self { node: NodeRef { identity, address }, count })
    }
}

/// Where an entry lies in the node's bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    pub key: u32,
    pub key_len: u16,
    pub value: u32,
    pub value_len: u32,
}

#[derive(Debug)]
pub struct Node {
    pub(super) form: Form,
    pub(super) level: u8,
    pub(super) bytes: Vec<u8>,
    pub(super) slots: Vec<Slot>,
    pub(super) count: u64,
}

impl Node {
    /// The node that `node` names; refused unless the bytes have its identity.
    pub fn open(node: &NodeRef, keys: &TreeKeys, bytes: Vec<u8>) -> Result<Self, DecodeError> {
        let opened = Self::decode(bytes)?;
        if opened.identity(keys) != node.identity {
            return Err(DecodeError::NotCanonical("node identity"));
        }
        Ok(opened)
    }

    pub fn decode(bytes: Vec<u8>) -> Result<Self, DecodeError> {
        if bytes.len() > NODE_MAX {
            return Err(DecodeError::TooLarge("node"));
        }
        let mut input = Reader::new(&bytes);
        match input.u8("node version")? {
            VERSION => (),
            other => return Err(DecodeError::Version(other)),
        }
        let form = match input.u8("node form")? {
            0 => Form::Values,
            1 => Form::Changes,
            _ => return Err(DecodeError::Unknown("node form")),
        };
        let level = input.u8("node level")?;
        let entries = input.u32("entry count")? as usize;
        if level > LEVEL_MAX || level > 0 && entries == 0 {
            return Err(DecodeError::NotCanonical("node level"));
        }
        let (mut slots, mut count): (Vec<Slot>, u64) = (vec![], 0);
        let mut last: &[u8] = &[];
        for _ in 0..entries {
            let key = input.bytes(KEY_MAX, "key")?;
            let key_at = bytes.len() - input.rest().len() - key.len();
            let value = input.bytes(VALUE_MAX, "value")?;
            let value_at = bytes.len() - input.rest().len() - value.len();
            if key <= last {
                return Err(DecodeError::NotCanonical("key order"));
            }
            last = key;
            let below = check_entry(form, level, key, value)?;
            count = count.checked_add(below).ok_or(DecodeError::TooLarge("count"))?;
            slots.push(Slot {
                key: key_at as u32,
                key_len: key.len() as u16,
                value: value_at as u32,
                value_len: value.len() as u32,
            });
        }
        input.finish()?;
        Ok(Self { form, level, bytes, slots, count })
    }

    /// The plaintext of its chunk.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn form(&self) -> Form {
        self.form
    }

    /// 0 is a leaf.
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Its own entries.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Entries in the leaves below it, or its own.
    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn key(&self, i: usize) -> &[u8] {
        let slot = self.slots[i];
        &self.bytes[slot.key as usize..][..usize::from(slot.key_len)]
    }

    pub fn raw_value(&self, i: usize) -> &[u8] {
        let slot = self.slots[i];
        &self.bytes[slot.value as usize..][..slot.value_len as usize]
    }

    /// The `i`th child of an inner node.
    pub fn child(&self, i: usize) -> Child {
        assert!(self.level > 0, "a leaf has no children");
        Child::read(self.raw_value(i))
    }

    /// Where `key` is, or would be.
    pub fn find(&self, key: &[u8]) -> Result<usize, usize> {
        self.slots.binary_search_by(|slot| {
            self.bytes[slot.key as usize..][..usize::from(slot.key_len)].cmp(key)
        })
    }

    /// The child whose part of the map has `key`; the first one also has what is before it.
    pub fn floor(&self, key: &[u8]) -> usize {
        match self.find(key) {
            Ok(i) => i,
            Err(i) => i.saturating_sub(1),
        }
    }

    /// The keyed hash of its content and its children's identities, never of addresses.
    pub fn identity(&self, keys: &TreeKeys) -> NodeIdentity {
        if self.level == 0 {
            return NodeIdentity(hash::keyed(&keys.identity, &[&self.bytes]));
        }
        let mut form = self.bytes[..HEADER].to_vec();
        for i in 0..self.len() {
            let (key, value) = (self.key(i), self.raw_value(i));
            form.extend((key.len() as u16).to_le_bytes());
            form.extend(key);
            form.extend(&value[..32]);
            form.extend(&value[64..]);
        }
        NodeIdentity(hash::keyed(&keys.identity, &[&form]))
    }

    /// The chunks that it refers to, for the clear part of its own chunk: children, or the data of
    /// its extents.
    pub fn links(&self) -> Vec<ChunkId> {
        let link = |i: usize| match self.level {
            0 if self.form == Form::Values && self.key(i)[0] == b'e' => {
                Extent::decode(extent_offset(self.key(i)), self.raw_value(i)).ok().map(|e| e.chunk)
            }
            0 => None,
            _ => Some(self.child(i).node.address),
        };
        let mut links: Vec<ChunkId> = (0..self.len()).filter_map(link).collect();
        links.sort_unstable();
        links.dedup();
        links
    }

    /// What it takes in memory.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.slots.len() * size_of::<Slot>() + size_of::<Self>()
    }
}

/// The header; the count is set when it is known.
pub(super) fn header(form: Form, level: u8) -> Vec<u8> {
    vec![VERSION, form as u8, level, 0, 0, 0, 0]
}

fn extent_offset(key: &[u8]) -> u64 {
    match Key::decode(key) {
        Ok(Key::Extent { offset, .. }) => offset,
        _ => unreachable!("keys were checked when the node was made"),
    }
}

/// How many entries of leaves it stands for.
fn check_entry(form: Form, level: u8, key: &[u8], value: &[u8]) -> Result<u64, DecodeError> {
    let key = KeyBytes::parse(key)?;
    match (level, form) {
        (0, Form::Values) => Value::decode(&key.key(), value).map(|_| 1),
        (0, Form::Changes) => change(&key, value).map(|_| 1),
        _ => match Child::decode(value)?.count {
            0 => Err(DecodeError::NotCanonical("child count")),
            count => Ok(count),
        },
    }
}

pub(crate) fn change(key: &KeyBytes, bytes: &[u8]) -> Result<Change, DecodeError> {
    let mut input = Reader::new(bytes);
    let change = payload::decode_change(key, &mut input)?;
    input.finish()?;
    Ok(change)
}
