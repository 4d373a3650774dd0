//! Real TLS on 127.0.0.1 between peers with real stores: what gets in, and what does not.
//!
//! Owns: the fixture: a peer whose ledger is a script, its listening socket, and raw connections.

mod bodies;
mod calls;
mod fetching;
mod joining;
mod parts;
mod strangers;

use crate::http::admission::Limits;
use crate::http::server::{Serving, serve_tls, serve_unix};
use crate::http::tls;
use crate::http::transport::Transport;
use crate::identity::join::public_keys;
use crate::link::Link;
use crate::others::Others;
use crate::peer::{Peer, RaftCall, Sequencing, Standing};
use crate::store::{self, SEGMENT_BYTES, Store};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use mictlan::id::{Epoch, Label, NetworkId, PeerId, Position, PrincipalId, TimeMs, VolumeId};
use mictlan::ledger::record::body::{Body, Genesis, Peer as PeerBody, PeerState};
use mictlan::ledger::record::{
    Line, NO_RECORD, Proposal, Ulid, genesis_hash, genesis_message, write_line,
};
use mictlan::seal::{Principal, Secret};
use mictlan::wire::{
    Answer, Append, Barrier, CloseSession, Failure, Follow, Head, Heartbeat, HeartbeatReply, Join,
    Joined, OpenSession, Outcome, Page, PeerInfo, Query, SessionOpened, VolumeInfo,
};
use rustls::pki_types::ServerName;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

fn principal(n: u8) -> Arc<Principal> {
    Arc::new(Principal::from_seed(Secret::from_bytes([n; 32])))
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a label")
}

/// A network's record 0, founded by principal `n`.
fn genesis(n: u8) -> Vec<u8> {
    let founder = principal(n);
    let keys = public_keys(&founder.public());
    let peer = PeerBody {
        addresses: Vec::new(),
        keys: keys.clone(),
        name: label("founder"),
        peer: PeerId(1),
        state: PeerState::Active,
        storage: true,
        voter: true,
    };
    let body = Body::Genesis(Genesis {
        faults: None,
        log_key: [7; 32],
        log_wrap: vec![8; 80],
        network: label("home"),
        peer,
        principal: keys,
        random: [n; 32],
    });
    let req = Ulid::new(TimeMs(1_800_000_000_000), [n; 10]);
    let p = Proposal::new(label("founder"), req, body).encode().expect("a good proposal");
    let sig = founder.sign(&genesis_message(&p));
    write_line(Position(0), &NO_RECORD, TimeMs(1_800_000_000_000), &p, &sig).expect("a record")
}

fn network(genesis: &[u8]) -> NetworkId {
    genesis_hash(Line::parse(genesis).expect("a record").p.bytes)
}

/// A ledger that says what the test told it to.
struct Scripted {
    genesis: Vec<u8>,
    standings: HashMap<PrincipalId, Standing>,
    /// The keys of invites that are good, once.
    invites: Mutex<Vec<PrincipalId>>,
    joins: Mutex<Vec<Join>>,
    /// Whose ledger this is, and the peers that it names.
    me: PeerId,
    peers: Mutex<Vec<PeerInfo>>,
}

const HEAD: Head = Head { size: Position(7), chain: [9; 32], t: TimeMs(3) };

fn unscripted<T>() -> BoxFuture<'static, Result<T, Failure>>
where
    T: Send + 'static,
{
    ready(Err(Failure::Busy("not in the script".to_owned()))).boxed()
}

impl Sequencing for Scripted {
    fn standing(&self, principal: &PrincipalId) -> Standing {
        self.standings.get(principal).copied().unwrap_or_default()
    }
    fn id(&self) -> Option<PeerId> {
        Some(self.me)
    }
    fn leader(&self) -> Option<PeerId> {
        Some(PeerId(2))
    }
    fn head(&self) -> Head {
        HEAD
    }
    fn published(&self) -> Option<Position> {
        Some(Position(6))
    }
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Outcome, Failure>> {
        let answer = match append.submission.p.as_slice() {
            b"lost" => Err(Failure::OutcomeUnknown("leadership was lost".to_owned())),
            b"elsewhere" => Err(Failure::NotLeader { leader: Some(PeerId(2)) }),
            _ => Ok(Outcome::Repeated { position: Position(4) }),
        };
        ready(answer).boxed()
    }
    fn open_session(
        &self,
        _: PrincipalId,
        _: OpenSession,
    ) -> BoxFuture<'_, Result<SessionOpened, Failure>> {
        unscripted()
    }
    fn close_session(&self, _: PrincipalId, _: CloseSession) -> BoxFuture<'_, Result<(), Failure>> {
        unscripted()
    }
    fn heartbeat(
        &self,
        _: PrincipalId,
        _: Heartbeat,
    ) -> BoxFuture<'_, Result<HeartbeatReply, Failure>> {
        unscripted()
    }
    fn follow(&self, _: PrincipalId, follow: Follow) -> BoxFuture<'_, Result<Page, Failure>> {
        ready(Ok(Page { entries: Vec::new(), next: follow.from, head: HEAD })).boxed()
    }
    fn read_position(
        &self,
        _: PrincipalId,
        _: Barrier,
    ) -> BoxFuture<'_, Result<Position, Failure>> {
        ready(Ok(Position(5))).boxed()
    }
    fn ledger_file(
        &self,
        path: String,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Failure>> {
        let file = Bytes::from(format!("the file {path}"));
        let part = match (path.starts_with("tile/"), range) {
            (false, _) => None,
            (true, None) => Some(file),
            (true, Some(range)) => Some(file.slice(range.start as usize..range.end as usize)),
        };
        ready(Ok(part)).boxed()
    }
    fn answer(&self, _: PrincipalId, query: Query) -> Result<Answer, Failure> {
        match query {
            Query::Peers => {
                let peers = self.peers.lock().expect("no holder panics").clone();
                Ok(Answer::Peers { layout: 1, peers })
            }
            _ => Ok(Answer::Volumes(vec![one_copy()])),
        }
    }
    fn genesis(&self) -> Vec<u8> {
        self.genesis.clone()
    }
    fn join(&self, _: PrincipalId, join: Join) -> BoxFuture<'_, Result<Joined, Failure>> {
        self.joins.lock().expect("no holder panics").push(join.clone());
        let line = Line::parse(&self.genesis).expect("a record");
        let Body::Genesis(body) = line.p.body().expect("a body") else { panic!("a genesis") };
        let origin = mictlan::ledger::record::Origin::new(&body.network, &network(&self.genesis));
        let signed = mictlan::ledger::record::record_message(&origin, &join.submission.p);
        let mut good = self.invites.lock().expect("no holder panics");
        let used =
            good.iter().position(|key| mictlan::seal::verify(key, &signed, &join.submission.sig));
        let answer = match used {
            None => Err(Failure::InviteRefused("the invite was used".to_owned())),
            Some(at) => {
                good.remove(at);
                Ok(Joined { position: Position(8), peers: Vec::new(), wraps: Vec::new() })
            }
        };
        ready(answer).boxed()
    }
    fn raft(
        &self,
        _: PeerId,
        call: RaftCall,
        body: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Failure>> {
        let reply = [call.path().as_bytes(), &body].concat();
        ready(Ok(reply.into())).boxed()
    }
}

