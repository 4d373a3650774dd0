//! The bytes of an operation in the journal.
//!
//! Owns: version 1 of that form: `version u8 | operation u8 | its fields in the order of op.rs`.
//! Invariant: strict; one operation has one form, and a form of another length or order is refused.

use super::op::*;
use crate::codec::{DecodeError, Reader, Writer};
use crate::file::Extent;
use crate::id::{Ino, Name};
use crate::meta::inode::{FileKind, Stamp};

const VERSION: u8 = 1;
const MAKE: u8 = 1;
const LINK: u8 = 2;
const UNLINK: u8 = 3;
const RMDIR: u8 = 4;
const RENAME: u8 = 5;
const SET_ATTR: u8 = 6;
const SET_XATTR: u8 = 7;
const REMOVE_XATTR: u8 = 8;
const WRITE: u8 = 9;
const APPEND: u8 = 10;
const ALLOCATE: u8 = 11;
const COPY: u8 = 12;
const REAP: u8 = 13;

/// No name, target or xattr value is longer.
const BYTES_MAX: usize = 64 * 1024;
/// An encoded extent is far below this; the limit only bounds a hostile length.
const EXTENT_MAX: usize = 256;

impl Op {
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u8(VERSION);
        match self {
            Op::Make(make) => put_make(w.u8(MAKE), make),
            Op::Link { ino, to } => put_place(w.u8(LINK).u64(ino.0), to),
            Op::Unlink(place) => put_place(w.u8(UNLINK), place),
            Op::Rmdir(place) => put_place(w.u8(RMDIR), place),
            Op::Rename { from, to, mode } => {
                put_place(w.u8(RENAME), from);
                put_place(&mut w, to);
                w.u8(*mode as u8);
            }
            Op::SetAttr(set) => put_set_attr(w.u8(SET_ATTR), set),
            Op::SetXattr(set) => {
                w.u8(SET_XATTR).u64(set.ino.0).bytes(&set.name).bytes(&set.value);
                w.u8(set.mode as u8).u8(set.privileged.into()).u8(set.kill_sgid.into());
            }
            Op::RemoveXattr { ino, name, privileged } => {
                w.u8(REMOVE_XATTR).u64(ino.0).bytes(name).u8((*privileged).into());
            }
            Op::Write(write) => {
                put_extents(w.u8(WRITE).u64(write.ino.0), &write.extents);
                w.u64(write.end);
                put_stamp(&mut w, write.mtime);
                w.u8(write.kill_priv.into());
            }
            Op::Append(append) => {
                put_extents(w.u8(APPEND).u64(append.ino.0), &append.extents);
                put_stamp(&mut w, append.mtime);
                w.u8(append.kill_priv.into());
            }
            Op::Allocate(a) => {
                w.u8(ALLOCATE).u64(a.ino.0).u8(a.mode as u8).u64(a.offset).u64(a.len);
                w.u8(a.kill_priv.into());
            }
            Op::Copy(c) => {
                w.u8(COPY).u64(c.from.0).u64(c.from_offset).u64(c.to.0).u64(c.to_offset);
                w.u64(c.len).u8(c.kill_priv.into());
            }
            Op::Reap { ino } => {
                w.u8(REAP).u64(ino.0);
            }
        }
        w.finish()
    }

    pub fn decode(bytes: &[u8]) -> Result<Op, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("operation version")? {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let op = match r.u8("operation")? {
            MAKE => Op::Make(make(&mut r)?),
            LINK => Op::Link { ino: ino(&mut r)?, to: place(&mut r)? },
            UNLINK => Op::Unlink(place(&mut r)?),
            RMDIR => Op::Rmdir(place(&mut r)?),
            RENAME => rename(&mut r)?,
            SET_ATTR => Op::SetAttr(set_attr(&mut r)?),
            SET_XATTR => Op::SetXattr(set_xattr(&mut r)?),
            REMOVE_XATTR => Op::RemoveXattr {
                ino: ino(&mut r)?,
                name: long(&mut r)?,
                privileged: flag(&mut r)?,
            },
            WRITE => Op::Write(Write {
                ino: ino(&mut r)?,
                extents: extents(&mut r)?,
                end: r.u64("end")?,
                mtime: stamp(&mut r)?,
                kill_priv: flag(&mut r)?,
            }),
            APPEND => Op::Append(Append {
                ino: ino(&mut r)?,
                extents: extents(&mut r)?,
                mtime: stamp(&mut r)?,
                kill_priv: flag(&mut r)?,
            }),
            ALLOCATE => allocate(&mut r)?,
            COPY => Op::Copy(Copy {
                from: ino(&mut r)?,
                from_offset: r.u64("offset")?,
                to: ino(&mut r)?,
                to_offset: r.u64("offset")?,
                len: r.u64("length")?,
                kill_priv: flag(&mut r)?,
            }),
            REAP => Op::Reap { ino: ino(&mut r)? },
            _ => return Err(DecodeError::Unknown("operation")),
        };
        r.finish()?;
        Ok(op)
    }
}

fn put_place(w: &mut Writer, place: &Place) {
    w.u64(place.dir.0).bytes(place.name.as_bytes());
}

fn put_make(w: &mut Writer, make: &Make) {
    put_place(w, &make.at);
    w.u64(make.ino.0).u8(make.kind as u8).u32(make.mode).u32(make.umask);
    w.u32(make.uid).u32(make.gid).u64(make.rdev).bytes(&make.target);
}

fn put_stamp(w: &mut Writer, stamp: Stamp) {
    w.i64(stamp.secs).u32(stamp.nanos);
}

