//! Keys of the ordered map that a volume is.
//!
//! Owns: what keys exist, their bytes, and the spans of keys that belong together.
//! Invariant: keys sort as their bytes do; one key has one encoding.
//!
//! ```text
//! c number                       counter            e inode offset            extent
//! d directory hash name          dirent             h session                 heir
//! i inode                        inode              o inode                   orphan
//! s number                       setting            x inode name              extended attribute
//! ```
//! The letter is one byte; inode, offset and hash are 8 bytes, a session 4, big-endian.

use crate::codec::{DecodeError, Reader};
use crate::hash;
use crate::id::{Ino, Name, SessionId};
use serde::{Deserialize, Serialize};
use std::borrow::Borrow;
use std::cmp::Ordering;

/// Dirent hashes, which are readdir cookies too, are below this: `off_t` is signed, and two bits
/// are left to the kernel's side for marks of its own.
pub const HASH_END: u64 = 1 << 62;
/// Cookies below this are reserved: 0 begins a listing, 1 and 2 follow `.` and `..`.
pub const HASH_FIRST: u64 = 3;
/// An extended attribute's name has 1 to this many bytes.
pub const XATTR_NAME_MAX: usize = 255;
/// No encoded key is longer: a dirent with a name of 255 bytes.
pub const KEY_MAX: usize = 1 + 8 + 8 + 255;

/// One key of a volume's map. The order of the variants is that of their first bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Key {
    /// A usage counter.
    Counter(u8),
    /// A name in a directory. `hash` is 62 bits and at least [`HASH_FIRST`].
    Dirent {
        dir: Ino,
        hash: u64,
        name: Name,
    },
    /// A run of a file's bytes, from `offset`.
    Extent {
        ino: Ino,
        offset: u64,
    },
    /// A session that took another's place. It stands in the map because what a commit may make
    /// depends on it, for those too who begin after the fence.
    Heir(SessionId),
    Inode(Ino),
    /// An inode without a name, which waits for its last close.
    Orphan(Ino),
    /// A setting of the volume.
    Setting(u8),
    /// `name` has 1 to 255 bytes, none of them NUL.
    Xattr {
        ino: Ino,
        name: Box<[u8]>,
    },
}

/// What sort of key it is; a value's form follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KeyKind {
    Counter,
    Dirent,
    Extent,
    Heir,
    Inode,
    Orphan,
    Setting,
    Xattr,
}

impl KeyKind {
    fn letter(self) -> u8 {
        match self {
            Self::Counter => b'c',
            Self::Dirent => b'd',
            Self::Extent => b'e',
            Self::Heir => b'h',
            Self::Inode => b'i',
            Self::Orphan => b'o',
            Self::Setting => b's',
            Self::Xattr => b'x',
        }
    }

    fn of(letter: u8) -> Result<Self, DecodeError> {
        Ok(match letter {
            b'c' => Self::Counter,
            b'd' => Self::Dirent,
            b'e' => Self::Extent,
            b'h' => Self::Heir,
            b'i' => Self::Inode,
            b'o' => Self::Orphan,
            b's' => Self::Setting,
            b'x' => Self::Xattr,
            _ => return Err(DecodeError::Unknown("key")),
        })
    }
}

