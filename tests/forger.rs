//! A member of a network who orders records by hand, which no verb of the program would.
//!
//! Owns: the way to a network's voters with the key that a home is configured with.

use crate::harness::Home;
use mictlan::cluster::state::{CommitParts, Submission};
use mictlan::id::{ChunkId, Epoch, Label, Position, SessionId};
use mictlan::ledger::record::body::{
    Body, ChunkRef, Commit, Fence, Root, TagsRef, Wrap, wrap_info,
};
use mictlan::ledger::record::{Origin, Proposal, record_message};
use mictlan::meta::payload;
use mictlan::meta::tag::Facts;
use mictlan::meta::tree::Node;
use mictlan::meta::write::WriteSet;
use mictlan::seal::{self, Codec, EpochSecrets, KeyRing, Kind, Principal, Secret};
use mictlan::wire::{
    Answer, Append, Barrier, CloseSession, Head, LeaseUnit, Outcome, Query, VolumeInfo,
};
use mictlan_daemon::cli::connect;
use mictlan_daemon::config::{Config, Paths};
use mictlan_daemon::founding::Author;
use mictlan_daemon::here;
use mictlan_daemon::host;
use mictlan_daemon::http::transport::Transport;
use mictlan_daemon::network::Network;
use mictlan_daemon::volume::roster;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// The network's only volume, as the voters have it.
async fn only_volume(network: &Network) -> VolumeInfo {
    let answer = network.query(Query::Volumes, DEADLINE).await.expect("an answer");
    let Answer::Volumes(mut volumes) = answer else { panic!("another answer") };
    volumes.pop().expect("there is one")
}

/// The key that a home is configured with.
pub fn key(home: &Home) -> Principal {
    let paths = Paths::below(&home.path().join("home"));
    let config = Config::load(&paths.config_file()).expect("a configuration");
    let key = config.key.as_ref().expect("a key");
    connect::load_key(&paths, key).expect("a key file")
}

/// A member at the voters' door, with the keys that its home is configured with.
struct Member {
    network: Network,
    origin: Origin,
    actor: Label,
    principal: Arc<Principal>,
    wraps: Vec<Wrap>,
}

impl Member {
    async fn of(home: &Home) -> Self {
        let paths = Paths::below(&home.path().join("home"));
        let config = Config::load(&paths.config_file()).expect("a configuration");
        let (name, configured) = config.networks.iter().next().expect("a network");
        let principal = Arc::new(key(home));
        let transport = Transport::new(principal.clone()).expect("a transport");
        let seeds = here::seeds(configured).into_iter();
        let links: Vec<_> =
            seeds.map(|(id, key, addresses)| (id, transport.link(key, &addresses))).collect();
        let network = Network::new(connect::provisional(&links));
        let origin = Origin::new(name, &configured.id);
        let (roster, wraps) = roster(&network, DEADLINE).await.expect("who is who");
        let actor = roster.owner_of(&principal.id()).expect("it joined").clone();
        Self { network, origin, actor, principal, wraps }
    }

    /// The volume's secrets, as they are wrapped for it.
    fn ring(&self, volume: &VolumeInfo) -> KeyRing {
        let mine = self.wraps.iter().filter(|wrap| wrap.member == self.actor);
        let wrap = mine.max_by_key(|wrap| wrap.key_epoch).expect("it is a member");
        let about = wrap_info(&self.origin, &volume.id, wrap.key_epoch, &self.actor);
        let plain = seal::unwrap(&self.principal, &about, &wrap.wrap).expect("for this key");
        KeyRing::decode(&plain).expect("a ring")
    }

    async fn append(&self, body: Body) -> Position {
        let Self { network, origin, actor, principal, .. } = self;
        let (origin, actor) = (origin.clone(), actor.clone());
        let author = Author { network, origin, actor, principal };
        match author.append(body).await.expect("ordered") {
            Outcome::Accepted { position, .. } => position,
            other => panic!("{other:?}"),
        }
    }

    async fn commit(&self, body: Commit, parts: CommitParts) -> Position {
        let req = self.network.request_name();
        let proposal = Proposal::new(self.actor.clone(), req, Body::Commit(body));
        let p = proposal.encode().expect("in the profile");
        let sig = self.principal.sign(&record_message(&self.origin, &p));
        let submission = Submission { p, sig, commit: Some(parts) };
        // A mount that holds the lease gives it back first.
        let append = Append { submission, pass: vec![LeaseUnit::Volume] };
        match self.network.append(&append, DEADLINE).await.expect("an answer") {
            Outcome::Accepted { position, .. } => position,
            other => panic!("{other:?}"),
        }
    }
}

