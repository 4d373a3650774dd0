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
use std::time::Duration;

/// How often a mount looks at itself. Its view may be 3 s old before that is a trouble.
const EVERY: Duration = Duration::from_secs(1);

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

impl Standing {
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

type Now = (Vec<Trouble>, bool);

fn now(volume: &Volume) -> Now {
    (volume.troubles(), volume.is_beside_others())
}

/// Not durable and not whole at every moment: it is worth nothing without the process.
async fn write(
    paths: &Paths,
    dir: &Path,
    network: NetworkId,
    (troubles, beside_others): Now,
) -> std::io::Result<()> {
    let dir = dir.display().to_string();
    let path = file(paths, &dir);
    let troubles = troubles.into_iter().map(Said::from).collect();
    let network = network.to_string();
    let standing = Standing { dir, network, pid: std::process::id(), troubles, beside_others };
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
    // A daemon keeps its directory in its arguments, so a number that was given away shows.
    let arguments = std::fs::read(format!("/proc/{}/cmdline", standing.pid)).ok()?;
    let lives = arguments.split(|byte| *byte == 0).any(|argument| argument.ends_with(b"mictlan"));
    lives.then_some(standing)
}