impl Key {
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Counter(_) => KeyKind::Counter,
            Self::Dirent { .. } => KeyKind::Dirent,
            Self::Extent { .. } => KeyKind::Extent,
            Self::Heir(_) => KeyKind::Heir,
            Self::Inode(_) => KeyKind::Inode,
            Self::Orphan(_) => KeyKind::Orphan,
            Self::Setting(_) => KeyKind::Setting,
            Self::Xattr { .. } => KeyKind::Xattr,
        }
    }

    pub fn encode(&self) -> KeyBytes {
        let mut out = Vec::with_capacity(17);
        out.push(self.kind().letter());
        match self {
            Self::Counter(n) | Self::Setting(n) => out.push(*n),
            Self::Inode(ino) | Self::Orphan(ino) => out.extend(ino.0.to_be_bytes()),
            Self::Heir(session) => out.extend(session.0.to_be_bytes()),
            Self::Extent { ino, offset } => {
                out.extend(ino.0.to_be_bytes());
                out.extend(offset.to_be_bytes());
            }
            Self::Dirent { dir, hash, name } => {
                assert!((HASH_FIRST..HASH_END).contains(hash), "a dirent hash has 62 bits, from 3");
                out.reserve_exact(16 + name.as_bytes().len());
                out.extend(dir.0.to_be_bytes());
                out.extend(hash.to_be_bytes());
                out.extend(name.as_bytes());
            }
            Self::Xattr { ino, name } => {
                assert!(xattr_name(name), "an attribute name has 1 to 255 bytes, none NUL");
                out.reserve_exact(8 + name.len());
                out.extend(ino.0.to_be_bytes());
                out.extend(name.iter());
            }
        }
        KeyBytes(out.into_boxed_slice())
    }

    /// Strict: whatever it accepts, `encode` would have written.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        let key = match KeyKind::of(input.u8("key")?)? {
            KeyKind::Counter => Self::Counter(input.u8("counter number")?),
            KeyKind::Setting => Self::Setting(input.u8("setting number")?),
            KeyKind::Heir => Self::Heir(SessionId(u32::from_be_bytes(input.array("session")?))),
            KeyKind::Inode => Self::Inode(ino(&mut input)?),
            KeyKind::Orphan => Self::Orphan(ino(&mut input)?),
            KeyKind::Extent => Self::Extent { ino: ino(&mut input)?, offset: be64(&mut input)? },
            KeyKind::Dirent => {
                let dir = ino(&mut input)?;
                let hash = be64(&mut input)?;
                if !(HASH_FIRST..HASH_END).contains(&hash) {
                    return Err(DecodeError::NotCanonical("dirent hash"));
                }
                let name = Name::parse(input.raw(input.rest().len(), "name")?)
                    .map_err(|_| DecodeError::NotCanonical("name"))?;
                Self::Dirent { dir, hash, name }
            }
            KeyKind::Xattr => {
                let ino = ino(&mut input)?;
                let name = input.raw(input.rest().len(), "attribute name")?;
                if !xattr_name(name) {
                    return Err(DecodeError::NotCanonical("attribute name"));
                }
                Self::Xattr { ino, name: name.into() }
            }
        };
        input.finish()?;
        Ok(key)
    }
}

fn xattr_name(name: &[u8]) -> bool {
    matches!(name.len(), 1..=XATTR_NAME_MAX) && !name.contains(&0)
}

fn be64(input: &mut Reader) -> Result<u64, DecodeError> {
    Ok(u64::from_be_bytes(input.array("number")?))
}

fn ino(input: &mut Reader) -> Result<Ino, DecodeError> {
    be64(input).and_then(checked_ino)
}

/// An inode number out of somebody's bytes. `Span`s end at the next number, so the last ones are
/// never valid, and no key of one can be made.
pub(crate) fn checked_ino(number: u64) -> Result<Ino, DecodeError> {
    match number {
        1..=0x7fff_ffff_ffff_ffff => Ok(Ino(number)),
        _ => Err(DecodeError::NotCanonical("inode number")),
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        self.kind().cmp(&other.kind()).then_with(|| match (self, other) {
            (Self::Counter(a), Self::Counter(b)) | (Self::Setting(a), Self::Setting(b)) => a.cmp(b),
            (Self::Inode(a), Self::Inode(b)) | (Self::Orphan(a), Self::Orphan(b)) => a.cmp(b),
            (Self::Heir(a), Self::Heir(b)) => a.cmp(b),
            (Self::Extent { ino: a, offset: x }, Self::Extent { ino: b, offset: y }) => {
                (a, x).cmp(&(b, y))
            }
            (
                Self::Dirent { dir: a, hash: x, name: m },
                Self::Dirent { dir: b, hash: y, name: n },
            ) => (a, x, m).cmp(&(b, y, n)),
            (Self::Xattr { ino: a, name: m }, Self::Xattr { ino: b, name: n }) => {
                (a, m).cmp(&(b, n))
            }
            _ => unreachable!("the kinds are equal"),
        })
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A key in its encoded form, well formed; maps are ordered by it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyBytes(Box<[u8]>);

impl KeyBytes {
    /// Strict, as [`Key::decode`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        Key::decode(bytes).map(|_| Self(bytes.into()))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn kind(&self) -> KeyKind {
        KeyKind::of(self.0[0]).expect("only well-formed keys are made")
    }

    pub fn key(&self) -> Key {
        Key::decode(&self.0).expect("only well-formed keys are made")
    }
}

impl Borrow<[u8]> for KeyBytes {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl std::ops::Deref for KeyBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for KeyBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.key().fmt(f)
    }
}

