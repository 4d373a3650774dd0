//! Where a mount's chunks go, as the ledger says while it says it.
//!
//! Owns: the questions that make a `Placement`, and asking them again when a record changed the
//! peers, the layout or the volume.
//! Invariant: a placement is made of one answer about peers; chunks put before keep their places.

use super::connect::{Connected, learn_peers};
use super::error::CliError;
use crate::chunks::{self, Chunks, Placement};
use crate::founding::COPIES;
use crate::host;
use crate::http::transport::Transport;
use crate::link::Link;
use crate::network::Network;
use mictlan::cluster::place::Copies;
use mictlan::id::{Label, PeerId};
use mictlan::wire::{Answer, PeerInfo, Query};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

const DEADLINE: Duration = Duration::from_secs(30);
/// After an answer that could not be had.
const PAUSE: Duration = Duration::from_secs(1);

/// What the questions are asked with.
pub struct Placing {
    network: Arc<Network>,
    transport: Transport,
    first: Vec<(PeerId, Link)>,
    volume: Label,
}

impl Placing {
    pub fn of(connected: &Connected, volume: Label) -> Self {
        Self {
            network: connected.network.clone(),
            transport: connected.transport.clone(),
            first: connected.first.clone(),
            volume,
        }
    }

    /// The placement of this moment; the links to the peers are brought up to date with it.
    pub async fn now(&self) -> Result<Placement, CliError> {
        let peers = learn_peers(&self.network, &self.transport, &self.first).await?;
        let Answer::Volumes(volumes) = self.network.query(Query::Volumes, DEADLINE).await? else {
            return Err(CliError::OtherAnswer);
        };
        let own = volumes.iter().find(|volume| volume.name == self.volume);
        let copies = own.and_then(|volume| Copies::new(volume.copies));
        placement(&peers, copies.unwrap_or(Copies::new(COPIES as u8).expect("above zero")))
    }

    /// Follows until the mount ends.
    pub async fn follow(self, chunks: Arc<Chunks>, changed: Arc<Notify>) {
        loop {
            changed.notified().await;
            loop {
                match self.now().await {
                    Ok(placement) => break chunks.place_by(placement),
                    Err(error) => {
                        tracing::debug!(%error, "the new layout is not known yet");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        }
    }
}

fn placement(peers: &[PeerInfo], copies: Copies) -> Result<Placement, CliError> {
    let layout = chunks::layout(peers).map_err(|error| CliError::Usage(error.to_string()))?;
    let voters = peers.iter().filter(|peer| peer.voter).count();
    Ok(Placement { layout, copies, voters, own: host::machine() })
}
