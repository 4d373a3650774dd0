//! A network in this process, and a voter that shows a mount what the network did not order.

use mictlan::cluster::layout::{Delta, Layout, Member, Weight};
use mictlan::cluster::place::Copies;
use mictlan::cluster::state::Submission;
use mictlan::id::{Label, LedgerHash, PeerId, Position, PrincipalId, SessionId};
use mictlan::ledger::record::body::{Body, Fence, Note};
use mictlan::ledger::record::{Line, Origin, Proposal, record_message, write_line};
use mictlan::seal::Principal;
use mictlan::wire::{
    Answer, Append, Barrier, CloseSession, Failure, Follow, Followed, Head, Heartbeat,
    HeartbeatReply, Join, Joined, Lease, LeaseMode, LeaseUnit, OpenSession, Outcome, Page,
    PeerInfo, Query, SessionOpened, Ticket,
};
use mictlan_daemon::chunks::{Chunks, Placement};
use mictlan_daemon::cli::connect;
use mictlan_daemon::config::{Config, Paths};
use mictlan_daemon::founding::Author;
use mictlan_daemon::here::Here;
use mictlan_daemon::host;
use mictlan_daemon::ledger::{Ledger, fetch};
use mictlan_daemon::link::Link;
use mictlan_daemon::network::{Known, Network};
use mictlan_daemon::peer::{Caller, Peer, RaftCall, Sequencing, Standing};
use mictlan_daemon::volume::journal::About;
use mictlan_daemon::volume::{Start, Volume};
use mictlan_mount::options::Options;
use serde_json::json;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Notify;

type Answering<'a, T> = Pin<Box<dyn Future<Output = Result<T, Failure>> + Send + 'a>>;

fn label(text: &str) -> Label {
    Label::parse(text).expect("a label")
}

/// An honest network of one voter.
pub struct World {
    here: Here,
    paths: Paths,
    origin: Origin,
    pub user: Arc<Principal>,
    dir: tempfile::TempDir,
}

