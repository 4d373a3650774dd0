//! Random operations from an alphabet so small that they meet.

use super::reference::{ACCESS, BLOCK, DEFAULT, acl_bytes, list_bytes};
use super::world::seconds;
use mictlan::file::{Extent, split_at_buckets};
use mictlan::id::{ChunkId, Ino, Name, SessionId};
use mictlan::meta::inode::FileKind;
use mictlan::meta::namespace::*;
use proptest::prelude::*;

/// Inode numbers of each session that the operations name; some are not made yet, or no more.
const INODES: u32 = 6;
const BLOCKS: u64 = 40;

/// Operations in the order of their calls. Made inodes are numbered here, as a session does.
pub fn histories(session: u32, sessions: u32, len: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(sessions), 1..len).prop_map(move |mut ops| {
        let mut made = 0;
        for op in &mut ops {
            if let Op::Make(make) = op {
                made += 1;
                make.ino = Ino::of(SessionId(session), made);
            }
        }
        ops
    })
}

fn op(sessions: u32) -> impl Strategy<Value = Op> {
    let place = move || place(sessions);
    prop_oneof![
        6 => make(sessions),
        1 => (ino(sessions), place()).prop_map(|(ino, to)| Op::Link { ino, to }),
        2 => place().prop_map(Op::Unlink),
        2 => place().prop_map(Op::Rmdir),
        4 => (place(), place(), 0..4u8).prop_map(|(from, to, mode)| {
            let mode = match mode {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            Op::Rename { from, to, mode }
        }),
        3 => set_attr(sessions),
        3 => set_xattr(sessions),
        1 => (ino(sessions), xattr_name(), any::<bool>())
            .prop_map(|(ino, name, privileged)| Op::RemoveXattr { ino, name, privileged }),
        5 => bytes(sessions),
        3 => allocate(sessions),
        3 => copy(sessions),
        1 => ino(sessions).prop_map(|ino| Op::Reap { ino }),
    ]
}

fn ino(sessions: u32) -> impl Strategy<Value = Ino> {
    let own = move |n| if n == 0 { Ino::ROOT } else { Ino::of(SessionId(sessions), n) };
    (0..INODES).prop_map(own)
}

fn place(sessions: u32) -> impl Strategy<Value = Place> {
    (ino(sessions), "[abc]").prop_map(|(dir, name)| Place {
        dir,
        name: Name::parse(name.as_bytes()).expect("a letter"),
    })
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o644, 0o755, 0o2775, 0o6755, 0o4700, 0o2644, 0o1777])
}

fn make(sessions: u32) -> impl Strategy<Value = Op> {
    let kind = prop_oneof![
        Just(FileKind::File),
        Just(FileKind::File),
        Just(FileKind::Dir),
        Just(FileKind::Dir),
        Just(FileKind::Symlink),
        Just(FileKind::Fifo),
    ];
    (place(sessions), kind, mode(), 1..3u32, prop::sample::select(vec![0, 0o22, 0o77])).prop_map(
        |(at, kind, mode, gid, umask)| {
            let target: &[u8] = if kind == FileKind::Symlink { b"to" } else { b"" };
            let (ino, target) = (Ino(0), target.into());
            Op::Make(Make { at, ino, kind, mode, umask, uid: gid * 10, gid, rdev: 0, target })
        },
    )
}

fn set_attr(sessions: u32) -> impl Strategy<Value = Op> {
    let time = || prop::option::of(prop_oneof![Just(SetTime::Now), at_time()]);
    let flags = (any::<bool>(), any::<bool>());
    let owner = (prop::option::of(1..3u32), prop::option::of(1..3u32));
    let size = prop::option::of((0..BLOCKS).prop_map(|b| b * BLOCK));
    (ino(sessions), prop::option::of(mode()), owner, size, time(), time(), flags).prop_map(
        |(ino, mode, (uid, gid), size, atime, mtime, (kill_priv, kill_sgid))| {
            let flags = SetAttr { kill_priv, kill_sgid, ..SetAttr::of(ino) };
            Op::SetAttr(SetAttr { mode, uid, gid, size, atime, mtime, ..flags })
        },
    )
}

