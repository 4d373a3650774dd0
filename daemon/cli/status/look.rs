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
use futures::future::join_all;
use mictlan::id::{Label, PeerId};
use mictlan::wire::{Answer, PeerInfo, Query, Status};
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
            Ok(Err(error)) => Err(said(&error)),
            Err(_) => Err(format!("nothing within {} s", WITHIN.as_secs())),
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

fn said(error: &LinkError) -> String {
    error.to_string()
}

fn line(info: &PeerInfo, status: Result<Status, String>) -> PeerLine {
    let store = status.as_ref().ok().and_then(|status| status.store.clone());
    let head = status.as_ref().ok().and_then(|status| status.head);
    let published = status.as_ref().ok().and_then(|status| status.published);
    PeerLine {
        id: info.id.0,
        name: info.name.to_string(),
        addresses: info.addresses.clone(),
        voter: info.voter,
        storage: info.storage,
        domain: info.domain.clone(),
        answers: status.is_ok(),
        version: status.as_ref().ok().map(|status| status.version.clone()),
        last_word: status.err(),
        capacity_bytes: store.as_ref().map(|store| store.capacity_bytes),
        used_bytes: store.as_ref().map(|store| store.used_bytes),
        chunks: store.as_ref().map(|store| store.chunks),
        records: head.map(|head| head.size.0),
        published: published.map(|size| size.0),
        out_of_service: store.and_then(|store| store.out_of_service),
    }
}

/// Mounts of the configured networks on this host, from the kernel's table, which asks no daemon
/// anything. An older program's mounts by root have no subtype there, so the source decides.
pub fn mounts(config: &Config) -> Vec<MountLine> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let mut fields = right.split(' ');
        let is_fuse = fields.next()?.starts_with("fuse");
        let source = fields.next()?.to_owned();
        let network = Label::parse(source.split_once(':')?.0)?;
        let is_ours = is_fuse && config.networks.contains_key(&network);
        let dir = left.split(' ').nth(4)?.replace("\\040", " ");
        is_ours.then_some(MountLine { dir, source })
    };
    table.lines().filter_map(mount).collect()
}

/// What a mount of the report told of itself, under codes that this program knows.
const MOUNT_CODES: [&str; 7] = [
    "stale-view",
    "unproved",
    "mounted-without-quorum",
    "contradiction",
    "copies-owed",
    "removed",
    "peer-away",
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
            .filter_map(|file| file.metadata().ok())
            .map(|meta| meta.len())
            .sum();
        let lock = dir.join("lock").metadata().ok()?;
        let inode = format!(":{} ", lock.ino());
        let in_use = locks.lines().any(|line| line.contains("FLOCK") && line.contains(&inode));
        Some(JournalLine { dir: dir.display().to_string(), bytes, in_use })
    };
    dirs.filter_map(journal).collect()
}
