//! How a command reaches its network: a peer in this process, one on this machine, or others.
//!
//! Owns: the choice between them, and the embedded network that is made where none is configured.
//! `near` has the peer on this machine.
//! Invariant: the network is the one that the configuration names by its hash; a name alone
//! decides nothing.

use super::error::CliError;
use super::near::{Attached, Near, Spot};
use crate::config::{Config, Network as Configured, Paths, Serve};
use crate::founding::{self, Author, COPIES, Founder};
use crate::here::{self, Here};
use crate::host;
use crate::http::transport::Transport;
use crate::identity::keyfile;
use crate::link::Link;
use crate::network::{Known, Network};
use crate::peer::Caller;
use crate::store::durable;
use mictlan::id::{Label, NetworkId, PeerId, PrincipalId};
use mictlan::ledger::record::Origin;
use mictlan::seal::Principal;
use mictlan::wire::{Answer, PeerInfo, Query};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// The name of the network and key that are made for who has none.
const HOME: &str = "home";
const DEFAULT_KEY: &str = "default";
/// A file in the directory of a network that is still being founded: nothing in it is anybody's.
const UNFINISHED: &str = "unfinished";
pub const DEFAULT_VOLUME: &str = "main";
/// How long a command waits for a voter.
const DEADLINE: Duration = Duration::from_secs(30);

/// A network that answers.
pub struct Connected {
    /// This machine's own peer, if it is one of the network.
    pub near: Option<Near>,
    pub network: Arc<Network>,
    pub transport: Transport,
    /// The peers that the configuration names, or the one on this machine.
    pub first: Vec<(PeerId, Link)>,
    pub principal: Arc<Principal>,
    pub name: Label,
    pub id: NetworkId,
    pub paths: Paths,
}

pub fn label(text: &str) -> Result<Label, CliError> {
    Label::parse(text).ok_or_else(|| CliError::BadName(text.to_owned()))
}

/// Loads a principal's key, asking for its passphrase on the terminal if it has one.
pub fn load_key(paths: &Paths, name: &Label) -> Result<Principal, CliError> {
    let ask = || {
        let prompt = format!("passphrase of key {name}: ");
        rpassword::prompt_password(prompt).ok().map(Zeroizing::new)
    };
    Ok(keyfile::load(&paths.keys(), name, ask)?)
}

/// Connects to the network `name`, or to the configured one; without any, a network of one peer is
/// made in this user's data directory.
pub async fn connect(name: Option<&Label>, key: Option<&Label>) -> Result<Connected, CliError> {
    connect_with(name, key, false).await
}

/// The same for what no secret is needed for and nobody signs: where nobody but a peer lives, it
/// looks for itself.
pub async fn connect_to_look(
    name: Option<&Label>,
    key: Option<&Label>,
) -> Result<Connected, CliError> {
    connect_with(name, key, true).await
}

async fn connect_with(
    name: Option<&Label>,
    key: Option<&Label>,
    looks: bool,
) -> Result<Connected, CliError> {
    let paths = Paths::of_process()?;
    let mut config = Config::load(&paths.config_file())?;
    let mut begun = None;
    if config.networks.is_empty() && name.is_none() {
        let home = label(HOME)?;
        begun = match found(&paths, &mut config, &home, None).await {
            Ok(begun) => Some(begun),
            // Another process was first, a moment ago.
            Err(CliError::NetworkExists(_)) => None,
            Err(error) => return Err(error),
        };
    }
    let name = name.or(config.network.as_ref()).cloned().ok_or(CliError::NoNetwork)?;
    let configured = config.networks.get(&name).cloned().ok_or_else(|| {
        let there = config.networks.keys().map(Label::to_string).collect::<Vec<_>>().join(", ");
        CliError::UnknownNetwork { name: name.to_string(), there }
    })?;
    let key = match (key.or(config.key.as_ref()), &configured.serve) {
        (Some(key), _) => key.clone(),
        (None, Some(serve)) if looks => serve.key.clone(),
        (None, Some(_)) => return Err(CliError::OnlyPeer { network: name }),
        (None, None) => return Err(CliError::NoKey),
    };
    let principal = Arc::new(load_key(&paths, &key)?);
    connect_as(&paths, &name, &configured, principal, begun).await
}

