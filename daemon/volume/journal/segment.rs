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
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 4] = b"MJL1";
const WRAP_INFO: &[u8] = b"mictlan/journal/v1";
const TAG_BYTES: usize = 16;
/// The wrapped form of 32 bytes is about 81 bytes; anything far above is not one.
const WRAPPED_BYTES_MAX: usize = 1024;
const ENTRY_BYTES_MAX: usize = 16 << 20;

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
        file.write_all(&head)?;
        let bytes = head.len() as u64;
        Ok(Self { file, path: path.into(), key: cipher(&key), head, entries: 0, bytes })
    }

    /// A failed write may leave part of an entry, so the file ends there for a reader; the caller
    /// must not go on appending after an error, and `append` refuses to.
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
            // Cut a partial entry away, so that the next one can be read.
            self.file.set_len(self.bytes)?;
            return Err(error.into());
        }
        self.entries += 1;
        self.bytes += sealed.len() as u64;
        Ok(())
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
        return match bytes.len() < MAGIC.len() + WRAPPED_BYTES_MAX && bytes.len() < 4096 {
            true if bytes.starts_with(MAGIC) || bytes.is_empty() => Ok(None),
            _ => Err(DecodeError::Unknown("journal head").into()),
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