impl World {
    pub async fn found() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let paths = Paths::below(dir.path());
        let mut config = Config::default();
        let name = label("home");
        let founded = connect::found(&paths, &mut config, &name, None).await;
        let (here, _) = founded.expect("a network");
        let user = connect::load_key(&paths, &label("default")).expect("its key");
        let origin = Origin::new(&name, &here.peer.network);
        Self { here, paths, origin, user: Arc::new(user), dir }
    }

    fn caller(&self) -> Caller {
        Caller { principal: self.user.id(), local: true }
    }

    fn link(&self) -> Link {
        Link::Embedded(self.here.peer.clone(), self.caller())
    }

    pub fn size(&self) -> u64 {
        self.here.sequencer.with_state(|state| state.head().size).expect("it has records")
    }

    fn note(&self) -> Body {
        Body::Note(Note { data: json!({"text": "said"}), topic: label("test") })
    }

    /// A record that the network orders, past the liar.
    pub async fn order_a_note(&self) {
        self.order(self.note()).await;
    }

    /// The end of a mount's session, which nobody goes on with.
    pub async fn fence(&self, about: About) {
        let About { volume, session } = about;
        let reason = "a test".to_owned();
        self.order(Body::Fence(Fence { reason, session, successor: None, volume })).await;
    }

    async fn order(&self, body: Body) {
        let network = Network::new(vec![known(1, true, self.link())]);
        let (origin, actor) = (self.origin.clone(), label("default"));
        let author = Author { network: &network, origin, actor, principal: &self.user };
        let outcome = author.append(body).await.expect("an answer");
        assert!(matches!(outcome, Outcome::Accepted { .. }), "{outcome:?}");
    }

    /// A session beside one that took the lease on the whole volume and is never heard of again.
    pub async fn session_beside_a_dead_one(&self) -> SessionId {
        let (peer, caller) = (&self.here.peer, self.caller());
        let volumes = peer.query(caller, Query::Volumes).await.expect("an answer");
        let Answer::Volumes(volumes) = volumes else { panic!("another answer") };
        let volume = volumes[0].id;
        let open = || OpenSession { volume, req: host::ulid_bytes(), read_only: false };
        let dead = peer.open_session(caller, open()).await.expect("opened");
        let (unit, mode, granted) = (LeaseUnit::Volume, LeaseMode::Write, Ticket(0));
        let beat = Heartbeat {
            volume,
            session: dead.session,
            attempt: dead.attempt,
            applied: dead.at,
            want: vec![Lease { unit, mode, granted }],
            held: Vec::new(),
            release: Vec::new(),
            open_orphans: Vec::new(),
            reap: Vec::new(),
            credit: 0,
            wait_ms: 1_000,
        };
        let reply = peer.heartbeat(caller, beat).await.expect("heard");
        assert_eq!(reply.held.len(), 1, "it is alone");
        peer.open_session(caller, open()).await.expect("opened").session
    }

    /// Whether nothing of others was in the way of `session`; who asks gives up when it would have
    /// to wait once more than so many times, or for long.
    pub async fn passes_within(&self, session: SessionId, waits: usize, long: Duration) -> bool {
        let barrier = Barrier { session: Some(session), pass: vec![LeaseUnit::Volume] };
        let mut answer = pin!(self.here.peer.read_position(self.caller(), barrier));
        let mut left = waits;
        let patient = poll_fn(|context| match answer.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(answer.is_ok()),
            Poll::Pending if left == 0 => Poll::Ready(false),
            Poll::Pending => {
                left -= 1;
                Poll::Pending
            }
        });
        tokio::time::timeout(long, patient).await == Ok(true)
    }

    /// A mount that hears of the log from `liar` alone; chunks and the ledger's files are honest.
    pub async fn mount(&self, liar: &Arc<Liar>) -> Arc<Volume> {
        self.mount_with(liar, Options::default()).await
    }

    pub async fn mount_with(&self, liar: &Arc<Liar>, options: Options) -> Arc<Volume> {
        self.mount_from(liar, options, self.paths.state.join("journals")).await
    }

    /// One that takes over what is left in `journals`.
    pub async fn mount_from(
        &self,
        liar: &Arc<Liar>,
        options: Options,
        journals: PathBuf,
    ) -> Arc<Volume> {
        let lying =
            Peer::new(self.here.peer.network, PrincipalId([9; 32]), None, Some(liar.clone()));
        let voter = Link::Embedded(Arc::new(lying), self.caller());
        let peers = vec![known(1, false, self.link()), known(9, true, voter)];
        let network = Arc::new(Network::new(peers));
        let chunks = Chunks::new(network.clone(), placement(), 1 << 20);
        let honest = self.link();
        let fetch = fetch::from_links(move || vec![honest.clone()]);
        let ledger = Ledger::open(self.here.peer.network, self.dir.path(), fetch);
        let start = Start {
            network,
            ledger: ledger.expect("nothing is remembered"),
            chunks: chunks.clone(),
            volume: label("main"),
            principal: self.user.clone(),
            options,
            journals,
            spilled: self.paths.cache.join("overlay"),
            network_changed: Arc::new(Notify::new()),
            once: false,
        };
        let (volume, _) = Volume::open(start).await.expect("it comes up");
        tokio::spawn(chunks.watch());
        volume
    }

    pub async fn end(self) {
        self.here.stop().await;
    }
}

/// What a voter answers at once, asked of one that may have to wait.
fn wait_here<T>(asked: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(asked))
}

fn known(id: u64, voter: bool, link: Link) -> Known {
    let info = PeerInfo {
        id: PeerId(id),
        name: label("peer"),
        principal: link.peer(),
        addresses: Vec::new(),
        storage: !voter,
        voter,
        domain: "here".to_owned(),
        weight: 1,
    };
    Known { info, link }
}

fn placement() -> Placement {
    let member = Member { weight: Weight(1), domain: label("here") };
    let delta = Delta { put: BTreeMap::from([(PeerId(1), member)]), remove: Vec::new() };
    Placement {
        layout: Layout::new().change(1, &delta).expect("a layout"),
        copies: Copies::new(1).expect("above zero"),
        voters: 1,
        own: label("here"),
    }
}

