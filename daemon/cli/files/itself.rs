//! Whether a copy would go into what it is copied from, as `cp` asks it of its own directories.
//!
//! Owns: the question whether something of this machine is the volume itself, seen through a mount.
//! Never: goes by the name of a network or volume, or by the mount table: whoever shows a directory
//! is asked for the number of its volume, and its inode numbers are those of the volume.

use super::place::Place;
use crate::cli::error::CliError;
use mictlan::id::{Ino, VolumeId};
use mictlan::meta::inode::FileKind;
use mictlan_mount::vfs::Attr;
use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Answered by a mount of mictlan and by nobody else.
const ATTRIBUTE: &str = "user.mictlan.volume";

/// Whether a file or directory is shown by a mount of `volume`.
fn shows(path: &Path, volume: VolumeId) -> bool {
    let mut value = [0; 64];
    match rustix::fs::getxattr(path, ATTRIBUTE, &mut value) {
        Ok(len) => value[..len] == *volume.to_string().as_bytes(),
        Err(_) => false,
    }
}

fn refusal(from: impl std::fmt::Display, to: impl std::fmt::Display) -> CliError {
    CliError::Usage(format!(
        "{from} would be copied into itself: {to} is the same, or lies in it, seen through a mount \
         of the volume; nothing was changed: name a destination elsewhere"
    ))
}

/// How many bytes a put of `source` moves, unless it has one of `into` in it: the directories from
/// the volume's root to the place that it gets, and what is there. What cannot be read is reported
/// when it is copied.
pub fn not_from_below(
    volume: VolumeId,
    source: &Path,
    into: &BTreeSet<Ino>,
    to: &str,
) -> Result<u64, CliError> {
    let mut total = 0;
    // With the device of the directory above, and whether that is the volume's.
    let mut open: Vec<(PathBuf, Option<(u64, bool)>)> = vec![(source.to_owned(), None)];
    while let Some((path, above)) = open.pop() {
        let Ok(meta) = path.symlink_metadata() else { continue };
        if meta.is_file() {
            total += meta.len();
        }
        if !meta.is_dir() && (above.is_some() || meta.is_symlink()) {
            continue;
        }
        let is_ours = match above {
            Some((device, is_ours)) if device == meta.dev() => is_ours,
            _ => shows(&path, volume),
        };
        if is_ours && into.contains(&Ino(meta.ino())) {
            return Err(refusal(path.display(), to));
        }
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            open.push((entry.path(), Some((meta.dev(), is_ours))));
        }
    }
    Ok(total)
}

/// That a get of `from` does not go to itself or to somewhere below it, at `to` on this machine.
pub fn not_from_above(
    volume: VolumeId,
    from: &Attr,
    to: &Path,
    place: &Place,
) -> Result<(), CliError> {
    let is_from = |meta: Metadata| Ino(meta.ino()) == from.ino;
    let same = |path: &Path| {
        path.symlink_metadata().is_ok_and(|meta| !meta.is_symlink() && is_from(meta))
            && shows(path, volume)
    };
    if from.inode.kind == FileKind::Symlink {
        return Ok(());
    }
    let whole = to.canonicalize().or_else(|_| {
        let above = to.parent().filter(|dir| !dir.as_os_str().is_empty());
        above.unwrap_or(Path::new(".")).canonicalize()
    });
    let whole = whole.unwrap_or_else(|_| to.to_owned());
    match same(to) || whole.ancestors().any(same) {
        true => Err(refusal(place, to.display())),
        false => Ok(()),
    }
}
