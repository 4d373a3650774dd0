//! `mictlan get`: files and directories out of a volume.
//!
//! Owns: what is copied to where on this machine.
//! Invariant: a local name appears, or is replaced, with its whole content.

use super::pipe::{Output, is_output, takes_bytes};
use super::place::Place;
use super::progress::Progress;
use super::{BLOCK_BYTES, Copied, Interrupt, Left, Open, Who, at, below, itself};
use crate::cli::error::CliError;
use crate::cli::lines::PIPE_CLOSED;
use crate::cli::runtime;
use crate::store::durable;
use bytes::Bytes;
use clap::Args;
use mictlan::id::Ino;
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode};
use mictlan_mount::vfs::{Attr, OpenHow, Seek, Vfs};
use rustix::fs::OFlags;
use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, FileTimes, Permissions};
use std::io::{self, IsTerminal};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

const LEFT: Left<'static> = Left {
    failed: "what was got before it is whole, and nothing in the volume changed",
    interrupted: "what was got before is whole, and nothing in the volume changed; a get begins \
                  anew and replaces what is there",
};
const NOT_ALL: &str = "standard output does not have all of it, and nothing in the volume changed";
const PIPE_LEFT: Left<'static> = Left { failed: NOT_ALL, interrupted: NOT_ALL };
const NAMED_LEFT: Left<'static> = Left {
    failed: "DEST does not have all of it, and nothing in the volume changed",
    interrupted: "DEST does not have all of it, and nothing in the volume changed",
};

#[derive(Args)]
pub struct GetArgs {
    /// [[NETWORK:]VOLUME:]/PATH, all of one volume. Times, links and modes are kept, without
    /// setuid, setgid and sticky, since owners are not.
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<OsString>,
    /// A directory that exists, the new name of a single source, or `-`: the bytes of a single file
    /// go to standard output, as they go to a device or named pipe. A file or link in the way is
    /// replaced; what else is there stays, and no link below DEST is followed.
    dest: PathBuf,
    #[command(flatten)]
    who: Who,
}

pub fn get(args: GetArgs) -> Result<ExitCode, CliError> {
    let places: Result<Vec<Place>, _> =
        args.sources.iter().map(|source| Place::parse(source)).collect();
    let places = places?;
    let first = &places[0];
    if let Some(other) = places.iter().find(|place| !place.same_volume(first)) {
        let text = format!("{first} and {other} are in two volumes; get them one after the other");
        return Err(CliError::Usage(text));
    }
    let to_pipe = is_output(&args.dest);
    if to_pipe {
        check_pipe(&args)?;
    }
    if !args.dest.is_dir() && places.len() > 1 {
        let text = format!("{} is no directory; make it first", args.dest.display());
        return Err(CliError::Usage(text));
    }
    runtime()?.block_on(async {
        let open = Open::volume(first, &args.who, true).await?;
        // On a terminal the bytes themselves are what is looked at.
        let quiet = args.who.json || to_pipe && io::stdout().is_terminal();
        let progress = Progress::new(0, quiet);
        let interrupt = Interrupt::watch();
        let copied = Copied { behind: open.behind.clone(), ..Copied::default() };
        let mut get = Get { open: &open, progress, interrupt, copied };
        if to_pipe {
            let done = get.output(first, None).await;
            drop(get);
            return open.finish(done, PIPE_LEFT).await;
        }
        if takes_bytes(&args.dest) {
            let done = get.output(first, Some(&args.dest)).await;
            let Get { copied, progress, .. } = get;
            drop(progress);
            let code = open.finish(done, NAMED_LEFT).await?;
            copied.say(args.who.json, "got");
            return Ok(code);
        }
        let mut done = Ok(());
        for place in &places {
            done = get.tree(place, &args.dest).await;
            if done.is_err() {
                break;
            }
        }
        let Get { copied, progress, .. } = get;
        drop(progress);
        open.finish(done, LEFT).await?;
        copied.say(args.who.json, "got");
        Ok(ExitCode::SUCCESS)
    })
}