/// Orders `body` of the volume in the name of the user whose home it is; where its record stands.
pub fn order(home: &Home, body: impl FnOnce(&VolumeInfo, &Head) -> Body) -> Position {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = Member::of(home).await;
        let head = member.network.voter(DEADLINE, |link| async move { link.head().await });
        let head = head.await.expect("an answer");
        let body = body(&only_volume(&member.network).await, &head);
        member.append(body).await
    })
}

/// Takes the place of session `old`, as a mount does that begins, and dies there: its session.
pub fn heir_that_dies(home: &Home, old: SessionId) -> SessionId {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = Member::of(home).await;
        let volume = only_volume(&member.network).await.id;
        let opened = member.network.open_session(volume, DEADLINE).await.expect("opened");
        let reason = "its mount ended without closing it".to_owned();
        let fence = Fence { reason, session: old, successor: Some(opened.session), volume };
        member.append(Body::Fence(fence)).await;
        opened.session
    })
}

/// Commits in the name of the user whose home it is, in a session of its own: what they change, and
/// what they say that they do. Where the last one's record stands.
pub fn commit(home: &Home, commits: impl FnOnce(SessionId) -> Vec<(WriteSet, Facts)>) -> Position {
    commit_sealed(home, Kind::Payload, None, commits)
}

/// The same in payloads of another kind, or of an older epoch than their records say.
pub fn commit_sealed(
    home: &Home,
    kind: Kind,
    epoch: Option<Epoch>,
    commits: impl FnOnce(SessionId) -> Vec<(WriteSet, Facts)>,
) -> Position {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = Member::of(home).await;
        let volume = only_volume(&member.network).await;
        let ring = member.ring(&volume);
        let keys = ring.current();
        let sealed_with = epoch.map_or(keys, |epoch| ring.epoch(epoch).expect("it was there"));
        let opened = member.network.open_session(volume.id, DEADLINE).await.expect("a session");
        let mut base = Position(opened.at.0 - 1);
        for (n, (writes, facts)) in (1..).zip(commits(opened.session)) {
            let (plain, links) = (payload::encode(&writes), payload::links(&writes));
            let sealed = seal::seal(sealed_with, kind, Codec::Zstd, &links, &plain);
            let sealed = sealed.expect("small");
            let tags = facts.tags(keys.tag_key()).expect("few");
            let size = sealed.bytes.len() as u64;
            let body = Commit {
                attempt: opened.attempt,
                base,
                changes: writes.len() as u64,
                inline: None,
                key_epoch: keys.epoch(),
                n,
                payload: ChunkRef { b3: sealed.address, size },
                session: opened.session,
                tags: TagsRef { b3: tags.b3(), count: tags.len() as u32 },
                volume: volume.id,
            };
            let payload = Some(sealed.bytes.to_vec());
            let (inline, oldest_receipt) = (None, None);
            let parts = CommitParts { tags: tags.encode(), payload, inline, oldest_receipt };
            base = member.commit(body, parts).await;
        }
        let req = host::ulid_bytes_at(member.network.time());
        let close = CloseSession { volume: volume.id, session: opened.session, req };
        let closed = member.network.voter(DEADLINE, |link| {
            let close = close.clone();
            async move { link.close_session(close).await }
        });
        closed.await.expect("closed");
        base
    })
}

/// A root of the newest record, and not its tree.
pub fn forged_root(volume: &VolumeInfo, head: &Head) -> Body {
    Body::Root(Root {
        address: ChunkId([7; 32]),
        confirms: None,
        identity: [7; 32],
        key_epoch: volume.epoch,
        position: Position(head.size.0 - 1),
        volume: volume.id,
    })
}

/// A root of the newest record: the tree of the newest root, at an address where nothing is.
pub fn lost_root(volume: &VolumeInfo, head: &Head) -> Body {
    let root = volume.root.clone().expect("it has one");
    Body::Root(Root {
        address: ChunkId([7; 32]),
        confirms: None,
        identity: root.identity,
        key_epoch: root.epoch,
        position: Position(head.size.0 - 1),
        volume: volume.id,
    })
}

