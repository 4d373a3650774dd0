//! Inodes, and the changes to them that commute as far as they can.
//!
//! Owns: the fields of an inode and what a merge does to each.
//! Invariant: an existing inode is changed by merges only, field by field, in the order of the log;
//! applying `a.then(b)` is the same as applying `a` and then `b`.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::Ino;
use crate::meta::key::checked_ino;
use serde::{Deserialize, Serialize};

pub const SET_UID: u32 = 0o4000;
pub const SET_GID: u32 = 0o2000;
pub const STICKY: u32 = 0o1000;
/// A mode is these 12 bits; the file's kind is kept apart.
pub const MODE_MASK: u32 = 0o7777;
const GROUP_EXECUTE: u32 = 0o010;
/// Linux gives up above PATH_MAX, NUL included.
pub const TARGET_MAX: usize = 4_095;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FileKind {
    File = 1,
    Dir = 2,
    Symlink = 3,
    Fifo = 4,
    Socket = 5,
    CharDevice = 6,
    BlockDevice = 7,
}

impl FileKind {
    pub fn decode(byte: u8) -> Result<Self, DecodeError> {
        Ok(match byte {
            1 => Self::File,
            2 => Self::Dir,
            3 => Self::Symlink,
            4 => Self::Fifo,
            5 => Self::Socket,
            6 => Self::CharDevice,
            7 => Self::BlockDevice,
            _ => return Err(DecodeError::Unknown("file kind")),
        })
    }
}

/// A file time. `nanos` is below 1,000,000,000.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp {
    pub secs: i64,
    pub nanos: u32,
}

impl Stamp {
    fn encode(self, out: &mut Writer) {
        assert!(self.nanos < 1_000_000_000, "a second has 10^9 nanoseconds");
        out.i64(self.secs).u32(self.nanos);
    }

    fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let stamp = Self { secs: input.i64("seconds")?, nanos: input.u32("nanoseconds")? };
        match stamp.nanos {
            0..1_000_000_000 => Ok(stamp),
            _ => Err(DecodeError::NotCanonical("nanoseconds")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Inode {
    pub kind: FileKind,
    /// 12 bits: permissions, set-user-id, set-group-id, sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u32,
    pub size: u64,
    /// How many of them extents hold; the rest are holes.
    pub bytes: u64,
    pub atime: Stamp,
    pub mtime: Stamp,
    pub ctime: Stamp,
    /// When it was made.
    pub btime: Stamp,
    /// The device number of a device node, else 0.
    pub rdev: u64,
    /// The directory that it lives in (a directory's parent), for leases and for `..`.
    pub home: Ino,
    /// Where a symlink points, else empty.
    pub target: Box<[u8]>,
}

impl Inode {
    /// The fields in their order, without a version: [`crate::meta::value`] puts it before.
    pub(crate) fn encode(&self, out: &mut Writer) {
        assert!(self.mode <= MODE_MASK && self.target.len() <= TARGET_MAX, "parsed at the edge");
        out.u8(self.kind as u8).u16(self.mode as u16);
        for n in [self.uid, self.gid, self.nlink] {
            out.varint(u64::from(n));
        }
        out.varint(self.size).varint(self.bytes);
        for stamp in [self.atime, self.mtime, self.ctime, self.btime] {
            stamp.encode(out);
        }
        out.varint(self.rdev).varint(self.home.0).bytes(&self.target);
    }

    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        Ok(Self {
            kind: FileKind::decode(input.u8("file kind")?)?,
            mode: mode(input)?,
            uid: small(input, "uid")?,
            gid: small(input, "gid")?,
            nlink: small(input, "link count")?,
            size: input.varint("size")?,
            bytes: input.varint("held bytes")?,
            atime: Stamp::decode(input)?,
            mtime: Stamp::decode(input)?,
            ctime: Stamp::decode(input)?,
            btime: Stamp::decode(input)?,
            rdev: input.varint("device")?,
            home: checked_ino(input.varint("home")?)?,
            target: input.bytes(TARGET_MAX, "symlink target")?.into(),
        })
    }
}

fn mode(input: &mut Reader) -> Result<u32, DecodeError> {
    match u32::from(input.u16("mode")?) {
        mode @ 0..=MODE_MASK => Ok(mode),
        _ => Err(DecodeError::NotCanonical("mode")),
    }
}

fn small(input: &mut Reader, what: &'static str) -> Result<u32, DecodeError> {
    u32::try_from(input.varint(what)?).map_err(|_| DecodeError::TooLarge(what))
}

/// What becomes of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum SizeChange {
    /// A write that ends here: the file is at least so long.
    Max(u64),
    /// A truncation, or an append at its certified place.
    Set(u64),
}

impl SizeChange {
    fn apply(self, size: u64) -> u64 {
        match self {
            Self::Max(n) => size.max(n),
            Self::Set(n) => n,
        }
    }
}

/// What becomes of a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModeChange {
    Set(u32),
    /// What a write or a chown does: set-user-id goes, and set-group-id where the group may
    /// execute (without that bit it means mandatory locking, and stays).
    KillPrivileges,
}

