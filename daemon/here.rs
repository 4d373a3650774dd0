//! This process as a peer: its store, its sequencer, its doors.
//!
//! Owns: opening them in order, and closing them.
//! Invariant: a peer that can no longer write ends the process (`Here::ended`), so that it never
//! answers for what it does not have.

use crate::config::{Network as Configured, Paths, Serve};
use crate::host;
use crate::http::admission::Limits;
use crate::http::server::{Serving, serve_tls, serve_unix};
use crate::http::tls::TlsError;
use crate::http::transport::{Transport, TransportError};
use crate::others::Others;
use crate::peer::Peer;
use crate::sequencer::{self, Sequencer};
use crate::service::{self, Service};
use crate::store::{self, Store};
use crate::voters::Voters;
use mictlan::id::{Label, NetworkId, PeerId, PrincipalId};
use mictlan::seal::Principal;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, UnixListener};

#[derive(Debug, thiserror::Error)]
pub enum HereError {
    #[error("{0}")]
    Store(#[from] store::OpenError),
    #[error("{0}")]
    Sequencer(#[from] sequencer::OpenError),
    #[error("{0}")]
    Transport(#[from] TransportError),
    #[error("{0}")]
    Tls(#[from] TlsError),
    #[error(
        "{address}: {cause}; another program has this address, or this machine does not: choose \
         another with --listen"
    )]
    Listen { address: String, cause: std::io::Error },
    #[error("{}: {cause}", path.display())]
    Socket { path: PathBuf, cause: std::io::Error },
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
}

/// What a peer is started with.
pub struct Options {
    pub paths: Paths,
    pub name: Label,
    pub network: NetworkId,
    pub me: PeerId,
    pub peer_name: Label,
    pub identity: Arc<Principal>,
    pub serve: Serve,
    /// Voters that are known before the ledger says who there is.
    pub seeds: Vec<(PeerId, PrincipalId, Vec<String>)>,
    /// No process that worked on the network before can still hold a lease of it.
    pub alone: bool,
    /// The network begins here and now: an empty log is its first one.
    pub founding: bool,
}

pub struct Here {
    pub peer: Arc<Peer>,
    pub sequencer: Arc<Sequencer>,
    pub store: Arc<Store>,
    pub transport: Transport,
    options: Options,
    /// Covers the list alone.
    doors: Mutex<Vec<Serving>>,
    /// Where it was last made to listen.
    at: Mutex<Option<String>>,
}

impl Here {
    pub async fn start(options: Options) -> Result<Self, HereError> {
        let dir = options.paths.network(&options.name);
        let store_dir = options.serve.store.clone().unwrap_or_else(|| dir.join("store"));
        let store = store::Options {
            dir: store_dir,
            network: options.network,
            peer: options.me,
            capacity: options.serve.capacity,
            segment_bytes: store::SEGMENT_BYTES,
            clock: Arc::new(host::now),
        };
        let opened = tokio::task::spawn_blocking(move || Store::open(store)).await;
        let store = Arc::new(opened.expect("opening a store does not panic")?);
        let transport = Transport::new(options.identity.clone())?;
        let voters = Arc::new(Voters::new(transport.clone(), &options.seeds));
        let sequencer = Sequencer::open(sequencer::Options {
            dir: dir.join("sequencer"),
            network: options.network,
            me: options.me,
            identity: options.identity.clone(),
            chunks: store.clone(),
            transport: voters.clone(),
            now: Arc::new(host::now),
            limits: sequencer::Limits::default(),
            lone: options.seeds.is_empty() && !options.founding,
        })
        .await?;
        let known = sequencer.with_state(|state| state.head().size).unwrap_or(0);
        if store.stat().opened.made && known > 0 && !options.founding {
            store.is_in_place_of_another();
            tracing::warn!(
                records = known,
                "this peer's store is new and empty, and the peer is not: the copies that it had \
                 are gone, and those of other peers are what is left; if its disk is only not \
                 mounted, stop this peer, mount it, and start again"
            );
        }
        let service = Service::start(service::Options {
            sequencer: sequencer.clone(),
            identity: options.identity.clone(),
            name: options.peer_name.clone(),
            me: options.me,
            seeds: options.seeds.iter().map(|(id, key, _)| (*id, *key)).collect(),
            voters: voters.clone(),
            store: store.clone(),
            alone: options.alone,
        });
        let peer =
            Peer::new(options.network, options.identity.id(), Some(store.clone()), Some(service));
        let peer = Arc::new(peer.asking(Others::new(transport.clone())));
        tokio::spawn(know_voters(sequencer.clone(), voters));
        Ok(Self {
            peer,
            sequencer,
            store,
            transport,
            options,
            doors: Mutex::default(),
            at: Mutex::default(),
        })
    }

    /// From here on others reach it: at its address, if it is there for other machines, and at this
    /// machine's socket.
    pub async fn open_doors(&self) -> Result<(), HereError> {
        let options = &self.options;
        if let Some(address) = &options.serve.listen {
            match self.listen(address).await {
                // A mount comes up where the address is not to be had today; `near` tries again.
                Err(error) if options.serve.in_mounts => {
                    tracing::warn!(%error, "other machines do not reach this machine's peer now");
                }
                done => done?,
            }
        }
        match socket(options) {
            Ok(listener) => {
                let (peer, limits) = (self.peer.clone(), Limits::of_process());
                self.keep(serve_unix(listener, &options.identity, peer, limits));
            }
            // Who is the peer for himself alone can do without.
            Err(error) if options.serve.listen.is_none() => {
                tracing::warn!(%error, "no other command can reach the peer in this process");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Other machines reach it at `address` from here on.
    pub async fn listen(&self, address: &str) -> Result<(), HereError> {
        let failed = |cause| HereError::Listen { address: address.to_owned(), cause };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let (peer, limits) = (self.peer.clone(), Limits::of_process());
        self.keep(serve_tls(listener, &self.options.identity, peer, limits)?);
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = Some(address.to_owned());
        Ok(())
    }

    /// Whether that is where it was last made to listen.
    pub fn listens_at(&self, address: &str) -> bool {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).as_deref() == Some(address)
    }

    fn keep(&self, door: Serving) {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner).push(door);
    }

    /// What it offers, in GiB: its share of the placed chunks.
    pub fn weight(&self) -> u64 {
        (self.store.stat().space >> 30).max(1)
    }

    /// Ends when this peer can go on no more; the process is to exit with the reason.
    pub async fn ended(&self) -> String {
        self.sequencer.ended().await
    }

    /// No new requests; those under way get a moment; then the sequencer stops.
    pub async fn stop(self) {
        self.peer.leave();
        for door in self.doors.into_inner().unwrap_or_else(PoisonError::into_inner) {
            door.stop().await;
        }
        self.sequencer.shutdown().await;
    }
}

/// Keeps the voters' links to what the ledger says.
async fn know_voters(sequencer: Arc<Sequencer>, voters: Arc<Voters>) {
    const EVERY: Duration = Duration::from_secs(1);
    let mut known = None;
    loop {
        let peers = sequencer.with_state(service::peers);
        if peers != known {
            voters.know(peers.as_deref().unwrap_or_default());
            known = peers;
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// This machine's socket, for this user alone.
fn socket(options: &Options) -> Result<UnixListener, HereError> {
    options.paths.make_runtime()?;
    let path = options.paths.socket(&options.name);
    let failed = |cause| HereError::Socket { path: path.clone(), cause };
    // The store's lock says that no other peer of this network runs here, so a socket that is
    // there was left behind.
    match std::fs::remove_file(&path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => return Err(failed(cause)),
        _ => {}
    }
    let listener = UnixListener::bind(&path).map_err(failed)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// The seeds that a configuration names.
pub fn seeds(configured: &Configured) -> Vec<(PeerId, PrincipalId, Vec<String>)> {
    let seed =
        |known: &crate::config::KnownPeer| (PeerId(known.id), known.key, known.addresses.clone());
    configured.peers.iter().map(seed).collect()
}
