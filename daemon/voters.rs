//! The voters' own connections: what the sequencer's engine says to other voters.
//!
//! Owns: which link leads to which voter, as the ledger says, or the configuration before there
//! is a ledger here.
//! Invariant: these links share no connection with chunks, so that a heartbeat never waits behind
//! megabytes.

use crate::http::transport::Transport;
use crate::link::{Link, LinkError, Trouble};
use crate::peer::RaftCall;
use crate::presence::Presence;
use crate::sequencer::raft::network::{Call, CallError, RaftTransport};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mictlan::id::{PeerId, PrincipalId};
use mictlan::wire::PeerInfo;
use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// A voter that answers no heartbeat for so long is away; one that is late now and then is not.
const SILENCE: Duration = Duration::from_secs(3);

pub struct Voters {
    transport: Transport,
    links: RwLock<HashMap<PeerId, Link>>,
    /// Of the other voters, as long as this one leads.
    presence: Arc<Presence>,
}

impl Voters {
    /// `seeds` are the peers that are known before the ledger says who there is.
    pub fn new(transport: Transport, seeds: &[(PeerId, PrincipalId, Vec<String>)]) -> Self {
        let link = |(id, key, addresses): &(PeerId, PrincipalId, Vec<String>)| {
            (*id, transport.voter_link(*key, addresses))
        };
        let links = RwLock::new(seeds.iter().map(link).collect());
        Self { transport, links, presence: Arc::new(Presence::new(SILENCE)) }
    }

    /// The way to a voter, if it is known.
    pub fn link(&self, peer: PeerId) -> Option<Link> {
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned()
    }

    /// Who there is by now.
    pub fn know(&self, peers: &[PeerInfo]) {
        let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
        for peer in peers.iter().filter(|peer| !peer.addresses.is_empty()) {
            let link = self.transport.voter_link(peer.principal, &peer.addresses);
            links.insert(peer.id, link);
        }
    }
}

impl RaftTransport for Voters {
    fn call(
        &self,
        to: PeerId,
        call: Call,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let link = self.link(to);
        // One of these goes to each voter many times a second; others may fail for what they say.
        let steady = matches!(call, Call::Heartbeat | Call::Append);
        let presence = steady.then(|| self.presence.clone());
        let answer = async move {
            let link = link.ok_or(CallError::Unreachable(to))?;
            let answer = tokio::time::timeout(within, link.raft(wire(call), body, within)).await;
            match answer {
                Err(_) => Err(CallError::Late(to)),
                Ok(Ok(bytes)) => Ok(bytes),
                Ok(Err(LinkError::Refused { why, .. })) => Err(CallError::Refused(why.to_string())),
                Ok(Err(
                    LinkError::FailedHere { why: Trouble::Late(_), .. }
                    | LinkError::Unknown { why: Trouble::Late(_), .. },
                )) => Err(CallError::Late(to)),
                Ok(Err(error)) => {
                    tracing::debug!(%error, peer = %to, "a voter cannot be reached");
                    Err(CallError::Unreachable(to))
                }
            }
        };
        answer.inspect(move |answer| tell(presence, to, answer)).boxed()
    }
}

/// What a voter's answer says of its being there.
fn tell(presence: Option<Arc<Presence>>, voter: PeerId, answer: &Result<Bytes, CallError>) {
    match (presence, answer) {
        (None, _) => {}
        (Some(presence), Ok(_) | Err(CallError::Refused(_))) => presence.heard(voter),
        (Some(presence), Err(why)) => presence.missed(voter, why),
    }
}

fn wire(call: Call) -> RaftCall {
    match call {
        Call::Append => RaftCall::Append,
        Call::Heartbeat => RaftCall::Heartbeat,
        Call::Vote => RaftCall::Vote,
        Call::Snapshot => RaftCall::Snapshot,
        Call::Cosign => RaftCall::Cosign,
        Call::Published => RaftCall::Published,
        Call::Bundle => RaftCall::Bundle,
        Call::Stand => RaftCall::Stand,
        Call::Recall => RaftCall::Recall,
    }
}
