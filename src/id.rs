//! Newtypes for everything that has an identity or a unit.
//!
//! Owns: what a name, an address, a position or a time may look like.
//! Invariant: a value of these types is well formed; parsing happens once, at the edge.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// Parses 64 lower-case hex digits; anything else is `None`.
            pub fn from_hex(text: &str) -> Option<Self> {
                if text.bytes().any(|b| b.is_ascii_uppercase()) {
                    return None;
                }
                let mut out = [0; 32];
                hex::decode_to_slice(text, &mut out).ok()?;
                Some(Self(out))
            }

            pub fn to_hex(&self) -> String {
                hex::encode(self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({}…)", stringify!($name), hex::encode(&self.0[..6]))
            }
        }
    };
}

bytes32! {
    /// The address of a chunk: BLAKE3 of all its stored bytes.
    ChunkId
}
bytes32! {
    /// The network's name for machines: SHA-256 of the JCS bytes of the genesis record's `p`.
    NetworkId
}
bytes32! {
    /// A SHA-256 hash of the ledger: of a record, of a leaf or inner node of its tree, of its root.
    LedgerHash
}
bytes32! {
    /// The Ed25519 public key of a principal (a person, a device or a peer).
    PrincipalId
}
bytes32! {
    /// The keyed hash of a tree node's content, independent of epoch and sealing.
    NodeIdentity
}

/// A volume: 16 random bytes drawn when it is made; 32 lower-case hex digits in records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VolumeId(pub [u8; 16]);

impl VolumeId {
    /// Parses 32 lower-case hex digits; anything else is `None`.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return None;
        }
        let mut out = [0; 16];
        hex::decode_to_slice(text, &mut out).ok()?;
        Some(Self(out))
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VolumeId({self})")
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
        )]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A peer's number in its network, granted by its `net.peer` record, from 1, never reused.
    PeerId(u64)
}
number! {
    /// A live mount of a volume; unique in the network, from 1, never reused.
    SessionId(u32)
}
number! {
    /// A session's attempt: a refusal ends one, and everything of an older attempt is refused.
    Attempt(u32)
}
number! {
    /// The number of a generation of a volume's secrets, from 1.
    Epoch(u32)
}
number! {
    /// A record's index in the ledger, from 0.
    Position(u64)
}
number! {
    /// Milliseconds since 1970-01-01T00:00:00Z.
    TimeMs(u64)
}
number! {
    /// An inode number. 1 is the root; others are `session << 32 | n`, so that a session makes
    /// inodes out of its own block without asking, and none is ever used twice.
    Ino(u64)
}

impl Ino {
    pub const ROOT: Ino = Ino(1);

    /// The `n`th inode (from 1) of the block that came with `session`.
    pub fn of(session: SessionId, n: u32) -> Ino {
        assert!(session.0 > 0 && session.0 < 1 << 31, "session numbers are 31 bits, from 1");
        Ino((u64::from(session.0) << 32) | u64::from(n))
    }

    /// The session whose block holds this number; `None` for the root.
    pub fn session(self) -> Option<SessionId> {
        match (self.0 >> 32) as u32 {
            0 => None,
            session => Some(SessionId(session)),
        }
    }
}

/// Why bytes are not a file name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("an empty name")]
    Empty,
    #[error("a name of more than 255 bytes")]
    TooLong,
    #[error("a name with a slash or a NUL byte, or `.` or `..`")]
    Forbidden,
}

/// The name of a dirent: 1 to 255 bytes of anything but `/` and NUL, neither `.` nor `..`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name(Box<[u8]>);

impl Name {
    pub fn parse(bytes: &[u8]) -> Result<Self, NameError> {
        match bytes {
            [] => Err(NameError::Empty),
            _ if bytes.len() > 255 => Err(NameError::TooLong),
            b"." | b".." => Err(NameError::Forbidden),
            _ if bytes.iter().any(|b| *b == b'/' || *b == 0) => Err(NameError::Forbidden),
            _ => Ok(Self(bytes.into())),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// The name of a network, volume, actor or topic: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(String);

impl Label {
    /// `None` when `text` is not a label.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = text.as_bytes();
        let good = matches!(bytes.len(), 1..=63)
            && plain(bytes[0])
            && bytes.iter().all(|b| plain(*b) || b"._-".contains(b));
        good.then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A map by label is searched by plain text without making a label of it first.
impl std::borrow::Borrow<str> for Label {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Label {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
            .ok_or_else(|| format!("{text:?} is not a name [a-z0-9][a-z0-9._-]{{0,62}}"))
    }
}

impl From<Label> for String {
    fn from(label: Label) -> String {
        label.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_any_bytes_but_slash_nul_and_dots() {
        for good in [&b"a"[..], b"\xff\xfe", b"...", &[b'x'; 255]] {
            assert_eq!(Name::parse(good).expect("good").as_bytes(), good);
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_label_is_lower_case_and_short() {
        assert!(Label::parse("main").is_some() && Label::parse(&"a".repeat(63)).is_some());
        for bad in ["", "-a", "A", "a b", &"a".repeat(64), "é"] {
            assert!(Label::parse(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn an_inode_number_tells_its_session() {
        assert_eq!(Ino::of(SessionId(7), 3).session(), Some(SessionId(7)));
        assert_eq!(Ino::ROOT.session(), None);
    }
}
