//! `put`, `get`, `ls` and `rm`: a volume without a mount.
//!
//! Owns: the volume as a command has it open, and its end.
//! Never: has a rule of the filesystem; each verb asks the same questions as the kernel does.
//! Invariant: a verb that ends well has committed all that it changed; one that is interrupted has
//! committed whole files only.

mod get;
mod itself;
mod list;
mod pipe;
mod place;
mod progress;
mod put;
mod remove;

pub use get::{GetArgs, get};
pub use list::{LsArgs, ls};
pub use put::{PutArgs, put};
pub use remove::{RmArgs, rm};

use super::connect::{self, Connected, label};
use super::error::CliError;
use super::shown::shown;
use super::{log, mount};
use crate::volume::{Behind, Volume};
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan_mount::options::Options;
use mictlan_mount::vfs::{Attr, Caller, Found, Listed, Vfs};
use place::Place;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};

/// Names asked for at a time.
const PAGE: usize = 1024;
/// Bytes moved at a time; a chunk is about as large.
const BLOCK_BYTES: usize = 1 << 20;

/// Who works on a volume, as every one of these verbs is told.
#[derive(clap::Args)]
pub struct Who {
    /// The key file to use; by default the configured one.
    #[arg(long)]
    key: Option<String>,
    /// Print what was done as JSON.
    #[arg(long)]
    json: bool,
}

/// A volume, open for one command.
struct Open {
    connected: Connected,
    volume: Arc<Volume>,
    who: Caller,
    /// Of what is shown, where that may not be the newest.
    behind: Option<Behind>,
}

impl Open {
    /// `read_only` looks once, at what others have closed by now, and keeps nobody waiting after.
    async fn volume(place: &Place, who: &Who, read_only: bool) -> Result<Self, CliError> {
        log("warn");
        let key = who.key.as_deref().map(label).transpose()?;
        let connected = connect::connect(place.network.as_ref(), key.as_ref()).await?;
        let options = Options { read_only, coherent: read_only, ..Options::default() };
        let opened = mount::bring_up(&connected, place.volume.clone(), options, read_only).await;
        let (volume, stale) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                connected.close().await;
                return Err(error);
            }
        };
        drop(stale); // nothing here remembers what others may change
        let behind = volume.behind();
        warn(&volume, behind.as_ref());
        if !read_only && volume.is_readers() {
            connected.close().await;
            return Err(CliError::Reader(place.volume.clone()));
        }
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let who = Caller { uid, gid, pid: std::process::id() };
        Ok(Self { connected, volume, who, behind })
    }

    /// Everything done so far is committed; then the session ends, whatever the command came to.
    async fn finish<T>(self, done: Result<T, CliError>, left: Left<'_>) -> Result<T, CliError> {
        let ended = self.volume.end().await.map_err(CliError::NotCommitted);
        self.connected.close().await;
        match done {
            Ok(done) => ended.map(|()| done),
            Err(error) => Err(left.said(error, ended.err())),
        }
    }

    async fn lookup(&self, dir: Ino, name: &Name) -> Result<Option<Attr>, FsError> {
        match self.volume.clone().lookup(self.who, dir, name.clone()).await? {
            Found::Here { attr, .. } => Ok(Some(attr)),
            Found::Nothing { .. } => Ok(None),
        }
    }

    /// Each directory from the root to the place, and what is at the place, as far as they exist.
    async fn way(&self, path: &[Name]) -> Result<Vec<Attr>, FsError> {
        let mut way = vec![self.volume.clone().getattr(Ino::ROOT, None).await?];
        for name in path {
            let dir = way.last().expect("it begins with the root");
            match self.lookup(dir.ino, name).await? {
                Some(next) => way.push(next),
                None => break,
            }
        }
        Ok(way)
    }

    /// What is at `path`; links on the way are not followed. `None`: nothing.
    async fn find(&self, path: &[Name]) -> Result<Option<Attr>, FsError> {
        let mut way = self.way(path).await?;
        Ok(if way.len() > path.len() { way.pop() } else { None })
    }

    /// One page of a directory after `cookie`.
    async fn page(&self, dir: Ino, cookie: u64) -> Result<Vec<Listed>, FsError> {
        self.volume.clone().list(dir, cookie, PAGE, true).await
    }
}

