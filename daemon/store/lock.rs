//! Whose directory this is, and that only one process uses it.
//!
//! Owns: the identity file (network, peer, format) and the lock file.
//! Never: changes a directory that it refuses.
//! Invariant: while a `StoreDir` lives, no other process has one for the same directory. The lock
//! is the kernel's, so a killed process leaves none behind.

use super::durable::{self, DiskError};
use mictlan::id::{NetworkId, PeerId};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The format of the whole directory: identity, segments and what a frame means.
pub const FORMAT: u32 = 1;
const IDENTITY: &str = "store.id";
const LOCK: &str = "lock";
const SEGMENTS: &str = "segments";
const INDEX: &str = "index";

/// Why a directory is refused. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum DirError {
    #[error(
        "{} holds chunks of network {theirs}, and this peer is of {ours}; name another directory",
        dir.display()
    )]
    OtherNetwork { dir: PathBuf, theirs: NetworkId, ours: NetworkId },
    #[error(
        "{} is the store of peer {theirs}, and this is peer {ours}; name another directory",
        dir.display()
    )]
    OtherPeer { dir: PathBuf, theirs: PeerId, ours: PeerId },
    #[error(
        "{} has store format {format}, and this program knows up to {FORMAT}; use a newer mictlan",
        dir.display()
    )]
    Newer { dir: PathBuf, format: u32 },
    #[error(
        "{} is in use by another mictlan ({holder}); stop it first, or name another directory",
        dir.display()
    )]
    InUse { dir: PathBuf, holder: String },
    #[error(
        "{} is neither empty nor a store of mictlan (it has no {IDENTITY}); name another directory",
        dir.display()
    )]
    NotAStore { dir: PathBuf },
    #[error("{} does not read as a store's identity; restore it from a copy", path.display())]
    BadIdentity { path: PathBuf },
    #[error(
        "user {user} may not write to {}; change its owner or mode, or run as its owner",
        path.display()
    )]
    Denied { path: PathBuf, user: u32 },
    #[error(transparent)]
    Disk(#[from] DiskError),
}

/// An open, locked store directory that belongs to this network and peer.
pub struct StoreDir {
    path: PathBuf,
    /// Held until it is dropped.
    lock: File,
    /// There was no store here before.
    pub made: bool,
}

impl StoreDir {
    /// Opens the directory, or makes it where there is none or an empty one.
    pub fn open(path: &Path, network: NetworkId, peer: PeerId) -> Result<Self, DirError> {
        durable::create_dir(path, 0o700).map_err(denied)?;
        let identity = path.join(IDENTITY);
        match read(&identity)? {
            Some(text) => check(path, &parse(&text).ok_or_else(|| bad(&identity))?, network, peer)?,
            None if is_ours_to_fill(path)? => {}
            None => return Err(DirError::NotAStore { dir: path.to_owned() }),
        }
        let lock = lock(path)?;
        let mut dir = Self { path: path.to_owned(), lock, made: false };
        durable::create_dir(&dir.segments(), 0o700).map_err(denied)?;
        // Under the lock: another process may have made it between our look and our lock.
        match read(&identity)? {
            Some(text) => check(path, &parse(&text).ok_or_else(|| bad(&identity))?, network, peer)?,
            None => {
                let text = render(&Identity { format: FORMAT, network, peer });
                durable::replace_file(&identity, 0o600, text.as_bytes()).map_err(denied)?;
                dir.made = true;
            }
        }
        Ok(dir)
    }

    /// Whether its name still leads to this directory, and that of `segment` to the file that is
    /// written. One that was removed, replaced or unmounted takes bytes all the same, for nobody.
    pub fn takes(&self, segment: u64, file: &File) -> Result<(), DiskError> {
        self.is_there()?;
        is_named(&self.segment(segment), file)
    }

    /// Whether its name still leads to this directory.
    pub fn is_there(&self) -> Result<(), DiskError> {
        is_named(&self.path.join(LOCK), &self.lock)
    }

