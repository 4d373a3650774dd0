//! Principal keys on disk: `NAME` with the secret (0600), `NAME.pub` for everyone.
//!
//! Owns: both formats (docs/FORMAT.md), the file's mode, the passphrase.
//! Never: overwrites a key, reads one that others can read, or says a secret in an error.
//! Invariant: a key that loads is the one that its file names: the public key in the head is
//! recomputed from the secret, and the head is authenticated with it.

use crate::store::durable::{self, DiskError};
use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::id::{Label, PrincipalId};
use mictlan::seal::{Principal, Public, Secret};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

const MAGIC: &[u8; 4] = b"MCTK";
const VERSION: u8 = 1;
const BARE: u8 = 0;
const PASSPHRASE: u8 = 1;
const BEGIN: &str = "-----BEGIN MICTLAN PRINCIPAL KEY-----";
const END: &str = "-----END MICTLAN PRINCIPAL KEY-----";
const PUBLIC_WORD: &str = "mictlan-principal-v1";
/// Far more than either file has; a larger one is something else.
const FILE_BYTES_MAX: u64 = 4096;
/// 64 MiB and 3 passes: some tenths of a second here, and a thousand times that for a guesser's
/// thousand guesses.
const COST: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// Bounds for what a file may ask for, so that a planted one cannot take all memory.
const MEMORY_KIB_MAX: u32 = 1 << 20;
const PASSES_MAX: u32 = 64;
const LANES_MAX: u32 = 64;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("there is no key {}; those that there are: mictlan key ls; a new one: mictlan key new NAME", .0.display())]
    Missing(PathBuf),
    #[error("{} exists; a key is never overwritten", .0.display())]
    Exists(PathBuf),
    #[error("{} can be read by others (mode {mode:04o}); run `chmod 600 {}`", path.display(),
        path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{} belongs to another user", .0.display())]
    NotOurs(PathBuf),
    #[error("{} is not a key file: {why}", path.display())]
    Malformed { path: PathBuf, why: Malformed },
    #[error("{} is protected by a passphrase, which is typed on a terminal; there is none, and nothing was done", .0.display())]
    PassphraseNeeded(PathBuf),
    #[error("wrong passphrase for {}; nothing was done: type it again, or choose another key", .0.display())]
    WrongPassphrase(PathBuf),
    #[error("an empty passphrase protects nothing; give none to store the key bare")]
    EmptyPassphrase,
    #[error("cannot read {}: {why}", path.display())]
    Read { path: PathBuf, why: io::Error },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("no randomness for a key: {0}")]
    Random(getrandom::Error),
    #[error("the passphrase could not be stretched: {0}")]
    Stretch(argon2::Error),
}

#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    #[error("its armour lines are missing")]
    Armour,
    #[error("what the armour holds is not base64")]
    Base64,
    #[error("{0}")]
    Bytes(#[from] DecodeError),
    #[error("its head was changed, or the secret is not that of its public key")]
    Changed,
    #[error("it is longer than a key file")]
    TooLong,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// Draws a principal and writes both files. Fails before anything is written when `NAME` exists.
pub fn generate(dir: &Path, name: &Label, passphrase: Option<&str>) -> Result<Principal, KeyError> {
    let path = dir.join(name.as_str());
    if path.symlink_metadata().is_ok() {
        return Err(KeyError::Exists(path));
    }
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).map_err(KeyError::Random)?;
    let principal = Principal::from_seed(Secret::from_bytes(*seed));
    let text = render(&seed, &principal.id(), passphrase)?;
    durable::create_dir(dir, 0o700)?;
    // The secret first: a public file without one would name a principal that nobody is.
    durable::replace_file(&path, 0o600, text.as_bytes())?;
    let public = render_public(name, &principal.public());
    durable::replace_file(&public_path(dir, name), 0o644, public.as_bytes())?;
    Ok(principal)
}

/// Takes a key away that was made for something that came to nothing.
pub fn remove(dir: &Path, name: &Label) -> Result<(), KeyError> {
    // The secret last: a public file alone names nobody.
    durable::remove_file(&public_path(dir, name))?;
    durable::remove_file(&dir.join(name.as_str()))?;
    Ok(())
}

