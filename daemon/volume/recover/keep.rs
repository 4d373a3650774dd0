//! What was acknowledged and cannot happen any more, because another mount was first.
//!
//! Owns: the files in the volume's root that keep it. Bytes come back as `NAME.recovered-HOST-TIME`;
//! any other operation is a line of `operations.recovered-HOST-TIME`, in words.
//! Invariant: a line is on its peers before it has its place; what could not be kept yet is an error,
//! and is tried again.

use crate::host;
use crate::volume::Volume;
use crate::volume::file::OpenFile;
use crate::volume::journal::{Holds, Origin};
use crate::volume::local::{self, Under};
use mictlan::file::Extent;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Stamp};
use mictlan::meta::key::{Key, Span};
use mictlan::meta::namespace::{AllocateMode, Append, Make, Op, Place, RenameMode, SetAttr, Write};
use mictlan::meta::tree::Read;
use mictlan::meta::value::Value;
use std::collections::HashMap;
use std::sync::MutexGuard;

/// Dirents looked through for the name that an inode has.
const NAMES_MAX: usize = 100_000;
/// Directories above each other that a path is made of.
const DEPTH_MAX: usize = 64;
/// Paths and names remembered.
const KNOWN_MAX: usize = 10_000;

/// What is known of operations that were refused.
#[derive(Default)]
pub struct Kept {
    /// The list of this mount.
    list: Option<Ino>,
    /// What could not be made again has no name but this one.
    places: HashMap<Ino, Place>,
    /// Paths of directories.
    paths: HashMap<Ino, String>,
}

