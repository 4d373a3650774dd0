//! What the journal remembers, as bytes.
//!
//! Owns: the entry's strict form. FORMAT.md has the table.
//! Invariant: entries are numbered by their place (`Seq`); an entry decodes only as what was
//! encoded.

use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::{Attempt, Ino, Position, SessionId};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{Op, Write};

/// The number of an entry of one journal, from 1, without gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Seq(pub u64);

/// An entry in the journal of an earlier session: one with bytes stands for all of its kind and of
/// its inode before it, too. Or an operation of the same session that was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Origin {
    pub session: SessionId,
    pub seq: Seq,
}

/// Where bytes that wait to be sealed are in journals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Journaled {
    /// This journal is needed from there on.
    pub first: Seq,
    /// The last of those in the journal that is taken over.
    pub origin: Option<Origin>,
}

impl Journaled {
    pub fn here(first: Seq) -> Self {
        Self { first, origin: None }
    }

    /// With those of `since`, which came later.
    pub fn and(self, since: Option<Self>) -> Self {
        let Some(since) = since else { return self };
        let origin = since.origin.or(self.origin);
        Self { first: self.first.min(since.first), origin }
    }
}

/// What of journals an operation holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Holds {
    /// For the sealed data of one inode: `Data` of that inode before this entry is in it, or
    /// `Appended` of it in an append.
    pub covers: Option<Seq>,
    /// It was taken over: what this stands for is not to be done again once it is committed. Or it
    /// was planned again: it counts from when the number that this names is noted as dropped.
    pub origin: Option<Origin>,
}