/// Says what is wrong with the volume as this command has it open.
fn warn(volume: &Volume, behind: Option<&Behind>) {
    let said = |what: &str, next: &str| {
        crate::cli::complain(&format!("mictlan: warning: {what}; next: {next}"));
    };
    if let Some(behind) = behind {
        said(&behind.what, "mictlan status");
    }
    for trouble in volume.troubles() {
        // Of a mount that stays; a command says of when its own state is.
        if trouble.code != "mounted-without-quorum" || behind.is_none() {
            said(&trouble.what, trouble.next);
        }
    }
}

/// The same for a program that reads what a verb says.
fn say_behind(behind: Option<&Behind>, said: &mut serde_json::Value) {
    if let Some(Behind { what, as_of }) = behind {
        said["behind"] = serde_json::json!({ "what": what, "as_of": as_of });
    }
}

/// What a verb leaves of its work when it stops before its end, in its own words.
#[derive(Clone, Copy)]
struct Left<'a> {
    failed: &'a str,
    interrupted: &'a str,
}

impl Left<'_> {
    /// `error`, with what became of the data. `lost`: what was done before could not be committed.
    fn said(self, error: CliError, lost: Option<CliError>) -> CliError {
        let left = match (&error, lost) {
            (_, Some(lost)) => lost.to_string(),
            (CliError::Interrupted, None) => self.interrupted.to_owned(),
            (CliError::Volume { .. } | CliError::NoContent { .. } | CliError::Io(..), None) => {
                self.failed.to_owned()
            }
            (_, None) => return error,
        };
        CliError::Left { cause: Box::new(error), left }
    }
}

/// `error` at a path of the volume.
fn at(place: impl ToString) -> impl FnOnce(FsError) -> CliError {
    let path = place.to_string();
    move |error| CliError::Volume { path, error }
}

/// A path for people, below another.
fn below(dir: &str, name: &[u8]) -> String {
    let name = shown(name);
    match dir.ends_with('/') {
        true => format!("{dir}{name}"),
        false => format!("{dir}/{name}"),
    }
}

/// What a copy came to.
#[derive(Default)]
struct Copied {
    files: u64,
    dirs: u64,
    links: u64,
    bytes: u64,
    /// Sockets, pipes and devices, which are no content.
    skipped: Vec<String>,
    behind: Option<Behind>,
}

impl Copied {
    fn say(&self, json: bool, verb: &str) {
        for path in &self.skipped {
            let why = "not a file, directory or link; it was left out";
            crate::cli::complain(&format!("mictlan: {path}: {why}"));
        }
        if json {
            let mut said = serde_json::json!({
                "files": self.files, "directories": self.dirs, "links": self.links,
                "bytes": self.bytes, "skipped": self.skipped,
            });
            say_behind(self.behind.as_ref(), &mut said);
            println!("{said}");
        } else {
            let Copied { files, dirs, links, bytes, .. } = self;
            println!("{verb} {files} files, {dirs} directories, {links} links, {bytes} bytes");
        }
    }
}

/// Ctrl-C or SIGTERM, asked for between two steps.
struct Interrupt(tokio::task::JoinHandle<()>);

impl Interrupt {
    fn watch() -> Self {
        // From here on; without a handler the default one ends the process, which the journal
        // survives.
        let signals = [SignalKind::interrupt(), SignalKind::terminate()].map(signal);
        Self(tokio::spawn(async {
            let [Ok(mut interrupt), Ok(mut terminate)] = signals else {
                return std::future::pending().await;
            };
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }))
    }

    fn check(&self) -> Result<(), CliError> {
        if self.0.is_finished() { Err(CliError::Interrupted) } else { Ok(()) }
    }

    /// `step`, unless it is interrupted: for what waits for somebody else's pipe.
    async fn unless<T>(&mut self, step: impl Future<Output = T>) -> Result<T, CliError> {
        self.check()?;
        tokio::select! {
            _ = &mut self.0 => Err(CliError::Interrupted),
            done = step => Ok(done),
        }
    }
}