/// A half-open span `[from, to)` of encoded keys, for listing and for range deletes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    pub(crate) from: Vec<u8>,
    pub(crate) to: Vec<u8>,
}

impl Span {
    /// All dirents of `dir`, in the order of their hashes.
    pub fn children(dir: Ino) -> Self {
        Self::whole(KeyKind::Dirent, dir)
    }

    /// The dirents of `dir` from `hash` on: what a listing continues with.
    pub fn children_from(dir: Ino, hash: u64) -> Self {
        let mut span = Self::children(dir);
        span.from.extend(hash.to_be_bytes());
        span
    }

    /// The dirents of `dir` with exactly `hash`: where a name is looked up.
    pub fn children_at(dir: Ino, hash: u64) -> Self {
        let mut span = Self::children_from(dir, hash);
        span.to.clone_from(&span.from);
        span.to.truncate(9);
        span.to.extend((hash + 1).to_be_bytes());
        span
    }

    /// The extents of `ino` that begin in `[from, to)`.
    pub fn extents(ino: Ino, from: u64, to: u64) -> Self {
        let key = |offset| Key::Extent { ino, offset }.encode().as_bytes().to_vec();
        Self { from: key(from), to: key(to) }
    }

    /// The extents of `ino` that begin at `from` or later.
    pub fn extents_from(ino: Ino, from: u64) -> Self {
        let to = Self::whole(KeyKind::Extent, ino).to;
        Self { from: Key::Extent { ino, offset: from }.encode().as_bytes().to_vec(), to }
    }

    pub fn xattrs(ino: Ino) -> Self {
        Self::whole(KeyKind::Xattr, ino)
    }

    pub fn orphans() -> Self {
        Self { from: vec![b'o'], to: vec![b'o' + 1] }
    }

    pub fn inodes() -> Self {
        Self { from: vec![b'i'], to: vec![b'i' + 1] }
    }

    /// The whole map.
    pub fn all() -> Self {
        Self { from: vec![], to: vec![0xff] }
    }

    fn whole(kind: KeyKind, ino: Ino) -> Self {
        assert!(ino.0 < u64::MAX, "the last inode number is never granted");
        let edge = |ino: u64| {
            let mut out = vec![kind.letter()];
            out.extend(ino.to_be_bytes());
            out
        };
        Self { from: edge(ino.0), to: edge(ino.0 + 1) }
    }

    pub fn from(&self) -> &[u8] {
        &self.from
    }

    pub fn to(&self) -> &[u8] {
        &self.to
    }

    pub fn contains(&self, key: &[u8]) -> bool {
        self.from.as_slice() <= key && key < self.to.as_slice()
    }

    pub fn is_empty(&self) -> bool {
        self.from >= self.to
    }

    /// The same span without all that comes before or at `key`: how a paged listing goes on.
    pub fn after(&self, key: &[u8]) -> Self {
        let mut from = key.to_vec();
        from.push(0);
        Self { from: from.max(self.from.clone()), to: self.to.clone() }
    }
}

impl std::fmt::Debug for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "[{}, {})", hex::encode(&self.from), hex::encode(&self.to))
    }
}

