//! The newcomer's side of an invite: from a code to a place in the network.
//!
//! Owns: the order of the steps, each with what the other side has learned by then.
//! Never: sends the invite's secret; only a signature by the key that it derives.
//! Invariant: nothing that names the newcomer is signed for a network whose genesis the code
//! does not name, and nothing at all goes to a peer whose key it does not name.

use crate::http::tls::{self, Expected};
use crate::http::transport::{Transport, TransportError};
use crate::identity::invite::{Invite, InviteError};
use crate::link::{CALL_DEADLINE, CHUNKS_DEADLINE, Link, LinkError};
use mictlan::id::{Label, NetworkId, Position, PrincipalId, TimeMs};
use mictlan::ledger::record::body::{Body, Principal as Introduced, PublicKeys, principal_message};
use mictlan::ledger::record::{
    Line, Origin, Proposal, RecordError, Ulid, genesis_hash, record_message,
};
use mictlan::seal::{Principal, Public};
use mictlan::wire::{Join, Joined, Submission, Welcome};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Invite(#[from] InviteError),
    #[error(transparent)]
    Transport(#[from] TransportError),
    #[error("{0}")]
    Link(#[from] LinkError),
    #[error("the peer's record 0 is not a genesis: {0}")]
    Genesis(#[from] RecordError),
    #[error("the peer says that its record 0 is not the first of a network")]
    NotAGenesis,
    #[error(
        "the peer belongs to network {found}, not to the one that the code names; nothing was \
        sent"
    )]
    OtherNetwork { found: NetworkId },
    #[error("the peer names another key than it proved")]
    OtherPeer,
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
}

/// What a newcomer keeps: whom it joined, and through whom.
pub struct Entered {
    pub network: NetworkId,
    pub name: Label,
    pub genesis: Vec<u8>,
    pub peer: PrincipalId,
    pub joined: Joined,
    /// To the peer that invited, under its whole key.
    pub link: Link,
}

/// Redeems `invite` for `principal` under the actor name `name`.
pub async fn join(
    transport: &Transport,
    invite: &Invite,
    name: Label,
    now: TimeMs,
) -> Result<Entered, JoinError> {
    invite.check_time(now)?;
    // The handshake: whoever answers learns our key and proves the one that the code names.
    let client = transport.inviter(Expected::Fingerprint(invite.peer), &invite.addresses);
    let welcome = client.welcome(CALL_DEADLINE).await?;
    if tls::fingerprint(&welcome.peer) != invite.peer {
        return Err(JoinError::OtherPeer);
    }
    let (network, origin) = network_of(&welcome, invite)?;
    // From here on it is the right network: it may know who we want to be.
    let req = request_name(now)?;
    let submission = introduce(transport.principal(), invite, &origin, name, req)?;
    let joined = client.of(welcome.peer).join(CHUNKS_DEADLINE, Join { submission }).await?;
    let link = transport.link(welcome.peer, &invite.addresses);
    let (peer, genesis) = (welcome.peer, welcome.genesis);
    Ok(Entered { network, name: origin_name(&origin), genesis, peer, joined, link })
}

/// Which network a peer shows, if it is the one that the code names.
fn network_of(welcome: &Welcome, invite: &Invite) -> Result<(NetworkId, Origin), JoinError> {
    let line = Line::parse(&welcome.genesis)?;
    let network = genesis_hash(line.p.bytes);
    if !invite.is_of(&network) {
        return Err(JoinError::OtherNetwork { found: network });
    }
    match line.p.body()? {
        Body::Genesis(genesis) if line.i == Position(0) => {
            Ok((network, Origin::new(&genesis.network, &network)))
        }
        _ => Err(JoinError::NotAGenesis),
    }
}

/// `<network name>/<16 hex>`, of which the name is a label again.
fn origin_name(origin: &Origin) -> Label {
    let (name, _) = origin.as_str().split_once('/').expect("an origin has a slash");
    Label::parse(name).expect("an origin begins with a label")
}

fn request_name(now: TimeMs) -> Result<Ulid, JoinError> {
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(JoinError::Random)?;
    Ok(Ulid::new(now, random))
}

/// The newcomer's `id.principal`, proved by its own key and signed by the invite's.
fn introduce(
    principal: &Arc<Principal>,
    invite: &Invite,
    origin: &Origin,
    name: Label,
    req: Ulid,
) -> Result<Submission, JoinError> {
    let keys = public_keys(&principal.public());
    let proof = principal.sign(&principal_message(origin, &name, &keys));
    let body = Body::Principal(Introduced { invite: None, keys, name, proof });
    let p = Proposal::new(invite.actor(), req, body).encode()?;
    let sig = invite.principal().sign(&record_message(origin, &p));
    Ok(Submission { p, sig, commit: None })
}

pub fn public_keys(public: &Public) -> PublicKeys {
    PublicKeys { agreement: public.agreement, signing: public.signing }
}
