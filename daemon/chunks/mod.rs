//! Chunks as a mount sees them: put until durable, got from whichever copy is good.
//!
//! Owns: the drivers of the machines in `cluster/put` and `cluster/get`, what is on its way, and
//! the cache of opened chunks.
//! Never: decides where copies go or when they are enough; the machines do.
//! Invariant: bytes that are not durable yet are kept here and can be read from here.

pub mod budget;
mod cache;
mod get;
mod liars;
mod part;
mod put;
mod reader;
mod room;
mod sender;
mod vain;
mod watch;

pub use get::GetError;
pub use liars::Lies;
pub use put::{Charges, Put, PutError, asked_now, until};
pub use reader::{Piece, Reader};
pub use room::Room;

use crate::network::Network;
use crate::presence::Presence;
use budget::Budget;
use bytes::Bytes;
use cache::Cache;
use mictlan::cluster::layout::{Delta, Layout, LayoutError, Member, Weight};
use mictlan::cluster::owed::Owed;
use mictlan::cluster::place::Copies;
use mictlan::id::{ChunkId, Label, PeerId, PrincipalId, TimeMs};
use mictlan::wire::PeerInfo;
use room::Rooms;
use sender::Sender;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use tokio::sync::{Notify, watch as watched};
use tokio::time::Instant;

pub struct Chunks {
    network: Arc<Network>,
    placement: RwLock<Arc<Placement>>,
    senders: Mutex<HashMap<PrincipalId, Sender>>,
    /// Sealed bytes that are not durable yet, or that travel inside a commit.
    on_the_way: Mutex<HashMap<ChunkId, Bytes>>,
    owed: Mutex<Owed>,
    reader: Reader,
    vain: Mutex<vain::Vain>,
    rooms: Mutex<Rooms>,
    /// The peers shall be asked now.
    look: Notify,
    presence: Presence,
    opened: Cache,
    /// What durable chunks still take on their way to their last copies.
    trailing: Budget,
    /// How many chunks are being put.
    running: watched::Sender<usize>,
    /// Peers that kept a put waiting and have stored nothing since.
    silent: Mutex<HashSet<PeerId>>,
    /// The last chunk that was given up on met a full peer.
    full: AtomicBool,
    started: Instant,
}

/// Where copies go, and how many count.
#[derive(Clone, Debug)]
pub struct Placement {
    pub layout: Layout,
    pub copies: Copies,
    pub voters: usize,
    /// The failure domain of this machine.
    pub own: Label,
}

/// Where the ledger places chunks: on peers that store and offer room.
pub fn layout(peers: &[PeerInfo]) -> Result<Layout, LayoutError> {
    let mut put = BTreeMap::new();
    for peer in peers.iter().filter(|peer| peer.storage && peer.weight > 0) {
        let domain = Label::parse(&peer.domain).ok_or(LayoutError::BadDomain(peer.id))?;
        put.insert(peer.id, Member { weight: Weight(peer.weight), domain });
    }
    Layout::new().change(1, &Delta { put, remove: Vec::new() })
}

impl Chunks {
    /// A quarter of `memory_bytes` is for opened chunks that are kept to be read again, an eighth
    /// for chunks that are durable and still on their way to their last copies.
    pub fn new(network: Arc<Network>, placement: Placement, memory_bytes: u64) -> Arc<Self> {
        let reader = Reader::new(network.clone());
        Arc::new(Self {
            network,
            placement: RwLock::new(Arc::new(placement)),
            senders: Mutex::default(),
            on_the_way: Mutex::default(),
            owed: Mutex::new(Owed::default()),
            reader,
            vain: Mutex::default(),
            rooms: Mutex::default(),
            look: Notify::new(),
            presence: Presence::default(),
            opened: Cache::new(memory_bytes / 4),
            trailing: Budget::new(memory_bytes / 8),
            running: watched::Sender::new(0),
            silent: Mutex::default(),
            full: AtomicBool::new(false),
            started: Instant::now(),
        })
    }

    pub fn placement(&self) -> Arc<Placement> {
        self.placement.read().expect("nothing panics while it is locked").clone()
    }

    /// A new layout, or another number of copies: for chunks put from now on.
    pub fn place_by(&self, placement: Placement) {
        *self.placement.write().expect("nothing panics while it is locked") = Arc::new(placement);
    }

    /// The volume's number: of metadata, and of bytes where nothing else is asked for.
    pub fn copies(&self) -> Copies {
        self.placement().copies
    }

    /// Whether there are `copies` of what travels inside a commit: each voter keeps it, and nobody
    /// else.
    pub fn voters_are_enough(&self, copies: Copies) -> bool {
        let placement = self.placement();
        placement.voters >= copies.count().min(placement.layout.placed_peers())
    }

    /// The peers where so many copies of `chunk` belong.
    pub fn places(&self, chunk: ChunkId, copies: Copies) -> Vec<PeerId> {
        let order = mictlan::cluster::place::place(chunk, &self.placement().layout);
        order.into_iter().take(copies.count()).map(|place| place.peer).collect()
    }

    /// Chunks that have fewer copies than they should.
    pub fn owed(&self) -> usize {
        lock(&self.owed).len()
    }

    /// Peers that do not answer, and since when.
    pub fn away(&self) -> Vec<(PeerId, TimeMs)> {
        self.presence.away()
    }

    /// Peers that answered with what cannot be true.
    pub fn liars(&self) -> BTreeMap<PeerId, Lies> {
        self.reader.liars().all()
    }

    /// The peers take no more: whoever writes hears it at once, what waits is put again.
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Room for content, each byte with the volume's number of copies. `None` until a peer was
    /// heard.
    pub fn room(&self) -> Option<Room> {
        lock(&self.rooms).room(self.copies())
    }

    /// A write was refused for want of room: the peers are asked at once how much they have.
    pub fn no_room(&self) {
        lock(&self.rooms).refused();
        self.look.notify_one();
    }

    fn sender(&self, peer: PeerId) -> Option<Sender> {
        let link = self.network.link(peer)?;
        let mut senders = lock(&self.senders);
        Some(senders.entry(link.peer()).or_insert_with(|| Sender::start(link)).clone())
    }

    /// The machines' clock: only differences count, and it never goes back.
    fn now(&self) -> TimeMs {
        TimeMs(self.started.elapsed().as_millis() as u64)
    }

    fn at(&self, time: TimeMs) -> Instant {
        self.started + std::time::Duration::from_millis(time.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while it is locked")
}