fn check_pipe(args: &GetArgs) -> Result<(), CliError> {
    let usage = |text: &str| Err(CliError::Usage(text.to_owned()));
    match (args.sources.len(), args.who.json) {
        (2.., _) => usage("standard output takes one file; a file of the name - is ./-"),
        (_, true) => usage("--json has no place: standard output is the file's bytes"),
        _ => Ok(()),
    }
}

struct Get<'a> {
    open: &'a Open,
    progress: Progress,
    interrupt: Interrupt,
    copied: Copied,
}

/// A thing of the volume and where it goes.
struct Step {
    attr: Attr,
    to: PathBuf,
    /// For people.
    from: String,
}

impl Get<'_> {
    async fn tree(&mut self, place: &Place, dest: &Path) -> Result<(), CliError> {
        let found = self.open.find(&place.path).await.map_err(at(place))?;
        let attr = found.ok_or_else(|| at(place)(FsError::NotFound))?;
        let to = match place.split() {
            Some((_, name)) if dest.is_dir() => dest.join(OsStr::from_bytes(name.as_bytes())),
            // A link that the user names is followed; what a volume brings follows none.
            None if dest.is_dir() => {
                dest.canonicalize().map_err(|why| CliError::Io(dest.to_owned(), why))?
            }
            _ => dest.to_owned(),
        };
        itself::not_from_above(self.open.volume.id, &attr, &to, place)?;
        if attr.inode.kind == FileKind::File {
            self.progress.more(attr.inode.size);
        }
        let mut open = vec![Step { attr, to, from: place.to_string() }];
        let mut dirs: Vec<(PathBuf, Inode)> = Vec::new();
        while let Some(step) = open.pop() {
            self.interrupt.check()?;
            match step.attr.inode.kind {
                FileKind::Dir => {
                    self.directory(&step, &mut open).await?;
                    dirs.push((step.to, step.attr.inode));
                }
                FileKind::Symlink => self.link(&step).await?,
                FileKind::File => self.file(&step).await?,
                _ => self.copied.skipped.push(step.from),
            }
        }
        for (dir, inode) in dirs.into_iter().rev() {
            let times = directory_itself(&dir).and_then(|file| keep(&file, &inode));
            times.map_err(|why| CliError::Io(dir, why))?;
        }
        Ok(())
    }

    async fn directory(&mut self, step: &Step, open: &mut Vec<Step>) -> Result<(), CliError> {
        // Its own mode comes last, when nothing is made in it any more.
        let made = DirBuilder::new().mode(0o700).create(&step.to);
        match made {
            Ok(()) => self.copied.dirs += 1,
            Err(why) => match step.to.symlink_metadata() {
                Ok(there) if there.is_dir() => {}
                Ok(_) => return Err(CliError::Io(step.to.clone(), in_the_way())),
                Err(_) => return Err(CliError::Io(step.to.clone(), why)),
            },
        }
        let mut cookie = 0;
        loop {
            let page = self.open.page(step.attr.ino, cookie).await.map_err(at(&step.from))?;
            let Some(last) = page.last() else { return Ok(()) };
            cookie = last.cookie;
            for listed in page {
                if matches!(&*listed.name, b"." | b"..") {
                    continue;
                }
                let Some(attr) = listed.attr else { continue };
                if attr.inode.kind == FileKind::File {
                    self.progress.more(attr.inode.size);
                }
                let to = step.to.join(OsStr::from_bytes(&listed.name));
                open.push(Step { attr, to, from: below(&step.from, &listed.name) });
            }
        }
    }

    async fn link(&mut self, step: &Step) -> Result<(), CliError> {
        let target = self.open.volume.clone().readlink(step.attr.ino).await;
        let target = target.map_err(at(&step.from))?;
        let failed = |why| CliError::Io(step.to.clone(), why);
        let beside = beside(&step.to)?;
        std::os::unix::fs::symlink(OsStr::from_bytes(&target), &beside).map_err(failed)?;
        replace(&beside, &step.to)?;
        self.copied.links += 1;
        Ok(())
    }

    async fn file(&mut self, step: &Step) -> Result<(), CliError> {
        self.progress.now_at(&step.from);
        let beside = beside(&step.to)?;
        let done = self.bytes(step, &beside).await;
        if done.is_err() {
            // What is not whole does not stay.
            let _ = std::fs::remove_file(&beside);
        }
        done?;
        replace(&beside, &step.to)?;
        self.copied.files += 1;
        Ok(())
    }

    /// The bytes of one file to standard output, or `to`. A reader that has enough ends it without a
    /// word.
    async fn output(&mut self, place: &Place, to: Option<&Path>) -> Result<ExitCode, CliError> {
        let found = self.open.find(&place.path).await.map_err(at(place))?;
        let attr = found.ok_or_else(|| at(place)(FsError::NotFound))?;
        match attr.inode.kind {
            FileKind::File => {}
            FileKind::Dir => {
                let text = format!(
                    "{place} is a directory; get it to a directory: mictlan get {place} DIR"
                );
                return Err(CliError::Usage(text));
            }
            _ => return Err(CliError::Usage(format!("{place} is no file, so it has no bytes"))),
        }
        self.progress.more(attr.inode.size);
        self.progress.now_at(&place.to_string());
        let reading = Reading::open(self.open, attr.ino, place.to_string()).await?;
        let output = Output::open(to.map(Path::to_owned));
        let mut offset = 0;
        loop {
            let bytes = self.interrupt.unless(reading.at(offset)).await??;
            let (last, len) = (bytes.is_empty(), bytes.len());
            if last || !self.interrupt.unless(output.write(bytes)).await? {
                break;
            }
            offset += len as u64;
            self.progress.moved(len);
        }
        let ended = self.interrupt.unless(output.end()).await?;
        reading.end().await?;
        match ended {
            Ok(()) => {
                self.copied.files += 1;
                self.copied.bytes += offset;
                Ok(ExitCode::SUCCESS)
            }
            Err(why) if why.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::from(PIPE_CLOSED)),
            Err(why) => {
                let name = to.map_or_else(|| PathBuf::from("standard output"), Path::to_owned);
                Err(CliError::Io(name, why))
            }
        }
    }

    async fn bytes(&mut self, step: &Step, beside: &Path) -> Result<(), CliError> {
        let failed = |why| CliError::Io(step.to.clone(), why);
        // Nobody else reads it before it has its own mode.
        let mut options = File::options();
        let to = options.write(true).create_new(true).mode(0o600).open(beside).map_err(failed)?;
        let reading = Reading::open(self.open, step.attr.ino, step.from.clone()).await?;
        // Everything before `offset` is there, or a hole; from there to `until` is data.
        let (mut offset, mut until) = (0, 0);
        loop {
            self.interrupt.check()?;
            if offset >= until {
                let Some(data) = reading.data_from(offset).await? else { break };
                self.progress.moved((data.start - offset) as usize);
                (offset, until) = (data.start, data.end);
            }
            let mut bytes = reading.at(offset).await?;
            if bytes.is_empty() {
                break;
            }
            bytes.truncate((until - offset).min(BLOCK_BYTES as u64) as usize);
            to.write_all_at(&bytes, offset).map_err(failed)?;
            offset += bytes.len() as u64;
            self.progress.moved(bytes.len());
        }
        let len = reading.len().await?;
        to.set_len(len).map_err(failed)?;
        self.copied.bytes += len;
        reading.end().await?;
        keep(&to, &step.attr.inode).map_err(failed)
    }
}

