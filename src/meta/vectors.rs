//! The formats of metadata against their golden files.

use crate::file::Extent;
use crate::hash;
use crate::id::{ChunkId, Ino, Name, SessionId};
use crate::meta::inode::tests::plain_file;
use crate::meta::inode::{FileKind, Inode, InodeMerge, ModeChange, SizeChange, Stamp};
use crate::meta::key::{Key, Span};
use crate::meta::payload;
use crate::meta::tag::{Fact, Facts, TagList};
use crate::meta::tree::{Builder, Form, NewNode, Node, TreeKeys};
use crate::meta::value::Value;
use crate::meta::write::{Merge, WriteSet};
use serde_json::{Value as Json, json};
use std::convert::Infallible;

const GOOD: &str = include_str!("../../tests/vectors/meta/good.json");
const BAD: &str = include_str!("../../tests/vectors/meta/bad.json");
const FILE: Ino = Ino(7 << 32 | 1);

fn name(n: &[u8]) -> Name {
    Name::parse(n).expect("good")
}

fn entries() -> Vec<(Key, Value)> {
    let at = |secs| Stamp { secs, nanos: 123_456_789 };
    let inode = Inode {
        mode: 0o4755,
        uid: 1_000,
        gid: 100,
        size: 5_000_000_000,
        bytes: 4_096,
        atime: at(-1),
        mtime: at(1_700_000_000),
        ctime: at(1_700_000_001),
        btime: at(1_600_000_000),
        ..plain_file()
    };
    let link =
        Inode { kind: FileKind::Symlink, target: b"../x".as_slice().into(), ..inode.clone() };
    let extent =
        |offset| Extent { offset, len: 4_096, chunk: ChunkId([0xcc; 32]), at: 7, packed: None };
    vec![
        (Key::Counter(1), Value::Counter(-2)),
        (
            Key::Dirent { dir: Ino::ROOT, hash: 0x0123_4567_89ab_cdef, name: name(b"caf\xc3\xa9") },
            Value::Dirent { ino: FILE, kind: FileKind::File },
        ),
        (Key::Extent { ino: FILE, offset: 1 << 20 }, Value::Extent(extent(1 << 20))),
        (Key::Inode(FILE), Value::Inode(inode)),
        (Key::Inode(Ino(FILE.0 + 1)), Value::Inode(link)),
        (Key::Orphan(FILE), Value::Orphan),
        (Key::Setting(2), Value::Setting(b"zstd".as_slice().into())),
        (
            Key::Xattr { ino: FILE, name: b"user.a".as_slice().into() },
            Value::Xattr(b"v".as_slice().into()),
        ),
    ]
}

fn writes() -> WriteSet {
    let mut writes = WriteSet::new();
    writes.delete_span(Span::extents(FILE, 0, 1 << 20));
    writes.delete_span(Span::xattrs(FILE));
    for (key, value) in entries() {
        if !matches!(key, Key::Inode(FILE) | Key::Counter(_)) {
            writes.put(key, value);
        }
    }
    writes.delete(Key::Orphan(Ino(FILE.0 + 2)));
    writes.merge(Key::Counter(1), Merge::Counter(4_096));
    let at = Some(Stamp { secs: 1_700_000_002, nanos: 0 });
    let merge = InodeMerge {
        size: Some(SizeChange::Max(9)),
        mtime: at,
        ctime: at,
        mode: Some(ModeChange::KillPrivileges),
        nlink: -1,
        bytes: -4_096,
        ..InodeMerge::default()
    };
    writes.merge_inode(FILE, merge);
    writes
}

fn tags() -> TagList {
    let mut facts = Facts::default();
    facts.read(Fact::Exists(Ino::ROOT)).write(Fact::Name(Ino::ROOT, name(b"a")));
    facts.write(Fact::Bucket(FILE, 1)).write(Fact::Attr(FILE)).write(Fact::Links(FILE));
    facts.add(Fact::Children(Ino::ROOT)).add(Fact::Data(FILE)).read(Fact::DirMove);
    facts.tags(&[9; 32]).expect("few")
}

