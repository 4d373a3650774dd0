//! The voters' own connections: what the sequencer's engine says to other voters.
//!
//! Owns: which link leads to which voter, as the ledger says, or the configuration before there
//! is a ledger here.
//! Invariant: these links share no connection with chunks, so that a heartbeat never waits behind
//! megabytes.

use crate::http::transport::Transport;
use crate::link::{Link, LinkError, Trouble};
use crate::peer::RaftCall;
use crate::sequencer::raft::network::{Call, CallError, RaftTransport};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mictlan::id::{PeerId, PrincipalId};
use mictlan::wire::PeerInfo;
use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

pub struct Voters {
    transport: Transport,
    links: RwLock<HashMap<PeerId, Link>>,
}

impl Voters {
    /// `seeds` are the peers that are known before the ledger says who there is.
    pub fn new(transport: Transport, seeds: &[(PeerId, PrincipalId, Vec<String>)]) -> Self {
        let link = |(id, key, addresses): &(PeerId, PrincipalId, Vec<String>)| {
            (*id, transport.voter_link(*key, addresses))
        };
        let links = RwLock::new(seeds.iter().map(link).collect());
        Self { transport, links }
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
        async move {
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
        }
        .boxed()
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
    }
}
