//! A commit's write set as the bytes that are sealed: the payload.
//!
//! Owns: its strict form, and what chunks it refers to.
//! Invariant: a write set has one form; what decodes is what `encode` would have written.
//!
//! ```text
//! version u8 = 1
//! ranges  varint count, each: from (varint length, bytes), to (the same); sorted, apart
//! changes varint count, each: key (varint length, bytes), then
//!         0                                     delete
//!         1, value (varint length, bytes)       put
//!         2, merge                              inode: fields u16, then the fields; counter: i64
//!         sorted by key, each key once; no delete, and no merge, within a range
//! ```

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::ChunkId;
use crate::meta::inode::InodeMerge;
use crate::meta::key::{KEY_MAX, KeyBytes, KeyKind, Span};
use crate::meta::value::{Value, XATTR_VALUE_MAX};
use crate::meta::write::{Change, Merge, WriteSet};

const VERSION: u8 = 1;
/// The largest value is an attribute's, and its version byte.
const VALUE_MAX: usize = XATTR_VALUE_MAX + 1;

pub fn encode(writes: &WriteSet) -> Vec<u8> {
    let mut out = Writer::new();
    out.u8(VERSION).varint(writes.ranges().count() as u64);
    for (from, to) in writes.ranges() {
        out.bytes(from).bytes(to);
    }
    out.varint(writes.changes().count() as u64);
    for (key, change) in writes.changes() {
        encode_change(change, out.bytes(key));
    }
    out.finish()
}

pub fn decode(bytes: &[u8]) -> Result<WriteSet, DecodeError> {
    let mut input = Reader::new(bytes);
    match input.u8("payload version")? {
        VERSION => (),
        other => return Err(DecodeError::Version(other)),
    }
    let mut writes = WriteSet::new();
    let mut last: &[u8] = &[];
    for _ in 0..input.count(2, "ranges")? {
        let from = input.bytes(KEY_MAX, "range start")?;
        let to = input.bytes(KEY_MAX, "range end")?;
        if from < last || from >= to {
            return Err(DecodeError::NotCanonical("range"));
        }
        last = to;
        writes.delete_span(Span { from: from.to_vec(), to: to.to_vec() });
    }
    let mut last: &[u8] = &[];
    for _ in 0..input.count(3, "changes")? {
        let bytes = input.bytes(KEY_MAX, "key")?;
        let key = KeyBytes::parse(bytes)?;
        let change = decode_change(&key, &mut input)?;
        let needless = !matches!(change, Change::Put(_)) && writes.is_in_range(&key);
        if bytes <= last || needless {
            return Err(DecodeError::NotCanonical("change"));
        }
        last = bytes;
        writes.change(key, change);
    }
    input.finish()?;
    Ok(writes)
}

/// The data chunks that it refers to: the links of the payload's chunk, in clear.
pub fn links(writes: &WriteSet) -> Vec<ChunkId> {
    let chunk = |change: &Change| match change {
        Change::Put(Value::Extent(extent)) => Some(extent.chunk),
        _ => None,
    };
    let mut links: Vec<ChunkId> = writes.changes().filter_map(|(_, c)| chunk(c)).collect();
    links.sort_unstable();
    links.dedup();
    links
}

/// A change without its key; also how a spilled run of an overlay keeps it.
pub(crate) fn encode_change(change: &Change, out: &mut Writer) {
    match change {
        Change::Delete => out.u8(0),
        Change::Put(value) => out.u8(1).bytes(&value.encode()),
        Change::Merge(Merge::Counter(by)) => out.u8(2).i64(*by),
        Change::Merge(Merge::Inode(merge)) => {
            merge.encode(out.u8(2));
            out
        }
    };
}

pub(crate) fn decode_change(key: &KeyBytes, input: &mut Reader) -> Result<Change, DecodeError> {
    Ok(match input.u8("change")? {
        0 => Change::Delete,
        1 => Change::Put(Value::decode(&key.key(), input.bytes(VALUE_MAX, "value")?)?),
        2 => Change::Merge(match key.kind() {
            KeyKind::Inode => Merge::Inode(InodeMerge::decode(input)?),
            KeyKind::Counter => Merge::Counter(input.i64("counter")?),
            _ => return Err(DecodeError::Unknown("merge")),
        }),
        _ => return Err(DecodeError::Unknown("change")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Ino;
    use crate::meta::key::Key;
    use crate::meta::write::tests::write_sets;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_write_set_survives_its_bytes(writes in write_sets()) {
            let bytes = encode(&writes);
            prop_assert!(bytes.len() <= writes.size_bytes() + 3);
            prop_assert_eq!(decode(&bytes), Ok(writes));
        }

        #[test]
        fn a_flipped_byte_is_refused_or_canonical(
            writes in write_sets(), at in any::<prop::sample::Index>(), to in any::<u8>(),
        ) {
            let mut bytes = encode(&writes);
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(writes) = decode(&bytes) {
                prop_assert_eq!(encode(&writes), bytes);
            }
        }
    }

    #[test]
    fn a_change_that_a_range_makes_needless_is_refused() {
        let mut writes = WriteSet::new();
        writes.delete_span(Span::xattrs(Ino(1)));
        let mut bytes = encode(&writes);
        let mut delete = WriteSet::new();
        delete.delete(Key::Xattr { ino: Ino(1), name: b"user.a".as_slice().into() });
        bytes.pop();
        bytes.extend(&encode(&delete)[2..]);
        assert_eq!(decode(&bytes), Err(DecodeError::NotCanonical("change")));
    }

    #[test]
    fn links_are_the_chunks_of_the_extents() {
        assert_eq!(links(&WriteSet::new()), []);
    }
}