/// A leaf with each sort of entry, and the nodes of a tree of two levels.
fn nodes() -> Vec<NewNode> {
    let keys = TreeKeys::new(&[1; 32], &[2; 32]);
    let mut made = vec![];
    let mut sink = |new: NewNode| {
        let address = hash::address(new.node.bytes());
        made.push(new);
        Ok::<_, Infallible>(address)
    };
    let mut leaf = Builder::new(&keys, Form::Values);
    for (key, value) in entries() {
        leaf.push(&key.encode(), &value.encode(), &mut sink).expect("infallible");
    }
    leaf.finish(&mut sink).expect("infallible");
    let mut two = Builder::new(&keys, Form::Values);
    for n in 0..10_000u32 {
        let key = Key::Orphan(Ino(FILE.0 + u64::from(n))).encode();
        two.push(&key, &Value::Orphan.encode(), &mut sink).expect("infallible");
    }
    let root = two.finish(&mut sink).expect("infallible");
    made.retain(|new| new.node.level() > 0 || new.node.len() == 8);
    assert_eq!(made.last().map(|new| new.identity), Some(root.identity));
    made
}

/// Not among the others: it is never part of a payload.
fn heir() -> (Key, Value) {
    (Key::Heir(SessionId(0x0102_0304)), Value::Heir(SessionId(7)))
}

fn good() -> Json {
    let pair = |(key, value): (Key, Value)| json!({ "key": hex::encode(&key.encode()[..]), "value": hex::encode(value.encode()) });
    let node = |new: NewNode| json!({ "identity": new.identity.to_hex(), "bytes": hex::encode(new.node.bytes()) });
    json!({
        "about": "identity key 01…, boundary key 02…, tag key 09…; a stand-in address is the BLAKE3 of a node's plaintext",
        "entries": entries().into_iter().map(pair).collect::<Vec<_>>(),
        "heir": pair(heir()),
        "payload": hex::encode(payload::encode(&writes())),
        "tags": { "bytes": hex::encode(tags().encode()), "b3": hex::encode(tags().b3()) },
        "nodes": nodes().into_iter().map(node).collect::<Vec<_>>(),
    })
}

fn bytes(json: &Json) -> Vec<u8> {
    hex::decode(json.as_str().expect("text")).expect("hex")
}

#[test]
fn the_formats_are_the_golden_ones() {
    let golden: Json = serde_json::from_str(GOOD).expect("JSON");
    assert_eq!(golden, good(), "what this program writes:\n{}", good());
    assert_eq!(payload::decode(&bytes(&golden["payload"])), Ok(writes()));
    assert_eq!(TagList::decode(&bytes(&golden["tags"]["bytes"])), Ok(tags()));
    for node in golden["nodes"].as_array().expect("a list") {
        assert!(Node::decode(bytes(&node["bytes"])).is_ok());
    }
    for (pair, (key, value)) in golden["entries"].as_array().expect("a list").iter().zip(entries())
    {
        assert_eq!(Key::decode(&bytes(&pair["key"])), Ok(key.clone()));
        assert_eq!(Value::decode(&key, &bytes(&pair["value"])), Ok(value));
    }
}

#[test]
fn bad_bytes_are_refused_for_the_right_reason() {
    let cases: Json = serde_json::from_str(BAD).expect("JSON");
    for case in cases.as_array().expect("a list") {
        let input = bytes(&case["bytes"]);
        let refused = match case["what"].as_str().expect("text") {
            "key" => Key::decode(&input).err(),
            "orphan" => Value::decode(&Key::Orphan(FILE), &input).err(),
            "dirent" => {
                let key = Key::Dirent { dir: FILE, hash: 3, name: name(b"a") };
                Value::decode(&key, &input).err()
            }
            "payload" => payload::decode(&input).err(),
            "tags" => TagList::decode(&input).err(),
            "node" => Node::decode(input).err(),
            other => panic!("no format {other}"),
        };
        let why = refused.map(|error| error.to_string()).unwrap_or_default();
        assert_eq!(case["why"].as_str(), Some(why.as_str()), "{case}");
    }
}
