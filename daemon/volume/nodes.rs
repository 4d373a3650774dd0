//! Tree nodes on demand.
//!
//! Owns: fetching a node that a question needs, and checking that it is the one.

use super::Volume;
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{Node, NodeRef};

impl Volume {
    /// Brings `node` into the cache, from any good copy, within the deadline.
    pub(super) async fn fetch_node(&self, node: NodeRef) -> Result<(), FsError> {
        let ring = self.ring();
        let opened = self.chunks.open(&ring, node.address, self.options.deadline).await;
        let plaintext = opened.map_err(|error| {
            tracing::error!(%error, "metadata cannot be read now; nothing was changed");
            super::read::not_read(&error)
        })?;
        let decoded = Node::open(&node, &self.tree_keys, plaintext.to_vec());
        let decoded = decoded.map_err(|error| {
            tracing::error!(chunk = %node.address, %error, "a tree node is not what its parent says");
            FsError::Io
        })?;
        self.nodes.insert(node, decoded);
        Ok(())
    }
}
