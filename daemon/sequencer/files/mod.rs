//! The ledger as plain files: what every voter writes while it applies, and everyone reads.
//!
//! Owns: hash tiles and entry bundles as C2SP `tlog-tiles` names them, tag lists, running totals.
//! Never: changes a full tile, or needs a sync of its own: what is not full yet is in the tail,
//! and the tail is in the state snapshot.
//! Invariant: a full tile is on disk before a snapshot can speak of it; applying the same entries
//! again after a crash writes the same bytes in the same places.
//!
//! ```text
//! tile/<L>/<N>  tile/entries/<N>         C2SP, full; beside them <N>.p/<W> of the published size
//! tags/<N>                               256 × (u32 length, tag list), little-endian
//! totals                                 u64 each, little-endian: record bytes up to and with i
//! ```

mod tail;

pub use tail::{Full, TILE, Tail};

use crate::store::durable::{self, Appender, DiskError};
use bytes::Bytes;
use mictlan::id::{LedgerHash, Position};
use mictlan::ledger::tile::{self, Row, TileId};
use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// A record's line and its tag list, which is empty for records without one.
pub type WithTags = (Vec<u8>, Vec<u8>);

/// Why a part of the ledger cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the ledger has {size} records; {asked} is not among them")]
    Beyond { asked: u64, size: u64 },
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error("the ledger file {0} does not hold what it must")]
    Damaged(PathBuf),
}

/// The ledger's files; one writer (apply), any number of readers.
pub struct Files {
    dir: PathBuf,
    /// Covers the tail; held for an append or a copy, never across a file operation.
    tail: RwLock<Tail>,
}

