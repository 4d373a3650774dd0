//! This process's ways out: one pool for chunks and calls, one for voters, over TLS.
//!
//! Owns: the pools, and where each key is to be found.
//! Never: asks a DNS server for a peer's key, and never uses a proxy.
//! Invariant: an address only says where to knock; the handshake insists on the key.

use crate::http::client::Client;
use crate::http::tls::{self, Expected, TlsError};
use crate::http::unix::Prover;
use crate::link::Link;
use mictlan::id::{NetworkId, PrincipalId};
use mictlan::seal::Principal;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, RwLock};
use std::time::Duration;

/// A live peer on any line answers a connect well within this; another copy is asked after it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Below the time after which a server drops an idle connection, so that we drop it first.
const IDLE_KEPT: Duration = Duration::from_secs(20);
/// Connections kept per peer: more would only wait for the same disk.
const IDLE_MAX: usize = 16;
const ADDRESSES_MAX: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the HTTP client cannot be set up: {0}")]
    Pool(#[from] reqwest::Error),
}

/// Where keys are found. The lock covers the table only, never a lookup.
#[derive(Default)]
struct Roster {
    addresses: RwLock<HashMap<String, Vec<String>>>,
}

impl Roster {
    fn set(&self, host: String, addresses: Vec<String>) {
        let mut table = self.addresses.write().expect("no holder of the roster panics");
        table.insert(host, addresses);
    }

    fn find(&self, host: &str) -> Vec<String> {
        let table = self.addresses.read().expect("no holder of the roster panics");
        table.get(host).cloned().unwrap_or_default()
    }
}

/// The roster as reqwest's resolver: from a key's host name to socket addresses with ports.
struct Resolver(Arc<Roster>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let addresses = self.0.find(name.as_str());
        Box::pin(async move {
            let mut found: Vec<SocketAddr> = Vec::new();
            let mut why = "no address of this peer is known".to_owned();
            for address in addresses.iter().take(ADDRESSES_MAX) {
                match tokio::net::lookup_host(address).await {
                    Ok(some) => found.extend(some),
                    Err(error) => why = format!("{address}: {error}"),
                }
            }
            match found.is_empty() {
                true => Err(why.into()),
                false => Ok(Box::new(found.into_iter()) as Addrs),
            }
        })
    }
}

/// One identity's connections. Cheap to clone.
#[derive(Clone)]
pub struct Transport {
    principal: Arc<Principal>,
    roster: Arc<Roster>,
    pool: reqwest::Client,
    /// Heartbeats of voters must not wait behind chunks.
    voters: reqwest::Client,
}

impl Transport {
    pub fn new(principal: Arc<Principal>) -> Result<Self, TransportError> {
        let roster = Arc::new(Roster::default());
        let make = || -> Result<reqwest::Client, TransportError> {
            let pool = settings()
                .tls_backend_preconfigured(tls::client_config(&principal)?)
                .dns_resolver(Resolver(roster.clone()))
                .https_only(true);
            Ok(pool.build()?)
        };
        let (pool, voters) = (make()?, make()?);
        Ok(Self { principal, roster, pool, voters })
    }

    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// A peer on another machine. `addresses` replace what was known of it.
    pub fn link(&self, peer: PrincipalId, addresses: &[String]) -> Link {
        let expected = Expected::Key(peer);
        self.roster.set(expected.host(), addresses.to_vec());
        Link::Tls(Client::new(self.pool.clone(), base(&expected), peer))
    }

    /// The same on the pool for Raft and cosigning alone.
    pub fn voter_link(&self, peer: PrincipalId, addresses: &[String]) -> Link {
        let expected = Expected::Key(peer);
        self.roster.set(expected.host(), addresses.to_vec());
        Link::Tls(Client::new(self.voters.clone(), base(&expected), peer))
    }

    /// The peer that an invite names, whose whole key is learned from its handshake.
    pub fn inviter(&self, expected: Expected, addresses: &[String]) -> Client {
        self.roster.set(expected.host(), addresses.to_vec());
        // Only for messages: until the genesis is checked it has no other name.
        Client::new(self.pool.clone(), base(&expected), PrincipalId([0; 32]))
    }

    /// A peer on this machine, by its socket.
    pub fn unix(
        &self,
        socket: &Path,
        network: NetworkId,
        peer: PrincipalId,
    ) -> Result<Link, TransportError> {
        let pool = settings().unix_socket(socket).build()?;
        let prover = Prover::new(self.principal.clone(), network, peer);
        let base = "http://socket.mictlan/api/v4/".to_owned();
        Ok(Link::Unix(Client::new(pool, base, peer).proving(prover)))
    }
}

fn base(expected: &Expected) -> String {
    format!("https://{}/api/v4/", expected.host())
}

fn settings() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .no_proxy()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_DEADLINE)
        .pool_idle_timeout(IDLE_KEPT)
        .pool_max_idle_per_host(IDLE_MAX)
}