impl ModeChange {
    pub fn apply(self, mode: u32) -> u32 {
        match self {
            Self::Set(mode) => mode,
            Self::KillPrivileges if mode & GROUP_EXECUTE != 0 => mode & !(SET_UID | SET_GID),
            Self::KillPrivileges => mode & !SET_UID,
        }
    }
}

/// A change of some fields of an inode; the default changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct InodeMerge {
    pub size: Option<SizeChange>,
    /// Added, wrapping.
    pub bytes: i64,
    pub atime: Option<Stamp>,
    pub mtime: Option<Stamp>,
    pub ctime: Option<Stamp>,
    pub mode: Option<ModeChange>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Added; it wraps, so that sums compose whatever their order of overflow.
    pub nlink: i32,
    pub home: Option<Ino>,
}

impl InodeMerge {
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    pub fn apply(&self, inode: &mut Inode) {
        if let Some(change) = self.size {
            inode.size = change.apply(inode.size);
        }
        inode.bytes = inode.bytes.wrapping_add_signed(self.bytes);
        if let Some(change) = self.mode {
            inode.mode = change.apply(inode.mode);
        }
        inode.atime = self.atime.unwrap_or(inode.atime);
        inode.mtime = self.mtime.unwrap_or(inode.mtime);
        inode.ctime = self.ctime.unwrap_or(inode.ctime);
        inode.uid = self.uid.unwrap_or(inode.uid);
        inode.gid = self.gid.unwrap_or(inode.gid);
        inode.nlink = inode.nlink.wrapping_add_signed(self.nlink);
        inode.home = self.home.unwrap_or(inode.home);
    }

    /// Becomes "this, then `next`".
    pub fn then(&mut self, next: &Self) {
        self.size = match (self.size, next.size) {
            (Some(SizeChange::Max(a)), Some(SizeChange::Max(b))) => Some(SizeChange::Max(a.max(b))),
            (Some(SizeChange::Set(a)), Some(SizeChange::Max(b))) => Some(SizeChange::Set(a.max(b))),
            (earlier, later) => later.or(earlier),
        };
        self.bytes = self.bytes.wrapping_add(next.bytes);
        self.mode = match (self.mode, next.mode) {
            (Some(ModeChange::Set(mode)), Some(change)) => {
                Some(ModeChange::Set(change.apply(mode)))
            }
            (earlier, later) => later.or(earlier),
        };
        self.atime = next.atime.or(self.atime);
        self.mtime = next.mtime.or(self.mtime);
        self.ctime = next.ctime.or(self.ctime);
        self.uid = next.uid.or(self.uid);
        self.gid = next.gid.or(self.gid);
        self.nlink = self.nlink.wrapping_add(next.nlink);
        self.home = next.home.or(self.home);
    }

    /// A bit for each field that is there, then these fields in the order of the bits.
    pub(crate) fn encode(&self, out: &mut Writer) {
        let mut bits = 0u16;
        let present = [
            matches!(self.size, Some(SizeChange::Max(_))),
            matches!(self.size, Some(SizeChange::Set(_))),
            self.atime.is_some(),
            self.mtime.is_some(),
            self.ctime.is_some(),
            matches!(self.mode, Some(ModeChange::Set(_))),
            matches!(self.mode, Some(ModeChange::KillPrivileges)),
            self.uid.is_some(),
            self.gid.is_some(),
            self.nlink != 0,
            self.home.is_some(),
            self.bytes != 0,
        ];
        for (i, present) in present.into_iter().enumerate() {
            bits |= u16::from(present) << i;
        }
        out.u16(bits);
        if let Some(SizeChange::Max(n) | SizeChange::Set(n)) = self.size {
            out.varint(n);
        }
        for stamp in [self.atime, self.mtime, self.ctime].into_iter().flatten() {
            stamp.encode(out);
        }
        if let Some(ModeChange::Set(mode)) = self.mode {
            assert!(mode <= MODE_MASK, "a mode has 12 bits");
            out.u16(mode as u16);
        }
        for n in [self.uid, self.gid].into_iter().flatten() {
            out.varint(u64::from(n));
        }
        if self.nlink != 0 {
            out.u32(self.nlink as u32);
        }
        if let Some(home) = self.home {
            out.varint(home.0);
        }
        if self.bytes != 0 {
            out.i64(self.bytes);
        }
    }