    /// Bytes that the directory's disk has free for us.
    pub fn free_bytes(&self) -> io::Result<u64> {
        let disk = rustix::fs::fstatvfs(&self.lock)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn segments(&self) -> PathBuf {
        self.path.join(SEGMENTS)
    }

    pub fn index(&self) -> PathBuf {
        self.path.join(INDEX)
    }

    /// Segment 1 is `segments/0000000000000001.seg`.
    pub fn segment(&self, number: u64) -> PathBuf {
        self.segments().join(format!("{number:016x}.seg"))
    }
}

fn is_named(path: &Path, file: &File) -> Result<(), DiskError> {
    let lost = |cause: io::Error| DiskError::new("find", path, cause);
    let named = path.symlink_metadata().map_err(lost)?;
    let ours = file.metadata().map_err(lost)?;
    match (named.dev(), named.ino()) == (ours.dev(), ours.ino()) {
        true => Ok(()),
        false => Err(lost(io::Error::other("another file has its name"))),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Identity {
    format: u32,
    network: NetworkId,
    peer: PeerId,
}

fn render(id: &Identity) -> String {
    format!("mictlan store\nformat {}\nnetwork {}\npeer {}\n", id.format, id.network, id.peer)
}

/// The strict inverse of `render`, but a newer format may have other lines.
fn parse(text: &str) -> Option<Identity> {
    let mut lines = text.strip_prefix("mictlan store\n")?.lines();
    let format: u32 = lines.next()?.strip_prefix("format ")?.parse().ok()?;
    if format > FORMAT {
        return Some(Identity { format, network: NetworkId([0; 32]), peer: PeerId(0) });
    }
    let network = NetworkId::from_hex(lines.next()?.strip_prefix("network ")?)?;
    let peer = PeerId(lines.next()?.strip_prefix("peer ")?.parse().ok()?);
    let id = Identity { format, network, peer };
    (render(&id) == text).then_some(id)
}

fn check(path: &Path, id: &Identity, network: NetworkId, peer: PeerId) -> Result<(), DirError> {
    let dir = path.to_owned();
    if id.format > FORMAT {
        Err(DirError::Newer { dir, format: id.format })
    } else if id.network != network {
        Err(DirError::OtherNetwork { dir, theirs: id.network, ours: network })
    } else if id.peer != peer {
        Err(DirError::OtherPeer { dir, theirs: id.peer, ours: peer })
    } else {
        Ok(())
    }
}

/// Without an identity a directory is ours only if it is empty, or if a crash while it was being
/// made left nothing but our lock, our empty directories and the identity's draft.
fn is_ours_to_fill(path: &Path) -> Result<bool, DirError> {
    let fail = |e: io::Error| denied(DiskError::new("list", path, e));
    for entry in std::fs::read_dir(path).map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let draft = format!(".{IDENTITY}.new");
        // ext4 makes `lost+found` in a file system's root, where many put a store.
        let known = [LOCK, SEGMENTS, &draft, "lost+found"].iter().any(|known| name == *known);
        let empty =
            name != SEGMENTS || std::fs::read_dir(path.join(&name)).map_err(fail)?.next().is_none();
        if !known || !empty {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock(dir: &Path) -> Result<File, DirError> {
    let path = dir.join(LOCK);
    let fail = |doing| {
        let path = path.clone();
        move |e: io::Error| denied(DiskError::new(doing, &path, e))
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(fail("open"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let _ = file.read_to_string(&mut holder); // only to name the holder
            return Err(DirError::InUse { dir: dir.to_owned(), holder: holder.trim().to_owned() });
        }
        Err(TryLockError::Error(e)) => return Err(fail("lock")(e)),
    }
    // For the sentence above only; the lock itself is the kernel's.
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "process {}", std::process::id()))
        .map_err(fail("write"))?;
    Ok(file)
}

fn read(path: &Path) -> Result<Option<String>, DirError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => Err(bad(path)),
        Err(e) => Err(denied(DiskError::new("read", path, e))),
    }
}

fn bad(path: &Path) -> DirError {
    DirError::BadIdentity { path: path.to_owned() }
}

/// Missing permission has a remedy of its own; every other cause speaks for itself.
fn denied(error: DiskError) -> DirError {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            DirError::Denied { path: error.path, user }
        }
        _ => DirError::Disk(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NET: NetworkId = NetworkId([1; 32]);

    fn refused(path: &Path, network: NetworkId, peer: u64) -> String {
        match StoreDir::open(path, network, PeerId(peer)) {
            Ok(_) => panic!("opened"),
            Err(e) => e.to_string(),
        }
    }

    #[test]
    fn a_directory_belongs_to_one_network_one_peer_and_one_process() {
        let tmp = tempfile::tempdir().expect("a directory");
        let path = tmp.path().join("a/b");
        let held = StoreDir::open(&path, NET, PeerId(2)).expect("made");
        let said = refused(&path, NET, 2);
        assert!(said.contains(&format!("process {}", std::process::id())), "{said}");
        drop(held);
        assert!(refused(&path, NetworkId([2; 32]), 2).contains("of network 0101"));
        assert!(refused(&path, NET, 3).contains("store of peer 2"));
        StoreDir::open(&path, NET, PeerId(2)).expect("opened again");
    }

    #[test]
    fn what_is_not_ours_or_too_new_is_left_alone() {
        let tmp = tempfile::tempdir().expect("a directory");
        std::fs::write(tmp.path().join("thesis.tex"), "mine").expect("written");
        assert!(refused(tmp.path(), NET, 1).contains("neither empty nor a store"));
        std::fs::remove_file(tmp.path().join("thesis.tex")).expect("removed");

        std::fs::write(tmp.path().join(IDENTITY), "mictlan store\nformat 2\nmore 1\n").expect("ok");
        assert!(refused(tmp.path(), NET, 1).contains("store format 2"));
        std::fs::write(tmp.path().join(IDENTITY), "mictlan store\nformat 1\n").expect("ok");
        assert!(refused(tmp.path(), NET, 1).contains("does not read"));
        assert_eq!(std::fs::read_dir(tmp.path()).expect("listed").count(), 1, "nothing was added");
    }

    #[test]
    fn a_crash_while_it_is_made_leaves_a_directory_that_can_be_made_again() {
        let tmp = tempfile::tempdir().expect("a directory");
        for left in [LOCK, ".store.id.new"] {
            std::fs::write(tmp.path().join(left), "").expect("left");
        }
        std::fs::create_dir(tmp.path().join(SEGMENTS)).expect("left");
        StoreDir::open(tmp.path(), NET, PeerId(1)).expect("made");
    }
}
