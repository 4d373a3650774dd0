//! How a volume comes up: keys, roster, newest root, the log after it, the session, the journals.
//!
//! Owns: the order of these, and what to tell when one of them is not to be had.
//! Invariant: nothing is answered before everything committed at the time of the call is seen, and
//! what an earlier mount of this host left in its journal is in order again.

use super::follow::Applied;
use super::journal::{About, Journal, JournalError, Left};
use super::state::{Core, Mode, Progress, Session};
use super::{Stale, Volume};
use crate::chunks::Chunks;
use crate::chunks::budget::Budget;
use crate::host;
use crate::network::{CallError, Network};
use mictlan::file::Cutter;
use mictlan::id::{Attempt, Label, Position, SessionId, VolumeId};
use mictlan::ledger::record::body::{Body, Wrap, wrap_info};
use mictlan::ledger::record::{Line, Origin};
use mictlan::ledger::roster::Roster;
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{NewNode, NodeCache, NodeRef, Tree, TreeKeys};
use mictlan::meta::view::View;
use mictlan::seal::{self, KeyRing, Principal};
use mictlan::wire::{Answer, Follow, OpenSession, Query, RootInfo, VolumeInfo};
use mictlan_mount::options::Options;
use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{Notify, mpsc, watch};

/// No volume has this id: a follower that names it gets what concerns everyone.
const NO_VOLUME: VolumeId = VolumeId([0; 16]);