/// Loads `NAME`; `passphrase` is asked only when the file needs one.
pub fn load(
    dir: &Path,
    name: &Label,
    passphrase: impl FnOnce() -> Option<Zeroizing<String>>,
) -> Result<Principal, KeyError> {
    let path = dir.join(name.as_str());
    let text = read_private(&path)?;
    let seed = open(&path, &text, passphrase)?;
    Ok(Principal::from_seed(Secret::from_bytes(*seed)))
}

/// Reads a `.pub` file: what is given to those who invite or grant.
pub fn load_public(path: &Path) -> Result<(Label, Public), KeyError> {
    let fail = |why| KeyError::Read { path: path.to_owned(), why };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
    let malformed = || KeyError::Malformed { path: path.to_owned(), why: Malformed::Armour };
    parse_public(&text).ok_or_else(malformed)
}

fn public_path(dir: &Path, name: &Label) -> PathBuf {
    dir.join(format!("{name}.pub"))
}

fn render_public(name: &Label, public: &Public) -> String {
    format!("{PUBLIC_WORD} {} {} {name}\n", public.signing, hex::encode(public.agreement))
}

fn parse_public(text: &str) -> Option<(Label, Public)> {
    let mut words = text.strip_suffix('\n').unwrap_or(text).split(' ');
    let (word, signing, agreement, name) =
        (words.next()?, words.next()?, words.next()?, words.next()?);
    let mut bytes = [0; 32];
    hex::decode_to_slice(agreement, &mut bytes).ok()?;
    let public = Public { signing: PrincipalId::from_hex(signing)?, agreement: bytes };
    (word == PUBLIC_WORD && words.next().is_none()).then_some(())?;
    Some((Label::parse(name)?, public))
}

fn read_private(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let fail = |why: io::Error| match why.kind() {
        io::ErrorKind::NotFound => KeyError::Missing(path.to_owned()),
        _ => KeyError::Read { path: path.to_owned(), why },
    };
    let flags = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).custom_flags(flags).open(path).map_err(fail)?;
    // Of the open file, so that no other can be put in its place after the check.
    let meta = file.metadata().map_err(fail)?;
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(KeyError::Open { path: path.to_owned(), mode });
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && own != 0 {
        return Err(KeyError::NotOurs(path.to_owned()));
    }
    if meta.len() > FILE_BYTES_MAX {
        return Err(KeyError::Malformed { path: path.to_owned(), why: Malformed::TooLong });
    }
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}

/// The file's text: head, then the seed bare or sealed under the stretched passphrase.
fn render(
    seed: &Zeroizing<[u8; 32]>,
    id: &PrincipalId,
    passphrase: Option<&str>,
) -> Result<Zeroizing<String>, KeyError> {
    let mut w = Writer::new();
    w.raw(MAGIC).u8(VERSION);
    match passphrase {
        None => {
            w.u8(BARE).raw(&id.0).raw(seed.as_ref());
        }
        Some("") => return Err(KeyError::EmptyPassphrase),
        Some(passphrase) => {
            let mut salt = [0; 16];
            getrandom::fill(&mut salt).map_err(KeyError::Random)?;
            w.u8(PASSPHRASE).raw(&id.0);
            w.u32(COST.memory_kib).u32(COST.passes).u32(COST.lanes).raw(&salt);
            let head = w.finish();
            let mut sealed = Zeroizing::new(seed.to_vec());
            let key = stretch(passphrase, &salt, COST).map_err(KeyError::Stretch)?;
            let tag = key
                .seal_in_place_separate_tag(only_nonce(), Aad::from(&head), &mut sealed)
                .expect("32 bytes are within AES-GCM's limit");
            w = Writer::new();
            w.raw(&head).raw(&sealed).raw(tag.as_ref());
        }
    }
    let bytes = Zeroizing::new(w.finish());
    let lines = Zeroizing::new(STANDARD.encode(bytes.as_slice()));
    let mut text = Zeroizing::new(String::with_capacity(FILE_BYTES_MAX as usize));
    text.push_str(BEGIN);
    for line in lines.as_bytes().chunks(64) {
        text.push('\n');
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
    }
    text.push('\n');
    text.push_str(END);
    text.push('\n');
    Ok(text)
}

