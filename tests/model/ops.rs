//! Random operations from an alphabet so small that they meet.

use super::reference::{ACCESS, BLOCK, DEFAULT, acl_bytes, list_bytes};
use super::world::seconds;
use mictlan::file::{Extent, split_at_buckets};
use mictlan::id::{ChunkId, Ino, Name, SessionId};
use mictlan::meta::inode::FileKind;
use mictlan::meta::namespace::*;
use proptest::prelude::*;

const BLOCKS: u64 = 40;

/// What the operations name; some of it is not made yet, or no more.
#[derive(Clone)]
pub struct Alphabet {
    /// Looked for names in.
    pub dirs: Vec<Ino>,
    /// Changed otherwise.
    pub inodes: Vec<Ino>,
}

impl Alphabet {
    /// The first inodes of a session, whatever they become.
    pub fn of_session(session: u32) -> Self {
        let mut inodes = vec![Ino::ROOT];
        inodes.extend((1..7).map(|n| Ino::of(SessionId(session), n)));
        Alphabet { dirs: inodes.clone(), inodes }
    }
}

/// Operations in the order of their calls. What they make is numbered from `next` on.
pub fn histories(names: Alphabet, next: Ino, len: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(&names), 1..len).prop_map(move |mut ops| {
        let mut next = next;
        for op in &mut ops {
            if let Op::Make(make) = op {
                make.ino = next;
                next.0 += 1;
            }
        }
        ops
    })
}

fn op(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let place = || place(names);
    prop_oneof![
        6 => make(names),
        4 => (ino(names), place()).prop_map(|(ino, to)| Op::Link { ino, to }),
        4 => place().prop_map(Op::Unlink),
        2 => place().prop_map(Op::Rmdir),
        4 => (place(), place(), 0..4u8).prop_map(|(from, to, mode)| {
            let mode = match mode {
                0 => RenameMode::NoReplace,
                1 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            Op::Rename { from, to, mode }
        }),
        3 => set_attr(names),
        3 => set_xattr(names),
        1 => (ino(names), xattr_name(), any::<bool>())
            .prop_map(|(ino, name, privileged)| Op::RemoveXattr { ino, name, privileged }),
        5 => bytes(names),
        3 => allocate(names),
        3 => copy(names),
        1 => ino(names).prop_map(|ino| Op::Reap { ino }),
    ]
}

fn ino(names: &Alphabet) -> impl Strategy<Value = Ino> + use<> {
    prop::sample::select(names.inodes.clone())
}

fn place(names: &Alphabet) -> impl Strategy<Value = Place> + use<> {
    (prop::sample::select(names.dirs.clone()), "[abc]").prop_map(|(dir, name)| Place {
        dir,
        name: Name::parse(name.as_bytes()).expect("a letter"),
    })
}

fn mode() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![0o644, 0o755, 0o2775, 0o6755, 0o4700, 0o2644, 0o1777])
}

fn make(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let kind = prop_oneof![
        Just(FileKind::File),
        Just(FileKind::File),
        Just(FileKind::Dir),
        Just(FileKind::Dir),
        Just(FileKind::Symlink),
        Just(FileKind::Fifo),
    ];
    (place(names), kind, mode(), 1..3u32, prop::sample::select(vec![0, 0o22, 0o77])).prop_map(
        |(at, kind, mode, gid, umask)| {
            let target: &[u8] = if kind == FileKind::Symlink { b"to" } else { b"" };
            let (ino, target) = (Ino(0), target.into());
            Op::Make(Make { at, ino, kind, mode, umask, uid: gid * 10, gid, rdev: 0, target })
        },
    )
}

fn set_attr(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let time = || prop::option::of(prop_oneof![Just(SetTime::Now), at_time()]);
    let flags = (any::<bool>(), any::<bool>());
    let owner = (prop::option::of(1..3u32), prop::option::of(1..3u32));
    let size = prop::option::of((0..BLOCKS).prop_map(|b| b * BLOCK));
    (ino(names), prop::option::of(mode()), owner, size, time(), time(), flags).prop_map(
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

fn set_xattr(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let mode = prop::sample::select(vec![XattrMode::Any, XattrMode::Create, XattrMode::Replace]);
    let lists = prop::array::uniform5(0..8u32);
    (ino(names), xattr_name(), lists, 0..5u8, mode, (any::<bool>(), any::<bool>())).prop_map(
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

fn bytes(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let runs = (0..BLOCKS, 1..25u64, 1..8u64, 0..9u64);
    (ino(names), runs, 0..200u8, any::<bool>(), 0..4u8).prop_map(
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

fn allocate(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let mode = prop::sample::select(vec![
        AllocateMode::Reserve,
        AllocateMode::ReserveKeepSize,
        AllocateMode::Punch,
        AllocateMode::Zero,
        AllocateMode::ZeroKeepSize,
    ]);
    (ino(names), mode, 0..BLOCKS, 0..BLOCKS, any::<bool>()).prop_map(
        |(ino, mode, offset, len, kill_priv)| {
            let (offset, len) = (offset * BLOCK, len * BLOCK);
            Op::Allocate(Allocate { ino, mode, offset, len, kill_priv })
        },
    )
}

fn copy(names: &Alphabet) -> impl Strategy<Value = Op> + use<> {
    let offsets = (0..BLOCKS, 0..BLOCKS, 0..BLOCKS);
    (ino(names), ino(names), offsets, any::<bool>()).prop_map(
        |(from, to, (from_offset, to_offset, len), kill_priv)| {
            let (from_offset, to_offset) = (from_offset * BLOCK, to_offset * BLOCK);
            let len = len * BLOCK;
            Op::Copy(Copy { from, from_offset, to, to_offset, len, kill_priv })
        },
    )
}
