//! Where the bytes of the ledger come from: peers' static files, or a directory of them.
//!
//! Owns: the order in which peers are asked.
//! Never: believes what it brings; `Ledger` checks every byte.

use crate::link::Link;
use crate::network::Network;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::path::PathBuf;
use std::sync::Arc;

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

/// Whichever peers `links` names at the moment of each call, in their order.
pub fn from_links(links: impl Fn() -> Vec<Link> + Send + Sync + 'static) -> Fetch {
    Arc::new(move |turn, path| links().into_iter().nth(turn).map(|link| ask(link, path)))
}

/// The peers that the network has at the moment of each call, voters first: they have all of it.
pub fn from_network(network: Arc<Network>) -> Fetch {
    from_links(move || {
        let mut peers = network.peers().to_vec();
        peers.sort_by_key(|known| !known.info.voter);
        peers.into_iter().map(|known| known.link).collect()
    })
}

fn ask(link: Link, path: String) -> BoxFuture<'static, Fetched> {
    async move { link.ledger_file(path, None).await.map_err(|error| error.to_string()) }.boxed()
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
