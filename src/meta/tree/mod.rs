//! The snapshot of a volume's map: a canonical prolly tree of chunks.
//!
//! Owns: nodes and their identities, where they end, walks over them, rebuilding what changed, and
//! what one tree has that another has not.
//! Never: seals or fetches: new nodes go to a sink that says their address, and a node that is not
//! in memory is named, fetched by the caller, and asked for again.
//! Invariant: the same map is the same tree, node for node, however it was built.

mod build;
mod cache;
mod node;
mod read;
#[cfg(test)]
pub(crate) mod tests;
mod unshared;
mod update;

pub use build::{Builder, NODE_MIN, NewNode};
pub use cache::NodeCache;
pub use node::{Child, Form, Node};
pub use read::Tree;
pub use unshared::Unshared;
pub use update::{Update, UpdateError};

pub(crate) use node::change;
pub(crate) use read::{Entries, decoded};

use crate::id::{ChunkId, NodeIdentity};
use crate::meta::key::Key;
use crate::meta::value::Value;
use serde::{Deserialize, Serialize};
use zeroize::ZeroizeOnDrop;

/// No node is larger.
pub const NODE_MAX: usize = 128 << 10;

/// The volume's keys for identities and for where nodes end.
#[derive(Clone, ZeroizeOnDrop)]
pub struct TreeKeys {
    pub(crate) identity: [u8; 32],
    pub(crate) boundary: [u8; 32],
}

impl TreeKeys {
    pub fn new(identity: &[u8; 32], boundary: &[u8; 32]) -> Self {
        Self { identity: *identity, boundary: *boundary }
    }
}

/// A node by what it holds and by where its sealed bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    pub identity: NodeIdentity,
    pub address: ChunkId,
}

/// Why a question about the map has no answer now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Fetch it, insert it into the node cache, ask again.
    #[error("tree node {0:?} is not in memory")]
    Missing(NodeRef),
    /// It is not what its parent says of it: whoever built the tree lied. Asking again is useless.
    #[error("tree node {0:?} contradicts the node that refers to it")]
    Broken(NodeRef),
}

/// Whatever can be asked for what is under a key.
pub trait Read {
    fn get(&self, key: &Key) -> Result<Option<Value>, NodeError>;

    /// The first `limit` entries in `[from, to)` (see [`crate::meta::key::Span`]), in key order.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, NodeError>;
}

/// The plainest map of all: what tests compare with.
impl Read for std::collections::BTreeMap<Key, Value> {
    fn get(&self, key: &Key) -> Result<Option<Value>, NodeError> {
        Ok(std::collections::BTreeMap::get(self, key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, NodeError> {
        let inside = |key: &Key| from <= key.encode().as_bytes() && key.encode().as_bytes() < to;
        let found = self.iter().filter(|(key, _)| inside(key)).take(limit);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
