//! A mounted volume: what the kernel asks is answered from here.
//!
//! Owns: the view of the namespace, the dirty bytes, the session, and the order in which they
//! become commits: dirty → sealed → durable → committed → applied.
//! Never: speaks FUSE or HTTP; `mount` and `link` do.
//! Invariant: what a call acknowledged is in the journal or on its peers; what `fsync`
//! acknowledged is committed; a refusal is never silent.

mod beginning;
mod belief;
mod caller;
mod coherent;
mod commit;
mod conflict;
mod copies;
mod credit;
mod data;
mod epoch;
mod file;
mod follow;
pub mod journal;
mod local;
mod nodes;
mod once;
mod orphan;
mod overtakes;
mod past;
mod quorum;
mod read;
mod recover;
mod replay;
mod root;
mod roots;
mod seal;
mod secrets;
mod session;
mod snapshot;
mod space;
mod spill;
mod start;
mod state;
mod tail;
mod trail;
mod unproven;
mod vfs;
mod virtual_xattr;
mod void;
mod writer;

pub use belief::{Disbelief, Trouble};
pub use follow::FollowError;
pub use once::Behind;
pub use replay::{Replay, ReplayError, Replayed, Wrong};
pub use secrets::roster;
pub use start::{OpenError, Start};
pub use void::{Void, Voids};

use crate::chunks::Chunks;
use crate::chunks::budget::Budget;
use crate::network::Network;
use journal::Journal;
use mictlan::file::Cutter;
use mictlan::id::{Label, Position, VolumeId};
use mictlan::ledger::record::Origin;
use mictlan::meta::tree::{NodeCache, TreeKeys};
use mictlan::seal::KeyRing;
use mictlan::seal::Principal;
use mictlan_mount::options::Options;
use state::{Core, Progress};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub struct Volume {
    pub id: VolumeId,
    /// The record that made it.
    made: Position,
    /// Whether new data chunks are compressed where that gains.
    compress: AtomicBool,
    /// How records name who signs.
    actor: Label,
    principal: Arc<Principal>,
    origin: Origin,
    ring: RwLock<Arc<KeyRing>>,
    /// Of the ring's current epoch; `None` without the data secret.
    cutter: RwLock<Option<Arc<Cutter>>>,
    /// The record that removed this key from the volume.
    removed: std::sync::OnceLock<Position>,
    network: Arc<Network>,
    chunks: Arc<Chunks>,
    nodes: Arc<NodeCache>,
    tree_keys: TreeKeys,
    spill: spill::Spill,
    /// What was applied since the view's tree, to check others' roots with.
    trail: trail::Trail,
    /// Roots that are still to be checked.
    named: roots::Named,
    budget: Budget,
    credit: credit::Credit,
    /// `None` on a read-only mount.
    journal: Option<Journal>,
    /// On a read-only mount that sees what others have closed.
    coherent: Option<coherent::Coherent>,
    options: Options,
    /// Never held across an await. Taken after a file's `data`.
    core: Mutex<Core>,
    /// How far commits are; waited for by fsync and by whoever is slowed.
    progress: watch::Sender<Progress>,
    /// Something may be there to commit.
    work: Notify,
    /// One record at a time is applied, in order.
    applying: tokio::sync::Mutex<follow::Applied>,
    /// Without a lease, one operation at a time goes all the way to its commit.
    turn: tokio::sync::Mutex<()>,
    /// A recall is being served: the lease is held, and nothing new is done under it.
    recalled: AtomicBool,
    /// Which grant of the lease is held; a release names it.
    grant: AtomicU64,
    /// All is committed; the next heartbeat gives the lease back.
    releasing: AtomicBool,
    /// Unmounted: the last things are done.
    ending: AtomicBool,
    /// No change is taken any more: what is acknowledged from here on is committed.
    closed_to_changes: AtomicBool,
    lease_changed: Notify,
    snapshot_wanted: Notify,
    /// One snapshot root is built at a time.
    snapshotting: tokio::sync::Mutex<()>,
    /// Until then the leader is not asked where the log stands: it just was not there.
    unconfirmed: Mutex<Option<Instant>>,
    /// Why a command that looks once may not see what others hold back.
    unseen: std::sync::OnceLock<String>,
    /// Whether what is applied is what a quorum signed.
    belief: belief::Belief,
    /// Told when a record changed the peers, the layout, or this volume.
    network_changed: Arc<Notify>,
    /// What was read of the log backwards, and what was asked of it.
    shelf: past::Shelf,
    writers: writer::Writers,
    /// The payloads that changed nothing, of those that this mount has applied.
    voids: Mutex<Voids>,
    /// What could not be done again.
    kept: Mutex<recover::keep::Kept>,
    /// While journals of earlier mounts are taken over.
    watch: Mutex<Option<recover::overtaken::Watch>>,
    /// What the kernel must forget.
    stale: tokio::sync::mpsc::UnboundedSender<Stale>,
}

/// Something that the kernel may have cached and that another session changed.
#[derive(Debug, Clone)]
pub enum Stale {
    Inode(mictlan::id::Ino),
    Entry(mictlan::id::Ino, mictlan::id::Name),
}

impl Volume {
    /// Where the journal of this mount is, and how many bytes it has.
    pub fn journal_left(&self) -> Option<(PathBuf, u64)> {
        self.journal.as_ref().map(|journal| (journal.dir().to_owned(), journal.bytes()))
    }

    /// After this long a call that cannot be answered fails.
    pub fn deadline(&self) -> std::time::Duration {
        self.options.deadline
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().expect("nothing panics while the core is locked")
    }

    fn cutter(&self) -> Option<Arc<Cutter>> {
        self.cutter.read().expect("nothing panics while it is locked").clone()
    }

    fn ring(&self) -> Arc<KeyRing> {
        self.ring.read().expect("nothing panics while the ring is locked").clone()
    }
}
