//! The facts: who answers what, what is mounted, what journals there are.

use super::{JournalLine, MountLine, PeerLine, Problem, Report, VolumeLine};
use crate::cli::connect;
use crate::cli::error::CliError;
use crate::cli::near::{Near, Spot};
use crate::cli::standing::{self, Said};
use crate::config::{Config, Network as Configured, Paths};
use crate::here;
use crate::http::transport::Transport;
use crate::link::{Link, LinkError};
use crate::network::Network;
use crate::peer::Caller;
use crate::volume::journal::{RESERVE_BYTES, segment};
use futures::future::join_all;
use mictlan::id::{Label, PeerId};
use mictlan::wire::{Answer, Failure, PeerInfo, Query, Status};
use mictlan_mount::session;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// A person waits; a peer that is slower has a problem worth a line.
const WITHIN: Duration = Duration::from_secs(3);
/// A peer that starts in this process first elects itself.
const FIRST_WITHIN: Duration = Duration::from_secs(8);

pub async fn network(
    report: &mut Report,
    paths: &Paths,
    config: &Config,
    name: &Label,
    configured: &Configured,
) -> Result<(), CliError> {
    // Where nobody but a peer lives, it looks for itself.
    let own = configured.serve.as_ref().map(|serve| &serve.key);
    let key = config.key.as_ref().or(own).ok_or(CliError::NoKey)?;
    report.key = key.to_string();
    let principal = Arc::new(connect::load_key(paths, key)?);
    let transport = Transport::new(principal.clone())?;
    let mut near = None;
    let mut first = Vec::new();
    if let Some(serve) = &configured.serve {
        let spot = Spot {
            paths: paths.clone(),
            name: name.clone(),
            configured: configured.clone(),
            serve: serve.clone(),
        };
        let mut link = spot.link(&transport)?;
        if serve.listen.is_none() {
            // This user's alone: where no process runs it, it is looked at from inside.
            match spot.find(&link).await {
                Ok((here, attached)) => {
                    let socket = link.clone();
                    if let Some(here) = &here {
                        let caller = Caller { principal: principal.id(), local: true };
                        link = Link::Embedded(here.peer.clone(), caller);
                    }
                    near = Some(Near::new(&spot, &socket, here, attached));
                }
                Err(CliError::Held { holder }) => report.problems.push(held(&holder)),
                Err(error) => return Err(error),
            }
        }
        first.push((PeerId(serve.id), link));
    }
    for (id, key, addresses) in here::seeds(configured) {
        first.push((id, transport.link(key, &addresses)));
    }
    ask(report, &transport, first).await;
    if let Some(near) = near {
        near.stop().await;
    }
    Ok(())
}

fn held(holder: &str) -> Problem {
    Problem {
        code: "peer-held",
        what: format!("this machine's peer is another mictlan ({holder}) that does not answer"),
        next: "wait for its end, or end it: mictlan umount DIR".to_owned(),
        severe: true,
    }
}

async fn ask(report: &mut Report, transport: &Transport, first: Vec<(PeerId, Link)>) {
    if first.is_empty() {
        return;
    }
    let known = connect::provisional(&first);
    let network = Network::new(known);
    let infos = match network.query(Query::Peers, FIRST_WITHIN).await {
        Ok(Answer::Peers { peers, .. }) => peers,
        // Each of those that are configured is asked for itself below.
        _ => network.peers().iter().map(|known| known.info.clone()).collect(),
    };
    let links: Vec<(PeerInfo, Link)> = infos
        .into_iter()
        .map(|info| {
            let near = first.iter().find(|(id, _)| *id == info.id).map(|(_, link)| link.clone());
            let link = near.unwrap_or_else(|| transport.link(info.principal, &info.addresses));
            (info, link)
        })
        .collect();
    let asked = links
        .iter()
        .map(|(info, link)| async move { (info, timeout(WITHIN, link.status()).await) });
    for (info, status) in join_all(asked).await {
        let status = match status {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => {
                let refuses = matches!(error, LinkError::Refused { why: Failure::NotAllowed, .. });
                Err(Silence { refuses, why: error.to_string() })
            }
            Err(_) => {
                let why = format!("nothing within {} s", WITHIN.as_secs());
                Err(Silence { refuses: false, why })
            }
        };
        if let Ok(status) = &status {
            report.leader = report.leader.or(status.leader.map(|leader| leader.0));
            let size = status.head.as_ref().map(|head| head.size.0);
            report.records = report.records.max(size);
            report.published = report.published.max(status.published.map(|size| size.0));
        }
        report.peers.push(line(info, status));
    }
    if let Ok(Answer::Volumes(volumes)) = network.query(Query::Volumes, WITHIN).await {
        report.volumes = volumes
            .into_iter()
            .map(|volume| VolumeLine {
                name: volume.name.to_string(),
                id: volume.id.to_string(),
                copies: volume.copies,
                compress: volume.compress,
                epoch: volume.epoch.0.into(),
                snapshot: volume.root.map(|root| root.position.0),
            })
            .collect();
    }
}

