//! `mictlan invite` and `mictlan join`.

use super::connect::{self, Connected, label};
use super::error::CliError;
use super::near::Near;
use super::{advice, log, runtime, typed};
use crate::config::{Config, KnownPeer, Network as Configured, Paths, Serve};
use crate::founding::Author;
use crate::host;
use crate::http::tls;
use crate::http::transport::Transport;
use crate::identity::invite::Invite;
use crate::identity::join::{self, Entered, JoinError, public_keys};
use crate::identity::keyfile;
use crate::link::{Link, LinkError, Trouble};
use crate::network::{Known, Network};
use clap::Args;
use mictlan::id::{Label, PeerId, TimeMs};
use mictlan::ledger::record::body::{
    Body, Invite as InviteTerms, Peer, PeerState, Principal as Introduced, Role, principal_message,
};
use mictlan::ledger::record::{Origin, time};
use mictlan::wire::{Answer, Failure, PeerInfo, Query};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// What an invite is good for, unless it says otherwise.
const VALID: Duration = Duration::from_secs(24 * 3600);
/// A secret that lies around is worth no longer.
const HOURS_MAX: u64 = 10 * 365 * 24;
/// How long a peer that answers may take to have its address noted; and one that is to listen at
/// another first.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(10);
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
/// How long a voter may take to apply the record that lets a newcomer in.
const KNOWN_WITHIN: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct InviteArgs {
    /// storage (a peer); owner, writer, reader, or auditor (of a volume; an auditor gets the keys of
    /// its names and attributes, and of no content)
    #[arg(long, default_value = "storage")]
    role: String,
    /// With storage: a peer that does not vote.
    #[arg(long)]
    no_vote: bool,
    /// With owner, writer, reader or auditor: the volume.
    #[arg(long, default_value = connect::DEFAULT_VOLUME)]
    volume: String,
    /// How long the code is good, in hours; at most ten years.
    #[arg(
        long,
        default_value_t = VALID.as_secs() / 3600,
        value_parser = clap::value_parser!(u64).range(1..=HOURS_MAX),
    )]
    hours: u64,
    /// Where nobody runs mictlan serve here: the address at which other machines reach the peer that
    /// this machine's mounts are, such as 192.0.2.7:4510. Remembered; it listens while one is mounted.
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    #[arg(long)]
    network: Option<String>,
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct JoinArgs {
    /// What `mictlan invite` printed. Without it, or with -, it is asked for, or read from standard
    /// input: an argument is seen by every user of this machine while it runs (ps), and kept by
    /// shells
    code: Option<String>,
    /// The name to be known by; by default this machine's.
    #[arg(long)]
    name: Option<String>,
    /// With a storage invite: the address at which others reach this peer.
    #[arg(long)]
    listen: Option<String>,
    /// For a person: one of this user's keys (mictlan key ls); by default the configured one, or a
    /// new one.
    #[arg(long)]
    key: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn invite(args: InviteArgs) -> Result<ExitCode, CliError> {
    log("warn");
    runtime()?.block_on(make_invite(args))
}

async fn make_invite(args: InviteArgs) -> Result<ExitCode, CliError> {
    let role = match args.role.as_str() {
        "storage" => Role::Storage,
        "owner" => Role::Owner,
        "writer" => Role::Writer,
        "reader" => Role::Reader,
        "auditor" => Role::Auditor,
        other => {
            let what =
                format!("--role is storage, owner, writer, reader or auditor, not {other:?}");
            return Err(CliError::Usage(what));
        }
    };
    let network = args.network.as_deref().map(label).transpose()?;
    if let Some(address) = &args.listen {
        super::listening::remember(network.as_ref(), address).await?;
    }
    let connected = connect::connect(network.as_ref(), None).await?;
    let listens = |known: &&Known| {
        let addresses = &known.info.addresses;
        let wanted = args.listen.as_ref().is_none_or(|wanted| addresses.contains(wanted));
        known.info.voter && !addresses.is_empty() && wanted
    };
    // A peer that has just been started says where it is reached a moment after it answers.
    let started = tokio::time::Instant::now();
    while !connected.network.peers().iter().any(|known| listens(&known))
        && started.elapsed() < if args.listen.is_some() { LISTENS_WITHIN } else { ANNOUNCED_WITHIN }
        && connected.near.as_ref().is_none_or(Near::is_announced)
    {
        connected.learn_peers().await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let peers = connected.network.peers();
    // The near one, which is known to answer; a newcomer is told of the others by it.
    let near = peers.iter().find(|known| !matches!(known.link, Link::Tls(_)));
    let reachable = near.filter(listens).or_else(|| peers.iter().find(listens));
    let Some(peer) = reachable else {
        return Err(nobody_listens(connected, args.listen.as_deref()).await);
    };
    // The ledger decides by its own time whether the invite is still good.
    let now = connected.network.ask_time(DEADLINE).await?;
    let until = TimeMs(now.0 + args.hours * 3_600_000);
    let until = TimeMs(until.0 / 1000 * 1000);
    let voter = role == Role::Storage && !args.no_vote;
    let invite = Invite {
        addresses: peer.info.addresses.clone(),
        network: Invite::prefix(&connected.id),
        peer: tls::fingerprint(&peer.info.principal),
        secret: Zeroizing::new(host::random()),
        expires: until,
        role,
        voter,
    };
    let author = Author {
        network: &connected.network,
        origin: connected.origin(),
        actor: super::members::actor(&connected).await?,
        principal: &connected.principal,
    };
    let volume = match role {
        Role::Storage => None,
        _ => Some(volume_id(&connected, &label(&args.volume)?).await?),
    };
    let keys = public_keys(&invite.principal().public());
    let name = invite.actor();
    let proof = invite.principal().sign(&principal_message(&connected.origin(), &name, &keys));
    let terms = InviteTerms { role, until: time::format(until), volume, voter };
    let body = Body::Principal(Introduced { invite: Some(terms), keys, name, proof });
    author.append(body).await?;
    if let Some(volume) = volume {
        // The volume's secrets wait for the newcomer, wrapped for the invite's key.
        let ring = super::members::ring(&connected, volume).await?;
        let ring = if role == Role::Auditor { ring.without_data() } else { ring };
        let to = invite.principal().public().agreement;
        author.wrap(volume, &ring, &invite.actor(), to).await?;
    }
    let code = match args.json {
        true => {
            let until = time::format(until);
            json!({ "code": invite.code().as_str(), "role": args.role, "until": until }).to_string()
        }
        false => invite.code().as_str().to_owned(),
    };
    // Not where else somebody may read it: whoever has it is let in.
    writeln!(std::io::stdout(), "{code}")
        .map_err(|error| CliError::CodeNotPrinted { error, until: time::format(until) })?;
    if args.listen.is_some() && connected.near.as_ref().is_some_and(|near| near.here().is_some()) {
        super::complain(
            "mictlan: nothing of this network is mounted here, so nobody is reached at that \
             address until then: mictlan mount DIR",
        );
    }
    connected.close().await;
    Ok(ExitCode::SUCCESS)
}

/// What to do before somebody can be invited.
async fn nobody_listens(connected: Connected, told: Option<&str>) -> CliError {
    if let Some(address) = told {
        let log = connected.paths.state.join("mount.log");
        connected.close().await;
        return CliError::Usage(format!(
            "this machine's peer does not listen at {address} yet, and nobody was invited; why is \
             in {}; then the same again",
            log.display()
        ));
    }
    let Connected { paths, name, .. } = &connected;
    let commands = Config::load(&paths.config_file()).ok().and_then(|config| {
        let configured = config.networks.get(name)?;
        advice::to_listen(paths, &config, name, configured)
    });
    let commands = match commands {
        Some(commands) => format!(
            "mictlan invite --listen ADDRESS:4510, if it is enough that others reach this machine \
             while something is mounted here; else first: {commands}"
        ),
        None => "first, on a peer's machine: mictlan serve --listen ADDRESS:4510 &".to_owned(),
    };
    connected.close().await;
    CliError::Usage(format!(
        "no peer of this network listens for other machines yet, and nobody was invited; \
         {commands}; then again: mictlan invite"
    ))
}

pub fn join(args: JoinArgs) -> Result<ExitCode, CliError> {
    log("warn");
    runtime()?.block_on(run_join(args))
}

async fn run_join(args: JoinArgs) -> Result<ExitCode, CliError> {
    let invite = Invite::parse(&typed::code(args.code.as_deref())?)?;
    let paths = Paths::of_process()?;
    let mut config = Config::load(&paths.config_file())?;
    let storage = invite.role == Role::Storage;
    let name = match &args.name {
        Some(name) => label(name)?,
        None => host::machine(),
    };
    check(&args, storage)?;
    let key = match (&args.key, storage, &config.key) {
        (Some(key), ..) => label(key)?,
        (None, false, Some(key)) => key.clone(),
        (None, false, None) => label("default")?,
        (None, true, _) => label(&format!("peer-{name}"))?,
    };
    let (principal, made) = key_for(&paths, &key, args.key.is_some())?;
    let transport = Transport::new(principal.clone())?;
    let entered = match join::join(&transport, &invite, name.clone(), host::now()).await {
        Ok(entered) => entered,
        Err(error) => return Err(not_joined(error, &paths, &key, made)),
    };
    let network = entered.name.clone();
    let links = network_of(&transport, &entered);
    until_known(&links).await;
    let peers: Vec<KnownPeer> = entered
        .joined
        .peers
        .iter()
        .filter(|peer| !peer.addresses.is_empty())
        .map(|peer| KnownPeer {
            id: peer.id.0,
            key: peer.principal,
            addresses: peer.addresses.clone(),
        })
        .collect();
    let mut configured = config.networks.get(&network).cloned().unwrap_or(Configured {
        id: entered.network,
        serve: None,
        peers: Vec::new(),
    });
    configured.peers = peers;
    if storage {
        let id = register(&links, &args, &name, &principal, &entered).await?;
        configured.serve = Some(Serve {
            id: id.0,
            name: name.clone(),
            key: key.clone(),
            listen: args.listen.clone(),
            in_mounts: false,
            store: None,
            capacity: None,
            domain: None,
            asks_vote: invite.voter,
            metrics: Serve::default_metrics(),
        });
    } else {
        super::members::take_over(&links, &invite, &name, &principal).await?;
        config.key.get_or_insert(key.clone());
    }
    config.network.get_or_insert(network.clone());
    config.networks.insert(network.clone(), configured);
    config.save(&paths.config_file())?;
    let other = (config.key.as_ref() != Some(&key)).then_some(&key);
    say_joined(&args, &network, &name, &invite, &entered, other);
    Ok(ExitCode::SUCCESS)
}

/// Mistakes that are known before anything is made or sent; a code is good once.
fn check(args: &JoinArgs, storage: bool) -> Result<(), CliError> {
    let usage = |text: &str| Err(CliError::Usage(text.to_owned()));
    match (storage, &args.listen, &args.key) {
        (true, None, _) => usage(
            "a peer needs an address at which the others reach it, and nothing was sent: mictlan \
             join CODE --listen ADDRESS:4510",
        ),
        (true, _, Some(_)) => {
            usage("a peer has a key of its own, so --key has no place here; nothing was sent")
        }
        _ => Ok(()),
    }
}

/// The key to join with, and whether it was made for that.
fn key_for(
    paths: &Paths,
    key: &Label,
    named: bool,
) -> Result<(Arc<mictlan::seal::Principal>, bool), CliError> {
    // Who names a key means one that is there.
    let there = named || paths.keys().join(key.as_str()).exists();
    let principal = match there {
        true => connect::load_key(paths, key)?,
        false => connect::make_or_load(paths, key)?,
    };
    Ok((Arc::new(principal), !there))
}

/// Nothing is left of a join that was refused. A key of which the network may know stays.
fn not_joined(error: JoinError, paths: &Paths, key: &Label, made: bool) -> CliError {
    let refused = match &error {
        JoinError::Link(LinkError::Refused { .. }) => true,
        JoinError::Link(error) => {
            matches!(error, LinkError::FailedHere { why: Trouble::NotReached(_), .. })
        }
        _ => true,
    };
    if made
        && refused
        && let Err(error) = keyfile::remove(&paths.keys(), key)
    {
        tracing::warn!(%error, %key, "a key that nobody knows is left here");
    }
    let taken = matches!(
        &error,
        JoinError::Link(LinkError::Refused { why: Failure::InviteRefused(why), .. })
            if why.contains("is taken")
    );
    let error = CliError::Join(error);
    match taken {
        true => CliError::Left {
            cause: Box::new(error),
            left:
                "nothing was changed, and the code is still good: mictlan join CODE --name NAME, \
                   with the rest as before"
                    .to_owned(),
        },
        false => error,
    }
}

/// `other`: the key, where it is not the one that is used when none is named.
fn say_joined(
    args: &JoinArgs,
    network: &Label,
    name: &Label,
    invite: &Invite,
    entered: &Entered,
    other: Option<&Label>,
) {
    if args.json {
        let (id, role) = (entered.network.to_string(), invite.role);
        let (network, name) = (network.as_str(), name.as_str());
        let said = serde_json::json!({ "network": network, "id": id, "name": name, "role": role });
        return println!("{said}");
    }
    println!("joined {network} as {name}");
    let next = match invite.role {
        Role::Storage => "mictlan serve",
        Role::Auditor => "mictlan verify --replay",
        _ => "mictlan mount DIR",
    };
    if let (Some(key), false) = (other, invite.role == Role::Storage) {
        return println!("next    mictlan mount -o key={key} DIR");
    }
    println!("next    {next}");
}

/// Those whom the inviting peer named; it may not be the one that leads.
fn network_of(transport: &Transport, entered: &Entered) -> Network {
    let known = |info: &PeerInfo| Known {
        info: info.clone(),
        link: transport.link(info.principal, &info.addresses),
    };
    let listens = |info: &&PeerInfo| !info.addresses.is_empty();
    Network::new(entered.joined.peers.iter().filter(listens).map(known).collect())
}

/// A voter that is a moment behind answers a newcomer as it answers a stranger. One that does not
/// answer at all is not waited for.
async fn until_known(network: &Network) {
    let peers = network.peers();
    let voters = peers.iter().filter(|known| known.info.voter);
    let knows = async |link: &Link| {
        while matches!(link.head().await, Err(LinkError::Refused { why: Failure::NotAllowed, .. }))
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let all = voters.map(|known| tokio::time::timeout(KNOWN_WITHIN, knows(&known.link)));
    futures::future::join_all(all).await;
}

/// A newcomer's `net.peer`. It does not vote before it has the ledger: until then a quorum that
/// counted it would publish nothing.
async fn register(
    network: &Network,
    args: &JoinArgs,
    name: &Label,
    principal: &Arc<mictlan::seal::Principal>,
    entered: &Entered,
) -> Result<PeerId, CliError> {
    let listen = args.listen.iter().cloned().collect();
    let Answer::Peers { peers, .. } = network.query(Query::Peers, DEADLINE).await? else {
        return Err(CliError::OtherAnswer);
    };
    if let Some(known) = peers.iter().find(|peer| peer.principal == principal.id()) {
        return Ok(known.id);
    }
    let last = peers.iter().map(|peer| peer.id.0).max().unwrap_or(0);
    let peer = PeerId(last + 1);
    let author = Author {
        network,
        origin: Origin::new(&entered.name, &entered.network),
        actor: name.clone(),
        principal,
    };
    let body = Peer {
        addresses: listen,
        keys: public_keys(&principal.public()),
        name: name.clone(),
        peer,
        state: PeerState::Active,
        storage: true,
        voter: false,
    };
    author.append(Body::Peer(body)).await?;
    Ok(peer)
}

async fn volume_id(connected: &Connected, name: &Label) -> Result<mictlan::id::VolumeId, CliError> {
    let query = connected.network.query(Query::Volumes, DEADLINE).await?;
    let Answer::Volumes(volumes) = query else { return Err(CliError::OtherAnswer) };
    let found = volumes.iter().find(|volume| volume.name == *name);
    let there = || volumes.iter().map(|v| v.name.to_string()).collect::<Vec<_>>().join(", ");
    found.map(|volume| volume.id).ok_or_else(|| {
        CliError::Usage(format!("no volume {name} in this network; there are: {}", there()))
    })
}
