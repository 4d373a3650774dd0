//! How a volume comes up: keys, roster, newest root, the log after it, the session, the journals.
//!
//! Owns: the order of these, and what to tell when one of them is not to be had.
//! Invariant: nothing is answered before everything committed at the time of the call is seen, and
//! what an earlier mount of this host left in its journal is in order again.

use super::beginning::{Beginning, beginning};
use super::belief::Belief;
use super::coherent::Coherent;
use super::follow::Applied;
use super::journal::{About, Journal, JournalError, Left};
use super::nodes::empty_tree;
use super::once::open_session_once;
use super::quorum;
use super::secrets::unwrap_ring;
use super::spill::Spill;
use super::state::{Core, Mode, Progress, Session};
use super::unproven::Unproven;
use super::{Stale, Volume};
use crate::chunks::Chunks;
use crate::chunks::budget::Budget;
use crate::ledger::{Ledger, Seen};
use crate::network::{CallError, Network};
use mictlan::file::Cutter;
use mictlan::id::{Attempt, Epoch, Label, Position, SessionId, VolumeId};
use mictlan::ledger::record::Origin;
use mictlan::ledger::record::body::Wrap;
use mictlan::ledger::roster::Roster;
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{NodeCache, Tree, TreeKeys};
use mictlan::meta::view::{OVERLAY_MAX, View};
use mictlan::seal::{KeyRing, Principal};
use mictlan::wire::{Answer, Query, VolumeInfo};
use mictlan_mount::options::Options;
use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;

/// For how long a mount waits for an earlier one that is about to end.
const ENDING_WAIT: Duration = Duration::from_secs(20);
const ENDING_PAUSE: Duration = Duration::from_millis(100);

