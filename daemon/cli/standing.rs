//! What a mount says of itself, for `mictlan status` to read without asking the mount.
//!
//! Owns: the file that a mount keeps of its troubles, `mounts/HASH.json` in the state directory,
//! where HASH is of the mounted directory's path.
//! Never: decides what is a trouble; `volume::belief` does.
//! Invariant: what is read was said by a process that lives; a file that a killed one left counts
//! for nothing, and the next mount of the directory replaces it.

use crate::config::Paths;
use crate::volume::{Trouble, Volume};
use mictlan::id::NetworkId;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a mount looks at itself. Its view may be 3 s old before that is a trouble.
const EVERY: Duration = Duration::from_secs(1);
/// What a mount's end takes beside its last try to commit, and how often it is looked for.
const END_WITHIN: Duration = Duration::from_secs(15);
const END_PAUSE: Duration = Duration::from_millis(50);

#[derive(Serialize, Deserialize)]
pub struct Standing {
    pub dir: String,
    /// Its genesis hash, since a name can be that of two networks.
    #[serde(default)]
    pub network: String,
    pid: u32,
    pub troubles: Vec<Said>,
    /// Other mounts are on the volume, so each change waits for its commit.
    #[serde(default)]
    pub beside_others: bool,
    /// Where its journal is; it is gone when all is committed.
    #[serde(default)]
    journal: Option<PathBuf>,
    /// For how long it tries what cannot be done.
    #[serde(default)]
    deadline_secs: u64,
}

#[derive(Serialize, Deserialize)]
pub struct Said {
    pub code: String,
    pub what: String,
    pub next: String,
    pub severe: bool,
}

impl From<Trouble> for Said {
    fn from(trouble: Trouble) -> Self {
        let Trouble { code, what, next, severe } = trouble;
        Self { code: code.to_owned(), what, next: next.to_owned(), severe }
    }
}

/// What became of a mount that was told to end.
pub enum End {
    /// All is committed.
    Committed,
    /// Its journal has the rest.
    Left,
    /// It still tries.
    Tries { pid: u32 },
}

impl Standing {
    /// Waits for the end of the process, as long as it may take to try once more.
    pub async fn ended(&self) -> End {
        let by = Instant::now() + Duration::from_secs(self.deadline_secs) + END_WITHIN;
        while self.lives() || self.leaves() {
            if Instant::now() >= by {
                return End::Tries { pid: self.pid };
            }
            tokio::time::sleep(END_PAUSE).await;
        }
        match self.journal.as_ref().is_some_and(|journal| !journal.exists()) {
            true => End::Committed,
            false => End::Left,
        }
    }

    /// Its first thread has ended, and others hold its files and their locks a moment longer.
    fn leaves(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        // What stands behind the name in brackets, from the third field on; the threads are the 20th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
        let ended = fields.get(1).is_some_and(|state| matches!(*state, "Z" | "X"));
        ended && fields.get(18).is_some_and(|threads| !matches!(*threads, "0" | "1"))
    }

    /// A daemon keeps its directory in its arguments, so a number that was given away shows.
    fn lives(&self) -> bool {
        let arguments = std::fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        arguments.split(|byte| *byte == 0).any(|argument| argument.ends_with(b"mictlan"))
    }

    /// Those of the process that said it, its name first.
    pub fn arguments(&self) -> Option<Vec<OsString>> {
        let line = std::fs::read(format!("/proc/{}/cmdline", self.pid)).ok()?;
        let line = line.strip_suffix(&[0]).unwrap_or(&line);
        Some(line.split(|byte| *byte == 0).map(|one| OsString::from_vec(one.to_vec())).collect())
    }
}

fn files(paths: &Paths) -> PathBuf {
    paths.state.join("mounts")
}

fn file(paths: &Paths, dir: &str) -> PathBuf {
    let hash = blake3::hash(dir.as_bytes()).to_hex();
    files(paths).join(format!("{}.json", &hash[..16]))
}

/// Says it first, before anybody is told that the mount answers.
pub async fn begin(paths: &Paths, dir: &Path, network: NetworkId, volume: &Volume) {
    if let Err(error) = write(paths, dir, network, now(volume)).await {
        tracing::debug!(%error, "status is not told of this mount now");
    }
}

/// Keeps the file until the mount ends.
pub async fn keep(paths: Paths, dir: PathBuf, network: NetworkId, volume: Arc<Volume>) {
    let mut last = None;
    loop {
        let now = now(&volume);
        if last.as_ref() != Some(&now) {
            match write(&paths, &dir, network, now.clone()).await {
                Ok(()) => last = Some(now),
                Err(error) => tracing::debug!(%error, "status is not told of this mount now"),
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[derive(Clone, PartialEq)]
struct Now {
    troubles: Vec<Trouble>,
    beside_others: bool,
    journal: Option<PathBuf>,
    deadline_secs: u64,
}

fn now(volume: &Volume) -> Now {
    Now {
        troubles: volume.troubles(),
        beside_others: volume.is_beside_others(),
        journal: volume.journal_left().map(|(dir, _)| dir),
        deadline_secs: volume.deadline().as_secs(),
    }
}

/// Not durable and not whole at every moment: it is worth nothing without the process.
async fn write(paths: &Paths, dir: &Path, network: NetworkId, now: Now) -> std::io::Result<()> {
    let dir = dir.display().to_string();
    let path = file(paths, &dir);
    let Now { troubles, beside_others, journal, deadline_secs } = now;
    let troubles = troubles.into_iter().map(Said::from).collect();
    let (network, pid) = (network.to_string(), std::process::id());
    let standing = Standing { dir, network, pid, troubles, beside_others, journal, deadline_secs };
    let bytes = serde_json::to_vec(&standing).expect("plain fields are JSON");
    tokio::fs::create_dir_all(files(paths)).await?;
    tokio::fs::write(path, bytes).await
}

/// The mount is gone.
pub fn forget(paths: &Paths, dir: &Path) {
    if let Err(error) = std::fs::remove_file(file(paths, &dir.display().to_string())) {
        tracing::debug!(%error, "a file of an ended mount is left; nobody believes it");
    }
}

/// What the mount on `dir` said last, whether or not it lives.
pub fn last_of(paths: &Paths, dir: &str) -> Option<Standing> {
    let bytes = std::fs::read(file(paths, dir)).ok()?;
    let standing: Standing = serde_json::from_slice(&bytes).ok()?;
    (standing.dir == dir).then_some(standing)
}

/// What the mount on `dir` says, if the process that said it lives.
pub fn of(paths: &Paths, dir: &str) -> Option<Standing> {
    let standing = last_of(paths, dir)?;
    standing.lives().then_some(standing)
}
