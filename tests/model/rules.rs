//! Limits and corners that random operations seldom reach, each by its name.

use super::world::{Map, founded, refusal, run};
use mictlan::file::{BUCKET, Extent};
use mictlan::id::{ChunkId, Ino, Name, SessionId};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode, Stamp};
use mictlan::meta::key::Key;
use mictlan::meta::namespace::*;
use mictlan::meta::value::Value;

const TIB: u64 = 1 << 40;

fn ino(n: u32) -> Ino {
    Ino::of(SessionId(1), n)
}

fn at(dir: Ino, name: &str) -> Place {
    Place { dir, name: Name::parse(name.as_bytes()).expect("a name") }
}

fn make(kind: FileKind, n: u32, at: Place, target: &[u8]) -> Op {
    let (mode, umask, rdev, target) = (0o644, 0, 0, target.into());
    Op::Make(Make { at, ino: ino(n), kind, mode, umask, uid: 0, gid: 0, rdev, target })
}

/// A root with the file `f` (1), the directory `d` (2) and in it the directory `e` (3).
fn small() -> Map {
    let mut map = founded();
    run(&mut map, 1, &make(FileKind::File, 1, at(Ino::ROOT, "f"), b""));
    run(&mut map, 1, &make(FileKind::Dir, 2, at(Ino::ROOT, "d"), b""));
    run(&mut map, 1, &make(FileKind::Dir, 3, at(ino(2), "e"), b""));
    map
}

fn inode(map: &Map, ino: Ino) -> Inode {
    read::getattr(map, ino).expect("it is there")
}

fn rename(from: Place, to: Place, mode: RenameMode) -> Op {
    Op::Rename { from, to, mode }
}

fn truncate(size: u64) -> Op {
    Op::SetAttr(SetAttr { size: Some(size), ..SetAttr::of(ino(1)) })
}

/// `count` extents of `len` bytes, each the first of its bucket.
fn write(first: u64, count: u64, len: u32) -> Op {
    let extent = |n| {
        let (offset, chunk) = ((first + n) * BUCKET, ChunkId([n as u8; 32]));
        Extent { offset, len, chunk, at: 0, packed: None }
    };
    let extents: Vec<Extent> = (0..count).map(extent).collect();
    let end = extents.last().map_or(0, Extent::end);
    let mtime = Stamp { secs: 2, nanos: 0 };
    Op::Write(Write { ino: ino(1), extents, end, mtime, kill_priv: false })
}

fn xattr(name: &[u8], value: &[u8]) -> Op {
    let (name, value, mode) = (name.into(), value.into(), XattrMode::Any);
    let (privileged, kill_sgid) = (false, false);
    Op::SetXattr(SetXattr { ino: ino(1), name, value, mode, privileged, kill_sgid })
}

#[test]
fn a_directory_never_becomes_its_own_ancestor() {
    let mut map = small();
    let (d, inside) = (at(Ino::ROOT, "d"), at(ino(3), "x"));
    assert_eq!(refusal(&map, &rename(d.clone(), inside, RenameMode::Replace)), FsError::Invalid);
    let e = at(ino(2), "e");
    assert_eq!(
        refusal(&map, &rename(d.clone(), e.clone(), RenameMode::Exchange)),
        FsError::Invalid
    );
    assert_eq!(refusal(&map, &rename(e.clone(), d, RenameMode::Exchange)), FsError::Invalid);
    let up = rename(e.clone(), at(Ino::ROOT, "d"), RenameMode::Replace);
    assert_eq!(refusal(&map, &up), FsError::NotEmpty);

    // A hostile writer closed a circle: the walk ends.
    run(&mut map, 1, &make(FileKind::Dir, 4, at(Ino::ROOT, "g"), b""));
    let circle = Inode { home: ino(3), ..inode(&map, ino(2)) };
    map.insert(Key::Inode(ino(2)), Value::Inode(circle));
    let into = rename(at(Ino::ROOT, "g"), at(ino(3), "g"), RenameMode::Replace);
    assert_eq!(refusal(&map, &into), FsError::Io);
}