/// Passes everything on, until it shows a record of its own at the end of the log and then no more,
/// or other bytes than the payloads that the records name, or is silent to whoever asks second, or
/// calls ordered what it keeps to itself.
pub struct Liar {
    honest: Arc<Peer>,
    caller: Caller,
    origin: Origin,
    user: Arc<Principal>,
    body: Body,
    lies: AtomicBool,
    spoils: AtomicBool,
    swallows: AtomicBool,
    /// Covers the end of the log that it has for itself.
    own: Mutex<Option<(Position, LedgerHash)>>,
    /// Covers where the forged record was shown.
    shown: Mutex<Option<Position>>,
    /// Told when it was.
    told: Notify,
    held: Held,
    /// Whether commits are held back for ever.
    holds_commits: AtomicBool,
    /// Told when one was.
    holds_one: Notify,
}

/// Two who ask for the log from one position: the first is answered when the second has asked, and
/// the second never.
#[derive(Default)]
struct Held {
    state: Mutex<Hold>,
    first: Notify,
    second: Notify,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Hold {
    #[default]
    Nobody,
    WhoAsksNext,
    From(Position),
}

impl Liar {
    pub fn of(world: &World) -> Arc<Self> {
        Arc::new(Self {
            honest: world.here.peer.clone(),
            caller: world.caller(),
            origin: world.origin.clone(),
            user: world.user.clone(),
            body: world.note(),
            lies: AtomicBool::new(false),
            spoils: AtomicBool::new(false),
            swallows: AtomicBool::new(false),
            own: Mutex::new(None),
            shown: Mutex::new(None),
            told: Notify::new(),
            held: Held::default(),
            holds_commits: AtomicBool::new(false),
            holds_one: Notify::new(),
        })
    }

    /// From now on no commit gets to the network, and nobody who sends one gets an answer.
    pub fn holds_commits_back(&self) {
        self.holds_commits.store(true, Ordering::SeqCst);
    }

    /// Returns when one was held back.
    pub async fn has_a_commit(&self) {
        self.holds_one.notified().await;
    }

    /// Holds the follower's next question back until somebody else asks the same, whom it never
    /// answers; returns when it has the follower's.
    pub async fn holds_the_log_back(&self) {
        *self.held.state.lock().expect("no test panics here") = Hold::WhoAsksNext;
        self.held.first.notified().await;
    }

    async fn hold_back(&self, follow: Follow) -> Result<Page, Failure> {
        let held = {
            let mut state = self.held.state.lock().expect("no test panics here");
            let held = *state;
            if held == Hold::WhoAsksNext {
                *state = Hold::From(follow.from);
            }
            held
        };
        match held {
            Hold::WhoAsksNext => {
                self.held.first.notify_one();
                self.held.second.notified().await;
            }
            Hold::From(from) if from == follow.from => {
                self.held.second.notify_one();
                return std::future::pending().await;
            }
            Hold::From(_) | Hold::Nobody => {}
        }
        self.pass_on(follow).await
    }

    /// From now on it lies; returns when the mount was shown the record.
    pub async fn shows_a_record_of_its_own(&self) {
        self.lies.store(true, Ordering::SeqCst);
        self.told.notified().await;
    }

    /// From now on the payloads beside its records are not theirs.
    pub fn shows_other_payloads(&self) {
        self.spoils.store(true, Ordering::SeqCst);
    }

    /// From now on it accepts records, orders none, and shows none.
    pub fn swallows_what_it_accepts(&self) {
        self.swallows.store(true, Ordering::SeqCst);
    }

    async fn swallow(&self, append: Append) -> Result<Outcome, Failure> {
        let head = self.honest.head(self.caller).await?;
        let mut own = self.own.lock().expect("no test panics here");
        let (position, chain) = own.unwrap_or((head.size, LedgerHash(head.chain)));
        let Append { submission: Submission { p, sig, .. }, .. } = append;
        let record = write_line(position, &chain, head.t, &p, &sig).expect("a record");
        let hash = Line::parse(&record).expect("a record").hash();
        *own = Some((Position(position.0 + 1), hash));
        Ok(Outcome::Accepted { position, record })
    }

