//! The tree against a plain map.

use super::*;
use crate::hash;
use crate::id::{Ino, Name};
use crate::meta::inode::FileKind;
use crate::meta::key::Span;
use crate::meta::tree::build::{NODE_MIN, seal};
use crate::meta::write::WriteSet;
use crate::meta::write::tests::{Model, apply};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;

/// Where new nodes go: addresses by content, as sealing would give.
pub(crate) struct Disk {
    pub keys: TreeKeys,
    pub cache: Arc<NodeCache>,
    pub stored: BTreeMap<NodeRef, Vec<u8>>,
    /// In the build or update that is under way.
    pub handed: BTreeSet<NodeRef>,
    salt: u8,
}

impl Disk {
    pub fn new() -> Self {
        let keys = TreeKeys::new(&[1; 32], &[2; 32]);
        let cache = Arc::new(NodeCache::new(64 << 20));
        Self { keys, cache, stored: BTreeMap::new(), handed: BTreeSet::new(), salt: 0 }
    }

    /// As another epoch would seal: identities stay, addresses do not.
    fn salted(salt: u8) -> Self {
        Self { salt, ..Self::new() }
    }

    /// Keeps a node without putting it into the cache.
    pub fn keep(&mut self, new: NewNode) -> Result<ChunkId, Infallible> {
        let address = hash::address(&[new.node.bytes(), &[self.salt]].concat());
        let node = NodeRef { identity: new.identity, address };
        assert!(self.handed.insert(node), "handed out twice");
        self.stored.insert(node, new.node.bytes().to_vec());
        Ok(address)
    }

    pub fn rebuild(&mut self, model: &Model) -> Tree {
        let mut other = Self::new();
        let tree = other.build(model);
        self.stored.extend(other.stored);
        Tree::new(tree.root(), self.cache.clone())
    }

    pub fn load(&self, node: NodeRef) {
        let bytes = self.stored[&node].clone();
        let opened = Node::open(&node, &self.keys, bytes).expect("what was kept");
        self.cache.insert(node, opened);
    }

    /// Asks until every node that it takes is in memory.
    pub fn ask<T>(&self, mut question: impl FnMut() -> Result<T, NodeError>) -> T {
        loop {
            match question() {
                Ok(answer) => return answer,
                Err(NodeError::Missing(node)) => self.load(node),
                Err(broken) => panic!("{broken}"),
            }
        }
    }

    pub fn build(&mut self, model: &Model) -> Tree {
        self.handed.clear();
        let keys = self.keys.clone();
        let mut builder = Builder::new(&keys, Form::Values);
        for (key, value) in model {
            builder.push(key, &value.encode(), &mut |new| self.keep(new)).expect("infallible");
        }
        let root = builder.finish(&mut |new| self.keep(new)).expect("infallible");
        Tree::new(root, self.cache.clone())
    }

