//! Tree nodes on demand.
//!
//! Owns: fetching a node that a question needs, and checking that it is the one.

use super::Volume;
use crate::chunks::GetError;
use mictlan::codec::DecodeError;
use mictlan::hash;
use mictlan::id::ChunkId;
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

/// Why a node is not to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum NodeLost {
    #[error(transparent)]
    Get(#[from] GetError),
    #[error("chunk {chunk} is not the tree node that its parent names: {error}")]
    Another { chunk: ChunkId, error: DecodeError },
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
        let opened = self.node_of_peers(node).await.map_err(|error| {
            tracing::error!(%error, "metadata cannot be read now; nothing was changed");
            match error {
                NodeLost::Get(error) => self.unread(&error),
                NodeLost::Another { .. } => FsError::Io,
            }
        })?;
        self.nodes.insert(node, opened);
        Ok(())
    }

    /// `node` from any good copy, within the deadline, and past the cache.
    pub(super) async fn node_of_peers(&self, node: NodeRef) -> Result<Node, NodeLost> {
        let ring = self.ring();
        let plaintext = self.chunks.open(&ring, node.address, self.patience()).await?;
        let another = |error| NodeLost::Another { chunk: node.address, error };
        Node::open(&node, &self.tree_keys, plaintext.to_vec()).map_err(another)
    }
}