#[test]
fn an_exchange_of_file_and_directory_moves_the_parents_links() {
    let mut map = small();
    run(&mut map, 1, &rename(at(Ino::ROOT, "f"), at(ino(2), "e"), RenameMode::Exchange));
    assert_eq!((inode(&map, Ino::ROOT).nlink, inode(&map, ino(2)).nlink), (4, 2));
    assert_eq!((inode(&map, ino(3)).home, inode(&map, ino(1)).home), (Ino::ROOT, ino(2)));
}

#[test]
fn links_are_limited() {
    let mut map = small();
    for n in [1, 2] {
        let full = Inode { nlink: LINK_MAX, ..inode(&map, ino(n)) };
        map.insert(Key::Inode(ino(n)), Value::Inode(full));
    }
    let link = Op::Link { ino: ino(1), to: at(Ino::ROOT, "g") };
    assert_eq!(refusal(&map, &link), FsError::TooManyLinks);
    let mkdir = make(FileKind::Dir, 4, at(ino(2), "g"), b"");
    assert_eq!(refusal(&map, &mkdir), FsError::TooManyLinks);
    run(&mut map, 1, &make(FileKind::Dir, 4, at(Ino::ROOT, "g"), b""));
    let into = rename(at(Ino::ROOT, "g"), at(ino(2), "g"), RenameMode::Replace);
    assert_eq!(refusal(&map, &into), FsError::TooManyLinks);
    // One for another leaves the count as it is.
    run(&mut map, 1, &rename(at(Ino::ROOT, "g"), at(ino(2), "e"), RenameMode::Replace));
}

#[test]
fn attributes_have_the_limits_of_linux() {
    let mut map = small();
    let long = [b"user.".as_slice(), &[b'x'; 250]].concat();
    run(&mut map, 1, &xattr(&long, &vec![0; 65_536]));
    assert_eq!(refusal(&map, &xattr(b"user.a", &vec![0; 65_537])), FsError::XattrTooBig);
    assert_eq!(refusal(&map, &xattr(&[&long[..], b"x"].concat(), b"")), FsError::XattrRange);
    for n in 1..256u32 {
        let name = [&long[..252], format!("{n:03}").as_bytes()].concat();
        run(&mut map, 1, &xattr(&name, b""));
    }
    assert_eq!(refusal(&map, &xattr(b"user.a", b"")), FsError::NoSpace, "the list is full");
    run(&mut map, 1, &xattr(&long, b"one that is listed already"));

    let replicas = b"user.mictlan.replicas";
    let mut map = small();
    run(&mut map, 1, &xattr(replicas, b"3"));
    for bad in [b"0".as_slice(), b"+3", b"03", b"17", b"256", b"", b"three"] {
        assert_eq!(refusal(&map, &xattr(replicas, bad)), FsError::Invalid);
    }
    assert_eq!(refusal(&map, &xattr(b"user.mictlan.proof", b"1")), FsError::NotPermitted);
    run(&mut map, 1, &xattr(b"user.a", b"1"));
    assert_eq!(read::listxattr(&map, ino(1), true), Ok(vec![Box::from(&b"user.a"[..])]));
}

#[test]
fn the_nearest_that_asks_for_copies_counts() {
    let mut map = small();
    let ask = |map: &mut Map, of: Ino, copies: &[u8]| {
        let (name, mode) = (b"user.mictlan.replicas"[..].into(), XattrMode::Any);
        let (privileged, kill_sgid) = (false, false);
        let value = copies.into();
        let op = SetXattr { ino: of, name, value, mode, privileged, kill_sgid };
        run(map, 1, &Op::SetXattr(op));
    };
    let wanted = |map: &Map, of| read::copies_wanted(map, of).expect("it is there");
    run(&mut map, 1, &make(FileKind::File, 4, at(ino(3), "g"), b""));
    assert_eq!(wanted(&map, ino(4)), None, "the volume's number");
    ask(&mut map, Ino::ROOT, b"5");
    ask(&mut map, ino(2), b"2");
    assert_eq!((wanted(&map, ino(4)), wanted(&map, ino(1))), (Some(2), Some(5)));
    // Another name elsewhere changes nothing, a move does.
    run(&mut map, 1, &Op::Link { ino: ino(4), to: at(Ino::ROOT, "g") });
    assert_eq!(wanted(&map, ino(4)), Some(2));
    run(&mut map, 1, &rename(at(ino(2), "e"), at(Ino::ROOT, "e"), RenameMode::Replace));
    assert_eq!(wanted(&map, ino(4)), Some(5));
    ask(&mut map, ino(4), b"1");
    assert_eq!(wanted(&map, ino(4)), Some(1), "its own before all others");
    assert_eq!(wanted(&map, ino(99)), None, "one that is gone asks for nothing");
}