/// Where the search for `name` in `dir` begins: 62 bits of a keyed hash, [`HASH_FIRST`] or more.
/// The directory is hashed too, so that equal names in two directories cannot be told.
pub fn dirent_hash(dirent_key: &[u8; 32], dir: Ino, name: &Name) -> u64 {
    let digest = hash::keyed(dirent_key, &[&dir.0.to_le_bytes(), name.as_bytes()]);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    HASH_FIRST + u64::from_le_bytes(first) % (HASH_END - HASH_FIRST)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Keys from a small alphabet, so that they meet.
    pub(crate) fn keys() -> impl Strategy<Value = Key> {
        let ino = prop_oneof![Just(1u64), Just(1 << 32 | 1), Just(1 << 32 | 2), Just(2 << 32 | 1)];
        let ino = ino.prop_map(Ino);
        prop_oneof![
            (0..3u8).prop_map(Key::Counter),
            (0..2u8).prop_map(Key::Setting),
            (0..3u32).prop_map(|n| Key::Heir(SessionId(n << 7))),
            ino.clone().prop_map(Key::Inode),
            ino.clone().prop_map(Key::Orphan),
            (ino.clone(), 0..6u64).prop_map(|(ino, n)| Key::Extent { ino, offset: n * 300_000 }),
            (ino.clone(), 3..6u64, "[ab]{1,2}").prop_map(|(dir, hash, name)| Key::Dirent {
                dir,
                hash,
                name: Name::parse(name.as_bytes()).expect("good"),
            }),
            (ino, "user\\.[ab]")
                .prop_map(|(ino, name)| Key::Xattr { ino, name: name.into_bytes().into() }),
        ]
    }

    proptest! {
        #[test]
        fn keys_sort_as_their_bytes(a in keys(), b in keys()) {
            prop_assert_eq!(a.cmp(&b), a.encode().cmp(&b.encode()));
        }

        #[test]
        fn a_key_survives_its_bytes(key in keys()) {
            prop_assert_eq!(Key::decode(&key.encode()), Ok(key));
        }

        #[test]
        fn whatever_decodes_is_what_encode_writes(
            letter in "[cdehiosx]", rest in prop::collection::vec(0..4u8, 0..20),
        ) {
            let bytes = [letter.as_bytes(), &rest].concat();
            if let Ok(key) = Key::decode(&bytes) {
                prop_assert_eq!(&key.encode()[..], &bytes[..]);
            }
        }
    }

    #[test]
    fn malformed_keys_are_refused() {
        let zero = [0; 8];
        let one = 1u64.to_be_bytes();
        let three = 3u64.to_be_bytes();
        let bad: [&[u8]; 10] = [
            b"",
            b"a",
            b"c",
            b"c\x01\x02",
            b"h\x00\x00\x01",
            &[b"i".as_slice(), &zero].concat(),
            &[b"i".as_slice(), &[0xff; 8]].concat(),
            &[b"d".as_slice(), &one, &one, b"name"].concat(),
            &[b"d".as_slice(), &one, &three, b"a/b"].concat(),
            &[b"x".as_slice(), &one, b"a\0"].concat(),
        ];
        for bytes in bad {
            assert!(Key::decode(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn spans_hold_what_belongs_together() {
        let name = |n: &str| Name::parse(n.as_bytes()).expect("good");
        let dirent = |dir, hash, n| Key::Dirent { dir: Ino(dir), hash, name: name(n) }.encode();
        assert!(Span::children(Ino(1)).contains(&dirent(1, HASH_END - 1, "z")));
        assert!(!Span::children(Ino(1)).contains(&dirent(2, 3, "a")));
        assert!(!Span::children_from(Ino(1), 4).contains(&dirent(1, 3, "z")));
        assert!(Span::children_at(Ino(1), 4).contains(&dirent(1, 4, "z")));
        assert!(!Span::children_at(Ino(1), 4).contains(&dirent(1, 5, "a")));
        let extent = |ino, offset| Key::Extent { ino: Ino(ino), offset }.encode();
        assert!(Span::extents_from(Ino(1), 7).contains(&extent(1, u64::MAX)));
        assert!(!Span::extents(Ino(1), 0, 7).contains(&extent(1, 7)));
        assert!(!Span::extents_from(Ino(1), 7).after(&extent(1, 9)).contains(&extent(1, 9)));
    }
}
