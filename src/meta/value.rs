//! Values of the ordered map that a volume is.
//!
//! Owns: their strict bytes: a version byte, then the fields.
//! Invariant: the form of a value follows from its key; a pair that does not fit is never made.

use crate::codec::{DecodeError, Reader, Writer};
use crate::file::Extent;
use crate::id::{Ino, SessionId};
use crate::meta::inode::{FileKind, Inode};
use crate::meta::key::{Key, KeyKind, checked_ino};

/// An attribute value's most, as Linux has it.
pub const XATTR_VALUE_MAX: usize = 65_536;
/// A setting's most.
pub const SETTING_MAX: usize = 4_096;
const VERSION: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Value {
    Inode(Inode),
    Dirent {
        ino: Ino,
        kind: FileKind,
    },
    /// Its `offset` is the key's.
    Extent(Extent),
    Xattr(Box<[u8]>),
    Orphan,
    /// The session whose place it took.
    Heir(SessionId),
    Counter(i64),
    Setting(Box<[u8]>),
}

impl Value {
    /// What sort of key it belongs to.
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Inode(_) => KeyKind::Inode,
            Self::Dirent { .. } => KeyKind::Dirent,
            Self::Extent(_) => KeyKind::Extent,
            Self::Xattr(_) => KeyKind::Xattr,
            Self::Orphan => KeyKind::Orphan,
            Self::Heir(_) => KeyKind::Heir,
            Self::Counter(_) => KeyKind::Counter,
            Self::Setting(_) => KeyKind::Setting,
        }
    }

    /// Whether it may stand under `key`.
    pub fn fits(&self, key: &Key) -> bool {
        match (key, self) {
            (Key::Extent { offset, .. }, Self::Extent(extent)) => *offset == extent.offset,
            _ => key.kind() == self.kind(),
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        match self {
            // An extent has a version of its own, in the same place.
            Self::Extent(extent) => return extent.encode(),
            Self::Inode(inode) => inode.encode(out.u8(VERSION)),
            Self::Dirent { ino, kind } => {
                out.u8(VERSION).u8(*kind as u8).varint(ino.0);
            }
            Self::Xattr(bytes) => {
                assert!(bytes.len() <= XATTR_VALUE_MAX, "refused at the edge");
                out.u8(VERSION).raw(bytes);
            }
            Self::Setting(bytes) => {
                assert!(bytes.len() <= SETTING_MAX, "refused at the edge");
                out.u8(VERSION).raw(bytes);
            }
            Self::Orphan => {
                out.u8(VERSION);
            }
            Self::Heir(session) => {
                out.u8(VERSION).u32(session.0);
            }
            Self::Counter(n) => {
                out.u8(VERSION).i64(*n);
            }
        }
        out.finish()
    }

    /// The value under `key`. Strict: whatever it accepts, `encode` would have written.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Self, DecodeError> {
        if let Key::Extent { offset, .. } = key {
            return Ok(Self::Extent(Extent::decode(*offset, bytes)?));
        }
        let mut input = Reader::new(bytes);
        match input.u8("value version")? {
            VERSION => (),
            other => return Err(DecodeError::Version(other)),
        }
        let value = match key.kind() {
            KeyKind::Inode => Self::Inode(Inode::decode(&mut input)?),
            KeyKind::Dirent => {
                let kind = FileKind::decode(input.u8("file kind")?)?;
                Self::Dirent { ino: checked_ino(input.varint("inode number")?)?, kind }
            }
            KeyKind::Xattr => Self::Xattr(rest(&mut input, XATTR_VALUE_MAX)?),
            KeyKind::Setting => Self::Setting(rest(&mut input, SETTING_MAX)?),
            KeyKind::Orphan => Self::Orphan,
            KeyKind::Heir => Self::Heir(SessionId(input.u32("session")?)),
            KeyKind::Counter => Self::Counter(input.i64("counter")?),
            KeyKind::Extent => unreachable!("answered above"),
        };
        input.finish()?;
        Ok(value)
    }

    /// About what it takes in memory and at least what it takes encoded.
    pub(crate) fn weight(&self) -> usize {
        const FIXED: usize = 128;
        FIXED
            + match self {
                Self::Inode(inode) => inode.target.len(),
                Self::Xattr(bytes) | Self::Setting(bytes) => bytes.len(),
                _ => 0,
            }
    }
}

fn rest(input: &mut Reader, max: usize) -> Result<Box<[u8]>, DecodeError> {
    let len = input.rest().len();
    if len > max {
        return Err(DecodeError::TooLarge("value"));
    }
    Ok(input.raw(len, "value")?.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::id::ChunkId;
    use crate::meta::inode::tests::inodes;
    use crate::meta::key::tests::keys;
    use proptest::prelude::*;

    /// A key from a small alphabet and a value that fits it.
    pub(crate) fn entries() -> impl Strategy<Value = (Key, Value)> {
        (keys(), inodes(), 0..4u8).prop_map(|(key, inode, n)| {
            let value = match &key {
                Key::Counter(_) => Value::Counter(i64::from(n)),
                Key::Dirent { .. } => Value::Dirent { ino: Ino(2), kind: FileKind::File },
                Key::Extent { offset, .. } => Value::Extent(Extent {
                    offset: *offset,
                    len: u32::from(n) + 1,
                    chunk: ChunkId([n; 32]),
                    at: 7,
                    packed: None,
                }),
                Key::Heir(_) => Value::Heir(SessionId(n.into())),
                Key::Inode(_) => Value::Inode(inode),
                Key::Orphan(_) => Value::Orphan,
                Key::Setting(_) => Value::Setting([n].into()),
                Key::Xattr { .. } => Value::Xattr([n, n].into()),
            };
            (key, value)
        })
    }

    proptest! {
        #[test]
        fn a_value_survives_its_bytes((key, value) in entries()) {
            prop_assert!(value.fits(&key));
            let bytes = value.encode();
            prop_assert!(bytes.len() <= value.weight());
            prop_assert_eq!(Value::decode(&key, &bytes), Ok(value));
            let cut = Value::decode(&key, &bytes[..bytes.len() - 1]);
            let free_length = matches!(key, Key::Setting(_) | Key::Xattr { .. });
            prop_assert!(cut.is_err() || free_length);
        }

        #[test]
        fn whatever_decodes_is_what_encode_writes(
            key in keys(), bytes in prop::collection::vec(prop_oneof![0..3u8, any::<u8>()], 0..90),
        ) {
            let bytes = [&[1], &bytes[..]].concat();
            if let Ok(value) = Value::decode(&key, &bytes) {
                prop_assert_eq!(value.encode(), bytes);
            }
        }
    }

    #[test]
    fn another_version_is_refused() {
        let bytes = [2, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Value::decode(&Key::Counter(1), &bytes), Err(DecodeError::Version(2)));
    }
}