#[test]
fn a_symlink_leads_somewhere_within_a_path() {
    let mut map = small();
    let link = |target: &[u8]| make(FileKind::Symlink, 4, at(Ino::ROOT, "l"), target);
    assert_eq!(refusal(&map, &link(b"")), FsError::NotFound);
    assert_eq!(refusal(&map, &link(&[b'x'; 4_096])), FsError::NameTooLong);
    run(&mut map, 1, &link(&[b'x'; 4_095]));
    assert_eq!(read::readlink(&map, ino(4)).map(|target| target.len()), Ok(4_095));
    assert_eq!(inode(&map, ino(4)).size, 4_095);
}

#[test]
fn a_file_of_several_tib_costs_what_it_holds() {
    let mut map = small();
    run(&mut map, 1, &truncate(8 * TIB));
    run(&mut map, 1, &write(6 * TIB / BUCKET, 1, 10));
    let found = read::seek(&map, ino(1), 0, read::Seek::Data);
    assert_eq!(found, Ok(6 * TIB));
    assert_eq!(read::seek(&map, ino(1), 6 * TIB, read::Seek::Hole), Ok(6 * TIB + 10));
    let behind = read::seek(&map, ino(1), 7 * TIB, read::Seek::Data);
    assert_eq!(behind.map_err(super::world::refused), Err(FsError::NoDevice));
    assert_eq!((inode(&map, ino(1)).size, inode(&map, ino(1)).bytes), (8 * TIB, 10));
    assert_eq!(refusal(&map, &truncate(SIZE_MAX + 1)), FsError::FileTooBig);
    run(&mut map, 1, &truncate(SIZE_MAX));
}

#[test]
fn what_was_cut_off_reads_as_a_hole_when_the_file_grows_again() {
    let mut map = small();
    run(&mut map, 1, &write(0, 60, 1_000));
    run(&mut map, 1, &truncate(100));
    run(&mut map, 1, &truncate(100 * BUCKET));
    let left = read::extents(&map, ino(1), 0..100 * BUCKET, 100).expect("a file");
    assert_eq!(left.iter().map(|e| (e.offset, e.len)).collect::<Vec<_>>(), [(0, 100)]);
    assert_eq!(inode(&map, ino(1)).bytes, 100);
}

#[test]
fn a_long_copy_is_done_in_parts() {
    let mut map = small();
    run(&mut map, 1, &write(0, 3_000, 7));
    run(&mut map, 1, &make(FileKind::File, 4, at(Ino::ROOT, "g"), b""));
    let size = inode(&map, ino(1)).size;
    let mut done = 0;
    let mut parts = 0;
    while done < size {
        let copy = Copy {
            from: ino(1),
            from_offset: done,
            to: ino(4),
            to_offset: done + 5,
            len: size - done,
            kill_priv: false,
        };
        let Reply::Copied { len, .. } = run(&mut map, 1, &Op::Copy(copy)) else { unreachable!() };
        assert!(len > 0);
        (done, parts) = (done + len, parts + 1);
    }
    assert_eq!(parts, 2);
    let copy = inode(&map, ino(4));
    assert_eq!((copy.size, copy.bytes), (size + 5, 21_000));
}

#[test]
fn a_copy_leaves_what_lies_behind_it() {
    // The destination is shorter than the copy, yet another session may be writing behind it: the
    // plan may only touch the buckets that it names.
    let mut map = small();
    run(&mut map, 1, &write(0, 40, 9));
    run(&mut map, 1, &make(FileKind::File, 4, at(Ino::ROOT, "g"), b""));
    let (from, to, len) = (ino(1), ino(4), 30 * BUCKET);
    let copy = Copy { from, from_offset: 0, to, to_offset: 0, len, kill_priv: false };
    run(&mut map, 1, &Op::Copy(copy));
    assert_eq!(inode(&map, ino(4)).bytes, 30 * 9);
}
