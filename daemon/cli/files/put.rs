//! `mictlan put`: files and directories into a volume.
//!
//! Owns: what is copied from where, and under which name.
//! Invariant: a name appears, or is replaced, with its whole content: a file is written under
//! another name beside it and renamed when all its bytes are there.

use super::pipe::{self, is_pipe};
use super::place::{self, Place};
use super::progress::Progress;
use super::{BLOCK_BYTES, Copied, Interrupt, Left, Open, Who, at, below, itself};
use crate::cli::error::CliError;
use crate::cli::runtime;
use crate::cli::shown::shown;
use crate::host;
use bytes::Bytes;
use clap::Args;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, MODE_MASK, Stamp};
use mictlan_mount::vfs::{Attr, Found, Make, OpenHow, RenameHow, SetAttr, SetTime, Vfs, WriteAt};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tokio::sync::mpsc;

const LEFT: Left<'static> = Left {
    failed: "what was put before it is whole and committed, and nothing else changed",
    interrupted: "what was put before is whole and committed",
};
const NOTHING_PUT: &str = "nothing was put, and what had the name is as it was";
const PIPE_LEFT: Left<'static> = Left { failed: NOTHING_PUT, interrupted: NOTHING_PUT };

#[derive(Args)]
pub struct PutArgs {
    /// Files and directories of this machine. Modes, times and links are kept; owners, extended
    /// attributes and hard links between files are not: mount the volume for those. `-` alone is
    /// standard input.
    #[arg(required = true, value_name = "FILE|DIR|-")]
    sources: Vec<PathBuf>,
    /// [[NETWORK:]VOLUME:]/PATH: a directory that exists, or the new name of a single source.
    dest: std::ffi::OsString,
    #[command(flatten)]
    who: Who,
}

pub fn put(args: PutArgs) -> Result<ExitCode, CliError> {
    let place = Place::parse(&args.dest)?;
    let from_pipe = args.sources.iter().any(|source| is_pipe(source));
    check(&args.sources, from_pipe, &place)?;
    runtime()?.block_on(async {
        let open = Open::volume(&place, &args.who, false).await?;
        let progress = match from_pipe {
            true => Progress::endless(args.who.json),
            false => Progress::new(0, args.who.json),
        };
        let interrupt = Interrupt::watch();
        let copied = Copied::default();
        let mut put = Put { open: &open, progress, interrupt, copied, makes: None };
        let done = match from_pipe {
            true => put.input(&place).await,
            false => put.all(&args.sources, &place).await,
        };
        put.progress.committing();
        let Put { copied, progress, makes, .. } = put;
        let interrupted = again(makes.as_deref());
        let left = match from_pipe {
            true => PIPE_LEFT,
            false => Left { interrupted: &interrupted, ..LEFT },
        };
        let done = open.finish(done, left).await;
        drop(progress);
        done?;
        copied.say(args.who.json, "put");
        Ok(ExitCode::SUCCESS)
    })
}

/// Mistakes in the sources come before anything is opened.
fn check(sources: &[PathBuf], from_pipe: bool, place: &Place) -> Result<(), CliError> {
    let usage = |text: String| Err(CliError::Usage(text));
    if from_pipe && sources.len() > 1 {
        return usage(
            "- is standard input, and is put alone; a file of that name is ./-".to_owned(),
        );
    }
    if from_pipe && place.is_dir {
        return usage(no_name(place));
    }
    for source in sources.iter().filter(|_| !from_pipe) {
        source.symlink_metadata().map_err(|why| {
            let dir = source.parent().filter(|dir| dir.is_dir()).unwrap_or(Path::new("."));
            let left = format!(
                "nothing was put; what is put is a file or directory of this machine: ls {}",
                dir.display()
            );
            CliError::Left { cause: Box::new(CliError::Io(source.clone(), why)), left }
        })?;
    }
    Ok(())
}

fn no_name(place: &Place) -> String {
    let dir = place.to_string();
    let file = below(&dir, b"NAME");
    format!("{dir} is a directory, and standard input has no name; give one: mictlan put - {file}")
}

/// How all of it is put after an interruption. A directory under a new name would be put into the
/// one that is there now.
fn again(makes: Option<&str>) -> String {
    let whole = "what was put before is whole and committed";
    match makes {
        Some(place) => {
            format!("{whole}; to put all of it: mictlan rm -r {place}, then the same again")
        }
        None => format!("{whole}; the same again puts all of it, over what is there"),
    }
}