    async fn pass_on(&self, follow: Follow) -> Result<Page, Failure> {
        let mut page = self.honest.follow(self.caller, follow).await?;
        if self.spoils.load(Ordering::SeqCst) {
            let payloads = page.entries.iter_mut().filter_map(|entry| entry.payload.as_mut());
            payloads.flat_map(|payload| payload.last_mut()).for_each(|byte| *byte ^= 1);
        }
        Ok(page)
    }

    /// Signed by the user itself, as if it had asked for it: nothing in the record is wrong.
    fn forged(&self, head: &Head) -> Followed {
        let proposal = Proposal::new(label("default"), host::ulid(), self.body.clone());
        let p = proposal.encode().expect("in the profile");
        let sig = self.user.sign(&record_message(&self.origin, &p));
        let line = write_line(head.size, &LedgerHash(head.chain), head.t, &p, &sig);
        let line = line.expect("a record");
        Followed { position: head.size, line, tags: None, payload: None, inline: None }
    }

    async fn lie(&self, follow: Follow) -> Result<Page, Failure> {
        let head = self.honest.head(self.caller).await?;
        let shown = *self.shown.lock().expect("no test panics here");
        match shown {
            None if follow.from == head.size => {
                let next = Position(head.size.0 + 1);
                *self.shown.lock().expect("no test panics here") = Some(head.size);
                let entries = vec![self.forged(&head)];
                self.told.notify_one();
                Ok(Page { entries, next, head })
            }
            None => self.honest.follow(self.caller, follow).await,
            Some(_) => std::future::pending().await,
        }
    }
}

impl Sequencing for Liar {
    fn standing(&self, _: &PrincipalId) -> Standing {
        Standing { known: true, reads: true, writes: true, ..Standing::default() }
    }
    fn id(&self) -> Option<PeerId> {
        Some(PeerId(9))
    }
    fn leader(&self) -> Option<PeerId> {
        Some(PeerId(9))
    }
    fn head(&self) -> Head {
        wait_here(self.honest.head(self.caller)).expect("it has records")
    }
    fn published(&self) -> Option<Position> {
        None
    }
    fn append(&self, append: Append) -> Answering<'_, Outcome> {
        if self.holds_commits.load(Ordering::SeqCst) {
            self.holds_one.notify_one();
            return Box::pin(std::future::pending());
        }
        match self.swallows.load(Ordering::SeqCst) {
            true => Box::pin(self.swallow(append)),
            false => Box::pin(self.honest.append(self.caller, append)),
        }
    }
    fn open_session(&self, _: PrincipalId, open: OpenSession) -> Answering<'_, SessionOpened> {
        Box::pin(self.honest.open_session(self.caller, open))
    }
    fn close_session(&self, _: PrincipalId, close: CloseSession) -> Answering<'_, ()> {
        Box::pin(self.honest.close_session(self.caller, close))
    }
    fn heartbeat(&self, _: PrincipalId, beat: Heartbeat) -> Answering<'_, HeartbeatReply> {
        Box::pin(self.honest.heartbeat(self.caller, beat))
    }
    fn follow(&self, _: PrincipalId, follow: Follow) -> Answering<'_, Page> {
        if self.swallows.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        match self.lies.load(Ordering::SeqCst) {
            true => Box::pin(self.lie(follow)),
            false => Box::pin(self.hold_back(follow)),
        }
    }
    fn read_position(&self, _: PrincipalId, barrier: Barrier) -> Answering<'_, Position> {
        Box::pin(self.honest.read_position(self.caller, barrier))
    }
    fn ledger_file(&self, _: String, _: Option<Range<u64>>) -> Answering<'_, Option<bytes::Bytes>> {
        Box::pin(async { Ok(None) })
    }
    fn answer(&self, _: PrincipalId, query: Query) -> Result<Answer, Failure> {
        wait_here(self.honest.query(self.caller, query))
    }
    fn genesis(&self) -> Vec<u8> {
        Vec::new()
    }
    fn join(&self, _: PrincipalId, _: Join) -> Answering<'_, Joined> {
        Box::pin(async { Err(Failure::NotAllowed) })
    }
    fn raft(&self, _: PeerId, _: RaftCall, _: bytes::Bytes) -> Answering<'_, bytes::Bytes> {
        Box::pin(async { Err(Failure::NotAllowed) })
    }
}