/// A file of the volume, open for reading.
struct Reading<'a> {
    open: &'a Open,
    ino: Ino,
    handle: u64,
    /// For people.
    from: String,
}

impl<'a> Reading<'a> {
    async fn open(open: &'a Open, ino: Ino, from: String) -> Result<Self, CliError> {
        let how = OpenHow { read: true, ..OpenHow::default() };
        let opened = open.volume.clone().open(open.who, ino, how).await;
        let handle = opened.map_err(at(&from))?.handle;
        Ok(Self { open, ino, handle, from })
    }

    /// The next block; nothing at the end.
    async fn at(&self, offset: u64) -> Result<Bytes, CliError> {
        let volume = self.open.volume.clone();
        let read = volume.read(self.ino, self.handle, offset, BLOCK_BYTES as u32).await;
        read.map_err(|error| match error {
            // Who may read which file was settled at its open.
            FsError::Denied => CliError::NoContent { path: self.from.clone() },
            error => at(&self.from)(error),
        })
    }

    /// The next data at `offset` or behind it, up to a hole; `None` where there is none.
    async fn data_from(&self, offset: u64) -> Result<Option<Range<u64>>, CliError> {
        let seek = |offset, what| {
            let volume = self.open.volume.clone();
            volume.seek(self.ino, self.handle, offset, what)
        };
        let start = match seek(offset, Seek::Data).await {
            Ok(start) => start,
            Err(FsError::NoDevice) => return Ok(None),
            Err(error) => return Err(at(&self.from)(error)),
        };
        let end = seek(start, Seek::Hole).await.map_err(at(&self.from))?;
        Ok(Some(start..end))
    }

