//! The nodes that a tree has and an older one has not.
//!
//! Owns: the walk over them, from the root down.
//! Never: fetches: a node is named, brought by the caller, and handed back.
//! Invariant: a node that is not named is in the older tree, at the same address, with all that is
//! below it.

use crate::meta::tree::{Node, NodeError, NodeRef, Tree};

pub struct Unshared<'a> {
    old: &'a Tree,
    /// Found and not named yet. The deepest are named first, so there are never many.
    found: Vec<NodeRef>,
}

impl<'a> Unshared<'a> {
    pub fn new(old: &'a Tree, root: NodeRef) -> Self {
        let found = if root == old.root() { vec![] } else { vec![root] };
        Self { old, found }
    }

    /// Up to `limit` nodes, each to be handed to [`Unshared::add`]. None: that were all.
    pub fn next(&mut self, limit: usize) -> Vec<NodeRef> {
        self.found.split_off(self.found.len().saturating_sub(limit))
    }

    /// Looks at the children of a node that was named. `Missing` names one of the older tree: fetch
    /// it, and hand the same one in again.
    pub fn add(&mut self, node: &Node) -> Result<(), NodeError> {
        let Some(below) = node.level().checked_sub(1) else { return Ok(()) };
        let mut found = vec![];
        for i in 0..node.len() {
            let child = node.child(i).node;
            if self.old.outline(below, node.key(i))?.child.node != child {
                found.push(child);
            }
        }
        self.found.extend(found);
        Ok(())
    }
}