/// A volume each of whose chunks lies on one peer.
fn one_copy() -> VolumeInfo {
    VolumeInfo {
        id: VolumeId([1; 16]),
        name: label("main"),
        epoch: Epoch(1),
        copies: 1,
        compress: true,
        made: Position(1),
        root: None,
    }
}

/// Who is who in the script: 1 the peer itself, 2 and 5 other peers, 3 a writer, 4 a reader.
fn standings() -> HashMap<PrincipalId, Standing> {
    let known = Standing { known: true, ..Standing::default() };
    let peer = |n| Standing { peer: Some(PeerId(n)), voter: true, ..known };
    HashMap::from([
        (principal(1).id(), peer(1)),
        (principal(2).id(), peer(2)),
        (principal(5).id(), peer(5)),
        (principal(3).id(), Standing { reads: true, writes: true, ..known }),
        (principal(4).id(), Standing { reads: true, ..known }),
    ])
}

/// A peer of network 1 that is principal `n`, listening on 127.0.0.1.
struct Host {
    peer: Arc<Peer>,
    ledger: Arc<Scripted>,
    key: Arc<Principal>,
    address: SocketAddr,
    _serving: Serving,
    _dir: TempDir,
}

fn limits() -> Limits {
    Limits::for_files(1024)
}

impl Host {
    async fn start(n: u8) -> Self {
        Self::with(n, limits()).await
    }

    async fn with(n: u8, limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let genesis = genesis(1);
        let network = network(&genesis);
        let store = Store::open(store::Options {
            dir: dir.path().join("store"),
            network,
            peer: PeerId(n.into()),
            capacity: None,
            segment_bytes: SEGMENT_BYTES,
            clock: Arc::new(|| TimeMs(1_800_000_000_000)),
        });
        let ledger = Arc::new(Scripted {
            genesis,
            standings: standings(),
            invites: Mutex::default(),
            joins: Mutex::default(),
            me: PeerId(n.into()),
            peers: Mutex::default(),
        });
        let key = principal(n);
        let store = Arc::new(store.expect("a new store"));
        let peer = Peer::new(network, key.id(), Some(store), Some(ledger.clone()));
        let transport = Transport::new(key.clone()).expect("a transport");
        let peer = Arc::new(peer.asking(Others::new(transport)));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let serving = serve_tls(listener, &key, peer.clone(), limits).expect("a TLS server");
        Self { peer, ledger, key, address, _serving: serving, _dir: dir }
    }

    /// How principal `n` reaches this peer.
    fn link_of(&self, n: u8) -> Link {
        let transport = Transport::new(principal(n)).expect("a transport");
        transport.link(self.key.id(), &[self.address.to_string()])
    }

    fn unix(&self, socket: &Path) -> Serving {
        let listener = UnixListener::bind(socket).expect("a free path");
        serve_unix(listener, &self.key, self.peer.clone(), limits())
    }

    /// A connection that has shaken hands as principal `n` and said nothing yet.
    async fn shake_hands(&self, n: u8) -> TlsStream<TcpStream> {
        let config = tls::client_config(&principal(n)).expect("a TLS client");
        let host = tls::Expected::Key(self.key.id()).host();
        let name = ServerName::try_from(host).expect("a host name");
        let tcp = TcpStream::connect(self.address).await.expect("a listening peer");
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, tcp).await.expect("a handshake")
    }
}

/// Waits for something that must happen; the limit only turns a hang into a failure.
async fn within<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, what).await.expect("it happens, and soon")
}
