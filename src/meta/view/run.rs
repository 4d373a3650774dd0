//! A write set that was spilled: sorted nodes of changes in a local file.
//!
//! Owns: how a write set becomes a run and is read again; the lifetime of its file.
//! Never: writes or reads that file; its nodes go to a sink that says where they are, and are asked
//! for as tree nodes are, by [`NodeError::Missing`].
//! Invariant: range deletes stay in memory, so that a lookup never searches a file for them.

use crate::codec::Writer;
use crate::id::ChunkId;
use crate::meta::key::{KeyBytes, Span};
use crate::meta::payload;
use crate::meta::tree::change;
use crate::meta::tree::{Builder, Entries, Form, NewNode, NodeCache, NodeError, Tree, TreeKeys};
use crate::meta::write::{Change, WriteSet};
use std::sync::Arc;

pub struct Run {
    changes: Tree,
    /// Only range deletes.
    ranges: WriteSet,
    /// Goes with the run: whoever keeps the nodes gives their space back then.
    _place: Arc<dyn Send + Sync>,
}

impl Run {
    pub fn write<E>(
        writes: &WriteSet,
        keys: &TreeKeys,
        cache: Arc<NodeCache>,
        place: Arc<dyn Send + Sync>,
        sink: &mut impl FnMut(NewNode) -> Result<ChunkId, E>,
    ) -> Result<Self, E> {
        let mut builder = Builder::new(keys, Form::Changes);
        for (key, change) in writes.changes() {
            let mut out = Writer::new();
            payload::encode_change(change, &mut out);
            builder.push(key, &out.finish(), sink)?;
        }
        let mut ranges = WriteSet::new();
        for (from, to) in writes.ranges() {
            ranges.delete_span(Span { from: from.to_vec(), to: to.to_vec() });
        }
        let changes = Tree::of_changes(builder.finish(sink)?, cache);
        Ok(Self { changes, ranges, _place: place })
    }

    pub(super) fn ranges(&self) -> &WriteSet {
        &self.ranges
    }

    pub(super) fn change(&self, key: &KeyBytes) -> Result<Option<Change>, NodeError> {
        self.changes.raw(key, |bytes| decoded(key, bytes))
    }

    pub(super) fn entries(&self, from: &[u8], to: &[u8]) -> Entries<'_> {
        self.changes.entries(from, to)
    }

    /// The whole write set again.
    pub(super) fn load(&self) -> Result<WriteSet, NodeError> {
        let mut writes = self.ranges.clone();
        let all = Span::all();
        let mut entries = self.entries(all.from(), all.to());
        while let Some((key, change)) = entries.next(entry)? {
            writes.change(key, change);
        }
        Ok(writes)
    }
}

/// An entry of a run's leaf.
pub(super) fn entry(key: &[u8], bytes: &[u8]) -> (KeyBytes, Change) {
    let key = KeyBytes::parse(key).expect("checked at decoding");
    let change = decoded(&key, bytes);
    (key, change)
}

fn decoded(key: &KeyBytes, bytes: &[u8]) -> Change {
    change(key, bytes).expect("checked at decoding")
}