async fn connect_as(
    paths: &Paths,
    name: &Label,
    configured: &Configured,
    principal: Arc<Principal>,
    begun: Option<(Here, Attached)>,
) -> Result<Connected, CliError> {
    let transport = Transport::new(principal.clone())?;
    let mut near = None;
    let first = match &configured.serve {
        Some(serve) => {
            let (link, own) = reach(paths, name, configured, serve, &transport, begun).await?;
            near = Some(own);
            vec![(PeerId(serve.id), link)]
        }
        None => here::seeds(configured)
            .into_iter()
            .map(|(id, key, addresses)| (id, transport.link(key, &addresses)))
            .collect(),
    };
    let network = Arc::new(Network::new(provisional(&first)));
    let connected = Connected {
        near,
        network,
        transport,
        first,
        principal,
        name: name.clone(),
        id: configured.id,
        paths: paths.clone(),
    };
    connected.learn_peers().await?;
    Ok(connected)
}

/// This machine's peer: the one that was begun, one that another process is, or a new one here.
async fn reach(
    paths: &Paths,
    name: &Label,
    configured: &Configured,
    serve: &Serve,
    transport: &Transport,
    begun: Option<(Here, Attached)>,
) -> Result<(Link, Near), CliError> {
    let spot = Spot {
        paths: paths.clone(),
        name: name.clone(),
        configured: configured.clone(),
        serve: serve.clone(),
    };
    let socket = spot.link(transport)?;
    let (here, attached) = match begun {
        Some((here, attached)) => {
            here.open_doors().await?;
            (Some(here), attached)
        }
        None => spot.find(&socket).await?,
    };
    let caller = Caller { principal: transport.principal().id(), local: true };
    let link = match &here {
        Some(here) => Link::Embedded(here.peer.clone(), caller),
        None => socket.clone(),
    };
    let near = Near::new(&spot, &socket, here, attached);
    Ok((link, near))
}

/// Until the ledger says who there is, each configured peer is taken for a voter.
pub fn provisional(first: &[(PeerId, Link)]) -> Vec<Known> {
    let known = |(id, link): &(PeerId, Link)| Known {
        info: PeerInfo {
            id: *id,
            name: Label::parse("peer").expect("a plain word is a label"),
            principal: link.peer(),
            addresses: Vec::new(),
            storage: true,
            voter: true,
            domain: String::new(),
            weight: 0,
        },
        link: link.clone(),
    };
    first.iter().map(known).collect()
}

impl Connected {
    pub async fn learn_peers(&self) -> Result<Vec<PeerInfo>, CliError> {
        learn_peers(&self.network, &self.transport, &self.first).await
    }

    /// A link to a voter, the near one first.
    pub fn link(&self) -> Result<Link, CliError> {
        let peers = self.network.peers();
        let near = peers.iter().find(|known| !matches!(known.link, Link::Tls(_)));
        let known = near.or_else(|| peers.iter().find(|known| known.info.voter));
        known.map(|known| known.link.clone()).ok_or(CliError::NoNetwork)
    }

    pub fn origin(&self) -> Origin {
        Origin::new(&self.name, &self.id)
    }

    /// Where this host remembers the newest checkpoint that it has verified.
    pub fn ledger_state(&self) -> Result<PathBuf, CliError> {
        let state = self.paths.state.join("networks").join(self.name.as_str());
        durable::create_dir(&state, 0o700)?;
        Ok(state)
    }

    /// The end of a command: a peer in this process stops in order.
    pub async fn close(self) {
        if let Some(near) = self.near {
            near.stop().await;
        }
    }
}

/// Asks who there is. A peer of this process or machine (in `first`) keeps its short way.
pub async fn learn_peers(
    network: &Network,
    transport: &Transport,
    first: &[(PeerId, Link)],
) -> Result<Vec<PeerInfo>, CliError> {
    let Answer::Peers { peers, .. } = network.query(Query::Peers, DEADLINE).await? else {
        return Err(CliError::OtherAnswer);
    };
    let known = peers.iter().cloned().map(|info| {
        let near = first.iter().find(|(id, link)| *id == info.id && !matches!(link, Link::Tls(_)));
        let link = match near {
            Some((_, link)) => link.clone(),
            None => transport.link(info.principal, &info.addresses),
        };
        Known { info, link }
    });
    network.replace(known.collect());
    Ok(peers)
}

fn public_path(paths: &Paths, key: &Label) -> PathBuf {
    paths.keys().join(format!("{key}.pub"))
}

