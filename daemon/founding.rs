//! A new network: its genesis, its first volume, its first peer.
//!
//! Owns: what is in the first records, and in which order they are made.
//!
//! The order: keys on disk (crash: keys without a network; the next try takes them), record 0
//! ordered (crash: a network without a volume; the next try goes on), volume, its wrap for the
//! founder, the layout, and last the configuration that makes it this user's network.

use crate::host;
use crate::identity::join::public_keys;
use crate::network::{CallError, Network};
use mictlan::cluster::state::{Outcome, Submission};
use mictlan::id::{Epoch, Label, NetworkId, PeerId, VolumeId};
use mictlan::ledger::record::body::{
    Body, Genesis, Grant, Layout, LayoutPeer, Peer, PeerState, Role, VolumeMade, Wrap,
    log_wrap_info, wrap_info,
};
use mictlan::ledger::record::{
    Origin, Proposal, RecordError, genesis_hash, genesis_message, record_message,
};
use mictlan::seal::{self, EpochSecrets, KeyRing, Principal, Secret, WrapError};
use std::time::Duration;

/// How many copies a volume has unless it is told otherwise.
pub const COPIES: u32 = 3;
/// An election, and a second one, are over within this.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error("{0}")]
    Wrap(#[from] WrapError),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("nothing was changed: the {kind} record was refused: {why}")]
    Refused { kind: &'static str, why: String },
}

/// What record 0 is made of.
pub struct Founder<'a> {
    pub network: &'a Label,
    pub actor: &'a Label,
    pub principal: &'a Principal,
    pub peer_name: &'a Label,
    pub peer: &'a Principal,
    pub addresses: Vec<String>,
}

/// Record 0, signed: its hash is the network.
pub fn genesis(founder: &Founder) -> Result<(Submission, NetworkId), FoundingError> {
    let random = host::random();
    let log = ed25519(&host::random());
    let wrap_info = log_wrap_info(&random, &log.1);
    let entropy = Secret::from_bytes(host::random());
    let log_wrap =
        seal::wrap(&founder.peer.public().agreement, &wrap_info, log.0.expose(), entropy)?;
    let body = Body::Genesis(Genesis {
        faults: None,
        log_key: log.1,
        log_wrap,
        network: founder.network.clone(),
        peer: Peer {
            addresses: founder.addresses.clone(),
            keys: public_keys(&founder.peer.public()),
            name: founder.peer_name.clone(),
            peer: PeerId(1),
            state: PeerState::Active,
            storage: true,
            voter: true,
        },
        principal: public_keys(&founder.principal.public()),
        random,
    });
    let p = Proposal::new(founder.actor.clone(), host::ulid(), body).encode()?;
    let sig = founder.principal.sign(&genesis_message(&p));
    let network = genesis_hash(&p);
    Ok((Submission { p, sig, commit: None }, network))
}

/// The secret and the public half of a log key: a plain Ed25519 seed.
fn ed25519(seed: &[u8; 32]) -> (Secret, [u8; 32]) {
    let key = ed25519_dalek::SigningKey::from_bytes(seed);
    (Secret::from_bytes(*seed), key.verifying_key().to_bytes())
}

/// Signs records in one actor's name and has them ordered.
pub struct Author<'a> {
    /// Whoever leads is asked, so it does not matter which peer is near.
    pub network: &'a Network,
    pub origin: Origin,
    pub actor: Label,
    pub principal: &'a Principal,
}

impl Author<'_> {
    pub async fn append(&self, body: Body) -> Result<Outcome, FoundingError> {
        let kind = body.kind();
        let sign = |req| -> Result<_, FoundingError> {
            let p = Proposal::new(self.actor.clone(), req, body.clone()).encode()?;
            let sig = self.principal.sign(&record_message(&self.origin, &p));
            Ok(Submission { p, sig, commit: None }.into())
        };
        match self.network.order(DEADLINE, sign).await? {
            Outcome::Refused(why) => Err(FoundingError::Refused { kind, why: why.to_string() }),
            outcome => Ok(outcome),
        }
    }

    /// A new volume with fresh secrets, wrapped for this actor, who owns it.
    pub async fn volume(
        &self,
        name: &Label,
        copies: u32,
        compress: bool,
    ) -> Result<VolumeId, FoundingError> {
        let volume = VolumeId(host::random());
        let epoch = Epoch(1);
        self.append(Body::Volume(VolumeMade {
            compress,
            key_epoch: epoch,
            name: name.clone(),
            replicas: copies,
            volume,
        }))
        .await?;
        let meta = Secret::from_bytes(host::random());
        let data = Some(Secret::from_bytes(host::random()));
        let ring =
            KeyRing::new(Secret::from_bytes(host::random()), EpochSecrets { epoch, meta, data });
        let to = self.principal.public().agreement;
        self.wrap(volume, &ring, &self.actor, to).await?;
        Ok(volume)
    }

    /// Wraps a volume's secrets for a member.
    pub async fn wrap(
        &self,
        volume: VolumeId,
        ring: &KeyRing,
        member: &Label,
        to: [u8; 32],
    ) -> Result<(), FoundingError> {
        let epoch = ring.current().epoch();
        let info = wrap_info(&self.origin, &volume, epoch, member);
        let entropy = Secret::from_bytes(host::random());
        let wrap = seal::wrap(&to, &info, &ring.encode(), entropy)?;
        let data = ring.current().has_data();
        let member = member.clone();
        self.append(Body::Wrap(Wrap { data, key_epoch: epoch, member, to, volume, wrap })).await?;
        Ok(())
    }

    pub async fn grant(
        &self,
        member: &Label,
        role: Role,
        volume: Option<VolumeId>,
    ) -> Result<(), FoundingError> {
        let member = member.clone();
        self.append(Body::Grant(Grant { member, role, until: None, volume })).await?;
        Ok(())
    }

    /// Chunks are placed on `peer` from now on.
    pub async fn place(
        &self,
        version: u64,
        peer: PeerId,
        domain: &Label,
        weight: u64,
    ) -> Result<(), FoundingError> {
        let set = vec![LayoutPeer { domain: domain.to_string(), peer, weight }];
        let layout = Layout { faults: None, remove: Vec::new(), set, version };
        self.append(Body::Layout(layout)).await?;
        Ok(())
    }
}
