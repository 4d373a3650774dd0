//! What a peer says of itself when it starts: where it is, how much it takes, that it votes.
//!
//! Owns: the order of these records.
//! Invariant: a peer says that it votes only once it has the ledger and its door is open, so that
//! a quorum which counts it never waits for it to catch up.

use super::connect;
use super::error::CliError;
use crate::config::{Network as Configured, Paths, Serve};
use crate::founding::Author;
use crate::here::{self, Here};
use crate::host;
use crate::identity::join::public_keys;
use crate::link::Link;
use crate::network::Network;
use crate::peer::Caller;
use mictlan::id::{Label, PeerId};
use mictlan::ledger::record::Origin;
use mictlan::ledger::record::body::{Body, Peer, PeerState};
use mictlan::seal::Principal;
use mictlan::wire::{Answer, PeerInfo, Query};
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at what others have to do first.
const PAUSE: Duration = Duration::from_millis(200);

/// Goes on until everything is said: others may be away, or say something at the same moment.
pub async fn announce(
    paths: &Paths,
    name: &Label,
    configured: &Configured,
    serve: &Serve,
    here: &Here,
) {
    let mut warned = false;
    loop {
        match say(paths, name, configured, serve, here).await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) if !warned => {
                warned = true;
                tracing::warn!(%error, "this peer's address and weight are not noted yet");
            }
            Err(error) => tracing::debug!(%error, "not noted yet"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One step of what is left to say; true when there is none.
async fn say(
    paths: &Paths,
    name: &Label,
    configured: &Configured,
    serve: &Serve,
    here: &Here,
) -> Result<bool, CliError> {
    let identity = Arc::new(connect::load_key(paths, &serve.key)?);
    let network = network(configured, serve, here, &identity);
    let Answer::Peers { layout, peers } = network.query(Query::Peers, DEADLINE).await? else {
        return Err(CliError::OtherAnswer);
    };
    let me = PeerId(serve.id);
    let Some(own) = peers.iter().find(|peer| peer.id == me) else { return Ok(false) };
    let author = Author {
        network: &network,
        origin: Origin::new(name, &configured.id),
        actor: serve.name.clone(),
        principal: &identity,
    };
    let addresses: Vec<String> = serve.listen.iter().cloned().collect();
    if own.addresses != addresses {
        author.append(record(own, addresses, own.voter, &identity)).await?;
        return Ok(false);
    }
    let domain = serve.domain.clone().unwrap_or_else(host::machine);
    let weight = here.weight();
    if own.domain != domain.as_str() || differs(own.weight, weight) {
        author.place(layout + 1, own.id, &domain, weight).await?;
        return Ok(false);
    }
    if serve.asks_vote && !own.voter {
        if has_the_ledger(&network, here).await? {
            author.append(record(own, addresses, true, &identity)).await?;
        }
        return Ok(false);
    }
    let admitted = here.sequencer.voters().contains(&me);
    let applied = here.sequencer.with_state(|state| state.network().peer(me).is_some());
    Ok(applied == Some(true) && admitted == own.voter)
}

/// Those that the configuration names, and this peer itself.
fn network(
    configured: &Configured,
    serve: &Serve,
    here: &Here,
    identity: &Arc<Principal>,
) -> Network {
    let caller = Caller { principal: identity.id(), local: true };
    let others = here::seeds(configured).into_iter().filter(|(id, ..)| id.0 != serve.id);
    let mut links: Vec<(PeerId, Link)> =
        others.map(|(id, key, addresses)| (id, here.transport.link(key, &addresses))).collect();
    links.push((PeerId(serve.id), Link::Embedded(here.peer.clone(), caller)));
    let network = Network::new(connect::provisional(&links));
    // By what the ledger here says there may be more, or others.
    if let Some(peers) = here.sequencer.with_state(crate::service::peers) {
        let known = peers.into_iter().map(|info| {
            let near = info.id.0 == serve.id;
            let link = match near {
                true => Link::Embedded(here.peer.clone(), caller),
                false => here.transport.link(info.principal, &info.addresses),
            };
            crate::network::Known { info, link }
        });
        network.replace(known.collect());
    }
    network
}

fn record(own: &PeerInfo, addresses: Vec<String>, voter: bool, identity: &Principal) -> Body {
    Body::Peer(Peer {
        addresses,
        keys: public_keys(&identity.public()),
        name: own.name.clone(),
        peer: own.id,
        state: PeerState::Active,
        storage: own.storage,
        voter,
    })
}

/// A disk's free space moves all the time; a tenth is worth a record and moving chunks.
fn differs(noted: u64, weight: u64) -> bool {
    noted == 0 || noted.abs_diff(weight) * 10 > noted.max(weight)
}

/// Whether this peer has applied what a voter had when it was asked.
async fn has_the_ledger(network: &Network, here: &Here) -> Result<bool, CliError> {
    let head = network.voter(DEADLINE, |link| async move { link.head().await }).await?;
    let own = here.sequencer.with_state(|state| state.head().size);
    Ok(own.is_some_and(|own| own >= head.size.0))
}

#[cfg(test)]
mod tests {
    use super::differs;

    #[test]
    fn only_a_real_change_of_capacity_is_worth_a_record() {
        assert!(differs(0, 1), "it is not placed yet");
        assert!(differs(1, 400), "a founder's first guess");
        assert!(!differs(400, 390) && !differs(1, 1));
        assert!(differs(400, 200) && differs(200, 400));
    }
}