/// What a volume is opened with.
pub struct Start {
    pub network: Arc<Network>,
    /// The network's ledger as this machine verified it.
    pub ledger: Arc<Ledger>,
    pub chunks: Arc<Chunks>,
    pub volume: Label,
    pub principal: Arc<Principal>,
    pub options: Options,
    /// Journals of this host, one directory a volume.
    pub journals: PathBuf,
    /// For the overlay of this mount; nothing in it outlives the process.
    pub spilled: PathBuf,
    /// Told when a record changed the peers, the layout, or this volume.
    pub network_changed: Arc<Notify>,
    /// For a command that reads and ends: it sees what others had closed when it began, or says
    /// what it shows instead.
    pub once: bool,
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
    #[error(
        "the journal of an earlier mount cannot be taken over now: {0}; nothing is lost: it stays \
         as it is, and the next mount tries again"
    )]
    TakeOver(String),
    #[error("the newest root of the volume cannot be read: {0}")]
    Root(String),
    #[error("the root of record {record} is lost: {why}")]
    RootLost { record: Position, why: String },
    #[error(
        "fewer than a majority of the voters answer: start the silent ones (mictlan serve), or \
         mount without `coherent`"
    )]
    NoQuorum,
    #[error(
        "fewer than a majority of the voters answer, and no state of the volume can be proved \
         without them: {0}; start the silent ones: mictlan serve"
    )]
    NothingProven(String),
    #[error(
        "the network shows {shown} records, and this machine has verified a checkpoint of \
         {remembered}: records were taken back. Nothing was mounted; find out which voters were \
         set back before you trust them (mictlan ledger verify)"
    )]
    RolledBack { remembered: u64, shown: u64 },
    #[error(
        "{0}, and what is to change a volume needs 1 MiB there before it begins; nothing was done. \
         Make room on that disk, then again: df -h {dir}", dir = .0.disk().display()
    )]
    NoRoom(#[source] JournalError),
    #[error("{0}")]
    Journal(#[source] JournalError),
    #[error("{0}")]
    Fs(#[from] FsError),
}

impl From<JournalError> for OpenError {
    fn from(error: JournalError) -> Self {
        match error.is_full() {
            true => Self::NoRoom(error),
            false => Self::Journal(error),
        }
    }
}

/// A question asked while a volume comes up.
pub(super) type Opening<T> = Result<T, OpenError>;

/// A volume that is up, and what the kernel must forget.
type Up = (Arc<Volume>, mpsc::UnboundedReceiver<Stale>);

impl Volume {
    /// Brings the volume up. The receiver gets what the kernel must forget. Without a majority of
    /// the voters it comes up read-only, as far as a checkpoint proves it, unless it is to show
    /// nothing older than what others have closed.
    pub async fn open(start: Start) -> Opening<(Arc<Volume>, mpsc::UnboundedReceiver<Stale>)> {
        loop {
            let brought_up = match Self::bring_up(&start, None).await {
                Err(OpenError::NoQuorum) if start.once || !start.options.is_coherent() => {
                    let seen = quorum::proven(&start.ledger).await?;
                    Self::bring_up(&start, Some(seen)).await?
                }
                brought_up => brought_up?,
            };
            if let Some(up) = brought_up {
                return Ok(up);
            }
        }
    }

    /// `None`: there are more journals of earlier mounts than one session can take over, and this
    /// one did its part and ended.
    async fn bring_up(start: &Start, proven: Option<Arc<Seen>>) -> Opening<Option<Up>> {
        let mut info = find_volume(start).await?;
        if let Some(seen) = &proven {
            // A root that no checkpoint covers is nobody's word; the log itself is longer to read.
            info.root = info.root.filter(|root| root.record.0 < seen.size());
        }
        let size = proven.as_ref().map(|seen| Position(seen.size()));
        let Beginning { held, tree, position, next, roster, belief, reads } =
            beginning(start, &mut info, size).await?;
        let Seat { session, journal, coherent, left } = match proven.is_some() || reads {
            true => Seat::default(),
            false => Seat::take(start, info.id).await?,
        };
        let ground = Ground { tree, position, next, roster, belief, session, journal, coherent };
        let (volume, stale_receiver) = assemble(start, &info, held, ground)?;
        if !left.is_empty() {
            volume.watch_others();
        }
        match &proven {
            Some(seen) => volume.prove(seen).await?,
            None if start.once => volume.look_once().await?,
            None => volume.first_catch_up().await?,
        }
        let all = volume.clone().begin(left).await?;
        Ok(all.then_some((volume, stale_receiver)))
    }

    /// The tasks of a volume that is up to date. What earlier mounts left is replayed first; if
    /// that was not all of it, the volume has ended again.
    async fn begin(self: Arc<Self>, left: Vec<Left>) -> Opening<bool> {
        tokio::spawn(self.clone().follow());
        tokio::spawn(self.clone().watch_ledger());
        tokio::spawn(self.clone().check_roots());
        if self.journal.is_some() {
            tokio::spawn(self.clone().commit_behind());
            // First, because it fences: the lease of a mount that is gone would stand in the way.
            if !self.recover(left).await? {
                self.end().await?;
                return Ok(false);
            }
            let leased = self.lease_changed.notified();
            tokio::spawn(self.clone().beat());
            // Alone on the volume, the first heartbeat brings the lease; with others it is not
            // waited for.
            let _ = tokio::time::timeout(Duration::from_secs(2), leased).await;
            self.own_root().await;
            tokio::spawn(self.clone().reap_left_behind());
            tokio::spawn(self.clone().snapshots());
        } else {
            tokio::spawn(self.clone().close_left(left));
        }
        Ok(true)
    }

    pub(super) async fn first_catch_up(&self) -> Opening<()> {
        // Known before the call, so a majority of honest voters has it all.
        let remembered = self.belief.signed();
        let deadline = Instant::now() + self.options.deadline;
        match quorum::or_none(&self.network, self.catch_up(deadline)).await {
            Some(Ok(())) => {}
            // With a session a quorum was there a moment ago.
            Some(Err(FsError::TimedOut)) if self.core().session.id.0 == 0 => {
                return Err(OpenError::NoQuorum);
            }
            Some(Err(error)) => return Err(error.into()),
            None => return Err(OpenError::NoQuorum),
        }
        let shown = self.progress.borrow().applied.0;
        match shown < remembered {
            true => Err(OpenError::RolledBack { remembered, shown }),
            false => Ok(()),
        }
    }

    /// Applies what the checkpoint covers, from whichever voter has it, and compares it.
    async fn prove(&self, seen: &Seen) -> Opening<()> {
        let size = Position(seen.size());
        for known in self.network.peers().iter().filter(|known| known.info.voter) {
            while let Some(page) = self.page_of(&known.link, size).await {
                let before = self.progress.borrow().applied;
                if let Err(error) = self.apply_page(page).await {
                    tracing::error!(%error, "the volume ends before this record, until it is there");
                    break;
                }
                if self.progress.borrow().applied == before {
                    break;
                }
            }
        }
        let proven = self.all_proven(seen).await;
        proven.map_err(|why| OpenError::NothingProven(why.to_string()))
    }
}

/// Who this key is in the volume, and the secrets that it holds.
pub(super) struct Held {
    pub actor: Label,
    origin: Origin,
    pub ring: KeyRing,
    coming: Option<KeyRing>,
    pub keys: TreeKeys,
    pub nodes: Arc<NodeCache>,
}

impl Held {
    pub fn of(start: &Start, info: &VolumeInfo, roster: &Roster, wraps: &[Wrap]) -> Opening<Self> {
        let origin = roster.origin();
        let actor = roster.owner_of(&start.principal.id()).cloned().ok_or(OpenError::Unknown)?;
        let (ring, coming) = unwrap_ring(start, info, &origin, &actor, wraps)?;
        let keys = TreeKeys::new(ring.identity_key(), ring.boundary_key());
        let nodes = Arc::new(NodeCache::new((start.options.memory_bytes / 8) as usize));
        Ok(Self { actor, origin, ring, coming, keys, nodes })
    }

    pub fn empty_tree(&self) -> Tree {
        empty_tree(&self.keys, &self.nodes)
    }
}

/// Where a volume begins in the log, and as whom.
pub(super) struct Ground {
    /// The map at `position`.
    pub tree: Tree,
    pub position: Position,
    /// The next record to apply, and whose keys count before it.
    pub next: Position,
    pub roster: Roster,
    pub belief: Belief,
    pub session: Option<SessionId>,
    pub journal: Option<Journal>,
    pub coherent: Option<Coherent>,
}

/// A place among the sessions of a volume, if the mount takes one.
#[derive(Default)]
struct Seat {
    session: Option<SessionId>,
    journal: Option<Journal>,
    coherent: Option<Coherent>,
    /// Of earlier mounts of the same kind.
    left: Vec<Left>,
}

impl Seat {
    async fn take(start: &Start, volume: VolumeId) -> Opening<Self> {
        if start.options.read_only && !start.options.coherent {
            return Ok(Self::default());
        }
        let session = match start.once {
            true => match open_session_once(start, volume).await? {
                Some(session) => session,
                None => return Ok(Self::default()),
            },
            false => open_session(start, volume).await?,
        };
        let (about, session) = (About { volume, session }, Some(session));
        if start.options.is_coherent() {
            let (coherent, left) = Coherent::begin(start, about)?;
            return Ok(Self { session, coherent: Some(coherent), left, journal: None });
        }
        let left = leftovers(start, volume).await?;
        Ok(Self { session, journal: Some(new_journal(start, about)?), left, coherent: None })
    }
}

/// A volume that nothing was applied to yet, and that nobody works for. The receiver gets what the
/// kernel must forget.
pub(super) fn assemble(
    start: &Start,
    info: &VolumeInfo,
    held: Held,
    ground: Ground,
) -> Opening<(Arc<Volume>, mpsc::UnboundedReceiver<Stale>)> {
    let Held { actor, origin, ring, coming, keys, nodes } = held;
    let Ground { tree, position, next, roster, belief, session, journal, coherent } = ground;
    let mode = if journal.is_some() { Mode::Synchronous } else { Mode::Reader };
    let epoch = ring.current().epoch();
    let (stale, stale_receiver) = mpsc::unbounded_channel();
    let volume = Arc::new(Volume {
        id: info.id,
        made: info.made,
        compress: AtomicBool::new(info.compress),
        actor,
        principal: start.principal.clone(),
        origin,
        cutter: RwLock::new(ring.current().cut_key().map(Cutter::new).map(Arc::new)),
        removed: OnceLock::new(),
        ring: RwLock::new(Arc::new(ring)),
        tree_keys: keys,
        spill: spill(start)?,
        trail: Default::default(),
        named: Default::default(),
        network: start.network.clone(),
        chunks: start.chunks.clone(),
        nodes,
        credit: Default::default(),
        budget: Budget::new(start.options.memory_bytes * 2 / 5),
        journal,
        coherent,
        options: start.options.clone(),
        core: Mutex::new(core(tree, position, mode, session.unwrap_or_default(), epoch)),
        progress: watch::Sender::new(Progress::new(next)),
        work: Notify::new(),
        applying: tokio::sync::Mutex::new(Applied { next, chain: None, coming, roster }),
        turn: tokio::sync::Mutex::new(()),
        stale,
        shelf: Default::default(),
        writers: Default::default(),
        voids: Default::default(),
        kept: Default::default(),
        watch: Default::default(),
        network_changed: start.network_changed.clone(),
        recalled: AtomicBool::new(false),
        grant: AtomicU64::new(0),
        releasing: AtomicBool::new(false),
        ending: AtomicBool::new(false),
        closed_to_changes: AtomicBool::new(false),
        lease_changed: Notify::new(),
        snapshot_wanted: Notify::new(),
        snapshotting: tokio::sync::Mutex::new(()),
        unconfirmed: Mutex::new(None),
        unseen: OnceLock::new(),
        belief,
    });
    volume.trail.rests_on(position);
    Ok((volume, stale_receiver))
}

/// A sixteenth of a mount's memory is for commits that no snapshot root has yet.
fn spill(start: &Start) -> Opening<Spill> {
    let bytes_max = (start.options.memory_bytes / 16) as usize;
    Ok(Spill::new(start.spilled.clone(), bytes_max.min(OVERLAY_MAX))?)
}

fn core(tree: Tree, position: Position, mode: Mode, session: SessionId, epoch: Epoch) -> Core {
    Core {
        view: View::new(tree, position),
        files: HashMap::new(),
        session: Session {
            id: session,
            attempt: Attempt(1),
            n: 1,
            attempt_ended: false,
            epoch_moved: false,
            epoch,
            mode,
            waiting: None,
        },
        queue: VecDeque::new(),
        unproven: Unproven::default(),
        replan: None,
        refused: HashSet::new(),
        inodes_made: 0,
        next_handle: 0,
        broken_promise: None,
    }
}

pub(super) async fn find_volume(start: &Start) -> Opening<VolumeInfo> {
    let answer = start.network.query(Query::Volumes, start.options.deadline).await?;
    let Answer::Volumes(volumes) = answer else { return Err(other_answer()) };
    let found = volumes.iter().find(|volume| volume.name == start.volume).cloned();
    found.ok_or_else(|| {
        let there: Vec<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        OpenError::NoVolume { name: start.volume.to_string(), there: there.join(", ") }
    })
}

pub(super) fn other_answer() -> OpenError {
    OpenError::Ledger("a peer answered another question than was asked".to_owned())
}

async fn open_session(start: &Start, volume: VolumeId) -> Opening<SessionId> {
    let opened = start.network.open_session(volume, start.options.deadline);
    match quorum::or_none(&start.network, opened).await {
        Some(Ok(opened)) => Ok(opened.session),
        Some(Err(CallError::NoVoter { .. })) | None => Err(OpenError::NoQuorum),
        Some(Err(error)) => Err(error.into()),
    }
}

/// The journals of mounts that are gone, or go within a moment.
async fn leftovers(start: &Start, volume: VolumeId) -> Opening<Vec<Left>> {
    let parent = start.journals.join(volume.to_string());
    let by = Instant::now() + ENDING_WAIT.min(start.options.deadline);
    let mut left: Vec<Left> = Vec::new();
    let (strange, ending) = loop {
        let mut strange = Vec::new();
        left.extend(Left::find(&parent, &start.principal, &mut strange)?);
        let mut ending = Left::ending(&parent);
        ending.retain(|dir| !left.iter().any(|left| left.dir() == dir));
        ending.retain(|dir| !strange.iter().any(|(other, _)| other == dir));
        if ending.is_empty() || Instant::now() >= by {
            break (strange, ending);
        }
        tokio::time::sleep(ENDING_PAUSE).await;
    };
    left.sort_by_key(|left| left.about.session);
    for dir in ending {
        tracing::warn!(dir = %dir.display(),
            "an earlier mount of this volume has not ended yet: what it does not commit itself \
             is committed by a mount that begins after its end");
    }
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
