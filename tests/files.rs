//! What tests do with files as programs do it, and how they look at them.
//!
//! Owns: the answer of `close`, which promises something here and which `File` does not hear.
//! Never: syncs or renames; a test that is about that does it itself.

use crate::harness::Home;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::IntoRawFd;
use std::path::Path;

pub fn close(file: File) -> io::Result<()> {
    // SAFETY: the descriptor is this function's own, and nothing uses it afterwards.
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A new file, or the bytes of one that is there no more.
pub fn write_and_close(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    close(file)
}

/// The file has these bytes; else the logs of `home` are shown.
pub fn same(path: &Path, wanted: &[u8], home: &Home) {
    let found = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}{}", path.display(), home.log()));
    let (name, len) = (path.display(), wanted.len());
    assert!(found == wanted, "{name}: {} of {len} bytes came back{}", found.len(), home.log());
}

/// What is in a directory, in the order of the names.
pub fn names(dir: &Path) -> Vec<String> {
    let listed = fs::read_dir(dir).expect("listed").map(|entry| entry.expect("an entry"));
    let mut names: Vec<_> =
        listed.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}