/// Why a peer told nothing of itself.
struct Silence {
    /// It answers, and not to this key.
    refuses: bool,
    why: String,
}

fn line(info: &PeerInfo, status: Result<Status, Silence>) -> PeerLine {
    let store = status.as_ref().ok().and_then(|status| status.store.clone());
    let head = status.as_ref().ok().and_then(|status| status.head);
    let published = status.as_ref().ok().and_then(|status| status.published);
    let copies_missing = status.as_ref().map_or(0, |status| status.copies_missing);
    PeerLine {
        id: info.id.0,
        name: info.name.to_string(),
        addresses: info.addresses.clone(),
        voter: info.voter,
        storage: info.storage,
        domain: info.domain.clone(),
        answers: status.is_ok(),
        version: status.as_ref().ok().map(|status| status.version.clone()),
        refuses: status.as_ref().is_err_and(|silence| silence.refuses),
        last_word: status.err().map(|silence| silence.why),
        capacity_bytes: store.as_ref().map(|store| store.capacity_bytes),
        used_bytes: store.as_ref().map(|store| store.used_bytes),
        chunks: store.as_ref().map(|store| store.chunks),
        damaged_chunks: store.as_ref().map_or(0, |store| store.damaged_chunks),
        store_is_new: store.as_ref().is_some_and(|store| store.is_new),
        records: head.map(|head| head.size.0),
        published: published.map(|size| size.0),
        copies_missing,
        out_of_service: store.and_then(|store| store.out_of_service),
    }
}

/// Mounts of the configured networks on this host, from the kernel's table, which asks no daemon
/// anything. Its names may be those of another configuration's networks: a mount of this one has
/// said which network it is of.
pub fn mounts(paths: &Paths, config: &Config) -> Vec<MountLine> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let dir = session::mount_point(fields.nth(4)?).display().to_string();
        let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
        let is_fuse = fields.next()?.starts_with(b"fuse");
        let source = std::str::from_utf8(fields.next()?).ok()?.to_owned();
        let network = Label::parse(source.split_once(':')?.0)?;
        let id = config.networks.get(&network).filter(|_| is_fuse)?.id.to_string();
        let is_ours = standing::last_of(paths, &dir).is_some_and(|said| said.network == id);
        let said = standing::of(paths, &dir);
        let beside_others = said.is_some_and(|said| said.beside_others);
        is_ours.then_some(MountLine { dir, source, beside_others })
    };
    table.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// What a mount of the report told of itself, under codes that this program knows.
const MOUNT_CODES: [&str; 10] = [
    "stale-view",
    "unproved",
    "mounted-without-quorum",
    "reader",
    "commits-wait",
    "contradiction",
    "copies-owed",
    "removed",
    "peer-away",
    "peer-lied",
];

pub fn troubles(paths: &Paths, mount: &MountLine) -> Vec<Problem> {
    let said = standing::of(paths, &mount.dir).map(|standing| standing.troubles);
    let problem = |said: Said| {
        let code = MOUNT_CODES.into_iter().find(|code| *code == said.code)?;
        let what = format!("{}: {}", mount.dir, said.what);
        Some(Problem { code, what, next: said.next, severe: said.severe })
    };
    said.into_iter().flatten().filter_map(problem).collect()
}

