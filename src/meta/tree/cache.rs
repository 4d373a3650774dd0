//! Tree nodes in memory.
//!
//! Owns: which nodes stay, by bytes and by use.
//! Never: fetches; what is not here is the caller's to bring.
//! Invariant: nodes are immutable, so a hit is always right and is shared, not copied.

use crate::meta::tree::{Node, NodeRef};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

/// Nodes of all trees and runs of a volume, bounded by bytes; shared between threads.
pub struct NodeCache {
    nodes: Cache<NodeRef, Arc<Node>, Bytes, Prefix>,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<NodeRef, Arc<Node>> for Bytes {
    fn weight(&self, _: &NodeRef, node: &Arc<Node>) -> u64 {
        node.weight() as u64
    }
}

impl NodeCache {
    pub fn new(bytes_max: usize) -> Self {
        const NODE: usize = 40 << 10;
        // A question is asked again until all that it needs is here at once: a path of the
        // tree, or the leaves of one page of a listing.
        const LEAST: usize = 4 << 20;
        let bytes_max = bytes_max.max(LEAST);
        let items = bytes_max / NODE;
        Self { nodes: Cache::with(items, bytes_max as u64, Bytes, Prefix, Default::default()) }
    }

    pub fn get(&self, node: &NodeRef) -> Option<Arc<Node>> {
        self.nodes.get(node)
    }

    /// `node` was opened as what `named` names ([`Node::open`]), or was just built.
    pub fn insert(&self, named: NodeRef, node: Node) -> Arc<Node> {
        let node = Arc::new(node);
        self.nodes.insert(named, node.clone());
        node
    }

    pub fn bytes(&self) -> usize {
        self.nodes.weight() as usize
    }
}

/// Identities are keyed hashes already: their first bytes spread, and the same in every run.
#[derive(Clone, Default)]
struct Prefix;

struct Taken(u64);

impl BuildHasher for Prefix {
    type Hasher = Taken;

    fn build_hasher(&self) -> Taken {
        Taken(0)
    }
}

impl Hasher for Taken {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = self.0.rotate_left(32) ^ u64::from_le_bytes(*first);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}