fn at_time() -> impl Strategy<Value = SetTime> {
    (-3..3i64).prop_map(|secs| SetTime::At(seconds(secs)))
}

fn xattr_name() -> impl Strategy<Value = Box<[u8]>> {
    let names: [&[u8]; 9] = [
        ACCESS,
        DEFAULT,
        ACCESS,
        DEFAULT,
        b"user.a",
        b"trusted.a",
        b"security.capability",
        b"user.mictlan.copies",
        b"bogus.a",
    ];
    prop::sample::select(names.map(Box::<[u8]>::from).to_vec())
}

fn set_xattr(sessions: u32) -> impl Strategy<Value = Op> {
    let mode = prop::sample::select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
    let lists = prop::array::uniform5(0..8u32);
    (ino(sessions), xattr_name(), lists, 0..5u8, mode, (any::<bool>(), any::<bool>())).prop_map(
        |(ino, name, list, form, mode, (privileged, kill_sgid))| {
            let minimal = [(1, list[0], !0), (4, list[2], !0), (32, list[4], !0)];
            let value = match form {
                0 => b"rubbish".to_vec(),
                1 if *name == *ACCESS => acl_bytes(&minimal),
                _ => list_bytes(list),
            };
            let value = value.into();
            Op::SetXattr(SetXattr { ino, name, value, mode, privileged, kill_sgid })
        },
    )
}

/// Extents over `blocks` of a file, from one chunk.
fn extents(blocks: std::ops::Range<u64>, chunk: u8) -> Vec<Extent> {
    let (offset, len) = (blocks.start * BLOCK, (blocks.end - blocks.start) * BLOCK);
    let (len, chunk) = (len as u32, ChunkId([chunk; 32]));
    split_at_buckets(Extent { offset, len, chunk, at: 11, packed: None })
}

fn bytes(sessions: u32) -> impl Strategy<Value = Op> {
    let runs = (0..BLOCKS, 1..25u64, 1..8u64, 0..9u64);
    (ino(sessions), runs, 0..200u8, any::<bool>(), 0..4u8).prop_map(
        |(ino, (start, len, gap, second), chunk, kill_priv, form)| {
            let mtime = seconds(i64::from(chunk));
            if form == 0 {
                let extents = extents(0..len, chunk);
                return Op::Append(Append { ino, extents, mtime, kill_priv });
            }
            let mut all = extents(start..start + len, chunk);
            let next = start + len + gap;
            all.extend(extents(next..next + second, chunk + 1));
            let end = all.last().map_or(0, Extent::end);
            Op::Write(Write { ino, extents: all, end, mtime, kill_priv })
        },
    )
}

fn allocate(sessions: u32) -> impl Strategy<Value = Op> {
    let mode = prop::sample::select(vec![
        AllocateMode::Reserve,
        AllocateMode::ReserveKeepSize,
        AllocateMode::Punch,
        AllocateMode::Zero,
        AllocateMode::ZeroKeepSize,
    ]);
    (ino(sessions), mode, 0..BLOCKS, 0..BLOCKS, any::<bool>()).prop_map(
        |(ino, mode, offset, len, kill_priv)| {
            let (offset, len) = (offset * BLOCK, len * BLOCK);
            Op::Allocate(Allocate { ino, mode, offset, len, kill_priv })
        },
    )
}

fn copy(sessions: u32) -> impl Strategy<Value = Op> {
    let offsets = (0..BLOCKS, 0..BLOCKS, 0..BLOCKS);
    (ino(sessions), ino(sessions), offsets, any::<bool>()).prop_map(
        |(from, to, (from_offset, to_offset, len), kill_priv)| {
            let (from_offset, to_offset) = (from_offset * BLOCK, to_offset * BLOCK);
            let len = len * BLOCK;
            Op::Copy(Copy { from, from_offset, to, to_offset, len, kill_priv })
        },
    )
}
