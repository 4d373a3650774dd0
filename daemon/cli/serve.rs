//! `mictlan init` and `mictlan serve`.

use super::connect::{self, label};
use super::error::CliError;
use super::signals::{Ends, Hangup};
use super::{advice, announce, log, near, runtime};
use crate::config::{Config, KnownPeer, Network as Configured, PEER_PORT, Paths, Serve};
use crate::here::Here;
use crate::service;
use clap::Args;
use mictlan::id::{Label, PeerId};
use mictlan::wire::PeerInfo;
use mictlan_mount::options::size;
use serde_json::json;
use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

#[derive(Args)]
pub struct Init {
    /// The network's name.
    #[arg(default_value = "home")]
    name: String,
    /// Address at which other machines reach this peer, such as 192.0.2.7:4510.
    #[arg(long)]
    listen: Option<String>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct ServeArgs {
    /// The network; the configured one if there is only one.
    network: Option<String>,
    /// Address to listen on; remembered.
    #[arg(long)]
    listen: Option<String>,
    /// Directory of the chunk store; remembered.
    #[arg(long)]
    store: Option<PathBuf>,
    /// How much the store may take, such as 500G; remembered.
    #[arg(long)]
    capacity: Option<String>,
    /// What fails together with this peer; by default its machine. Remembered.
    #[arg(long)]
    domain: Option<String>,
    /// Print JSON: one line when it listens, one when it stores or votes for the others.
    #[arg(long)]
    json: bool,
}

pub fn init(args: Init) -> Result<ExitCode, CliError> {
    log("warn");
    let name = label(&args.name)?;
    let runtime = runtime()?;
    let paths = Paths::of_process()?;
    let mut config = Config::load(&paths.config_file())?;
    let listen = args.listen;
    runtime.block_on(async {
        let (here, _alone) = connect::found(&paths, &mut config, &name, listen).await?;
        here.stop().await;
        Ok::<_, CliError>(())
    })?;
    let configured = &config.networks[&name];
    let (id, key) = (configured.id.to_string(), config.key.as_ref().map_or("", Label::as_str));
    if args.json {
        println!("{}", json!({ "network": name.as_str(), "id": id, "key": key }));
        return Ok(ExitCode::SUCCESS);
    }
    println!("network {name} {id}");
    println!("key     {key}");
    println!(
        "next    mictlan mount DIR, or, to let other machines in: mictlan serve, mictlan invite"
    );
    Ok(ExitCode::SUCCESS)
}

pub fn serve(args: ServeArgs) -> Result<ExitCode, CliError> {
    log("warn,mictlan=info,mictlan_daemon=info");
    let runtime = runtime()?;
    runtime.block_on(run(args))
}

async fn run(args: ServeArgs) -> Result<ExitCode, CliError> {
    let paths = Paths::of_process()?;
    let file = paths.config_file();
    let mut config = Config::load(&file)?;
    let name = match &args.network {
        Some(name) => label(name)?,
        None => config.network.clone().ok_or(CliError::NoNetwork)?,
    };
    let (configured, serve, changed) = settings(&mut config, &name, &args)?;
    let here = match connect::start_here(&paths, &name, &configured, &serve, false).await {
        Ok(here) => here,
        Err(error) => return Err(inside_a_mount(error, &paths, &name)),
    };
    if changed {
        config.save(&file)?;
    }
    // Several peers on one machine share the default address; the first has it.
    if let Err(error) = crate::metrics::serve(&serve.metrics, &here).await {
        tracing::warn!(%error, "this peer has no metrics and no health page");
    }
    let address = serve.listen.clone().unwrap_or_default();
    tracing::info!(network = %name, peer = %PeerId(serve.id), %address, "serving");
    let mut ends = Ends::new(Hangup::Ends)?;
    // For whoever started it and waits: one line, when it answers.
    let told = |does, words: String| match args.json {
        true => {
            let (network, id) = (name.as_str(), configured.id.to_string());
            let peer = serve.id;
            say(
                &json!({ "does": does, "network": network, "id": id, "peer": peer, "address": address }),
            );
        }
        false => say(&words),
    };
    told("serves", format!("serving {name} at {address}"));
    let announced = async {
        announce::announce(&paths, &name, &configured, &serve, &here).await;
        if serve.asks_vote
            && let Err(error) = no_longer_asks(&file, &name)
        {
            tracing::warn!(%error, "the configuration still says that this peer asks for a vote");
        }
        let votes = here.sequencer.voters().contains(&PeerId(serve.id));
        match votes {
            true => told("votes", format!("voting in {name}")),
            false => told("stores", format!("storing for {name}")),
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = ends.asked() => {}
        () = announced => {}
        () = remember(&file, &name, serve.id, &here) => {}
        why = here.ended() => {
            tracing::error!(%why, "this peer can go on no more; nothing that it acknowledged is lost");
            return Ok(ExitCode::from(8));
        }
    }
    here.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// What is configured, with what was asked for now over it, and whether that is new.
fn settings(
    config: &mut Config,
    name: &Label,
    args: &ServeArgs,
) -> Result<(Configured, Serve, bool), CliError> {
    let there = config.networks.keys().map(Label::to_string).collect::<Vec<_>>().join(", ");
    let configured = config
        .networks
        .get_mut(name)
        .ok_or_else(|| CliError::UnknownNetwork { name: name.to_string(), there })?;
    let Some(serve) = &mut configured.serve else {
        return Err(CliError::Usage(format!(
            "this machine is no peer of {name}; join it with an invite of role storage"
        )));
    };
    let before = serve.clone();
    if let Some(capacity) = &args.capacity {
        let bytes = size(capacity).ok_or_else(|| {
            CliError::Usage(format!("--capacity takes a size such as 500G, not {capacity:?}"))
        })?;
        serve.capacity = Some(bytes);
    }
    serve.listen = args.listen.clone().or_else(|| serve.listen.take());
    serve.in_mounts = false; // it stays when they end
    serve.listen.get_or_insert_with(|| format!("127.0.0.1:{PEER_PORT}"));
    serve.store = args.store.clone().or_else(|| serve.store.take());
    if let Some(domain) = &args.domain {
        serve.domain = Some(label(domain)?);
    }
    let (serve, changed) = (serve.clone(), *serve != before);
    Ok((configured.clone(), serve, changed))
}

/// Where the peer does not listen yet, it is a mount that has the store, and nobody knows it as a
/// peer.
fn inside_a_mount(error: CliError, paths: &Paths, name: &Label) -> CliError {
    let config = Config::load(&paths.config_file()).ok();
    let next = config.and_then(|config| {
        let serve = config.networks.get(name)?.serve.as_ref()?;
        let inside = serve.listen.is_none() || serve.in_mounts;
        inside.then(|| advice::to_serve(paths, &config, name))
    });
    match (near::holder(&error), next) {
        (Some(holder), Some(next)) => CliError::ServedInside { holder, next },
        _ => error,
    }
}

/// Whoever started it may have stopped listening by now; that ends no peer.
fn say(line: &impl Display) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Keeps the other voters in the configuration: who loses the ledger's disk finds them again, and
/// they him.
async fn remember(file: &Path, name: &Label, me: u64, here: &Here) {
    const EVERY: Duration = Duration::from_secs(1);
    let mut last = None;
    loop {
        let voters = here.sequencer.with_state(service::peers).map(|peers| others(me, &peers));
        if let Some(voters) = voters.filter(|voters| last.as_ref() != Some(voters)) {
            match name_voters(file, name, &voters) {
                Ok(()) => last = Some(voters),
                Err(error) => {
                    tracing::warn!(%error, "the configuration does not name the other voters");
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn others(me: u64, peers: &[PeerInfo]) -> Vec<KnownPeer> {
    let votes =
        |peer: &&PeerInfo| peer.voter && peer.id != PeerId(me) && !peer.addresses.is_empty();
    let known = |peer: &PeerInfo| KnownPeer {
        id: peer.id.0,
        key: peer.principal,
        addresses: peer.addresses.clone(),
    };
    peers.iter().filter(votes).map(known).collect()
}

fn name_voters(file: &Path, name: &Label, voters: &[KnownPeer]) -> Result<(), CliError> {
    let mut config = Config::load(file)?;
    match config.networks.get_mut(name) {
        Some(known) if known.peers != voters => {
            known.peers = voters.to_vec();
            Ok(config.save(file)?)
        }
        _ => Ok(()),
    }
}

/// A vote that was given is not asked for again, so that an owner can take it away.
fn no_longer_asks(file: &Path, name: &Label) -> Result<(), CliError> {
    let mut config = Config::load(file)?;
    if let Some(serve) = config.networks.get_mut(name).and_then(|known| known.serve.as_mut()) {
        serve.asks_vote = false;
    }
    Ok(config.save(file)?)
}
