//! Where bytes become durable: the only file of this crate that calls fsync, fdatasync or rename.
//!
//! Owns: appending to a log, replacing a small file whole, making and removing names.
//! Never: tries a failed write or sync again. The kernel may have thrown the pages away and would
//! call the next sync good, so after a failure an `Appender` repeats its first error for ever;
//! what is on the disk is learned by reading it back, at the next start.
//! Invariant: what a function here returned `Ok` for outlives a power cut.
//!
//! | to do | call | what it syncs |
//! | --- | --- | --- |
//! | append to a log | `Appender::append`, then `sync` | the data, and the length |
//! | replace a small file | `replace_file` | the new file, then its directory |
//! | make a log file | `Appender::create` | the file, then its directory |
//! | make directories | `create_dir` | each parent that got a new name |
//! | remove a file | `remove_file` | its directory |
//!
//! Not covered: a disk that acknowledges a flush and loses it.

#![allow(clippy::disallowed_methods)] // this is the file that they are allowed in

use crate::counts::COUNTS;
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// A disk operation that failed; clones share one cause, so it can be repeated to every caller.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {doing} {}: {cause}", path.display())]
pub struct DiskError {
    pub doing: &'static str,
    pub path: PathBuf,
    pub cause: Arc<io::Error>,
}

impl DiskError {
    pub fn new(doing: &'static str, path: &Path, cause: impl Into<io::Error>) -> Self {
        Self { doing, path: path.to_owned(), cause: Arc::new(cause.into()) }
    }

    pub fn kind(&self) -> io::ErrorKind {
        self.cause.kind()
    }
}

/// At most this many slices go into one `pwritev`; Linux refuses more than 1,024.
const SLICES_MAX: usize = 1024;

/// The one writer of a log file: appends at a position it knows, then syncs.
///
/// Bytes before `synced()` are durable; those up to `end()` are written, and a power cut may keep
/// any subset of their blocks.
pub struct Appender {
    file: Arc<File>,
    path: PathBuf,
    end: u64,
    synced: u64,
    failed: Option<DiskError>,
}

impl Appender {
    /// Makes a new file that durably holds `first`. An existing one is an error.
    pub fn create(path: &Path, mode: u32, first: &[u8]) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)
            .map_err(|e| DiskError::new("create", path, e))?;
        let mut log =
            Self { file: Arc::new(file), path: path.to_owned(), end: 0, synced: 0, failed: None };
        log.append(&mut [IoSlice::new(first)])?; // crash here: a nameless or short file
        log.sync()?; // crash here: a whole file that may have no name
        sync_dir(parent(path))?;
        Ok(log)
    }

    /// Opens an existing file to go on at `end`; all before it must be known to be durable.
    pub fn open(path: &Path, end: u64) -> Result<Self, DiskError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| DiskError::new("open", path, e))?;
        Ok(Self { file: Arc::new(file), path: path.to_owned(), end, synced: end, failed: None })
    }

    /// The file, for readers.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Writes `parts` one after another at the end; durable only after `sync`.
    pub fn append(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), DiskError> {
        self.usable()?;
        let written = write_all_at(&self.file, self.end, parts);
        self.end += self.keep("append to", written)?;
        Ok(())
    }

    /// Makes all that was appended durable (fdatasync: the data and the length).
    pub fn sync(&mut self) -> Result<(), DiskError> {
        self.usable()?;
        let synced = counted(|| self.file.sync_data());
        self.keep("sync", synced)?;
        self.synced = self.end;
        Ok(())
    }

    /// `append`, then `sync`.
    pub fn append_and_sync(&mut self, parts: &mut [IoSlice<'_>]) -> Result<(), DiskError> {
        self.append(parts)?;
        self.sync()
    }

    /// Durably cuts the file at `end`, which must not lie behind what it holds.
    pub fn truncate(&mut self, end: u64) -> Result<(), DiskError> {
        self.usable()?;
        let cut = self.file.set_len(end).and_then(|()| self.file.sync_data());
        self.keep("truncate", cut)?;
        self.end = end;
        self.synced = end;
        Ok(())
    }

    fn usable(&self) -> Result<(), DiskError> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Remembers the first failure: from then on nothing is written through this appender.
    fn keep<T>(&mut self, doing: &'static str, result: io::Result<T>) -> Result<T, DiskError> {
        result.map_err(|e| {
            let error = DiskError::new(doing, &self.path, e);
            self.failed = Some(error.clone());
            error
        })
    }
}

/// Replaces the file at `path` by one with `bytes`, or leaves the old one: never a mix.
pub fn replace_file(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), DiskError> {
    let name = path.file_name().expect("a file that is replaced has a name");
    let mut new_name = std::ffi::OsString::from(".");
    new_name.push(name);
    new_name.push(".new");
    let new = path.with_file_name(new_name);
    let fail = |doing| {
        let path = new.clone();
        move |e: io::Error| DiskError::new(doing, &path, e)
    };
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(fail("remove")(e)),
        _ => {} // what a crash left, whose mode might be another, is gone
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&new)
        .map_err(fail("create"))?;
    file.write_all(bytes).map_err(fail("write"))?; // crash here: the old file, and a stray `.new`
    counted(|| file.sync_all()).map_err(fail("sync"))?; // crash here: the same
    std::fs::rename(&new, path).map_err(|e| DiskError::new("replace", path, e))?; // old or new
    sync_dir(parent(path))
}