struct Put<'a> {
    open: &'a Open,
    progress: Progress,
    interrupt: Interrupt,
    copied: Copied,
    /// The place that is new, and becomes a directory.
    makes: Option<String>,
}

/// A local thing and where it goes.
struct Step {
    from: PathBuf,
    dir: Ino,
    name: Name,
    /// For people.
    to: String,
}

/// Where the bytes of one file come from.
enum Content<'a> {
    File(Local, &'a Metadata),
    Pipe(mpsc::Receiver<io::Result<Bytes>>),
}

/// A local file, of which holes are not read.
struct Local {
    file: File,
    /// Everything before this was read, or is a hole.
    at: u64,
    /// From there to here is data.
    until: u64,
}

impl Local {
    fn new(file: File) -> Self {
        Self { file, at: 0, until: 0 }
    }

    /// How much is skipped, and what is behind it; `None` at the end.
    fn next(&mut self) -> io::Result<Option<(u64, Bytes)>> {
        let from = self.at;
        if self.at >= self.until {
            (self.at, self.until) = match seek(&self.file, SeekFrom::Data(from)) {
                Ok(data) => (data, seek(&self.file, SeekFrom::Hole(data)).unwrap_or(u64::MAX)),
                Err(Errno::NXIO) => return Ok(None),
                // A file system that knows no holes.
                Err(_) => (from, u64::MAX),
            };
        }
        let mut block = vec![0; (self.until - self.at).min(BLOCK_BYTES as u64) as usize];
        let n = self.file.read_at(&mut block, self.at)?;
        block.truncate(n);
        let skipped = self.at - from;
        self.at += n as u64;
        Ok((n > 0).then(|| (skipped, block.into())))
    }
}

impl Content<'_> {
    /// How much is skipped, and the next bytes; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<(u64, Bytes)>> {
        match self {
            Self::File(local, _) => local.next(),
            Self::Pipe(blocks) => Ok(blocks.recv().await.transpose()?.map(|bytes| (0, bytes))),
        }
    }

    /// How long it is, also where it ends in a hole.
    fn len(&self, read: u64) -> io::Result<u64> {
        match self {
            Self::File(local, _) => Ok(local.file.metadata()?.len().max(read)),
            Self::Pipe(_) => Ok(read),
        }
    }

    fn make(&self) -> Make {
        match self {
            Self::File(_, meta) => make(FileKind::File, meta.mode(), Vec::new()),
            // As a shell makes it that writes a pipe to a file.
            Self::Pipe(_) => Make { umask: umask(), ..make(FileKind::File, 0o666, Vec::new()) },
        }
    }
}

