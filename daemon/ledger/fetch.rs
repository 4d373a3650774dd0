//! Where the bytes of the ledger come from: peers' static files, or a directory of them.
//!
//! Owns: the order in which peers are asked, and how long one that is silent is waited for.
//! Never: believes what it brings; `Ledger` checks every byte.

use crate::link::Link;
use crate::network::{Known, Network};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use mictlan::id::{PeerId, PrincipalId};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// What one peer has under a path below `/ledger`; `Ok(None)`: no such file.
pub type Fetched = Result<Option<Bytes>, String>;

/// Asks the `turn`th peer for a file; `None` when there are not so many peers. Whose bytes turn out
/// to be wrong is simply not asked again for this file: the next turn is.
pub type Fetch = Arc<dyn Fn(usize, String) -> Option<BoxFuture<'static, Fetched>> + Send + Sync>;

/// The first answer that any peer has to one of the paths; why there is none.
pub async fn first(fetch: &Fetch, paths: &[String]) -> Result<Bytes, String> {
    let mut why = "no peer is known".to_owned();
    for path in paths {
        for turn in 0.. {
            let Some(answer) = fetch(turn, path.clone()) else { break };
            match answer.await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => why = "it is not there".to_owned(),
                Err(error) => why = error,
            }
        }
    }
    Err(why)
}

/// The longest that one peer is waited for; a file is 4 MiB at most.
const WITHIN: Duration = Duration::from_secs(15);
/// Whoever was silent for so long is not asked for a while: a log is many files, and each would
/// wait for it again.
const SILENT: Duration = Duration::from_secs(3);
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// Who was silent, and until when it is left alone.
#[derive(Default)]
struct Silent(Mutex<HashMap<PrincipalId, Instant>>);

impl Silent {
    fn until(&self) -> MutexGuard<'_, HashMap<PrincipalId, Instant>> {
        self.0.lock().expect("nothing panics while it is locked")
    }

    fn asked(&self, peer: PrincipalId, now: Instant, took: Duration, answered: bool) {
        match answered {
            false if took >= SILENT => drop(self.until().insert(peer, now + LEFT_ALONE)),
            _ => drop(self.until().remove(&peer)),
        }
    }

    /// Where nobody else is left, everybody is asked.
    fn leaves_alone(&self, peer: PrincipalId, all: &[PrincipalId], now: Instant) -> bool {
        let until = self.until();
        let silent = |peer: &PrincipalId| until.get(peer).is_some_and(|end| *end > now);
        silent(&peer) && !all.iter().all(silent)
    }
}

/// Whichever peers `links` names at the moment of each call, in their order.
pub fn from_links(links: impl Fn() -> Vec<Link> + Send + Sync + 'static) -> Fetch {
    let silent = Arc::new(Silent::default());
    Arc::new(move |turn, path| {
        let links = links();
        let all: Vec<PrincipalId> = links.iter().map(Link::peer).collect();
        let link = links.into_iter().nth(turn)?;
        match silent.leaves_alone(link.peer(), &all, Instant::now()) {
            true => Some(async { Err("it was silent a moment ago".to_owned()) }.boxed()),
            false => Some(ask(link, path, silent.clone())),
        }
    })
}

/// The peers that the network has at the moment of each call, voters first: they have all of it.
pub fn from_network(network: Arc<Network>) -> Fetch {
    from_links(move || {
        let mut peers = network.peers().to_vec();
        peers.sort_by_key(|known| !known.info.voter);
        peers.into_iter().map(|known| known.link).collect()
    })
}

/// Each of these peers alone, to find out which of them gives what.
pub fn from_each(network: &Network) -> Vec<(PeerId, Fetch)> {
    let one = |known: &Known| {
        let link = known.link.clone();
        (known.info.id, from_links(move || vec![link.clone()]))
    };
    network.peers().iter().map(one).collect()
}

fn ask(link: Link, path: String, silent: Arc<Silent>) -> BoxFuture<'static, Fetched> {
    async move {
        let asked = Instant::now();
        let answer = match timeout(WITHIN, link.ledger_file(path, None)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", WITHIN.as_secs())),
        };
        silent.asked(link.peer(), Instant::now(), asked.elapsed(), answer.is_ok());
        answer
    }
    .boxed()
}

/// A copy of the static tree on this machine's disk.
pub fn from_dir(dir: PathBuf) -> Fetch {
    Arc::new(move |turn, path| {
        let path = dir.join(path);
        (turn == 0).then(|| async move { read(path).await }.boxed())
    })
}

async fn read(path: PathBuf) -> Fetched {
    match tokio::fs::read(&path).await {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_was_silent_is_not_waited_for_at_each_file() {
        let (now, all) = (Instant::now(), [1, 2].map(|n| PrincipalId([n; 32])));
        let [one, two] = all;
        let silent = Silent::default();
        silent.asked(one, now, WITHIN, false);
        silent.asked(two, now, Duration::ZERO, false);
        assert!(silent.leaves_alone(one, &all, now), "the other may have it");
        assert!(!silent.leaves_alone(two, &all, now), "who refuses at once costs nothing");
        assert!(!silent.leaves_alone(one, &all, now + LEFT_ALONE), "not for ever");
        silent.asked(two, now, WITHIN, false);
        assert!(!silent.leaves_alone(one, &all, now), "there is nobody else");
        silent.asked(one, now, WITHIN, true);
        assert!(!silent.leaves_alone(one, &all, now), "slow, and it has answered");
    }
}
