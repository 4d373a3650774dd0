//! The real thing under test: plans applied to a map, and what the map then shows.

use super::reference::{BLOCK, Model, Node};
use mictlan::id::{Ino, Name, SessionId};
use mictlan::meta::cover::covered;
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::inode::{Inode, Stamp};
use mictlan::meta::key::Key;
use mictlan::meta::namespace::*;
use mictlan::meta::tree::Read;
use mictlan::meta::value::Value;
use mictlan::meta::write::WriteSet;
use std::collections::BTreeMap;

pub const DIRENT_KEY: [u8; 32] = [7; 32];

pub const TAG_KEY: [u8; 32] = [8; 32];

pub type Map = BTreeMap<Key, Value>;

pub fn env(now: Stamp) -> Env<'static> {
    Env { now, dirent_key: &DIRENT_KEY }
}

pub fn seconds(secs: i64) -> Stamp {
    Stamp { secs, nanos: 5 }
}

pub fn founded() -> Map {
    let mut map = Map::new();
    apply(&mut map, &founding(seconds(0), 0, 0, 0o755));
    map
}

pub fn root(map: &Map) -> Inode {
    read::getattr(map, Ino::ROOT).expect("founded")
}

/// The plainest meaning of a write set.
pub fn apply(map: &mut Map, writes: &WriteSet) {
    for (from, to) in writes.ranges() {
        map.retain(|key, _| {
            let key = key.encode();
            key.as_bytes() < from || to <= key.as_bytes()
        });
    }
    for (key, change) in writes.changes() {
        let key = key.key();
        match change.apply(map.get(&key).cloned()) {
            Some(value) => drop(map.insert(key, value)),
            None => drop(map.remove(&key)),
        }
    }
}

/// Followers would not skip this commit of `session`.
pub fn assert_covered(planned: &Planned, session: u32) {
    let tags = planned.facts.tags(&TAG_KEY).expect("few tags");
    let fresh = |ino: Ino| ino.session() == Some(SessionId(session));
    assert_eq!(covered(&planned.writes, &tags, &TAG_KEY, fresh), Ok(()));
}

/// Plans and applies what must succeed.
pub fn run(map: &mut Map, secs: i64, op: &Op) -> Reply {
    let planned = plan(map, &env(seconds(secs)), op).expect("the operation is allowed");
    assert_covered(&planned, 1);
    apply(map, &planned.writes);
    planned.reply
}

/// Why an operation is refused.
pub fn refusal(map: &Map, op: &Op) -> FsError {
    match plan(map, &env(seconds(99)), op) {
        Ok(planned) => panic!("{op:?} was allowed: {planned:?}"),
        Err(error) => refused(error),
    }
}

pub fn refused(error: ReadError) -> FsError {
    match error {
        ReadError::Refused(error) => error,
        other => panic!("a map has everything in memory: {other}"),
    }
}

/// Everything that can be asked of the namespace, compared with the model.
pub fn compare(map: &impl Read, model: &Model) {
    for (ino, node) in &model.nodes {
        let inode = read::getattr(map, *ino).expect("the model has it");
        assert_eq!(inode, model.inode(*ino), "attributes of {ino}");
        compare_names(map, *ino, node);
        compare_xattrs(map, *ino, node);
        compare_blocks(map, *ino, &inode, node);
    }
    let usage = read::usage(map).expect("counters");
    assert_eq!(usage.inodes, model.nodes.len() as u64);
    let bytes = model.nodes.values().map(|n| n.blocks.len() as u64 * BLOCK).sum::<u64>();
    assert_eq!(usage.bytes, bytes);
    let nameless = model.nodes.keys().filter(|ino| model.inode(**ino).nlink == 0);
    let orphans = read::orphans(map, Ino::ROOT, 1_000).expect("orphans");
    assert_eq!(orphans, nameless.copied().collect::<Vec<_>>());
}

fn compare_names(map: &impl Read, dir: Ino, node: &Node) {
    let listed = read::readdir(map, dir, 0, 1_000);
    if node.inode.kind != mictlan::meta::inode::FileKind::Dir {
        assert_eq!(listed.map_err(refused), Err(FsError::NotDir));
        return;
    }
    let listed = listed.expect("a directory");
    assert_eq!((&*listed[0].name, listed[0].ino), (b".".as_slice(), dir));
    assert_eq!((&*listed[1].name, listed[1].ino), (b"..".as_slice(), node.inode.home));
    let mut names = BTreeMap::new();
    for entry in &listed[2..] {
        let name = Name::parse(&entry.name).expect("a stored name");
        let (ino, inode) = read::lookup(map, &DIRENT_KEY, dir, &name).expect("listed");
        assert_eq!((ino, inode.kind), (entry.ino, entry.kind));
        assert_eq!(names.insert(name, ino), None, "a name listed twice");
    }
    assert_eq!(names, node.names);
}

fn compare_xattrs(map: &impl Read, ino: Ino, node: &Node) {
    let names = read::listxattr(map, ino, true).expect("an inode");
    for name in &names {
        let value = read::getxattr(map, ino, name, true).expect("listed");
        assert_eq!(Some(value.to_vec()), node.xattr(name), "{}", String::from_utf8_lossy(name));
    }
    let lists = usize::from(node.access.is_some()) + usize::from(node.default.is_some());
    assert_eq!(names.len(), node.xattrs.len() + lists);
    let public = read::listxattr(map, ino, false).expect("an inode");
    assert!(!public.iter().any(|name| name.starts_with(b"trusted.")));
}

fn compare_blocks(map: &impl Read, ino: Ino, inode: &Inode, node: &Node) {
    let extents = read::extents(map, ino, 0..u64::MAX, usize::MAX).expect("an inode");
    assert!(extents.windows(2).all(|pair| pair[0].end() <= pair[1].offset), "extents overlap");
    assert_eq!(extents.iter().map(|e| u64::from(e.len)).sum::<u64>(), inode.bytes);
    for extent in &extents {
        assert!(extent.end() <= inode.size, "bytes behind the end");
        let mut at = extent.offset;
        while at < extent.end() {
            let origin = node.blocks.get(&(at / BLOCK)).map(|(c, place)| (*c, place + at % BLOCK));
            let place = u64::from(extent.at) + at - extent.offset;
            assert_eq!(origin, Some((extent.chunk.0[0], place)), "byte {at} of {ino}");
            at = (at / BLOCK + 1) * BLOCK;
        }
    }
    let blocks = inode.size / BLOCK;
    for at in 0..blocks {
        let seek = |what| read::seek(map, ino, at * BLOCK, what).ok();
        let next = |data| (at..blocks).find(|b| node.blocks.contains_key(b) == data);
        let end = next(false).map_or(inode.size, |b| b * BLOCK);
        if inode.kind == mictlan::meta::inode::FileKind::File {
            assert_eq!(seek(read::Seek::Data), next(true).map(|b| b * BLOCK), "data from {at}");
            assert_eq!(seek(read::Seek::Hole), Some(end), "hole from {at}");
        }
    }
}