impl Put<'_> {
    /// Standard input, to its end, under the name of `place`.
    async fn input(&mut self, place: &Place) -> Result<(), CliError> {
        let there = self.open.find(&place.path).await.map_err(at(place))?;
        if there.is_some_and(|attr| attr.inode.kind == FileKind::Dir) {
            return Err(CliError::Usage(no_name(place)));
        }
        let from = pipe::input_name();
        let (parent, name) = place.split().expect("the root was refused");
        let step = self.named(from, parent, name, place).await?;
        self.file(&step, Content::Pipe(pipe::input())).await
    }

    /// The step that gives `from` the name of `place`.
    async fn named(
        &self,
        from: PathBuf,
        parent: &[Name],
        name: &Name,
        place: &Place,
    ) -> Result<Step, CliError> {
        let parent = self.open.find(parent).await.map_err(at(place))?;
        let dir = parent.ok_or_else(|| at(place)(FsError::NotFound))?.ino;
        Ok(Step { from, dir, name: name.clone(), to: place.to_string() })
    }

    async fn all(&mut self, sources: &[PathBuf], place: &Place) -> Result<(), CliError> {
        let way = self.open.way(&place.path).await.map_err(at(place))?;
        let is_there = way.len() > place.path.len();
        let is_dir = |last: &&Attr| is_there && last.inode.kind == FileKind::Dir;
        let dir = way.last().filter(is_dir).map(|last| last.ino);
        if dir.is_none() && (place.is_dir || sources.len() > 1) {
            let path = place.to_string();
            let error = if is_there { FsError::NotDir } else { FsError::NotFound };
            return Err(CliError::Volume { path, error });
        }
        let mut steps = Vec::new();
        for source in sources {
            let step = match (dir, place.split()) {
                (Some(dir), _) => {
                    let name = own_name(source)?;
                    let to = below(&place.to_string(), name.as_bytes());
                    if dir == Ino::ROOT && place::is_reserved(&name) {
                        return Err(CliError::Usage(format!("{to}: {}", place::WHY_RESERVED)));
                    }
                    Step { from: source.clone(), dir, name, to }
                }
                (None, Some((parent, name))) => {
                    self.named(source.clone(), parent, name, place).await?
                }
                (None, None) => unreachable!("the root is a directory"),
            };
            let there = self.open.lookup(step.dir, &step.name).await.map_err(at(&step.to))?;
            let into = way.iter().chain(&there).map(|attr| attr.ino).collect();
            let bytes = itself::not_from_below(self.open.volume.id, source, &into, &step.to)?;
            self.progress.more(bytes);
            if dir.is_none() && source.is_dir() {
                self.makes = Some(place.to_string());
            }
            steps.push(step);
        }
        for step in steps {
            self.tree(step).await?;
        }
        Ok(())
    }

    /// One source with all that is below it. Directories get their times last, when nothing is
    /// made in them any more.
    async fn tree(&mut self, step: Step) -> Result<(), CliError> {
        let mut open = vec![step];
        let mut dirs: Vec<(Ino, Metadata, String)> = Vec::new();
        while let Some(step) = open.pop() {
            self.interrupt.check()?;
            let failed = |why| CliError::Io(step.from.clone(), why);
            let meta = step.from.symlink_metadata().map_err(failed)?;
            if meta.is_dir() {
                let ino = self.directory(&step, &meta).await?;
                for entry in std::fs::read_dir(&step.from).map_err(failed)? {
                    let from = entry.map_err(failed)?.path();
                    let name = own_name(&from)?;
                    let to = below(&step.to, name.as_bytes());
                    open.push(Step { from, dir: ino, name, to });
                }
                dirs.push((ino, meta, step.to));
            } else if meta.is_symlink() {
                self.link(&step).await?;
            } else if meta.is_file() {
                let from = File::open(&step.from).map_err(failed)?;
                self.file(&step, Content::File(Local::new(from), &meta)).await?;
            } else {
                self.copied.skipped.push(shown(step.from.as_os_str().as_bytes()));
            }
        }
        for (ino, meta, to) in dirs.into_iter().rev() {
            self.attributes(ino, &meta).await.map_err(at(to))?;
        }
        Ok(())
    }

    async fn directory(&mut self, step: &Step, meta: &Metadata) -> Result<Ino, CliError> {
        let there = self.open.lookup(step.dir, &step.name).await.map_err(at(&step.to))?;
        match there {
            Some(attr) if attr.inode.kind == FileKind::Dir => return Ok(attr.ino),
            Some(_) => return Err(at(&step.to)(FsError::NotDir)),
            None => {}
        }
        // Writable for its maker until its own mode is set at the end.
        let make = make(FileKind::Dir, meta.mode() | 0o700, Vec::new());
        let ino = self.make(step.dir, step.name.clone(), make).await.map_err(at(&step.to))?;
        self.copied.dirs += 1;
        Ok(ino)
    }

    async fn make(&self, dir: Ino, name: Name, make: Make) -> Result<Ino, FsError> {
        match self.open.volume.clone().make(self.open.who, dir, name, make).await? {
            Found::Here { attr, .. } => Ok(attr.ino),
            Found::Nothing { .. } => Err(FsError::Stale), // somebody removed it at once
        }
    }

    async fn link(&mut self, step: &Step) -> Result<(), CliError> {
        let failed = |why| CliError::Io(step.from.clone(), why);
        let target = std::fs::read_link(&step.from).map_err(failed)?;
        let make = make(FileKind::Symlink, 0o777, target.as_os_str().as_bytes().to_vec());
        let beside = beside();
        self.make(step.dir, beside.clone(), make).await.map_err(at(&step.to))?;
        self.take_place(step, beside).await?;
        self.copied.links += 1;
        Ok(())
    }

    async fn file(&mut self, step: &Step, mut from: Content<'_>) -> Result<(), CliError> {
        self.progress.now_at(&step.to);
        let (volume, who) = (self.open.volume.clone(), self.open.who);
        let beside = beside();
        let how = OpenHow { write: true, ..OpenHow::default() };
        let created = volume.clone().create(who, step.dir, beside.clone(), from.make(), how, true);
        let (attr, _, opened) = created.await.map_err(at(&step.to))?;
        let (ino, handle) = (attr.ino, opened.handle);
        let mut done = self.bytes(step, &mut from, ino, handle).await;
        if let (Ok(()), Content::File(_, meta)) = (&done, &from) {
            done = self.attributes(ino, meta).await.map_err(at(&step.to));
        }
        if done.is_ok() {
            done = volume.clone().flush(ino, handle).await.map_err(at(&step.to));
        }
        let released = volume.clone().release(ino, handle).await;
        let done = done.and(released.map_err(at(&step.to)));
        if let Err(error) = done {
            // What is not whole does not stay; if even this fails, its name says what it is.
            let _ = volume.unlink(who, step.dir, beside).await;
            return Err(error);
        }
        self.take_place(step, beside).await?;
        self.copied.files += 1;
        Ok(())
    }

    async fn bytes(
        &mut self,
        step: &Step,
        from: &mut Content<'_>,
        ino: Ino,
        handle: u64,
    ) -> Result<(), CliError> {
        let mut offset = 0;
        loop {
            let next = self.interrupt.unless(from.next()).await?;
            let next = next.map_err(|why| CliError::Io(step.from.clone(), why))?;
            let Some((skipped, data)) = next else { break };
            offset += skipped;
            self.progress.moved(skipped as usize);
            let n = data.len();
            let write = WriteAt { offset, append: false, kill_privileges: false, data };
            let written = self.open.volume.clone().write(self.open.who, ino, handle, write).await;
            written.map_err(at(&step.to))?;
            offset += n as u64;
            self.progress.moved(n);
        }
        let len = from.len(offset).map_err(|why| CliError::Io(step.from.clone(), why))?;
        if len > offset {
            let set = SetAttr { size: Some(len), ..SetAttr::default() };
            let set = self.open.volume.clone().setattr(self.open.who, ino, Some(handle), set);
            set.await.map_err(at(&step.to))?;
        }
        self.copied.bytes += len;
        Ok(())
    }

    /// The finished thing gets its name; what had it is gone.
    async fn take_place(&self, step: &Step, beside: Name) -> Result<(), CliError> {
        let volume = self.open.volume.clone();
        let (from, to) = ((step.dir, beside), (step.dir, step.name.clone()));
        let renamed = volume.clone().rename(self.open.who, from.clone(), to, RenameHow::Replace);
        if let Err(error) = renamed.await {
            let _ = volume.unlink(self.open.who, from.0, from.1).await;
            return Err(at(&step.to)(error));
        }
        Ok(())
    }

    async fn attributes(&self, ino: Ino, meta: &Metadata) -> Result<(), FsError> {
        let stamp = |secs, nanos: i64| {
            let nanos = u32::try_from(nanos).unwrap_or(0);
            Some(SetTime::At(Stamp { secs, nanos }))
        };
        let set = SetAttr {
            mode: Some(meta.mode() & MODE_MASK),
            mtime: stamp(meta.mtime(), meta.mtime_nsec()),
            atime: stamp(meta.atime(), meta.atime_nsec()),
            ..SetAttr::default()
        };
        self.open.volume.clone().setattr(self.open.who, ino, None, set).await?;
        Ok(())
    }
}

fn make(kind: FileKind, mode: u32, target: Vec<u8>) -> Make {
    Make { kind, mode: mode & MODE_MASK, umask: 0, rdev: 0, target: target.into() }
}

/// Of this process; it can be read only by setting it.
fn umask() -> u32 {
    let mask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    rustix::process::umask(mask);
    mask.as_raw_mode()
}

/// A name that nobody else makes, for what is not whole yet.
fn beside() -> Name {
    let name = format!(".mictlan-put-{}", host::ulid());
    Name::parse(name.as_bytes()).expect("a prefix and a ULID are a name")
}

/// The name that a local path has in its directory.
fn own_name(path: &Path) -> Result<Name, CliError> {
    let whole = path.canonicalize();
    let name = path.file_name().map(|name| name.to_owned()).or_else(|| {
        let whole = whole.ok()?; // such as `.`, which has its name only when resolved
        whole.file_name().map(|name| name.to_owned())
    });
    let parsed = name.and_then(|name| Name::parse(name.as_bytes()).ok());
    parsed.ok_or_else(|| {
        CliError::Usage(format!("{} has no name to be put under; give one in DEST", path.display()))
    })
}