/// Gives a file another name in the same file system, replacing what has that name.
pub fn rename(from: &Path, to: &Path) -> Result<(), DiskError> {
    std::fs::rename(from, to).map_err(|e| DiskError::new("rename", from, e))?;
    sync_dir(parent(to))?;
    if parent(from) == parent(to) { Ok(()) } else { sync_dir(parent(from)) }
}

/// Makes a directory and the parents it lacks, each name durable before the next.
pub fn create_dir(path: &Path, mode: u32) -> Result<(), DiskError> {
    if path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    create_dir(above, mode)?;
    match std::fs::DirBuilder::new().mode(mode).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(DiskError::new("create directory", path, e))
        }
        _ => sync_dir(above),
    }
}

/// Removes a file; one that is not there is no error.
pub fn remove_file(path: &Path) -> Result<(), DiskError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(|e| DiskError::new("remove", path, e))?,
    }
    sync_dir(parent(path))
}

/// Makes the names in a directory durable.
pub fn sync_dir(path: &Path) -> Result<(), DiskError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| DiskError::new("sync", path, e))
}

/// Writes back what is dirty, then forgets the pages, so that what is read next is what the disk
/// holds. After a sync that failed in an earlier process, the page cache may hold bytes that the
/// disk does not.
pub fn forget_cached(file: &File, path: &Path) -> Result<(), DiskError> {
    file.sync_data().map_err(|e| DiskError::new("sync", path, e))?;
    fadvise(file, 0, None, Advice::DontNeed).map_err(|e| DiskError::new("read back", path, e))
}

/// Gives the blocks of a byte range back to the file system; it reads as zeros afterwards.
/// A file system that cannot do it keeps the blocks: `Ok(false)`.
pub fn punch(file: &File, path: &Path, range: std::ops::Range<u64>) -> Result<bool, DiskError> {
    assert!(range.start < range.end, "an empty hole");
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, flags, range.start, range.end - range.start) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(false),
        Err(e) => Err(DiskError::new("free blocks of", path, e)),
    }
}

/// Tells `/metrics` how long this disk took.
fn counted(sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let began = Instant::now();
    let synced = sync();
    COUNTS.disk_sync(&synced, began.elapsed());
    synced
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ if path.has_root() => Path::new("/"),
        _ => Path::new("."),
    }
}

/// Writes every part, in order, from `at` on; the number of bytes written.
fn write_all_at(file: &File, at: u64, parts: &mut [IoSlice<'_>]) -> io::Result<u64> {
    let mut done = 0;
    let mut rest = parts;
    IoSlice::advance_slices(&mut rest, 0); // empty parts at the front would look like a full disk
    while !rest.is_empty() {
        let some = &rest[..rest.len().min(SLICES_MAX)];
        match rustix::io::pwritev(file, some, at + done) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                done += n as u64;
                IoSlice::advance_slices(&mut rest, n);
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_append_of_many_parts_lands_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("deep/log");
        create_dir(parent(&path), 0o700).expect("made");
        let mut log = Appender::create(&path, 0o600, b"head").expect("created");
        let words: Vec<String> = (0..3000).map(|i| format!("{i},")).collect();
        let mut parts = vec![IoSlice::new(b"")];
        parts.extend(words.iter().map(|w| IoSlice::new(w.as_bytes())));
        log.append_and_sync(&mut parts).expect("appended");
        let text = std::fs::read_to_string(&path).expect("text");
        assert_eq!(text, format!("head{}", words.concat()));
        assert_eq!((log.end(), log.synced()), (text.len() as u64, text.len() as u64));
        log.truncate(4).expect("cut");
        assert_eq!(std::fs::read(&path).expect("bytes"), b"head");
        assert!(Appender::create(&path, 0o600, b"").is_err(), "an existing log is not made again");
    }

    #[test]
    fn a_failed_write_is_repeated_to_every_later_caller() {
        let mut log = Appender::open(Path::new("/dev/full"), 0).expect("opened");
        let first = log.append(&mut [IoSlice::new(b"x")]).expect_err("full");
        assert_eq!(first.kind(), io::ErrorKind::StorageFull);
        assert_eq!(log.sync().expect_err("still").to_string(), first.to_string());
        assert_eq!(log.append(&mut []).expect_err("still").to_string(), first.to_string());
    }

    #[test]
    fn a_replaced_file_is_whole_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("key");
        std::fs::write(dir.path().join(".key.new"), b"left by a crash").expect("stray");
        for text in ["one", "another, longer", "3"] {
            replace_file(&path, 0o600, text.as_bytes()).expect("replaced");
            assert_eq!(std::fs::read_to_string(&path).expect("text"), text);
        }
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 1, "no stray file");
        remove_file(&path).expect("removed");
        remove_file(&path).expect("gone already");
    }
}
