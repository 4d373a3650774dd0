//! One file of a journal: a head with a wrapped key, then sealed entries.
//!
//! ```text
//! head   magic "MJL1" | volume [16] | session u32 | first seq u64 | wrapped length u32 | wrapped key
//! entry  sealed length u32 | AES-256-GCM(key, nonce = index of the entry in the file, aad = head)
//! ```
//! Integers are little-endian. The key is random for each file and wrapped (HPKE) for the
//! principal, so a nonce is never used twice with it.

use super::{About, Entry, Seq};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::{SessionId, VolumeId};
use mictlan::seal::Secret;
use mictlan::seal::{self, WrapError};
use mictlan::seal::{Principal, Public};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"MJL1";
const WRAP_INFO: &[u8] = b"mictlan/journal/v1";
const TAG_BYTES: usize = 16;
/// The wrapped form of 32 bytes is about 81 bytes; anything far above is not one.
const WRAPPED_BYTES_MAX: usize = 1024;
/// Longer than any head.
const HEAD_BYTES_MAX: u64 = 4096;
const ENTRY_BYTES_MAX: usize = 16 << 20;
/// Room is taken in steps, where there is enough: a call for each entry would cost.
const STEP_BYTES: u64 = 256 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    #[error(transparent)]
    Disk(#[from] std::io::Error),
    #[error("its head: {0}")]
    Head(#[from] DecodeError),
    #[error("it was sealed for another key: {0}")]
    NotOurs(#[from] WrapError),
    #[error("the system gave no random bytes")]
    NoRandom,
}

pub struct Segment {
    file: File,
    path: PathBuf,
    key: LessSafeKey,
    head: Vec<u8>,
    entries: u64,
    bytes: u64,
    /// The disk has blocks for so many; those behind the end are no part of the file.
    room: u64,
    /// Whether the file system gives blocks before they are written.
    gives_room: bool,
}

impl Segment {
    pub fn create(
        path: &Path,
        about: About,
        owner: &Public,
        first: Seq,
    ) -> Result<Self, SegmentError> {
        let (key, entropy) = (random()?, random()?);
        let wrapped = seal::wrap(&owner.agreement, WRAP_INFO, key.expose(), entropy)?;
        let mut head = Writer::new();
        head.raw(MAGIC).raw(&about.volume.0).u32(about.session.0).u64(first.0);
        head.u32(wrapped.len() as u32).raw(&wrapped);
        let head = head.finish();
        let mut file = File::options().create_new(true).append(true).mode(0o600).open(path)?;
        if let Err(error) = file.write_all(&head) {
            // The next try takes the same name.
            let _ = std::fs::remove_file(path);
            return Err(error.into());
        }
        let (bytes, key) = (head.len() as u64, cipher(&key));
        let path = path.into();
        Ok(Self { file, path, key, head, entries: 0, bytes, room: bytes, gives_room: true })
    }

    /// `more` bytes can be appended from here on, whoever fills the disk. The file stays as long as
    /// it is: a reader sees none of it.
    pub fn make_room(&mut self, more: u64) -> io::Result<()> {
        if self.room >= self.bytes + more || !self.gives_room {
            return Ok(());
        }
        for step in [STEP_BYTES, 0] {
            let take = || fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.bytes, more + step);
            match rustix::io::retry_on_intr(take) {
                Ok(()) => {
                    self.room = self.bytes + more + step;
                    return Ok(());
                }
                Err(Errno::NOSPC | Errno::DQUOT) => {}
                // A write says what it has no room for, as it does on every file system.
                Err(_) => {
                    self.gives_room = false;
                    return Ok(());
                }
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    /// Nothing more is appended for now: the blocks behind the end go back to the disk.
    pub fn let_go_of_room(&mut self) {
        if self.room > self.bytes && self.file.set_len(self.bytes).is_ok() {
            self.room = self.bytes;
        }
    }

    /// After a failed write the file ends where it ended before, so that the next entry can be read.
    pub fn append(&mut self, plain: &[u8]) -> Result<(), SegmentError> {
        let len = (plain.len() + TAG_BYTES) as u32;
        let mut sealed = Vec::with_capacity(4 + len as usize);
        sealed.extend_from_slice(&len.to_le_bytes());
        sealed.extend_from_slice(plain);
        let tag = self
            .key
            .seal_in_place_separate_tag(
                nonce(self.entries),
                Aad::from(&self.head),
                &mut sealed[4..],
            )
            .expect("an entry is far below the cipher's limit");
        sealed.extend_from_slice(tag.as_ref());
        if let Err(error) = self.file.write_all(&sealed) {
            if self.file.metadata()?.len() != self.bytes {
                // The room behind it goes with the part of the entry.
                self.room = self.bytes;
                self.file.set_len(self.bytes)?;
            }
            return Err(error.into());
        }
        self.entries += 1;
        self.bytes += sealed.len() as u64;
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

type Read = (About, Seq, Vec<(Seq, Entry)>, u64);

/// The whole entries of a file, and how many bytes stand behind the last whole one. `None` for a
/// file that was cut before its head was whole: nothing was ever appended to it.
pub fn read(path: &Path, key: &Principal) -> Result<Option<Read>, SegmentError> {
    let bytes = std::fs::read(path)?;
    let mut input = Reader::new(&bytes);
    let Ok((about, first, wrapped)) = read_head(&mut input) else {
        return match is_cut(&bytes) {
            true => Ok(None),
            false => Err(DecodeError::Unknown("journal head").into()),
        };
    };
    let secret = seal::unwrap(key, WRAP_INFO, wrapped)?;
    let secret: [u8; 32] =
        secret.as_slice().try_into().map_err(|_| DecodeError::NotCanonical("journal key"))?;
    let key = cipher(&Secret::from_bytes(secret));
    let head = &bytes[..bytes.len() - input.rest().len()];
    let mut entries = Vec::new();
    let mut unread = input.rest().len() as u64;
    while let Some(entry) = next(&mut input, &key, head, entries.len() as u64) {
        entries.push((Seq(first.0 + entries.len() as u64), entry));
        unread = input.rest().len() as u64;
    }
    Ok(Some((about, first, entries, unread)))
}

/// How many bytes stand behind a file's head: what a mount wrote down. Of a head that none of ours
/// is, all are counted.
pub fn bytes_of_entries(path: &Path) -> io::Result<u64> {
    let all = path.metadata()?.len();
    let mut start = Vec::new();
    File::open(path)?.take(HEAD_BYTES_MAX).read_to_end(&mut start)?;
    let mut input = Reader::new(&start);
    Ok(match read_head(&mut input) {
        Ok(_) => all.saturating_sub((start.len() - input.rest().len()) as u64),
        Err(_) if is_cut(&start) => 0,
        Err(_) => all,
    })
}

/// Whether a file ends in the midst of its head.
fn is_cut(bytes: &[u8]) -> bool {
    let short = bytes.len() < MAGIC.len() + WRAPPED_BYTES_MAX;
    short && (bytes.starts_with(MAGIC) || bytes.is_empty())
}

fn read_head<'a>(input: &mut Reader<'a>) -> Result<(About, Seq, &'a [u8]), DecodeError> {
    if input.raw(4, "magic")? != MAGIC {
        return Err(DecodeError::Unknown("journal magic"));
    }
    let volume = VolumeId(input.array("volume")?);
    let session = SessionId(input.u32("session")?);
    let first = Seq(input.u64("first entry")?);
    let len = input.u32("wrapped length")? as usize;
    if len > WRAPPED_BYTES_MAX {
        return Err(DecodeError::TooLarge("wrapped key"));
    }
    Ok((About { volume, session }, first, input.raw(len, "wrapped key")?))
}

fn next(input: &mut Reader, key: &LessSafeKey, head: &[u8], index: u64) -> Option<Entry> {
    let len = input.u32("entry length").ok()? as usize;
    if !(TAG_BYTES..=ENTRY_BYTES_MAX).contains(&len) {
        return None;
    }
    let mut sealed = input.raw(len, "entry").ok()?.to_vec();
    let plain = key.open_in_place(nonce(index), Aad::from(head), &mut sealed).ok()?;
    Entry::decode(plain).ok()
}

fn nonce(index: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&index.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn cipher(key: &Secret) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key.expose()).expect("the key has 32 bytes"))
}

fn random() -> Result<Secret, SegmentError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| SegmentError::NoRandom)?;
    Ok(Secret::from_bytes(bytes))
}