fn put_extents(w: &mut Writer, extents: &[Extent]) {
    w.varint(extents.len() as u64);
    for extent in extents {
        w.u64(extent.offset).bytes(&extent.encode());
    }
}

/// A bit for each field that is set, then those fields.
fn put_set_attr(w: &mut Writer, set: &SetAttr) {
    let present = [
        set.mode.is_some(),
        set.uid.is_some(),
        set.gid.is_some(),
        set.size.is_some(),
        set.atime.is_some(),
        set.mtime.is_some(),
        set.kill_priv,
        set.kill_sgid,
    ];
    let bits = present.iter().enumerate().fold(0, |bits, (i, on)| bits | u8::from(*on) << i);
    w.u64(set.ino.0).u8(bits);
    for field in [set.mode, set.uid, set.gid].into_iter().flatten() {
        w.u32(field);
    }
    if let Some(size) = set.size {
        w.u64(size);
    }
    for time in [set.atime, set.mtime].into_iter().flatten() {
        match time {
            SetTime::Now => {
                w.u8(0);
            }
            SetTime::At(stamp) => put_stamp(w.u8(1), stamp),
        }
    }
}

fn ino(r: &mut Reader) -> Result<Ino, DecodeError> {
    Ok(Ino(r.u64("inode number")?))
}

fn place(r: &mut Reader) -> Result<Place, DecodeError> {
    let dir = ino(r)?;
    let name = Name::parse(r.bytes(255, "name")?);
    Ok(Place { dir, name: name.map_err(|_| DecodeError::NotCanonical("name"))? })
}

fn flag(r: &mut Reader) -> Result<bool, DecodeError> {
    match r.u8("flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::NotCanonical("flag")),
    }
}

fn long(r: &mut Reader) -> Result<Box<[u8]>, DecodeError> {
    Ok(r.bytes(BYTES_MAX, "text")?.into())
}

fn stamp(r: &mut Reader) -> Result<Stamp, DecodeError> {
    let (secs, nanos) = (r.i64("seconds")?, r.u32("nanoseconds")?);
    if nanos >= 1_000_000_000 {
        return Err(DecodeError::NotCanonical("nanoseconds"));
    }
    Ok(Stamp { secs, nanos })
}

fn extents(r: &mut Reader) -> Result<Vec<Extent>, DecodeError> {
    // An offset, a length byte and an address at the least.
    let count = r.count(41, "extents")?;
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let offset = r.u64("offset")?;
        extents.push(Extent::decode(offset, r.bytes(EXTENT_MAX, "extent")?)?);
    }
    Ok(extents)
}

fn make(r: &mut Reader) -> Result<Make, DecodeError> {
    let (at, ino) = (place(r)?, ino(r)?);
    let kind = FileKind::decode(r.u8("file kind")?)?;
    let (mode, umask) = (r.u32("mode")?, r.u32("umask")?);
    let (uid, gid, rdev) = (r.u32("uid")?, r.u32("gid")?, r.u64("rdev")?);
    Ok(Make { at, ino, kind, mode, umask, uid, gid, rdev, target: long(r)? })
}

fn rename(r: &mut Reader) -> Result<Op, DecodeError> {
    let (from, to) = (place(r)?, place(r)?);
    let mode = match r.u8("rename mode")? {
        0 => RenameMode::Replace,
        1 => RenameMode::NoReplace,
        2 => RenameMode::Exchange,
        _ => return Err(DecodeError::Unknown("rename mode")),
    };
    Ok(Op::Rename { from, to, mode })
}

fn set_attr(r: &mut Reader) -> Result<SetAttr, DecodeError> {
    let mut set = SetAttr::of(ino(r)?);
    let bits = r.u8("set fields")?;
    let has = |bit: u8| bits & 1 << bit != 0;
    for (bit, field) in [&mut set.mode, &mut set.uid, &mut set.gid].into_iter().enumerate() {
        *field = has(bit as u8).then(|| r.u32("attribute")).transpose()?;
    }
    set.size = has(3).then(|| r.u64("size")).transpose()?;
    set.atime = has(4).then(|| set_time(r)).transpose()?;
    set.mtime = has(5).then(|| set_time(r)).transpose()?;
    (set.kill_priv, set.kill_sgid) = (has(6), has(7));
    Ok(set)
}

fn set_time(r: &mut Reader) -> Result<SetTime, DecodeError> {
    if flag(r)? { Ok(SetTime::At(stamp(r)?)) } else { Ok(SetTime::Now) }
}

fn set_xattr(r: &mut Reader) -> Result<SetXattr, DecodeError> {
    let (ino, name, value) = (ino(r)?, long(r)?, long(r)?);
    let mode = match r.u8("xattr mode")? {
        0 => XattrMode::Any,
        1 => XattrMode::Create,
        2 => XattrMode::Replace,
        _ => return Err(DecodeError::Unknown("xattr mode")),
    };
    Ok(SetXattr { ino, name, value, mode, privileged: flag(r)?, kill_sgid: flag(r)? })
}

fn allocate(r: &mut Reader) -> Result<Op, DecodeError> {
    let ino = ino(r)?;
    let mode = match r.u8("allocation mode")? {
        0 => AllocateMode::Reserve,
        1 => AllocateMode::ReserveKeepSize,
        2 => AllocateMode::Punch,
        3 => AllocateMode::Zero,
        4 => AllocateMode::ZeroKeepSize,
        _ => return Err(DecodeError::Unknown("allocation mode")),
    };
    let (offset, len) = (r.u64("offset")?, r.u64("length")?);
    Ok(Op::Allocate(Allocate { ino, mode, offset, len, kill_priv: flag(r)? }))
}
