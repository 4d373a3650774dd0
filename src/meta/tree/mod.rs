//! The snapshot of a volume's map: a canonical prolly tree of chunks.

use crate::id::{ChunkId, NodeIdentity};
use crate::meta::key::Key;
use crate::meta::value::Value;
use serde::{Deserialize, Serialize};

/// A node by what it holds and by where its sealed bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeRef {
    pub identity: NodeIdentity,
    pub address: ChunkId,
}

/// The node that a question needs and that is not in memory: fetch it, insert it, ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("tree node {0:?} is not in memory")]
pub struct Missing(pub NodeRef);

/// Whatever can be asked for what is under a key.
pub trait Read {
    fn get(&self, key: &Key) -> Result<Option<Value>, Missing>;

    /// The first `limit` entries in `[from, to)` (see [`crate::meta::key::Span`]), in key order.
    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, Missing>;
}

/// The plainest map of all: what tests compare with.
impl Read for std::collections::BTreeMap<Key, Value> {
    fn get(&self, key: &Key) -> Result<Option<Value>, Missing> {
        Ok(std::collections::BTreeMap::get(self, key).cloned())
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, Missing> {
        let inside = |key: &Key| from <= key.encode().as_bytes() && key.encode().as_bytes() < to;
        let found = self.iter().filter(|(key, _)| inside(key)).take(limit);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