/// Opens the peer of this network in this process; `alone`: no lease can be left from before.
pub async fn start_here(
    paths: &Paths,
    name: &Label,
    configured: &Configured,
    serve: &Serve,
    alone: bool,
) -> Result<Here, CliError> {
    let identity = Arc::new(load_key(paths, &serve.key)?);
    let options = here::Options {
        paths: paths.clone(),
        name: name.clone(),
        network: configured.id,
        me: PeerId(serve.id),
        peer_name: serve.name.clone(),
        identity,
        alone,
        founding: false,
        serve: serve.clone(),
        seeds: here::seeds(configured),
    };
    let here = Here::start(options).await?;
    here.open_doors().await?;
    Ok(here)
}

/// Makes a network of one peer, this machine, and writes it into the configuration. The peer that
/// is returned runs already, with no door open.
pub async fn found(
    paths: &Paths,
    config: &mut Config,
    name: &Label,
    listen: Option<String>,
) -> Result<(Here, Attached), CliError> {
    let is_there = || {
        *config = Config::load(&paths.config_file())?;
        Ok(config.networks.contains_key(name))
    };
    let attached = Attached::alone(paths, name, is_there).await?;
    let key = config.key.clone().map_or_else(|| label(DEFAULT_KEY), Ok)?;
    let principal = make_or_load(paths, &key)?;
    let peer_key = label(&format!("peer-{name}"))?;
    let peer = make_or_load(paths, &peer_key)?;
    let peer_name = label(&format!("{}-{name}", host::machine()))?;
    let addresses: Vec<String> = listen.iter().cloned().collect();
    let founder = Founder {
        network: name,
        actor: &key,
        principal: &principal,
        peer_name: &peer_name,
        peer: &peer,
        addresses,
    };
    let (genesis, id) = founding::genesis(&founder)?;
    let serve = Serve {
        id: 1,
        name: peer_name.clone(),
        key: peer_key,
        listen,
        in_mounts: false,
        store: None,
        capacity: None,
        domain: None,
        asks_vote: false,
        metrics: Serve::default_metrics(),
    };
    let configured = Configured { id, serve: Some(serve.clone()), peers: Vec::new() };
    let marker = begin_dir(paths, name)?;
    let begun = here::Options {
        paths: paths.clone(),
        name: name.clone(),
        network: id,
        me: PeerId(1),
        peer_name,
        identity: Arc::new(peer),
        serve: serve.clone(),
        seeds: Vec::new(),
        alone: true,
        founding: true,
    };
    let here = Here::start(begun).await?;
    let founded = here.sequencer.bootstrap(genesis, DEADLINE).await;
    founded.map_err(|error| CliError::Founding(error.to_string()))?;
    let caller = Caller { principal: principal.id(), local: true };
    let link = Link::Embedded(here.peer.clone(), caller);
    let network = Network::new(provisional(&[(PeerId(1), link)]));
    let author = Author {
        network: &network,
        origin: Origin::new(name, &id),
        actor: key.clone(),
        principal: &principal,
    };
    author.place(1, PeerId(1), &host::machine(), here.weight()).await?;
    author.volume(&label(DEFAULT_VOLUME)?, COPIES, true).await?;
    config.key.get_or_insert(key);
    config.network.get_or_insert(name.clone());
    config.networks.insert(name.clone(), configured);
    durable::remove_file(&marker)?; // crash here: a whole network, which is refused, not removed
    config.save(&paths.config_file())?;
    attached.share(name).await?;
    Ok((here, attached))
}

/// Makes the directory of a new network and marks it as unfinished. One that is there already and
/// has no mark may be somebody's only copy, whose configuration was lost: it is never removed.
fn begin_dir(paths: &Paths, name: &Label) -> Result<PathBuf, CliError> {
    let dir = paths.network(name);
    let marker = dir.join(UNFINISHED);
    let is_used = std::fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
    if is_used && !marker.exists() {
        return Err(CliError::Orphaned { dir, config: paths.config_file() });
    }
    if is_used {
        std::fs::remove_dir_all(&dir).map_err(|error| CliError::Io(dir.clone(), error))?;
    }
    durable::create_dir(&dir, 0o700)?;
    durable::replace_file(&marker, 0o600, b"")?;
    Ok(marker)
}

pub fn make_or_load(paths: &Paths, name: &Label) -> Result<Principal, CliError> {
    match paths.keys().join(name.as_str()).exists() {
        true => load_key(paths, name),
        false => Ok(keyfile::generate(&paths.keys(), name, None)?),
    }
}

/// The key by which a peer of the configuration is known.
pub fn key_of(serve: &Serve, paths: &Paths) -> Result<PrincipalId, CliError> {
    Ok(keyfile::load_public(&public_path(paths, &serve.key))?.1.signing)
}