impl Holds {
    /// Of the plan that takes the place of `first`. What was taken over is known by where from.
    pub fn again_for(self, first: Origin) -> Self {
        let taken_over = self.origin.filter(|origin| origin.session != first.session);
        Self { origin: taken_over.or(Some(first)), ..self }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// An operation that was acknowledged, or is about to be.
    Op {
        /// The time it was planned with.
        now: Stamp,
        /// Where the log stood when it was planned.
        base: Position,
        holds: Holds,
        op: Op,
    },
    /// Bytes written and closed, not sealed yet.
    Data {
        /// Where the log stood then; journals of earlier programs do not say it.
        base: Option<Position>,
        ino: Ino,
        offset: u64,
        mtime: Stamp,
        kill_priv: bool,
        bytes: Vec<u8>,
    },
    /// Bytes appended and closed, not sealed yet, in the order of their entries.
    Appended { ino: Ino, mtime: Stamp, kill_priv: bool, bytes: Vec<u8> },
    /// What the copy of entry `copy` placed: `len` bytes, those of the extents, and else zeros. In
    /// another's hands its source may be gone.
    Copied { copy: Seq, len: u64, write: Write },
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
/// As `OP`, with an origin.
const STANDS_FOR: u8 = 6;
const COPIED: u8 = 7;
/// As `DATA`, with a base.
const DATA_AT: u8 = 8;
/// One write of the kernel, and then some.
const DATA_BYTES_MAX: usize = 8 << 20;
const OP_BYTES_MAX: usize = 1 << 20;

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            Entry::Op { now, base, holds: Holds { covers, origin }, op } => {
                let kind = if origin.is_some() { STANDS_FOR } else { OP };
                stamp(out.u8(kind), *now).u64(base.0).u64(covers.map_or(0, |seq| seq.0));
                if let Some(Origin { session, seq }) = origin {
                    out.u32(session.0).u64(seq.0);
                }
                out.bytes(&op.encode());
            }
            Entry::Data { base, ino, offset, mtime, kill_priv, bytes } => {
                match base {
                    Some(base) => out.u8(DATA_AT).u64(base.0),
                    None => out.u8(DATA),
                };
                stamp(out.u64(ino.0).u64(*offset), *mtime);
                out.u8(u8::from(*kill_priv)).bytes(bytes);
            }
            Entry::Appended { ino, mtime, kill_priv, bytes } => {
                stamp(out.u8(APPENDED).u64(ino.0), *mtime);
                out.u8(u8::from(*kill_priv)).bytes(bytes);
            }
            Entry::Copied { copy, len, write } => {
                out.u8(COPIED).u64(copy.0).u64(*len).bytes(&Op::Write(write.clone()).encode());
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

    pub fn origin(&self) -> Option<Origin> {
        match self {
            Entry::Op { holds, .. } => holds.origin,
            _ => None,
        }
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
            kind @ (OP | STANDS_FOR) => {
                let now = read_stamp(&mut input)?;
                let base = Position(input.u64("base")?);
                let covers = Some(Seq(input.u64("cover")?)).filter(|seq| seq.0 != 0);
                let origin = match kind {
                    OP => None,
                    _ => Some(read_origin(&mut input)?),
                };
                let op = Op::decode(input.bytes(OP_BYTES_MAX, "operation")?)?;
                Entry::Op { now, base, holds: Holds { covers, origin }, op }
            }
            kind @ (DATA | DATA_AT) => Entry::Data {
                base: (kind == DATA_AT).then(|| input.u64("base")).transpose()?.map(Position),
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
            COPIED => Entry::Copied {
                copy: Seq(input.u64("copy")?),
                len: input.u64("length")?,
                write: match Op::decode(input.bytes(OP_BYTES_MAX, "operation")?)? {
                    Op::Write(write) => write,
                    _ => return Err(DecodeError::NotCanonical("what a copy placed")),
                },
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

/// Sessions and entries are numbered from 1.
fn read_origin(input: &mut Reader) -> Result<Origin, DecodeError> {
    let (session, seq) = (SessionId(input.u32("session")?), Seq(input.u64("origin")?));
    match session.0 != 0 && seq.0 != 0 {
        true => Ok(Origin { session, seq }),
        false => Err(DecodeError::NotCanonical("origin")),
    }
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

    fn data(base: Option<Position>) -> Entry {
        let (mtime, bytes) = (Stamp { secs: 2, nanos: 3 }, b"xy".to_vec());
        Entry::Data { base, ino: Ino(7), offset: 1 << 40, mtime, kill_priv: true, bytes }
    }

    fn write() -> Write {
        let mtime = Stamp { secs: 2, nanos: 3 };
        Write { ino: Ino(7), extents: Vec::new(), end: 9, mtime, kill_priv: false }
    }

    #[test]
    fn entries_come_back_as_they_went_in() {
        let now = Stamp { secs: -5, nanos: 7 };
        let op = |covers, origin| {
            let holds = Holds { covers, origin };
            Entry::Op { now, base: Position(9), holds, op: Op::Reap { ino: Ino(7) } }
        };
        for entry in [
            op(None, None),
            op(Some(Seq(3)), None),
            op(None, Some(Origin { session: SessionId(4), seq: Seq(5) })),
            op(Some(Seq(3)), Some(Origin { session: SessionId(4), seq: Seq(5) })),
            data(None),
            data(Some(Position(9))),
            Entry::Appended { ino: Ino(7), mtime: now, kill_priv: false, bytes: b"xy".to_vec() },
            Entry::Copied { copy: Seq(3), len: 9, write: write() },
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
        let origin = Some(Origin { session: SessionId(4), seq: Seq(5) });
        let (holds, op) = (Holds { covers: None, origin }, Op::Reap { ino: Ino(7) });
        let entry = Entry::Op { now: mtime, base: Position(9), holds, op: op.clone() };
        let golden = [
            &[6, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0][..], // kind and time
            &[9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], // base and covers
            &[4, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, op.encode().len() as u8], // origin
            &op.encode(),
        ];
        let bytes = golden.concat();
        assert_eq!((entry.encode(), Entry::decode(&bytes)), (bytes.clone(), Ok(entry)));
        let golden = [&[8, 9, 0, 0, 0, 0, 0, 0, 0][..], &data(None).encode()[1..]].concat();
        assert_eq!(data(Some(Position(9))).encode(), golden);
        let op = Op::Write(write()).encode();
        let entry = Entry::Copied { copy: Seq(4), len: 9, write: write() };
        let golden =
            [&[7, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, op.len() as u8], &op[..]];
        assert_eq!(entry.encode(), golden.concat());
        for zero in [29..33, 33..41] {
            let mut nobodys = bytes.clone();
            nobodys[zero].fill(0);
            assert_eq!(Entry::decode(&nobodys), Err(DecodeError::NotCanonical("origin")));
        }
    }
}