/// What a volume is opened with.
pub struct Start {
    pub network: Arc<Network>,
    pub chunks: Arc<Chunks>,
    pub volume: Label,
    pub principal: Arc<Principal>,
    pub options: Options,
    /// Journals of this host, one directory a volume.
    pub journals: PathBuf,
    /// Told when a record changed the peers, the layout, or this volume.
    pub network_changed: Arc<Notify>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{0}")]
    Network(#[from] CallError),
    #[error("no volume {name:?} in this network; there are: {there}")]
    NoVolume { name: String, there: String },
    #[error(
        "this key has no access to volume {volume}: no owner has wrapped its secrets for it; ask \
         one to type: mictlan member add {actor} --volume {volume}"
    )]
    NoAccess { volume: Label, actor: String },
    #[error("volume {volume}: the secrets wrapped for this key cannot be opened: {why}")]
    BadWrap { volume: Label, why: String },
    #[error("this key is not known in the network; join it with an invite: mictlan join CODE")]
    Unknown,
    #[error("the ledger is not what it should be: {0}")]
    Ledger(String),
    #[error("the newest root of the volume cannot be read: {0}")]
    Root(String),
    #[error("{0}")]
    Journal(#[from] JournalError),
    #[error("{0}")]
    Fs(#[from] FsError),
}

/// A question asked while a volume comes up.
type Opening<T> = Result<T, OpenError>;

impl Volume {
    /// Brings the volume up. The receiver gets what the kernel must forget.
    pub async fn open(start: Start) -> Opening<(Arc<Volume>, mpsc::UnboundedReceiver<Stale>)> {
        let deadline = start.options.deadline;
        let info = find_volume(&start).await?;
        let next = applied_at_start(&info);
        let Known { roster, wraps, before } =
            roster_before(&start.network, start.options.deadline, next).await?;
        let origin = roster.origin();
        let actor = roster.owner_of(&start.principal.id()).cloned().ok_or(OpenError::Unknown)?;
        let ring = unwrap_ring(&start, &info, &origin, &actor, &wraps)?;
        let keys = TreeKeys::new(ring.identity_key(), ring.boundary_key());
        let nodes = Arc::new(NodeCache::new((start.options.memory_bytes / 8) as usize));
        let (tree, position) = newest_tree(&start, &info, &roster, &ring, &keys, &nodes).await?;
        let session = match start.options.read_only {
            true => None,
            false => Some(open_session(&start, info.id).await?),
        };
        let left = leftovers(&start, info.id)?;
        let about = session.map(|session| About { volume: info.id, session });
        let journal = about.map(|about| new_journal(&start, about)).transpose()?;
        let (stale, stale_receiver) = mpsc::unbounded_channel();
        let volume = Arc::new(Volume {
            id: info.id,
            made: info.made,
            actor,
            principal: start.principal.clone(),
            origin,
            cutter: ring.current().cut_key().map(Cutter::new),
            ring: RwLock::new(Arc::new(ring)),
            tree_keys: keys,
            network: start.network.clone(),
            chunks: start.chunks.clone(),
            nodes,
            budget: Budget::new(start.options.memory_bytes * 2 / 5),
            journal,
            options: start.options.clone(),
            core: Mutex::new(core(tree, position, session)),
            progress: watch::Sender::new(Progress::new(next)),
            work: Notify::new(),
            applying: tokio::sync::Mutex::new(Applied {
                next,
                chain: None,
                // The records from there on change it once more, in order.
                roster: before,
                succeeds: HashMap::new(),
            }),
            turn: tokio::sync::Mutex::new(()),
            stale,
            network_changed: start.network_changed.clone(),
            recalled: AtomicBool::new(false),
            grant: AtomicU64::new(0),
            releasing: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            lease_changed: Notify::new(),
            snapshot_wanted: Notify::new(),
            unconfirmed: Mutex::new(None),
        });
        volume.first_catch_up(deadline).await?;
        volume.clone().begin(left).await?;
        Ok((volume, stale_receiver))
    }

    /// The tasks of a volume that is up to date. What earlier mounts left is replayed first.
    async fn begin(self: Arc<Self>, left: Vec<Left>) -> Opening<()> {
        tokio::spawn(self.clone().follow());
        if self.journal.is_some() {
            tokio::spawn(self.clone().commit_behind());
            // First, because it fences: the lease of a mount that is gone would stand in the way.
            self.recover(left).await?;
            let leased = self.lease_changed.notified();
            tokio::spawn(self.clone().beat());
            // Alone on the volume, the first heartbeat brings the lease; with others it is not
            // waited for.
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), leased).await;
            self.own_root().await;
            tokio::spawn(self.clone().reap_left_behind());
            tokio::spawn(self.clone().snapshots());
        }
        Ok(())
    }

    async fn first_catch_up(&self, deadline: std::time::Duration) -> Opening<()> {
        match self.catch_up(tokio::time::Instant::now() + deadline).await {
            Ok(()) => Ok(()),
            // Without a quorum a reader still sees what there is.
            Err(FsError::TimedOut) if self.options.read_only => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn core(tree: Tree, position: Position, session: Option<SessionId>) -> Core {
    let mode = if session.is_some() { Mode::Synchronous } else { Mode::Reader };
    Core {
        view: View::new(tree, position),
        files: HashMap::new(),
        session: Session {
            id: session.unwrap_or_default(),
            attempt: Attempt(1),
            n: 1,
            attempt_ended: false,
            mode,
            waiting: None,
        },
        queue: VecDeque::new(),
        replan: None,
        refused: HashSet::new(),
        inodes_made: 0,
        next_handle: 0,
        broken_promise: None,
    }
}

async fn find_volume(start: &Start) -> Opening<VolumeInfo> {
    let answer = start.network.query(Query::Volumes, start.options.deadline).await?;
    let Answer::Volumes(volumes) = answer else { return Err(other_answer()) };
    let found = volumes.iter().find(|volume| volume.name == start.volume).cloned();
    found.ok_or_else(|| {
        let there: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        OpenError::NoVolume { name: start.volume.to_string(), there: there.join(", ") }
    })
}

fn other_answer() -> OpenError {
    OpenError::Ledger("a peer answered another question than was asked".to_owned())
}

/// Where a view begins: after its newest root, or with the record that made the volume.
fn applied_at_start(info: &VolumeInfo) -> Position {
    info.root.as_ref().map_or(info.made, |root| Position(root.position.0 + 1))
}

/// Who is who in the network, and whose wraps there are, from the records that concern everyone.
pub async fn roster(
    network: &Network,
    deadline: std::time::Duration,
) -> Opening<(Roster, Vec<Wrap>)> {
    let known = roster_before(network, deadline, Position(u64::MAX)).await?;
    Ok((known.roster, known.wraps))
}

/// What the records that concern everyone say.
struct Known {
    roster: Roster,
    wraps: Vec<Wrap>,
    /// What those before a position said.
    before: Roster,
}

async fn roster_before(
    network: &Network,
    deadline: std::time::Duration,
    position: Position,
) -> Opening<Known> {
    let mut before = None;
    let mut roster: Option<Roster> = None;
    let mut wraps = Vec::new();
    let mut from = Position(0);
    loop {
        // What comes back concerns everyone, or says who has which secrets.
        let follow = Follow { volume: Some(NO_VOLUME), from, max_bytes: 4 << 20, wait_ms: 0 };
        let page = network
            .voter(deadline, |link| {
                let follow = follow.clone();
                async move { link.follow(follow).await }
            })
            .await?;
        for entry in &page.entries {
            let bad = |why: String| OpenError::Ledger(format!("record {}: {why}", entry.position));
            if before.is_none() && entry.position >= position {
                before.clone_from(&roster);
            }
            let line = Line::parse(&entry.line).map_err(|error| bad(error.to_string()))?;
            roster = Some(match roster {
                None => Roster::genesis(&line.p).map_err(|error| bad(error.to_string()))?,
                Some(mut roster) => {
                    let actor = line.p.actor_label();
                    let key =
                        roster.key_of(actor.as_str()).map_err(|error| bad(error.to_string()))?;
                    if !seal::verify(&key, &line.message(&roster.origin()), &line.sig) {
                        return Err(bad(format!("it is not signed by {actor}")));
                    }
                    let body = line.p.body().map_err(|error| bad(error.to_string()))?;
                    roster.apply(&actor, &body).map_err(|error| bad(error.to_string()))?;
                    if let Body::Wrap(wrap) = body {
                        wraps.push(wrap);
                    }
                    roster
                }
            });
        }
        let done = page.next >= page.head.size;
        from = page.next;
        if done {
            break;
        }
    }
    let roster = roster.ok_or_else(|| OpenError::Ledger("it has no records".to_owned()))?;
    let before = before.unwrap_or_else(|| roster.clone());
    Ok(Known { roster, wraps, before })
}

/// The volume's secrets, from the newest wrap for this key.
fn unwrap_ring(
    start: &Start,
    info: &VolumeInfo,
    origin: &Origin,
    actor: &Label,
    wraps: &[Wrap],
) -> Opening<KeyRing> {
    let volume = &start.volume;
    let mine = wraps.iter().filter(|wrap| wrap.volume == info.id && wrap.member == *actor);
    let no_access = || OpenError::NoAccess { volume: volume.clone(), actor: actor.to_string() };
    let wrap = mine.max_by_key(|wrap| wrap.key_epoch).ok_or_else(no_access)?;
    let bad = |why: String| OpenError::BadWrap { volume: volume.clone(), why };
    let about = wrap_info(origin, &info.id, wrap.key_epoch, actor);
    let plain = seal::unwrap(&start.principal, &about, &wrap.wrap)
        .map_err(|error| bad(error.to_string()))?;
    let ring = KeyRing::decode(&plain).map_err(|error| bad(error.to_string()))?;
    if ring.current().epoch() < info.epoch {
        return Err(no_access()); // removed since: the newer secrets are not for this key
    }
    Ok(ring)
}

/// The newest root's tree and the position it stands for; a young volume has none, and begins
/// empty before the record that made it.
async fn newest_tree(
    start: &Start,
    info: &VolumeInfo,
    roster: &Roster,
    ring: &KeyRing,
    keys: &TreeKeys,
    nodes: &Arc<NodeCache>,
) -> Opening<(Tree, Position)> {
    match &info.root {
        Some(root) => {
            check_root(start, info.id, root, roster).await?;
            let node = root_node(start, root, ring, keys, nodes).await?;
            Ok((Tree::new(node, nodes.clone()), root.position))
        }
        None => {
            let mut sink = |new: NewNode| {
                // It is never fetched: the first snapshot seals the nodes that take its place.
                let address = mictlan::hash::address(new.node.bytes());
                nodes.insert(NodeRef { identity: new.identity, address }, new.node);
                Ok::<_, Infallible>(address)
            };
            let Ok(tree) = Tree::empty(keys, nodes.clone(), &mut sink);
            Ok((tree, Position(info.made.0.saturating_sub(1))))
        }
    }
}

/// A peer's word for the newest root counts only with the record that a member signed: otherwise
/// an old root could be passed off as a newer one, and the commits between would be gone unseen.
async fn check_root(
    start: &Start,
    volume: VolumeId,
    root: &RootInfo,
    roster: &Roster,
) -> Opening<()> {
    let follow = Follow { volume: Some(volume), from: root.record, max_bytes: 1, wait_ms: 0 };
    let page = start
        .network
        .voter(start.options.deadline, |link| {
            let follow = follow.clone();
            async move { link.follow(follow).await }
        })
        .await?;
    let bad = |why: &str| OpenError::Ledger(format!("record {}: {why}", root.record));
    let entry = page.entries.first().filter(|entry| entry.position == root.record);
    let entry = entry.ok_or_else(|| bad("the peer that named it as a root does not show it"))?;
    let line = Line::parse(&entry.line).map_err(|error| bad(&error.to_string()))?;
    let key = roster.key_of(line.p.actor).map_err(|error| bad(&error.to_string()))?;
    let signed = seal::verify(&key, &line.message(&roster.origin()), &line.sig);
    let named = match line.p.body() {
        Ok(Body::Root(body)) => {
            (body.volume, body.position, body.address, body.identity, body.key_epoch)
                == (volume, root.position, root.address, root.identity, root.epoch)
        }
        _ => false,
    };
    match signed && named && line.i == root.record {
        true => Ok(()),
        false => Err(bad("it is not the root that a peer said it is")),
    }
}

async fn root_node(
    start: &Start,
    root: &RootInfo,
    ring: &KeyRing,
    keys: &TreeKeys,
    nodes: &Arc<NodeCache>,
) -> Opening<NodeRef> {
    let failed = |why: String| OpenError::Root(why);
    let opened = start.chunks.open(ring, root.address, start.options.deadline).await;
    let plain = opened.map_err(|error| failed(error.to_string()))?;
    let node = mictlan::meta::tree::Node::decode(plain.to_vec())
        .map_err(|error| failed(error.to_string()))?;
    let identity = node.identity(keys);
    let no_key = || failed(format!("no key of epoch {} here", root.epoch));
    let epoch = ring.epoch(root.epoch).ok_or_else(no_key)?;
    if mictlan::hash::keyed(epoch.root_key(), &[&identity.0]) != root.identity {
        return Err(failed("it is not the tree that its record names".to_owned()));
    }
    let named = NodeRef { identity, address: root.address };
    nodes.insert(named, node);
    Ok(named)
}

async fn open_session(start: &Start, volume: VolumeId) -> Opening<SessionId> {
    let open = OpenSession { volume, req: host::ulid_bytes(), read_only: false };
    let opened = start
        .network
        .voter(start.options.deadline, |link| {
            let open = open.clone();
            async move { link.open_session(open).await }
        })
        .await?;
    Ok(opened.session)
}

fn leftovers(start: &Start, volume: VolumeId) -> Opening<Vec<Left>> {
    if start.options.read_only {
        return Ok(Vec::new());
    }
    let mut strange = Vec::new();
    let parent = start.journals.join(volume.to_string());
    let left = Left::find(&parent, &start.principal, &mut strange)?;
    for (dir, why) in strange {
        tracing::warn!(dir = %dir.display(), %why,
            "a journal of an earlier mount stays as it is; mount with the key that made it");
    }
    Ok(left)
}

fn new_journal(start: &Start, about: About) -> Opening<Journal> {
    let dir = start.journals.join(about.volume.to_string()).join(about.session.to_string());
    Ok(Journal::create(&dir, about, start.principal.public())?)
}
