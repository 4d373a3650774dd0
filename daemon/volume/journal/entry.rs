//! What the journal remembers, as bytes.
//!
//! Owns: the entry's strict form. FORMAT.md has the table.
//! Invariant: entries are numbered by their place (`Seq`); an entry decodes only as what was
//! encoded.

use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::{Attempt, Ino, Position};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::Op;

/// The number of an entry of one journal, from 1, without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seq(pub u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// An operation that was acknowledged, or is about to be.
    Op {
        /// The time it was planned with.
        now: Stamp,
        /// Where the log stood when it was planned.
        base: Position,
        /// For the sealed data of one inode: `Data` of that inode before this entry is in it, or
        /// `Appended` of it in an append.
        covers: Option<Seq>,
        op: Op,
    },
    /// Bytes written and closed, not sealed yet.
    Data { ino: Ino, offset: u64, mtime: Stamp, kill_priv: bool, bytes: Vec<u8> },
    /// Bytes appended and closed, not sealed yet, in the order of their entries.
    Appended { ino: Ino, mtime: Stamp, kill_priv: bool, bytes: Vec<u8> },
    /// A commit was proposed as (attempt, n); it holds every `Op` before `until`.
    Proposed { attempt: Attempt, n: u64, until: Seq },
    /// Operations of these numbers were refused and, where they still stand, planned again before this.
    Dropped { from: Seq, until: Seq },
}

const OP: u8 = 1;
const DATA: u8 = 2;
const PROPOSED: u8 = 3;
const DROPPED: u8 = 4;
const APPENDED: u8 = 5;
/// One write of the kernel, and then some.
const DATA_BYTES_MAX: usize = 8 << 20;
const OP_BYTES_MAX: usize = 1 << 20;

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Entry::Op { now, base, covers, op } => {
                stamp(out.u8(OP), *now).u64(base.0).u64(covers.map_or(0, |seq| seq.0));
                out.bytes(&op.encode());
            }
            Entry::Data { ino, offset, mtime, kill_priv, bytes } => {
                stamp(out.u8(DATA).u64(ino.0).u64(*offset), *mtime);
                out.u8(u8::from(*kill_priv)).bytes(bytes);
            }
            Entry::Appended { ino, mtime, kill_priv, bytes } => {
                stamp(out.u8(APPENDED).u64(ino.0), *mtime);
                out.u8(u8::from(*kill_priv)).bytes(bytes);
            }
            Entry::Proposed { attempt, n, until } => {
                out.u8(PROPOSED).u32(attempt.0).u64(*n).u64(until.0);
            }
            Entry::Dropped { from, until } => {
                out.u8(DROPPED).u64(from.0).u64(until.0);
            }
        }
        out.finish()
    }

    /// The numbers that this entry takes back.
    pub fn dropped(&self) -> Option<(Seq, Seq)> {
        match self {
            Entry::Dropped { from, until } => Some((*from, *until)),
            _ => None,
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let entry = match input.u8("kind of entry")? {
            OP => Entry::Op {
                now: read_stamp(&mut input)?,
                base: Position(input.u64("base")?),
                covers: Some(Seq(input.u64("cover")?)).filter(|seq| seq.0 != 0),
                op: Op::decode(input.bytes(OP_BYTES_MAX, "operation")?)?,
            },
            DATA => Entry::Data {
                ino: Ino(input.u64("inode")?),
                offset: input.u64("offset")?,
                mtime: read_stamp(&mut input)?,
                kill_priv: read_flag(&mut input)?,
                bytes: input.bytes(DATA_BYTES_MAX, "data")?.to_vec(),
            },
            APPENDED => Entry::Appended {
                ino: Ino(input.u64("inode")?),
                mtime: read_stamp(&mut input)?,
                kill_priv: read_flag(&mut input)?,
                bytes: input.bytes(DATA_BYTES_MAX, "data")?.to_vec(),
            },
            PROPOSED => Entry::Proposed {
                attempt: Attempt(input.u32("attempt")?),
                n: input.u64("number")?,
                until: Seq(input.u64("until")?),
            },
            DROPPED => {
                Entry::Dropped { from: Seq(input.u64("from")?), until: Seq(input.u64("until")?) }
            }
            _ => return Err(DecodeError::Unknown("kind of entry")),
        };
        input.finish()?;
        Ok(entry)
    }
}

fn stamp(out: &mut Writer, stamp: Stamp) -> &mut Writer {
    out.i64(stamp.secs).u32(stamp.nanos)
}

fn read_flag(input: &mut Reader) -> Result<bool, DecodeError> {
    match input.u8("kill flag")? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::NotCanonical("kill flag")),
    }
}

fn read_stamp(input: &mut Reader) -> Result<Stamp, DecodeError> {
    let stamp = Stamp { secs: input.i64("seconds")?, nanos: input.u32("nanoseconds")? };
    match stamp.nanos < 1_000_000_000 {
        true => Ok(stamp),
        false => Err(DecodeError::NotCanonical("nanoseconds")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_went_in() {
        let now = Stamp { secs: -5, nanos: 7 };
        for entry in [
            Entry::Op { now, base: Position(9), covers: None, op: Op::Reap { ino: Ino(7) } },
            Entry::Op {
                now,
                base: Position(9),
                covers: Some(Seq(3)),
                op: Op::Reap { ino: Ino(7) },
            },
            Entry::Data {
                ino: Ino(7),
                offset: 1 << 40,
                mtime: now,
                kill_priv: true,
                bytes: b"x".to_vec(),
            },
            Entry::Appended { ino: Ino(7), mtime: now, kill_priv: false, bytes: b"xy".to_vec() },
            Entry::Proposed { attempt: Attempt(1), n: 2, until: Seq(3) },
            Entry::Dropped { from: Seq(1), until: Seq(3) },
        ] {
            let bytes = entry.encode();
            assert_eq!(Entry::decode(&bytes), Ok(entry));
            assert!(Entry::decode(&bytes[..bytes.len() - 1]).is_err());
            assert!(Entry::decode(&[&bytes[..], &[0]].concat()).is_err());
        }
    }

    /// docs/FORMAT.md has the table; a journal outlives the program that wrote it.
    #[test]
    fn an_entry_has_its_golden_bytes() {
        let mtime = Stamp { secs: 2, nanos: 3 };
        let entry = Entry::Appended { ino: Ino(7), mtime, kill_priv: true, bytes: b"xy".to_vec() };
        let golden =
            [&[5, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0][..], &[3, 0, 0, 0, 1, 2]];
        assert_eq!(entry.encode(), [&golden.concat()[..], b"xy"].concat());
    }
}
