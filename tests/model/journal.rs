//! The journal's form of an operation is final: golden bytes, good and bad.

use mictlan::file::{Extent, Packed};
use mictlan::id::{ChunkId, Ino, Name};
use mictlan::meta::inode::{FileKind, Stamp};
use mictlan::meta::namespace::*;
use mictlan::seal::Codec;
use proptest::prelude::*;
use std::path::Path;

/// One of each operation, with every field told apart.
fn samples() -> Vec<(&'static str, Op)> {
    let at = |dir, name: &str| Place {
        dir: Ino(dir),
        name: Name::parse(name.as_bytes()).expect("a name"),
    };
    let mtime = Stamp { secs: -2, nanos: 999_999_999 };
    let extent = Extent { offset: 7, len: 9, chunk: ChunkId([5; 32]), at: 3, packed: None };
    let packed = Packed { stored_len: 30, codec: Codec::Zstd, skip: 4 };
    let member = Extent { offset: 16, packed: Some(packed), ..extent };
    let extents = vec![extent, member];
    let ino = Ino(1 << 32 | 2);
    let (kind, target) = (FileKind::Symlink, b"to".as_slice().into());
    let (mode, umask, uid, gid, rdev) = (0o6755, 0o22, 1_000, 1_001, 0x0103);
    let make = Make { at: at(1, "n"), ino, kind, mode, umask, uid, gid, rdev, target };
    let (mode, uid, gid, size) = (Some(0o600), Some(1), Some(2), Some(1 << 40));
    let (atime, mtime_set) = (Some(SetTime::Now), Some(SetTime::At(mtime)));
    let (kill_priv, kill_sgid, privileged) = (true, true, true);
    let set = SetAttr { ino, mode, uid, gid, size, atime, mtime: mtime_set, kill_priv, kill_sgid };
    let (name, value): (Box<[u8]>, Box<[u8]>) = (b"user.a".as_slice().into(), [0, 255].into());
    let mode = XattrMode::Replace;
    let xattr = SetXattr { ino, name: name.clone(), value, mode, privileged, kill_sgid: false };
    let (from, to) = (at(1, "from"), at(2, "to"));
    let mode = AllocateMode::ZeroKeepSize;
    let copy = Copy { from: ino, from_offset: 1, to: Ino(9), to_offset: 2, len: 3, kill_priv };
    let write = Write { ino, extents, end: 70, mtime, kill_priv };
    let from_start = vec![Extent { offset: 0, ..extent }];
    vec![
        ("make", Op::Make(make)),
        ("link", Op::Link { ino, to: at(1, "l") }),
        ("unlink", Op::Unlink(at(1, "u"))),
        ("rmdir", Op::Rmdir(at(1, "d"))),
        ("rename", Op::Rename { from, to, mode: RenameMode::Exchange }),
        ("setattr", Op::SetAttr(set)),
        ("setattr-nothing", Op::SetAttr(SetAttr::of(ino))),
        ("setxattr", Op::SetXattr(xattr)),
        ("removexattr", Op::RemoveXattr { ino, name, privileged }),
        ("write", Op::Write(write)),
        ("append", Op::Append(Append { ino, extents: from_start, mtime, kill_priv: false })),
        ("allocate", Op::Allocate(Allocate { ino, mode, offset: 1, len: 2, kill_priv })),
        ("copy", Op::Copy(copy)),
        ("reap", Op::Reap { ino }),
    ]
}

fn vectors(file: &str) -> Vec<(String, Vec<u8>)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/operation").join(file);
    let text = std::fs::read_to_string(path).expect("the vectors are in the repository");
    let line = |line: &str| {
        let (name, bytes) = line.split_once(' ').expect("a name and hex digits");
        (name.to_owned(), hex::decode(bytes).expect("hex digits"))
    };
    text.lines().map(line).collect()
}

#[test]
fn every_operation_has_its_golden_bytes() {
    let encode = |(name, op): (&str, Op)| (name.to_owned(), op.encode());
    let ours: Vec<_> = samples().into_iter().map(encode).collect();
    assert_eq!(ours, vectors("good.txt"));
    for ((name, bytes), (_, op)) in ours.iter().zip(samples()) {
        assert_eq!(Op::decode(bytes), Ok(op), "{name}");
    }
}

#[test]
fn bad_operations_are_refused() {
    for (name, bytes) in vectors("bad.txt") {
        assert!(Op::decode(&bytes).is_err(), "{name}");
    }
}

proptest! {
    #[test]
    fn rubbish_in_the_journal_is_refused_or_is_one_operation(
        kind in 0..15u8, rest in prop::collection::vec(prop_oneof![0..4u8, any::<u8>()], 0..80),
    ) {
        let bytes = [&[1, kind], &rest[..]].concat();
        if let Ok(op) = Op::decode(&bytes) {
            prop_assert_eq!(op.encode(), bytes);
        }
    }
}