    /// Strict: a merge of nothing, or one that says a field twice, is refused.
    pub(crate) fn decode(input: &mut Reader) -> Result<Self, DecodeError> {
        let bits = input.u16("fields")?;
        let has = |i: u16| bits >> i & 1 == 1;
        if bits == 0 || bits >= 1 << 12 || has(0) && has(1) || has(5) && has(6) {
            return Err(DecodeError::NotCanonical("fields"));
        }
        let mut merge = Self::default();
        if has(0) {
            merge.size = Some(SizeChange::Max(input.varint("size")?));
        }
        if has(1) {
            merge.size = Some(SizeChange::Set(input.varint("size")?));
        }
        for (i, field) in [(2, &mut merge.atime), (3, &mut merge.mtime), (4, &mut merge.ctime)] {
            if has(i) {
                *field = Some(Stamp::decode(input)?);
            }
        }
        if has(5) {
            merge.mode = Some(ModeChange::Set(mode(input)?));
        }
        if has(6) {
            merge.mode = Some(ModeChange::KillPrivileges);
        }
        if has(7) {
            merge.uid = Some(small(input, "uid")?);
        }
        if has(8) {
            merge.gid = Some(small(input, "gid")?);
        }
        if has(9) {
            merge.nlink = input.u32("link count")? as i32;
            if merge.nlink == 0 {
                return Err(DecodeError::NotCanonical("link count"));
            }
        }
        if has(10) {
            merge.home = Some(checked_ino(input.varint("home")?)?);
        }
        if has(11) {
            merge.bytes = input.i64("held bytes")?;
            if merge.bytes == 0 {
                return Err(DecodeError::NotCanonical("held bytes"));
            }
        }
        Ok(merge)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An empty file, as plain as one can be.
    pub(crate) fn plain_file() -> Inode {
        let at = Stamp::default();
        Inode {
            kind: FileKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            bytes: 0,
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            rdev: 0,
            home: Ino::ROOT,
            target: [].into(),
        }
    }

    pub(crate) fn stamps() -> impl Strategy<Value = Stamp> {
        (-2..3i64, 0..3u32).prop_map(|(secs, nanos)| Stamp { secs, nanos })
    }

    pub(crate) fn inodes() -> impl Strategy<Value = Inode> {
        let times = (stamps(), stamps(), stamps(), stamps());
        let owner = (0..3u32, 0..3u32, 0..4u32, 0..=MODE_MASK);
        (1..=7u8, owner, 0..9u64, times, 0..3u64, 1..4u64, "[ab]{0,3}").prop_map(
            |(
                kind,
                (uid, gid, nlink, mode),
                size,
                (atime, mtime, ctime, btime),
                rdev,
                home,
                to,
            )| {
                Inode {
                    kind: FileKind::decode(kind).expect("a kind"),
                    mode,
                    uid,
                    gid,
                    nlink,
                    size,
                    bytes: size / 2,
                    atime,
                    mtime,
                    ctime,
                    btime,
                    rdev,
                    home: Ino(home),
                    target: to.into_bytes().into(),
                }
            },
        )
    }

    pub(crate) fn merges() -> impl Strategy<Value = InodeMerge> {
        let size = prop::option::of(prop_oneof![
            (0..9u64).prop_map(SizeChange::Max),
            (0..9u64).prop_map(SizeChange::Set),
        ]);
        let mode = prop::option::of(prop_oneof![
            (0..=MODE_MASK).prop_map(ModeChange::Set),
            Just(ModeChange::KillPrivileges),
        ]);
        let time = || prop::option::of(stamps());
        let owner = (prop::option::of(0..3u32), prop::option::of(0..3u32));
        let link = prop_oneof![Just(0), -2..3i32, Just(i32::MIN), Just(i32::MAX)];
        (size, mode, (time(), time(), time()), owner, link, prop::option::of(1..4u64)).prop_map(
            |(size, mode, (atime, mtime, ctime), (uid, gid), nlink, home)| InodeMerge {
                size,
                bytes: i64::from(nlink) * 3,
                atime,
                mtime,
                ctime,
                mode,
                uid,
                gid,
                nlink,
                home: home.map(Ino),
            },
        )
    }

    proptest! {
        #[test]
        fn merges_compose(inode in inodes(), a in merges(), b in merges()) {
            let (mut apart, mut together) = (inode.clone(), inode);
            a.apply(&mut apart);
            b.apply(&mut apart);
            let mut both = a;
            both.then(&b);
            both.apply(&mut together);
            prop_assert_eq!(apart, together);
        }

        #[test]
        fn a_merge_survives_its_bytes(merge in merges()) {
            prop_assume!(!merge.is_nothing());
            let mut out = Writer::new();
            merge.encode(&mut out);
            let bytes = out.finish();
            let mut input = Reader::new(&bytes);
            prop_assert_eq!(InodeMerge::decode(&mut input), Ok(merge));
            prop_assert_eq!(input.finish(), Ok(()));
        }
    }

    #[test]
    fn a_write_takes_set_user_id_away_and_leaves_mandatory_locking() {
        assert_eq!(ModeChange::KillPrivileges.apply(0o6755), 0o755);
        assert_eq!(ModeChange::KillPrivileges.apply(0o6745), 0o2745);
    }
}
