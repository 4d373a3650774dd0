//! Coming up while most of the voters are away.
//!
//! Owns: how soon it is clear that there is no quorum, and what can be had all the same.
//! Never: takes an election for an outage: only voters that do not answer at all count as away.

use super::start::{OpenError, Opening};
use crate::ledger::{Ledger, Seen};
use crate::network::Network;
use futures::future::join_all;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

/// The first look: a leader that is there has answered by then.
const FIRST_LOOK: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);
/// A voter that says nothing for so long is away.
const AWAY: Duration = Duration::from_secs(3);
/// One look may fall into a restart.
const LOOKS: u32 = 2;
/// A checkpoint of a log that this machine has not read before takes its time.
const PROVEN_WITHIN: Duration = Duration::from_secs(60);

/// What `call` comes to; `None` as soon as it is clear that a majority of the voters is away.
pub(super) async fn or_none<T>(network: &Network, call: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = call => Some(done),
        () = is_gone(network) => None,
    }
}

async fn is_gone(network: &Network) {
    sleep(FIRST_LOOK).await;
    let mut missed = 0;
    while missed < LOOKS {
        missed = if is_minority(network).await { missed + 1 } else { 0 };
        sleep(BETWEEN_LOOKS).await;
    }
}

/// Whether some voters answer and they are too few. Where none does, nothing could be proved, and
/// the only one may be about to start.
async fn is_minority(network: &Network) -> bool {
    let peers = network.peers();
    let voters: Vec<_> = peers.iter().filter(|known| known.info.voter).collect();
    let asked = voters.iter().map(|known| timeout(AWAY, known.link.status()));
    let answers = join_all(asked).await.iter().filter(|said| matches!(said, Ok(Ok(_)))).count();
    answers > 0 && answers * 2 <= voters.len()
}

/// The newest checkpoint that any peer can show, verified.
pub(super) async fn proven(ledger: &Arc<Ledger>) -> Opening<Arc<Seen>> {
    let nothing = |why: String| OpenError::NothingProven(why);
    match timeout(PROVEN_WITHIN, ledger.refresh()).await {
        Ok(seen) => seen.map_err(|error| nothing(error.to_string())),
        Err(_) => Err(nothing("the ledger is still being read".to_owned())),
    }
}