impl Files {
    /// The files in `dir`, which hold every tile that `tail` says is full.
    pub fn open(dir: &Path, tail: Tail) -> Result<Self, DiskError> {
        for sub in ["tile/entries", "tags"] {
            durable::create_dir(&dir.join(sub), DIR_MODE)?;
        }
        Ok(Self { dir: dir.to_owned(), tail: RwLock::new(tail) })
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn tail(&self) -> RwLockReadGuard<'_, Tail> {
        // The tail changes by appends of whole records; a panic elsewhere leaves it whole.
        self.tail.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn copy_tail(&self) -> Tail {
        self.tail().clone()
    }

    /// After another voter's snapshot was verified and its full tiles were written.
    pub fn replace_tail(&self, tail: Tail) {
        *self.tail.write().unwrap_or_else(PoisonError::into_inner) = tail;
    }

    pub fn size(&self) -> u64 {
        self.tail().size()
    }

    /// Appends records with their tag lists, in order. Full tiles are on disk when it returns.
    pub fn append(&self, records: &[(Bytes, Bytes)]) -> Result<(), DiskError> {
        if self.size() % TILE + (records.len() as u64) < TILE {
            // Nothing becomes full: no copy, no file.
            let mut tail = self.tail.write().unwrap_or_else(PoisonError::into_inner);
            for (record, tags) in records {
                tail.append(record, tags);
            }
            return Ok(());
        }
        let mut tail = self.copy_tail();
        for (record, tags) in records {
            for full in tail.append(record, tags) {
                self.write(&full)?; // crash here: a full tile that replay writes again, the same
            }
        }
        self.replace_tail(tail); // readers see the records only now
        Ok(())
    }

    pub fn write(&self, full: &Full) -> Result<(), DiskError> {
        match full {
            Full::Hashes { level, number, bytes } => {
                self.replace(&full_path(Row::Level(*level), *number), bytes)
            }
            Full::Bundle { number, entries, tags, totals } => {
                self.replace(&full_path(Row::Entries, *number), entries)?;
                self.replace(&tags_path(*number), tags)?;
                let path = self.dir.join("totals");
                if !path.exists() {
                    Appender::create(&path, FILE_MODE, &[])?;
                }
                let at = number * TILE * 8;
                Appender::open(&path, at)?.append_and_sync(&mut [IoSlice::new(totals)])
            }
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> Result<(), DiskError> {
        let path = self.dir.join(name);
        let above = path.parent().expect("a tile stands in a directory");
        durable::create_dir(above, DIR_MODE)?;
        durable::replace_file(&path, FILE_MODE, bytes)
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ReadError> {
        let path = self.dir.join(name);
        Ok(std::fs::read(&path).map_err(|e| DiskError::new("read", &path, e))?)
    }

    /// The first `width` hashes of a tile.
    pub fn hashes(&self, level: u8, number: u64, width: u64) -> Result<Vec<u8>, ReadError> {
        let have = {
            let tail = self.tail();
            let whole = tail.size().checked_shr(8 * u32::from(level)).unwrap_or(0);
            if number == whole / TILE && width <= whole % TILE {
                let hashes = &tail.hashes(level)[..width as usize];
                return Ok(hashes.iter().flat_map(|h| h.0).collect());
            }
            whole
        };
        let asked = number * TILE + width;
        if width == 0 || width > TILE || asked > have {
            return Err(ReadError::Beyond { asked, size: have });
        }
        let name = full_path(Row::Level(level), number);
        let mut bytes = self.read(&name)?;
        if bytes.len() as u64 != TILE * 32 {
            return Err(ReadError::Damaged(self.dir.join(name)));
        }
        bytes.truncate(width as usize * 32);
        Ok(bytes)
    }

    /// The first `width` entries of a bundle.
    pub fn bundle(&self, number: u64, width: u64) -> Result<Vec<u8>, ReadError> {
        let size = {
            let tail = self.tail();
            let size = tail.size();
            if number == size / TILE && width <= size % TILE {
                return Ok(tail.bundle(width).to_vec());
            }
            size
        };
        let asked = number * TILE + width;
        if width == 0 || width > TILE || asked > size {
            return Err(ReadError::Beyond { asked, size });
        }
        let name = full_path(Row::Entries, number);
        let mut bytes = self.read(&name)?;
        let damaged = || ReadError::Damaged(self.dir.join(&name));
        let mut at = 0;
        for _ in 0..width {
            let len = bytes.get(at..at + 2).ok_or_else(damaged)?;
            at += 2 + usize::from(u16::from_be_bytes([len[0], len[1]]));
        }
        if at > bytes.len() {
            return Err(damaged());
        }
        bytes.truncate(at);
        Ok(bytes)
    }

    /// The tag lists of a bundle's records up to `width`, split; empty where a record has none.
    fn tag_lists(&self, number: u64, width: u64) -> Result<Vec<Vec<u8>>, ReadError> {
        let bytes = {
            let tail = self.tail();
            (number == tail.size() / TILE).then(|| tail.tag_lists().to_vec())
        };
        let name = tags_path(number);
        let bytes = bytes.map_or_else(|| self.read(&name), Ok)?;
        let mut lists = Vec::with_capacity(width as usize);
        let mut rest = bytes.as_slice();
        for _ in 0..width {
            let damaged = || ReadError::Damaged(self.dir.join(&name));
            let (len, after) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
            let (list, after) =
                after.split_at_checked(u32::from_le_bytes(*len) as usize).ok_or_else(damaged)?;
            lists.push(list.to_vec());
            rest = after;
        }
        Ok(lists)
    }

    /// Records and tag lists from `from` to the end of its bundle, or of the ledger.
    pub fn page(&self, from: Position) -> Result<Vec<WithTags>, ReadError> {
        let size = self.size();
        if from.0 >= size {
            return Ok(Vec::new());
        }
        let number = from.0 / TILE;
        let width = (size - number * TILE).min(TILE);
        let bundle = self.bundle(number, width)?;
        let tags = self.tag_lists(number, width)?;
        let mut rest = bundle.as_slice();
        let mut page = Vec::new();
        for (i, tags) in tags.into_iter().enumerate() {
            let damaged = || ReadError::Damaged(self.dir.join(full_path(Row::Entries, number)));
            let (len, after) = rest.split_first_chunk::<2>().ok_or_else(damaged)?;
            let len = usize::from(u16::from_be_bytes(*len));
            let (record, after) = after.split_at_checked(len).ok_or_else(damaged)?;
            if number * TILE + i as u64 >= from.0 {
                page.push((record.to_vec(), tags));
            }
            rest = after;
        }
        Ok(page)
    }

    /// One record's line.
    pub fn record(&self, at: Position) -> Result<Vec<u8>, ReadError> {
        let size = self.size();
        let beyond = ReadError::Beyond { asked: at.0, size };
        if at.0 >= size {
            return Err(beyond);
        }
        let start = at.0 - at.0 % TILE;
        let (before, first) = (self.total(at.0)?, self.total(start)?);
        let len = (self.total(at.0 + 1)? - before) as usize;
        let offset = (before - first + 2 * (at.0 - start) + 2) as usize;
        {
            let tail = self.tail();
            if start == tail.start() {
                let bundle = tail.bundle(tail.size() - start);
                return Ok(bundle[offset..offset + len].to_vec());
            }
        }
        let path = self.dir.join(full_path(Row::Entries, at.0 / TILE));
        let fail = |e: io::Error| DiskError::new("read", &path, e);
        let file = std::fs::File::open(&path).map_err(fail)?;
        let mut record = vec![0; len];
        file.read_exact_at(&mut record, offset as u64).map_err(fail)?;
        Ok(record)
    }

    /// Bytes of the records before `size`: what gives every view its exact length.
    pub fn total(&self, size: u64) -> Result<u64, ReadError> {
        if size == 0 {
            return Ok(0);
        }
        {
            let tail = self.tail();
            if size > tail.size() {
                return Err(ReadError::Beyond { asked: size - 1, size: tail.size() });
            }
            if size == tail.size() {
                return Ok(tail.total());
            }
            if size > tail.start() {
                let at = ((size - 1 - tail.start()) * 8) as usize;
                let bytes = tail.totals()[at..at + 8].try_into().expect("eight bytes");
                return Ok(u64::from_le_bytes(bytes));
            }
        }
        let path = self.dir.join("totals");
        let fail = |e: io::Error| DiskError::new("read", &path, e);
        let mut bytes = [0; 8];
        let file = std::fs::File::open(&path).map_err(fail)?;
        file.read_exact_at(&mut bytes, (size - 1) * 8).map_err(fail)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes the partial tiles of a published size, so that the directory, served as it is, is a
    /// whole log for the note beside them; narrower ones of the same tile go.
    pub fn write_partial(&self, size: u64) -> Result<(), ReadError> {
        for id in tile::grown(0, size).into_iter().filter(|id| !id.is_full()) {
            let (index, width) = (id.index, u64::from(id.width));
            let bytes = match id.row {
                Row::Entries => self.bundle(index, width)?,
                Row::Level(level) => self.hashes(level, index, width)?,
            };
            let path = self.dir.join(id.path());
            if path.exists() {
                continue;
            }
            self.replace(&id.path(), &bytes)?;
            let dir = path.parent().expect("a partial tile stands in a directory");
            let list = std::fs::read_dir(dir).map_err(|e| DiskError::new("list", dir, e))?;
            for other in list.flatten().map(|e| e.path()).filter(|other| *other != path) {
                // Readers of a narrower width are answered from this one.
                durable::remove_file(&other)?;
            }
        }
        Ok(())
    }

    /// The root over all records.
    pub fn root(&self) -> LedgerHash {
        self.tail().root()
    }
}

fn full_path(row: Row, index: u64) -> String {
    TileId { row, index, width: TILE as u16 }.path()
}

/// Tag lists are filed as the entry bundle is.
fn tags_path(index: u64) -> String {
    full_path(Row::Entries, index).replace("tile/entries/", "tags/")
}