impl Volume {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("nothing panics while it is locked")
    }

    /// An operation that was acknowledged and cannot happen any more. Bytes get a file of their
    /// own; anything else is a line in a list.
    pub(in crate::volume) async fn refused_again(
        &self,
        now: Stamp,
        op: Op,
        why: &str,
        origin: Option<Origin>,
        under: Under,
    ) -> Result<(), FsError> {
        tracing::error!(operation = ?op, why,
            "an operation was acknowledged and is refused now, because another mount changed the \
             same thing meanwhile");
        let own = self.of_this_session(origin);
        if under == Under::Again && own.is_some() {
            // The next fsync says it. To an earlier mount's programs nothing can be said any more.
            self.core().broken_promise = Some(FsError::Io);
        }
        let again = match op {
            Op::Write(write) if !write.extents.is_empty() => {
                let ino = self.file_for_bytes(write.ino, now, own, under).await?;
                Op::Write(Write { ino, ..write })
            }
            Op::Append(append) => {
                let ino = self.file_for_bytes(append.ino, now, own, under).await?;
                Op::Append(Append { ino, ..append })
            }
            Op::Write(_) | Op::Reap { .. } => return Ok(()),
            op => {
                let line = format!("{}: {why}\n", self.in_words(&op).await?);
                if let Op::Make(make) = op {
                    let places = &mut self.kept().places;
                    if places.len() < KNOWN_MAX {
                        places.insert(make.ino, make.at);
                    }
                }
                return self.note(now, &line, origin, under).await;
            }
        };
        let holds = Holds { origin, ..Holds::default() };
        self.place(&again, now, holds, under).await?;
        Ok(())
    }

    /// Another host removed the file that `op` was to place bytes in. Those that were acknowledged
    /// get a file of their own; of others, whoever has the file open is told.
    pub(in crate::volume) async fn gone_before(
        &self,
        file: &OpenFile,
        op: Op,
        now: Stamp,
        holds: Holds,
    ) -> Result<Option<Op>, FsError> {
        let inode = file.ino.0;
        if holds == Holds::default() {
            tracing::error!(
                inode,
                "bytes that no close had acknowledged have nowhere to go: \
                another mount removed their file"
            );
            let mut data = file.data();
            data.sealing.clear();
            data.forget_bytes();
            data.failed = Some(FsError::Stale).filter(|_| data.handles > 0);
            return Ok(None);
        }
        tracing::error!(inode, "bytes were acknowledged, and another mount removed their file");
        if holds.origin.is_none() {
            self.core().broken_promise = Some(FsError::Io);
        }
        let ino = self.file_for_bytes(file.ino, now, None, Under::Certification).await?;
        Ok(Some(match op {
            Op::Write(write) => Op::Write(Write { ino, ..write }),
            Op::Append(append) => Op::Append(Append { ino, ..append }),
            op => op,
        }))
    }

    /// Appends a line to the list of what was refused.
    async fn note(
        &self,
        now: Stamp,
        line: &str,
        origin: Option<Origin>,
        under: Under,
    ) -> Result<(), FsError> {
        let holds = Holds { origin, ..Holds::default() };
        let sealed = self.seal_data(line.as_bytes(), self.codec())?;
        let (len, chunk) = (line.len() as u32, sealed.address);
        let copies = self.copies_for(Ino::ROOT).await?;
        let put = self.chunks.put(sealed, copies, Default::default());
        self.wait_for(&[put]).await?;
        let extents = vec![Extent { offset: 0, len, chunk, at: 0, packed: None }];
        let known = self.kept().list;
        let mut append = Append { ino: Ino::ROOT, extents, mtime: now, kill_priv: false };
        if let Some(ino) = known {
            append.ino = ino;
            match self.place(&Op::Append(append.clone()), now, holds, under).await {
                Err(FsError::NotFound | FsError::Stale) => {} // somebody removed it
                placed => return placed.map(|_| ()),
            }
        }
        let own = self.of_this_session(origin);
        append.ino = self.recovered_file(b"operations", now, own, under).await?;
        self.place(&Op::Append(append.clone()), now, holds, under).await?;
        self.kept().list = Some(append.ino);
        Ok(())
    }

    /// A new file that takes the bytes that were meant for `lost`.
    pub(super) async fn file_for_bytes(
        &self,
        lost: Ino,
        at: Stamp,
        own: Option<Origin>,
        under: Under,
    ) -> Result<Ino, FsError> {
        let meant = self.kept().places.get(&lost).map(|place| place.name.as_bytes().into());
        let name: Box<[u8]> = match meant {
            Some(name) => name,
            None => self.name_of(lost).await?.unwrap_or_else(|| numbered(lost).into_bytes().into()),
        };
        self.recovered_file(&name, at, own, under).await
    }

    /// What an operation that is planned again stands for, if it was this session's: all that is
    /// made for it counts no sooner than it does. What was taken over is done with its bytes alone.
    fn of_this_session(&self, origin: Option<Origin>) -> Option<Origin> {
        origin.filter(|origin| origin.session == self.core().session.id)
    }

    /// The file `NAME.recovered-HOST-TIME` in the root, made if it is not there.
    async fn recovered_file(
        &self,
        name: &[u8],
        at: Stamp,
        own: Option<Origin>,
        under: Under,
    ) -> Result<Ino, FsError> {
        let mut text = name.to_vec();
        text.truncate(150);
        text.extend_from_slice(format!(".recovered-{}-{}", host::machine(), at.secs).as_bytes());
        text.truncate(255);
        let name = Name::parse(&text).map_err(|_| FsError::Invalid)?;
        let found = self.find(Ino::ROOT, &name).await;
        if let Ok((ino, _)) = found {
            return Ok(ino); // what was kept of the same a moment ago
        }
        let ino = self.new_ino()?;
        let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let make = Make {
            at: Place { dir: Ino::ROOT, name: name.clone() },
            ino,
            kind: FileKind::File,
            mode: 0o600,
            umask: 0,
            uid,
            gid,
            rdev: 0,
            target: Box::default(),
        };
        let holds = Holds { origin: own, ..Holds::default() };
        self.place(&Op::Make(make), local::now(), holds, under).await?;
        tracing::error!(?name, "what another mount left no place for is kept in this file");
        Ok(ino)
    }

    async fn in_words(&self, op: &Op) -> Result<String, FsError> {
        Ok(match op {
            Op::Make(make) => {
                let kind = match make.kind {
                    FileKind::Dir => "directory",
                    FileKind::Symlink => "symlink",
                    _ => "file",
                };
                format!("make the {kind} {}", self.path_at(&make.at).await?)
            }
            Op::Link { ino, to } => {
                format!("link {} to {}", self.path(*ino).await?, self.path_at(to).await?)
            }
            Op::Unlink(at) => format!("remove {}", self.path_at(at).await?),
            Op::Rmdir(at) => format!("remove the directory {}", self.path_at(at).await?),
            Op::Rename { from, to, mode } => {
                let verb = if *mode == RenameMode::Exchange { "exchange" } else { "rename" };
                let (from, to) = (self.path_at(from).await?, self.path_at(to).await?);
                format!("{verb} {from} to {to}")
            }
            Op::SetAttr(set) => format!("set {} of {}", settings(set), self.path(set.ino).await?),
            Op::SetXattr(set) => {
                let name = String::from_utf8_lossy(&set.name);
                format!("set the attribute {name:?} of {}", self.path(set.ino).await?)
            }
            Op::RemoveXattr { ino, name, .. } => {
                let name = String::from_utf8_lossy(name);
                format!("remove the attribute {name:?} of {}", self.path(*ino).await?)
            }
            Op::Allocate(allocate) => {
                let (offset, len) = (allocate.offset, allocate.len);
                let verb = match allocate.mode {
                    AllocateMode::Reserve | AllocateMode::ReserveKeepSize => "reserve",
                    _ => "clear",
                };
                let path = self.path(allocate.ino).await?;
                format!("{verb} {len} bytes at {offset} of {path}")
            }
            Op::Copy(copy) => {
                let (from, to) = (self.path(copy.from).await?, self.path(copy.to).await?);
                format!("copy {} bytes of {from} into {to} at {}", copy.len, copy.to_offset)
            }
            Op::Write(write) => format!("write to {}", self.path(write.ino).await?),
            Op::Append(append) => format!("append to {}", self.path(append.ino).await?),
            Op::Reap { ino } => format!("forget {}", numbered(*ino)),
        })
    }

    async fn path_at(&self, place: &Place) -> Result<String, FsError> {
        let dir = self.path(place.dir).await?;
        let name = String::from_utf8_lossy(place.name.as_bytes()).escape_debug().to_string();
        Ok(format!("{}/{name}", dir.trim_end_matches('/')))
    }

    /// Where an inode is now, or was to be, as well as it can be said.
    async fn path(&self, ino: Ino) -> Result<String, FsError> {
        let (mut at, mut path) = (ino, String::new());
        for _ in 0..DEPTH_MAX {
            if at == Ino::ROOT {
                break;
            }
            let known = self.kept().paths.get(&at).cloned();
            if let Some(known) = known {
                path = format!("{known}{path}");
                break;
            }
            let meant = self.kept().places.get(&at).cloned();
            let (home, name): (Ino, Option<Box<[u8]>>) = match (self.inode(at).await, meant) {
                (Ok(inode), _) => (inode.home, self.name_of(at).await?),
                (Err(_), Some(place)) => (place.dir, Some(place.name.as_bytes().into())),
                (Err(_), None) => (Ino::ROOT, None),
            };
            let name = name.map(|name| String::from_utf8_lossy(&name).escape_debug().to_string());
            path = format!("/{}{path}", name.unwrap_or_else(|| numbered(at)));
            at = home;
        }
        let path = if path.is_empty() { "/".to_owned() } else { path };
        let paths = &mut self.kept().paths;
        if paths.len() < KNOWN_MAX {
            paths.insert(ino, path.clone());
        }
        Ok(path)
    }

    /// The name that an inode had in its home directory, if it still has one.
    async fn name_of(&self, ino: Ino) -> Result<Option<Box<[u8]>>, FsError> {
        let Ok(inode) = self.inode(ino).await else { return Ok(None) };
        let names = self
            .ask(|core| {
                let span = Span::children(inode.home);
                Ok(core.view.range(span.from(), span.to(), NAMES_MAX)?)
            })
            .await?;
        let named = names.into_iter().find_map(|(key, value)| match (key, value) {
            (Key::Dirent { name, .. }, Value::Dirent { ino: there, .. }) if there == ino => {
                Some(name.as_bytes().into())
            }
            _ => None,
        });
        Ok(named)
    }
}

fn numbered(ino: Ino) -> String {
    format!("inode-{}", ino.0)
}

fn settings(set: &SetAttr) -> String {
    let parts = [
        set.mode.map(|mode| format!("mode {mode:04o}")),
        set.uid.map(|uid| format!("owner {uid}")),
        set.gid.map(|gid| format!("group {gid}")),
        set.size.map(|size| format!("size {size}")),
        set.atime.and(set.mtime).or(set.atime).or(set.mtime).map(|_| "times".to_owned()),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}