    pub fn update(&mut self, old: &Tree, writes: &WriteSet) -> Tree {
        self.handed.clear();
        let keys = self.keys.clone();
        let mut update = Update::new(&keys, old, writes);
        loop {
            match update.run(&mut |new| self.keep(new)) {
                Ok(root) => return Tree::new(root, self.cache.clone()),
                Err(UpdateError::Node(NodeError::Missing(node))) => self.load(node),
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// The identities of all nodes that the root reaches.
    fn reached(&self, root: NodeRef) -> BTreeSet<NodeIdentity> {
        self.nodes_of(root).into_iter().map(|node| node.identity).collect()
    }

    fn nodes_of(&self, root: NodeRef) -> BTreeSet<NodeRef> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![root];
        while let Some(at) = waiting.pop() {
            found.insert(at);
            let node = Node::decode(self.stored[&at].clone()).expect("what was kept");
            assert!(node.bytes().len() <= NODE_MAX);
            if node.level() > 0 {
                waiting.extend((0..node.len()).map(|i| node.child(i).node));
            }
        }
        found
    }

    /// What is named of the tree `root` beside `old`, a few at a time.
    fn unshared(&self, old: &Tree, root: NodeRef) -> BTreeSet<NodeRef> {
        let mut walk = Unshared::new(old, root);
        let mut named = BTreeSet::new();
        loop {
            let nodes = walk.next(3);
            if nodes.is_empty() {
                return named;
            }
            for at in nodes {
                assert!(named.insert(at), "named twice");
                let node = Node::decode(self.stored[&at].clone()).expect("what was kept");
                self.ask(|| walk.add(&node));
            }
        }
    }
}

fn name(n: u64) -> Name {
    Name::parse(format!("name-{n:05}").as_bytes()).expect("good")
}

/// One of many keys: dirents, extents, attributes with values that may be large.
fn entry(n: u64, size: usize) -> (Key, Value) {
    let ino = Ino(1 << 32 | (n % 7 + 1));
    match n % 3 {
        0 => (
            Key::Dirent { dir: ino, hash: 3 + n, name: name(n) },
            Value::Dirent { ino: Ino(1 << 32 | size as u64), kind: FileKind::File },
        ),
        1 => (
            Key::Xattr { ino, name: format!("user.{n:0150}").into_bytes().into() },
            Value::Xattr(vec![n as u8; size].into()),
        ),
        _ => (
            Key::Xattr { ino, name: format!("user.{n:010}").into_bytes().into() },
            Value::Xattr([].into()),
        ),
    }
}

/// Changes of a thousand keys or so, in stretches; sometimes whole spans go.
fn batches() -> impl Strategy<Value = Vec<WriteSet>> {
    let size = prop_oneof![20 => 0..300usize, 1 => 20_000..65_536usize];
    let put = (0..3_000u64, 1..400u64, size, any::<bool>());
    let step = prop_oneof![
        6 => put.prop_map(|(from, count, size, delete)| (from, count, size, delete, false)),
        1 => (0..9u64).prop_map(|ino| (ino, 0, 0, true, true)),
    ];
    let batch = prop::collection::vec(step, 1..4).prop_map(|steps| {
        let mut writes = WriteSet::new();
        for (from, count, size, delete, span) in steps {
            if span {
                writes.delete_span(Span::xattrs(Ino(1 << 32 | from)));
            }
            for n in from..from + count {
                let large = size > 300 && n % 50 != 0;
                let (key, value) = entry(n, if large { 9 } else { size });
                if delete { writes.delete(key) } else { writes.put(key, value) }
            }
        }
        writes
    });
    prop::collection::vec(batch, 1..6)
}

fn check_updates(batches: &[WriteSet]) {
    let mut disk = Disk::new();
    let mut model = Model::new();
    let mut tree = disk.build(&model);
    for writes in batches {
        apply(&mut model, writes);
        // Nothing is in memory: whatever the update takes, it must ask for.
        disk.cache = Arc::new(NodeCache::new(64 << 20));
        let old = Tree::new(tree.root(), disk.cache.clone());
        tree = disk.update(&old, writes);
        let mut once = Disk::salted(1);
        let built = once.build(&model);
        assert_eq!(tree.root().identity, built.root().identity, "the same map, the same root");
        assert_eq!(disk.reached(tree.root()), once.reached(built.root()), "node for node");
        let all = Span::all();
        let entries = disk.ask(|| tree.range(all.from(), all.to(), usize::MAX));
        let expected: Vec<_> = model
            .iter()
            .map(|(key, value)| (Key::decode(key).expect("good"), value.clone()))
            .collect();
        assert!(entries == expected, "the tree is the map");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn the_same_map_is_the_same_tree_however_it_was_built(batches in batches()) {
        check_updates(&batches);
    }
}

fn large_map(entries: u64) -> Model {
    let put = |n: u64| entry(n * 3, 5);
    (0..entries).map(put).map(|(key, value)| (key.encode().to_vec(), value)).collect()
}

#[test]
fn a_tree_grows_and_shrinks_by_levels() {
    let mut all = WriteSet::new();
    let mut none = WriteSet::new();
    for n in 0..40_000 {
        let (key, value) = entry(n * 3, 5);
        if n > 2 {
            none.delete(key.clone());
        }
        all.put(key, value);
    }
    check_updates(&[all, none]);
}

/// Changes here and there in a tree of three levels, then down to its last entry and back.
#[test]
fn inner_nodes_are_rebuilt_as_leaves_are() {
    let big = |n: u64| entry(n * 3 + 1, 60);
    let (mut all, mut most, mut last) = (WriteSet::new(), WriteSet::new(), WriteSet::new());
    let mut sorted: Vec<u64> = (0..40_000).collect();
    sorted.sort_by_key(|n| big(*n).0);
    for (i, n) in sorted.iter().enumerate() {
        let (key, value) = big(*n);
        if i < 39_999 {
            last.delete(key.clone());
        }
        if i < 30_000 {
            most.delete(key.clone());
        }
        all.put(key, value);
    }
    let mut batches = vec![all.clone()];
    let mut seed = 1u64;
    for _ in 0..2 {
        let mut some = WriteSet::new();
        for _ in 0..40 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (key, value) = entry((seed >> 33) % 120_000, 60);
            if seed >> 63 == 0 { some.put(key, value) } else { some.delete(key) }
        }
        batches.push(some);
    }
    batches.extend([most, last, all]);
    check_updates(&batches);
}

#[test]
fn an_update_touches_only_changed_paths() {
    let mut disk = Disk::new();
    let tree = disk.build(&large_map(30_000));
    let before = disk.stored.len();
    assert!(before > 40, "a tree worth the name: {before} nodes");
    let mut writes = WriteSet::new();
    let (key, _) = entry(3 * 777, 5);
    writes.put(key, Value::Dirent { ino: Ino(9), kind: FileKind::Dir });
    disk.cache = Arc::new(NodeCache::new(64 << 20));
    let keys = disk.keys.clone();
    let old = Tree::new(tree.root(), disk.cache.clone());
    let mut update = Update::new(&keys, &old, &writes);
    let mut loads = 0;
    let root = loop {
        match update.run(&mut |new| disk.keep(new)) {
            Ok(root) => break root,
            Err(UpdateError::Node(NodeError::Missing(node))) => {
                loads += 1;
                disk.load(node);
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert_ne!(root, tree.root());
    let made = disk.stored.len() - before;
    assert!(loads <= 4 && made <= 4, "loaded {loads}, made {made}");
}

#[test]
fn what_a_tree_does_not_share_with_an_older_one_is_named_and_nothing_else() {
    let mut disk = Disk::new();
    let map = large_map(40_000);
    let old = disk.build(&map);
    let mut writes = WriteSet::new();
    for n in 0..30 {
        let (key, value) = entry(n * n * 131, 60);
        if n % 3 == 0 { writes.delete(key) } else { writes.put(key, value) }
    }
    let new = disk.update(&old, &writes);
    let fresh = &disk.nodes_of(new.root()) - &disk.nodes_of(old.root());
    assert!(fresh.len() > 10, "{} nodes", fresh.len());
    assert_eq!(disk.unshared(&old, new.root()), fresh);
    assert!(disk.unshared(&old, old.root()).is_empty());
    // The same map at other addresses: nothing of it is there because the other is.
    let mut other = Disk::salted(1);
    let root = other.build(&map).root();
    disk.stored.extend(other.stored);
    assert_eq!(disk.unshared(&old, root), disk.nodes_of(root));
}

#[test]
fn what_a_range_delete_covers_is_not_read() {
    let mut disk = Disk::new();
    let mut model = Model::new();
    for offset in 0..20_000u64 {
        let key = Key::Xattr { ino: Ino(5), name: format!("{offset:09}").into_bytes().into() };
        model.insert(key.encode().to_vec(), Value::Xattr([7; 99].into()));
    }
    model.extend(large_map(100));
    let tree = disk.build(&model);
    disk.cache = Arc::new(NodeCache::new(64 << 20));
    let mut writes = WriteSet::new();
    writes.delete_span(Span::xattrs(Ino(5)));
    let old = Tree::new(tree.root(), disk.cache.clone());
    let new = disk.update(&old, &writes);
    assert_eq!(disk.ask(|| new.count()), 100);
    let read = disk.stored.keys().filter(|node| disk.cache.get(node).is_some()).count();
    assert!(read < 8, "{read} of {} nodes were read", disk.stored.len());
}

#[test]
fn nodes_are_as_large_as_they_should_be() {
    let mut disk = Disk::new();
    let tree = disk.build(&large_map(60_000));
    let sizes: Vec<usize> = disk.stored.values().map(Vec::len).collect();
    let small = sizes.iter().filter(|size| **size < NODE_MIN - 3_000).count();
    let average = sizes.iter().sum::<usize>() / sizes.len();
    assert!(small <= 3, "only the last of a level may be small");
    assert!((20_000..45_000).contains(&average), "{average} bytes on average");
    let links = disk.ask(|| tree.root_node()).links();
    assert!(links.is_sorted_by(|a, b| a < b) && links.len() > 1);
}

#[test]
fn a_node_of_other_bytes_is_refused() {
    let mut disk = Disk::new();
    let tree = disk.build(&large_map(50));
    let bytes = disk.stored[&tree.root()].clone();
    let open = |bytes: Vec<u8>| Node::open(&tree.root(), &disk.keys, bytes);
    assert!(open(bytes.clone()).is_ok());
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 1;
        assert!(open(wrong).is_err(), "byte {at}");
    }
    assert!(open(bytes[..bytes.len() - 1].to_vec()).is_err());
    assert!(open([&bytes[..], &[0]].concat()).is_err());
    assert!(Node::decode(vec![0; NODE_MAX + 1]).is_err());
}

/// A parent that says of its child what is not so.
fn lying(disk: &mut Disk, lie: impl Fn(&mut Vec<u8>, &mut Child)) -> Tree {
    let mut leaf = build::Bud::new(Form::Values, 0);
    for n in [3, 6] {
        let (key, value) = entry(n, 5);
        leaf.push(&disk.keys, &key.encode(), &value.encode());
    }
    disk.handed.clear();
    let keys = disk.keys.clone();
    let (mut first, mut child) =
        seal(&keys, leaf.take(), &mut |new| disk.keep(new)).expect("infallible");
    lie(&mut first, &mut child);
    let mut top = build::Bud::new(Form::Values, 1);
    top.push(&keys, &first, &child.encode());
    let (_, root) = seal(&keys, top.take(), &mut |new| disk.keep(new)).expect("infallible");
    let tree = Tree::new(root.node, disk.cache.clone());
    disk.load(root.node);
    for node in disk.stored.keys() {
        disk.load(*node);
    }
    tree
}

#[test]
fn a_parent_that_lies_of_its_child_is_found_out() {
    let (key, _) = entry(3, 5);
    let tree = lying(&mut Disk::new(), |_, _| ());
    assert!(tree.get(&key).is_ok());
    let tree = lying(&mut Disk::new(), |_, child| child.count += 1);
    assert!(matches!(tree.get(&key), Err(NodeError::Broken(_))), "a wrong count");
    let tree = lying(&mut Disk::new(), |first, _| *first = Key::Inode(Ino(1)).encode().to_vec());
    assert!(matches!(tree.get(&key), Err(NodeError::Broken(_))), "a wrong first key");
}

#[test]
fn a_bulk_build_holds_one_node_a_level() {
    let keys = TreeKeys::new(&[1; 32], &[2; 32]);
    let mut builder = Builder::new(&keys, Form::Values);
    let mut made = 0u64;
    let mut sink = |new: NewNode| {
        made += 1;
        Ok::<_, Infallible>(hash::address(&new.identity.0))
    };
    let value = Value::Dirent { ino: Ino(9), kind: FileKind::File }.encode();
    for hash in 3..100_003 {
        let key = Key::Dirent { dir: Ino(1), hash, name: name(0) }.encode();
        builder.push(&key, &value, &mut sink).expect("infallible");
    }
    builder.finish(&mut sink).expect("infallible");
    assert!((50..400).contains(&made), "{made} nodes");
}