fn open(
    path: &Path,
    text: &str,
    passphrase: impl FnOnce() -> Option<Zeroizing<String>>,
) -> Result<Zeroizing<[u8; 32]>, KeyError> {
    let malformed = |why: Malformed| KeyError::Malformed { path: path.to_owned(), why };
    let bytes = unarmour(text).map_err(malformed)?;
    let short = |why: DecodeError| malformed(why.into());
    let head = Head::parse(&bytes).map_err(malformed)?;
    let mut r = Reader::new(&bytes[head.len..]);
    let mut seed = Zeroizing::new([0; 32]);
    match &head.stretched {
        None => {
            seed.copy_from_slice(r.raw(32, "secret").map_err(short)?);
        }
        Some((cost, salt)) => {
            let words = passphrase().ok_or_else(|| KeyError::PassphraseNeeded(path.to_owned()))?;
            let key = stretch(&words, salt, *cost).map_err(KeyError::Stretch)?;
            let mut sealed = Zeroizing::new(r.raw(48, "sealed secret").map_err(short)?.to_vec());
            let aad = Aad::from(&bytes[..head.len]);
            let opened = key.open_in_place(only_nonce(), aad, &mut sealed);
            let opened = opened.map_err(|_| KeyError::WrongPassphrase(path.to_owned()))?;
            seed.copy_from_slice(opened);
        }
    }
    r.finish().map_err(short)?;
    let same = Principal::from_seed(Secret::from_bytes(*seed)).id() == head.id;
    same.then_some(seed).ok_or_else(|| malformed(Malformed::Changed))
}

/// What stands before the secret, and is authenticated with it.
struct Head {
    id: PrincipalId,
    stretched: Option<(Cost, [u8; 16])>,
    len: usize,
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new(bytes);
        if r.raw(4, "magic")? != MAGIC {
            return Err(DecodeError::Unknown("magic").into());
        }
        match r.u8("version")? {
            VERSION => {}
            other => return Err(DecodeError::Version(other).into()),
        }
        let protection = r.u8("protection")?;
        let id = PrincipalId(r.array("public key")?);
        let stretched = match protection {
            BARE => None,
            PASSPHRASE => {
                let (memory_kib, passes) = (r.u32("memory")?, r.u32("passes")?);
                let cost = Cost { memory_kib, passes, lanes: r.u32("lanes")? };
                let most = memory_kib <= MEMORY_KIB_MAX && passes <= PASSES_MAX;
                if !most || cost.lanes > LANES_MAX {
                    return Err(DecodeError::TooLarge("cost of the passphrase").into());
                }
                Some((cost, r.array("salt")?))
            }
            _ => return Err(DecodeError::Unknown("protection").into()),
        };
        Ok(Self { id, stretched, len: bytes.len() - r.rest().len() })
    }
}

fn unarmour(text: &str) -> Result<Zeroizing<Vec<u8>>, Malformed> {
    let body = text.trim_end().strip_prefix(BEGIN).and_then(|rest| rest.strip_suffix(END));
    let mut joined = Zeroizing::new(String::with_capacity(text.len()));
    joined.extend(body.ok_or(Malformed::Armour)?.lines());
    STANDARD.decode(joined.as_bytes()).map(Zeroizing::new).map_err(|_| Malformed::Base64)
}

fn stretch(passphrase: &str, salt: &[u8; 16], cost: Cost) -> Result<LessSafeKey, argon2::Error> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32))?;
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut key = Zeroizing::new([0; 32]);
    argon.hash_password_into(passphrase.as_bytes(), salt, key.as_mut())?;
    let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).expect("an AES-256 key has 32 bytes");
    Ok(LessSafeKey::new(key))
}

/// The key is made of a fresh salt and seals one message, so its nonce is never used twice.
fn only_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

#[cfg(test)]
#[path = "keyfile_tests.rs"]
mod tests;
