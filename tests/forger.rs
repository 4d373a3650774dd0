//! A member of a network who orders records by hand, which no verb of the program would.
//!
//! Owns: the way to a network's voters with the key that a home is configured with.

use crate::harness::Home;
use mictlan::id::{ChunkId, Position};
use mictlan::ledger::record::Origin;
use mictlan::ledger::record::body::{Body, Root};
use mictlan::wire::{Answer, Head, Outcome, Query, VolumeInfo};
use mictlan_daemon::cli::connect;
use mictlan_daemon::config::{Config, Paths};
use mictlan_daemon::founding::Author;
use mictlan_daemon::here;
use mictlan_daemon::http::transport::Transport;
use mictlan_daemon::network::Network;
use mictlan_daemon::volume::roster;
use std::sync::Arc;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

/// The network's only volume, as the voters have it.
async fn only_volume(network: &Network) -> VolumeInfo {
    let answer = network.query(Query::Volumes, DEADLINE).await.expect("an answer");
    let Answer::Volumes(mut volumes) = answer else { panic!("another answer") };
    volumes.pop().expect("there is one")
}

/// Orders `body` of the volume in the name of the user whose home it is; where its record stands.
pub fn order(home: &Home, body: impl FnOnce(&VolumeInfo, &Head) -> Body) -> Position {
    let paths = Paths::below(&home.path().join("home"));
    let config = Config::load(&paths.config_file()).expect("a configuration");
    let (name, configured) = config.networks.iter().next().expect("a network");
    let key = config.key.as_ref().expect("a key");
    let principal = Arc::new(connect::load_key(&paths, key).expect("a key file"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let transport = Transport::new(principal.clone()).expect("a transport");
        let seeds = here::seeds(configured).into_iter();
        let links: Vec<_> =
            seeds.map(|(id, key, addresses)| (id, transport.link(key, &addresses))).collect();
        let network = Network::new(connect::provisional(&links));
        let head = network.voter(DEADLINE, |link| async move { link.head().await });
        let head = head.await.expect("an answer");
        let body = body(&only_volume(&network).await, &head);
        let origin = Origin::new(name, &configured.id);
        let (roster, _) = roster(&network, DEADLINE).await.expect("who is who");
        let actor = roster.owner_of(&principal.id()).expect("it joined").clone();
        let author = Author { network: &network, origin, actor, principal: &principal };
        match author.append(body).await.expect("ordered") {
            Outcome::Accepted { position, .. } => position,
            other => panic!("{other:?}"),
        }
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
