//! The namespace over what a mount really has: a lazy tree, commits above it, local work on top.

use super::random;
use super::reference::Model;
use super::world::{compare, env, founded, refused, root, seconds};
use mictlan::hash;
use mictlan::id::{ChunkId, Position};
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::inode::Stamp;
use mictlan::meta::key::Key;
use mictlan::meta::namespace::*;
use mictlan::meta::tree::{
    Builder, Form, NewNode, Node, NodeCache, NodeError, NodeRef, Read, Tree, TreeKeys, Update,
    UpdateError,
};
use mictlan::meta::value::Value;
use mictlan::meta::view::View;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

/// Nodes as chunks somewhere else: nothing is in memory until it was asked for.
#[derive(Default)]
struct Disk(BTreeMap<NodeRef, Vec<u8>>);

impl Disk {
    fn keep(&mut self, new: NewNode) -> Result<ChunkId, Infallible> {
        let address = hash::address(new.node.bytes());
        let node = NodeRef { identity: new.identity, address };
        self.0.insert(node, new.node.bytes().to_vec());
        Ok(address)
    }

    fn fetch(&self, keys: &TreeKeys, named: NodeRef, view: &View) {
        let node = Node::open(&named, keys, self.0[&named].clone()).expect("as it was built");
        view.tree().cache().insert(named, node);
    }
}

struct Mount {
    keys: TreeKeys,
    disk: Disk,
    view: View,
    seq: u64,
}

fn cache() -> Arc<NodeCache> {
    Arc::new(NodeCache::new(64 << 20))
}

impl Mount {
    fn founded() -> Self {
        let (keys, mut disk) = (TreeKeys::new(&[1; 32], &[2; 32]), Disk::default());
        let mut builder = Builder::new(&keys, Form::Values);
        for (key, value) in founded() {
            let Ok(()) = builder.push(&key.encode(), &value.encode(), &mut |new| disk.keep(new));
        }
        let Ok(root) = builder.finish(&mut |new| disk.keep(new));
        let view = View::new(Tree::new(root, cache()), Position(0));
        Mount { keys, disk, view, seq: 0 }
    }

    /// Asks as the engine does: until nothing is missing.
    fn step(&mut self, now: Stamp, op: &Op) -> Result<Reply, FsError> {
        loop {
            match plan(&self.view, &env(now), op) {
                Err(ReadError::Missing(node)) => self.disk.fetch(&self.keys, node, &self.view),
                Err(error) => return Err(refused(error)),
                Ok(planned) => {
                    self.seq += 1;
                    self.view.push_local(self.seq, Arc::new(planned.writes));
                    return Ok(planned.reply);
                }
            }
        }
    }

    fn commit(&mut self) {
        let next = Position(self.view.position().0 + 1);
        self.view.commit_local(self.seq, next);
    }

    /// Everything is committed, a snapshot is built of it, and a mount begins anew with that.
    fn remount(&mut self) {
        self.commit();
        let frozen = self.view.freeze();
        let mut tree = Tree::new(self.view.tree().root(), self.view.tree().cache().clone());
        for i in 0..frozen.parts() {
            let part = frozen.part(i).expect("nothing was spilled");
            let mut update = Update::new(&self.keys, &tree, &part);
            let root = loop {
                let (keys, disk, view) = (&self.keys, &mut self.disk, &self.view);
                match update.run(&mut |new| disk.keep(new)) {
                    Ok(root) => break root,
                    Err(UpdateError::Node(NodeError::Missing(n))) => disk.fetch(keys, n, view),
                    Err(error) => panic!("{error}"),
                }
            };
            tree = Tree::new(root, tree.cache().clone());
        }
        self.view = View::new(Tree::new(tree.root(), cache()), self.view.position());
    }
}

/// For the comparison, which asks everything.
impl Read for Mount {
    fn get(&self, key: &Key) -> Result<Option<Value>, NodeError> {
        loop {
            match self.view.get(key) {
                Err(NodeError::Missing(node)) => self.disk.fetch(&self.keys, node, &self.view),
                answer => return answer,
            }
        }
    }

    fn range(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Key, Value)>, NodeError> {
        loop {
            match self.view.range(from, to, limit) {
                Err(NodeError::Missing(node)) => self.disk.fetch(&self.keys, node, &self.view),
                answer => return answer,
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_mounted_namespace_behaves_like_the_model(
        ops in random(60),
        events in prop::collection::vec(0..12u8, 60),
    ) {
        let mut mount = Mount::founded();
        let mut model = Model::founded(root(&founded()));
        for (i, (op, event)) in ops.iter().zip(events).enumerate() {
            let now = seconds(1_000 + i as i64);
            prop_assert_eq!(mount.step(now, op), model.step(now, op), "step {}: {:?}", i, op);
            match event {
                0 => mount.remount(),
                1..4 => mount.commit(),
                _ => {}
            }
        }
        compare(&mount, &model);
        mount.remount();
        compare(&mount, &model);
    }
}