/// Journals below the state directory. Whether one is in use is read from the kernel's table of
/// locks: to try its lock would keep a mount that starts now from taking it over.
pub fn journals(paths: &Paths) -> Vec<JournalLine> {
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    let below = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten();
        entries.flatten().map(|entry| entry.path()).collect()
    };
    let volumes = below(&paths.state.join("journals"));
    let dirs = volumes.iter().flat_map(|volume| below(volume));
    let journal = |dir: PathBuf| {
        let bytes = below(&dir)
            .iter()
            .filter(|file| file.extension().is_some_and(|end| end == "seg"))
            // One that cannot be read may have anything in it; one that is gone by now has nothing.
            .map(|file| match segment::bytes_of_entries(file) {
                Ok(bytes) => bytes,
                Err(_) => file.metadata().map_or(0, |meta| meta.len()),
            })
            .sum();
        let lock = std::fs::File::open(dir.join("lock")).ok()?;
        let in_use = entry_of(&lock).is_some_and(|entry| is_locked(&locks, &entry));
        Some(JournalLine { dir: dir.display().to_string(), bytes, in_use })
    };
    dirs.filter_map(journal).collect()
}

/// The disk of the journals, if a mount can take in nothing more there. The mount itself could not
/// write it down.
pub fn full_disk(paths: &Paths) -> Option<Problem> {
    let disk = rustix::fs::statvfs(&paths.state).ok()?;
    // Some of a disk is root's alone.
    let free = if rustix::process::geteuid().is_root() { disk.f_bfree } else { disk.f_bavail };
    let free = free.saturating_mul(disk.f_frsize);
    let dir = paths.state.display();
    (free < RESERVE_BYTES).then(|| Problem {
        code: "journal-disk-full",
        what: format!(
            "the disk of this host's journals has {free} bytes left, in {dir}: mounts refuse \
             changes (ENOSPC) while their commits give no room back, and no other mount begins; \
             nothing acknowledged is lost"
        ),
        next: format!("make room on that disk: df -h {dir}"),
        severe: true,
    })
}

/// How the kernel's table of locks names an open file: the device of its file system and its inode,
/// which `stat` gives as others where file systems lie in layers.
fn entry_of(file: &File) -> Option<String> {
    let info = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let info = std::fs::read_to_string(info).ok()?;
    let said = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mount = said("mnt_id:")?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(mount))?;
    let (major, minor) = line.split(' ').nth(2)?.split_once(':')?;
    let (major, minor): (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    let inode = match said("ino:") {
        Some(inode) => inode.to_owned(),
        // Kernels before 5.14 do not say it.
        None => file.metadata().ok()?.ino().to_string(),
    };
    Some(format!("{major:02x}:{minor:02x}:{inode}"))
}

/// Whether somebody holds an `flock` on that file.
fn is_locked(locks: &str, entry: &str) -> bool {
    let holds = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        // One that waits has an arrow there.
        words.next() == Some("FLOCK") && words.any(|word| word == entry)
    };
    locks.lines().any(holds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_known_by_its_device_and_its_inode() {
        let locks = "1: POSIX  ADVISORY  READ 841 fd:01:7 128 128\n\
                     2: FLOCK  ADVISORY  WRITE 923 fd:01:99 0 EOF\n\
                     2: -> FLOCK  ADVISORY  WRITE 924 fd:01:98 0 EOF\n\
                     3: OFDLCK ADVISORY  WRITE -1 00:06:1034 0 0\n";
        assert!(is_locked(locks, "fd:01:99"));
        for (other, why) in [
            ("fd:02:99", "the same number on another device"),
            ("fd:01:9", "a number that begins alike"),
            ("fd:01:7", "no flock"),
            ("fd:01:98", "whoever waits holds nothing"),
        ] {
            assert!(!is_locked(locks, other), "{why}");
        }
    }

    #[test]
    fn an_open_file_is_found_in_the_kernels_table() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let locked = |wanted| {
            let locks = std::fs::read_to_string("/proc/locks").expect("a table");
            let entry = entry_of(file.as_file()).expect("it is open");
            assert_eq!(is_locked(&locks, &entry), wanted, "{entry} in\n{locks}");
        };
        locked(false);
        file.as_file().lock().expect("nobody else has it");
        locked(true);
    }
}
