//! `mictlan volume`: the volumes of a network, and what each is set to.
//!
//! Owns: the records that make a volume and change its settings.
//! Invariant: what a command does not name stays as it was.

use super::admin::connected;
use super::connect::{Connected, label};
use super::error::CliError;
use super::members;
use super::status::{self, Which};
use crate::founding::{Author, COPIES};
use clap::{Subcommand, ValueEnum};
use mictlan::id::{Label, VolumeId};
use mictlan::ledger::record::body::{Body, VolumeMade};
use mictlan::meta::namespace::COPIES_MAX;
use mictlan::wire::{Answer, Query, VolumeInfo};
use serde_json::json;
use std::process::ExitCode;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Subcommand)]
pub enum VolumeVerb {
    /// List the volumes.
    Ls(Which),
    /// Make a volume; its secrets are this key's alone until members are added.
    Make {
        name: String,
        /// On how many peers each chunk is kept.
        #[arg(long, default_value_t = COPIES)]
        replicas: u32,
        /// Whether what is written is compressed where that gains.
        #[arg(long, default_value = "on")]
        compress: Switch,
        #[arg(long)]
        network: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Change a volume's settings, for what is written from now on.
    Set {
        name: String,
        /// On how many peers each chunk is kept.
        #[arg(long)]
        replicas: Option<u32>,
        /// Whether what is written is compressed where that gains.
        #[arg(long)]
        compress: Option<Switch>,
        #[arg(long)]
        network: Option<String>,
        #[arg(long)]
        json: bool,
    },
}

pub fn volume(verb: VolumeVerb) -> Result<ExitCode, CliError> {
    match verb {
        VolumeVerb::Ls(which) => status::volumes(which),
        VolumeVerb::Make { name, replicas, compress, network, json } => {
            let (name, replicas) = (label(&name)?, copies(replicas)?);
            let compress = compress == Switch::On;
            connected(network, async |on| make(on, &name, replicas, compress, json).await)
        }
        VolumeVerb::Set { replicas: None, compress: None, .. } => {
            Err(CliError::Usage("name what to set: --replicas or --compress".to_owned()))
        }
        VolumeVerb::Set { name, replicas, compress, network, json } => {
            let (name, replicas) = (label(&name)?, replicas.map(copies).transpose()?);
            let compress = compress.map(|switch| switch == Switch::On);
            connected(network, async |on| set(on, &name, replicas, compress, json).await)
        }
    }
}

fn copies(replicas: u32) -> Result<u32, CliError> {
    match (1..=u32::from(COPIES_MAX)).contains(&replicas) {
        true => Ok(replicas),
        false => Err(CliError::Usage(format!("--replicas is 1 to {COPIES_MAX}, not {replicas}"))),
    }
}

async fn make(
    connected: &Connected,
    name: &Label,
    replicas: u32,
    compress: bool,
    as_json: bool,
) -> Result<(), CliError> {
    if volumes(connected).await?.iter().any(|known| known.name == *name) {
        let text = format!("there is a volume {name} already; nothing was made");
        return Err(CliError::Usage(text));
    }
    let id = author(connected).await?.volume(name, replicas, compress).await?;
    match as_json {
        true => println!("{}", json!({ "volume": name, "id": id.to_string() })),
        false => {
            println!("volume {name} {id}");
            println!("next   mictlan mount {}:{name} DIR", connected.name);
        }
    }
    Ok(())
}

async fn set(
    connected: &Connected,
    name: &Label,
    replicas: Option<u32>,
    compress: Option<bool>,
    as_json: bool,
) -> Result<(), CliError> {
    let known = named(connected, name).await?;
    let made = VolumeMade {
        compress: compress.unwrap_or(known.compress),
        key_epoch: known.epoch,
        name: known.name,
        replicas: replicas.unwrap_or(u32::from(known.copies)),
        volume: known.id,
    };
    let (compress, replicas) = (made.compress, made.replicas);
    author(connected).await?.append(Body::Volume(made)).await?;
    match as_json {
        true => {
            let set = json!({ "volume": name, "replicas": replicas, "compress": compress });
            println!("{set}");
        }
        false => {
            let compressed =
                if compress { "compressed where that gains" } else { "not compressed" };
            println!(
                "volume {name}: what is written from now on is kept {replicas} times, {compressed}"
            );
        }
    }
    Ok(())
}

async fn author(connected: &Connected) -> Result<Author<'_>, CliError> {
    let (origin, actor) = (connected.origin(), members::actor(connected).await?);
    Ok(Author { network: &connected.network, origin, actor, principal: &connected.principal })
}

async fn volumes(connected: &Connected) -> Result<Vec<VolumeInfo>, CliError> {
    match connected.network.query(Query::Volumes, DEADLINE).await? {
        Answer::Volumes(volumes) => Ok(volumes),
        _ => Err(CliError::OtherAnswer),
    }
}

async fn named(connected: &Connected, name: &Label) -> Result<VolumeInfo, CliError> {
    let mut volumes = volumes(connected).await?;
    match volumes.iter().position(|known| known.name == *name) {
        Some(at) => Ok(volumes.swap_remove(at)),
        None => {
            let there: Vec<&str> = volumes.iter().map(|known| known.name.as_str()).collect();
            let there = there.join(", ");
            let text = format!("no volume {name} in this network; there are: {there}");
            Err(CliError::Usage(text))
        }
    }
}

pub(super) async fn volume_id(connected: &Connected, name: &Label) -> Result<VolumeId, CliError> {
    Ok(named(connected, name).await?.id)
}