/// Orders a root of the newest record: the tree of the newest root, which nothing changed since, but
/// for one node that its parent names at an address where nothing is. Where its record stands, and
/// that address.
pub fn root_with_a_hole(home: &Home) -> (Position, ChunkId) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = Member::of(home).await;
        let volume = only_volume(&member.network).await;
        let root = volume.root.clone().expect("it has one");
        let ring = member.ring(&volume);
        let fetched =
            member.network.voter(DEADLINE, |link| async move { link.fetch(root.address).await });
        let sealed = fetched.await.expect("an answer").expect("it is there");
        let opened = seal::open(&ring, root.address, &sealed).expect("sealed for it");
        let mut bytes = opened.plaintext;
        let node = Node::decode(bytes.clone()).expect("a node");
        assert!(node.level() > 0, "a node below the root can be missing");
        let (child, hole) = (node.child(0).node.address, ChunkId([7; 32]));
        let at = bytes.windows(32).position(|part| part == child.0).expect("it is named");
        bytes[at..at + 32].copy_from_slice(&hole.0);
        let links = Node::decode(bytes.clone()).expect("as good").links();
        let forged = seal::seal(ring.current(), Kind::Node, Codec::Stored, &links, &bytes);
        let forged = forged.expect("small");
        let stored = member.network.voter(DEADLINE, |link| {
            let chunk = forged.bytes.clone();
            async move { link.put(vec![chunk]).await }
        });
        stored.await.expect("stored");
        let head = member.network.voter(DEADLINE, |link| async move { link.head().await });
        let position = Position(head.await.expect("an answer").size.0 - 1);
        let body = Root {
            address: forged.address,
            confirms: None,
            identity: root.identity,
            key_epoch: root.epoch,
            position,
            volume: volume.id,
        };
        (member.append(Body::Root(body)).await, hole)
    })
}

/// Asks where the log stands in the name of the user whose home it is, and has others' leases taken
/// back for `session`; why that was refused.
pub fn barrier(home: &Home, session: SessionId) -> Result<Position, String> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = Member::of(home).await;
        let barrier = Barrier { session: Some(session), pass: vec![LeaseUnit::Volume] };
        let answer = member.network.read_position(&barrier, DEADLINE).await;
        answer.map_err(|error| error.to_string())
    })
}

/// Removes `gone` in the name of the owner whose home it is, and is interrupted when all who stay
/// have the secrets of the next epoch.
pub fn interrupted_removal(home: &Home, gone: &str) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let owner = Member::of(home).await;
        let volume = only_volume(&owner.network).await;
        let mut ring = owner.ring(&volume);
        let (epoch, secret) = (Epoch(volume.epoch.0 + 1), || Secret::from_bytes(host::random()));
        ring.add(EpochSecrets { epoch, meta: secret(), data: Some(secret()) });
        let answer = owner.network.query(Query::Members(volume.id), DEADLINE).await;
        let Ok(Answer::Members(members)) = answer else { panic!("no members") };
        let Member { network, origin, actor, principal, .. } = &owner;
        let (origin, actor) = (origin.clone(), actor.clone());
        let author = Author { network, origin, actor, principal };
        for member in members.iter().filter(|member| member.name.as_str() != gone) {
            let wrapped = author.wrap(volume.id, &ring, &member.name, member.agreement).await;
            wrapped.expect("ordered");
        }
    });
}

/// The metadata secrets of an epoch that were ever wrapped for the user whose home it is.
pub fn secrets_of(home: &Home, epoch: Epoch) -> BTreeSet<[u8; 32]> {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let member = Member::of(home).await;
        let mine = member.wraps.iter().filter(|wrap| wrap.member == member.actor);
        let rings = mine.map(|wrap| {
            let about = wrap_info(&member.origin, &wrap.volume, wrap.key_epoch, &member.actor);
            let plain = seal::unwrap(&member.principal, &about, &wrap.wrap).expect("for this key");
            KeyRing::decode(&plain).expect("a ring")
        });
        let of = |ring: KeyRing| {
            let found = ring.secrets().find(|secrets| secrets.epoch == epoch);
            found.map(|secrets| *secrets.meta.expose())
        };
        rings.filter_map(of).collect()
    })
}
