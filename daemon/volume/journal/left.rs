//! What mounts that are gone left behind.
//!
//! Owns: which journals those are, and their entries in order across segments.
//! Invariant: one heir alone reads a journal; nothing behind a gap or a damaged entry is handed on.

use super::entry::{Entry, Seq};
use super::segment::{self, SegmentError};
use super::{About, ENDING, JournalError, lock, remove_dir};
use mictlan::seal::Principal;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The journal that a mount which is gone left behind; locked, so that one heir alone replays it.
pub struct Left {
    dir: PathBuf,
    _lock: File,
    pub about: About,
    /// In order, numbered; what follows the first damaged entry is not among them.
    pub entries: Vec<(Seq, Entry)>,
    /// Bytes behind the first entry that was not whole: a torn tail, or damage.
    pub unread_bytes: u64,
}

impl Left {
    /// Takes over the journals below `parent` whose mounts are gone. One that another key sealed
    /// stays as it is and is named in `strange`.
    pub fn find(
        parent: &Path,
        key: &Principal,
        strange: &mut Vec<(PathBuf, SegmentError)>,
    ) -> Result<Vec<Left>, JournalError> {
        let mut found = Vec::new();
        let failed = |error| JournalError::Disk(parent.into(), error);
        let listing = match std::fs::read_dir(parent) {
            Ok(listing) => listing,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(failed(error)),
        };
        for entry in listing {
            let dir = entry.map_err(failed)?.path();
            let Some(lock) = lock(&dir)? else { continue };
            match read_segments(&dir, key) {
                Ok(None) => remove_dir(&dir)?, // it was made and never written to
                Ok(Some((about, entries, unread_bytes))) => {
                    found.push(Left { dir, _lock: lock, about, entries, unread_bytes });
                }
                Err(error) => strange.push((dir, error)),
            }
        }
        found.sort_by_key(|left| left.about.session);
        Ok(found)
    }

    /// Journals below `parent` that somebody still has, and is about to leave.
    pub fn ending(parent: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|dir| dir.join(ENDING).exists()).collect()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Everything in it was taken over by the new session's journal or commits.
    pub fn remove(self) -> Result<(), JournalError> {
        remove_dir(&self.dir)
    }
}

type Entries = (About, Vec<(Seq, Entry)>, u64);

fn read_segments(dir: &Path, key: &Principal) -> Result<Option<Entries>, SegmentError> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    files.sort();
    let mut all: Option<Entries> = None;
    for file in files {
        let Some((about, first, entries, unread)) = segment::read(&file, key)? else { continue };
        let (_, known, behind) = all.get_or_insert_with(|| (about, Vec::new(), 0));
        let expected = known.last().map(|(seq, _)| Seq(seq.0 + 1));
        if *behind > 0 || expected.is_some_and(|expected| expected != first) {
            // A gap: what comes after it may rest on what is missing.
            *behind += unread + entries.iter().map(|(_, e)| e.encode().len() as u64).sum::<u64>();
            continue;
        }
        known.extend(entries);
        *behind = unread;
    }
    Ok(all)
}