    async fn len(&self) -> Result<u64, CliError> {
        let volume = self.open.volume.clone();
        let attr = volume.getattr(self.ino, Some(self.handle)).await;
        Ok(attr.map_err(at(&self.from))?.inode.size)
    }

    async fn end(self) -> Result<(), CliError> {
        let volume = self.open.volume.clone();
        volume.release(self.ino, self.handle).await.map_err(at(self.from))
    }
}

/// Gives what is whole its name. What cannot be replaced stays, and nothing is left beside it.
fn replace(beside: &Path, to: &Path) -> Result<(), CliError> {
    let there = to.symlink_metadata().map(|there| there.file_type());
    if there.is_ok_and(|kind| !kind.is_file() && !kind.is_symlink() && !kind.is_dir()) {
        let _ = std::fs::remove_file(beside);
        let why = "a device, pipe or socket has this name and stays; move it away, then get again";
        return Err(CliError::Io(to.to_owned(), io::Error::other(why)));
    }
    durable::rename(beside, to).map_err(|error| {
        let _ = std::fs::remove_file(beside);
        CliError::Io(to.to_owned(), io::Error::new(error.kind(), error.cause))
    })
}

fn in_the_way() -> io::Error {
    io::Error::other(
        "a directory of the volume comes here, and this is none, or a link, which is not \
         followed; move it away, then get again",
    )
}

/// A directory that was made or found before, unless something else has its name since.
fn directory_itself(dir: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::DIRECTORY;
    File::options().read(true).custom_flags(flags.bits() as i32).open(dir)
}

/// Mode and times of the volume's inode. The owner is not kept, so that a program that runs as its
/// owner would run as somebody else here: whoever writes in the volume would choose it.
fn keep(file: &File, inode: &Inode) -> std::io::Result<()> {
    file.set_permissions(Permissions::from_mode(inode.mode & 0o777))?;
    let time = |stamp: mictlan::meta::inode::Stamp| {
        let secs = Duration::new(stamp.secs.unsigned_abs(), 0);
        let nanos = Duration::from_nanos(stamp.nanos.into());
        let base = match stamp.secs >= 0 {
            true => SystemTime::UNIX_EPOCH.checked_add(secs),
            false => SystemTime::UNIX_EPOCH.checked_sub(secs),
        };
        base.and_then(|base| base.checked_add(nanos)).unwrap_or(SystemTime::UNIX_EPOCH)
    };
    let times = FileTimes::new().set_modified(time(inode.mtime)).set_accessed(time(inode.atime));
    file.set_times(times)
}

/// A name beside `to`, for what is not whole yet.
fn beside(to: &Path) -> Result<PathBuf, CliError> {
    let dir = to.parent().filter(|dir| !dir.as_os_str().is_empty());
    let name = format!(".mictlan-get-{}", crate::host::ulid());
    Ok(dir.unwrap_or(Path::new(".")).join(name))
}
