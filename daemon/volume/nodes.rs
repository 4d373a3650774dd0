//! Tree nodes on demand.
//!
//! Owns: fetching a node that a question needs, and checking that it is the one.

use super::Volume;
use mictlan::hash;
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{NewNode, Node, NodeCache, NodeRef, Tree, TreeKeys};
use std::convert::Infallible;
use std::sync::Arc;

/// The tree of a volume without a snapshot root, its one node in the cache. No peer has that node:
/// the first snapshot seals those that take its place.
pub(super) fn empty_tree(keys: &TreeKeys, nodes: &Arc<NodeCache>) -> Tree {
    let mut sink = |new: NewNode| {
        let address = hash::address(new.node.bytes());
        nodes.insert(NodeRef { identity: new.identity, address }, new.node);
        Ok::<_, Infallible>(address)
    };
    let Ok(tree) = Tree::empty(keys, nodes.clone(), &mut sink);
    tree
}

impl Volume {
    /// Brings `node` into the cache, from any good copy, within the deadline.
    pub(super) async fn fetch_node(&self, node: NodeRef) -> Result<(), FsError> {
        if let Some(spilled) = self.spilled_node(node) {
            return spilled;
        }
        if empty_tree(&self.tree_keys, &self.nodes).root() == node {
            return Ok(());
        }
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
