//! `mictlan member` and `key`: who may work where, with which secrets.
//!
//! Owns: the records that these verbs order, and the order in which they do.
//! Invariant: a member is granted a role before the secrets are wrapped for it, so that secrets
//! are never with somebody whose role was refused.

use super::connect::{self, Connected, label};
use super::error::CliError;
use super::volumes::volume_id;
use super::{log, members, runtime};
use crate::config::Paths;
use crate::founding::Author;
use crate::host;
use crate::identity::keyfile::{self, KeyError};
use crate::volume::roster;
use clap::Subcommand;
use mictlan::id::{Epoch, Label, VolumeId};
use mictlan::ledger::record::body::{Body, Disable, Revoke, Role};
use mictlan::seal::{EpochSecrets, KeyRing, Secret};
use mictlan::wire::{Answer, Member, Query};
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use zeroize::Zeroizing;

const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Subcommand)]
pub enum MemberVerb {
    /// List who has which role in a volume.
    Ls {
        #[arg(long, default_value = connect::DEFAULT_VOLUME)]
        volume: String,
        #[arg(long)]
        network: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Give somebody who has joined the network a role in a volume, and its secrets.
    Add {
        name: String,
        /// owner, writer, reader or auditor
        #[arg(long, default_value = "writer")]
        role: String,
        #[arg(long, default_value = connect::DEFAULT_VOLUME)]
        volume: String,
        #[arg(long)]
        network: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Take somebody's role in a volume away; nothing written afterwards is readable to them. What
    /// they may do elsewhere in the network stays: see `disable`.
    Rm {
        name: String,
        #[arg(long, default_value = connect::DEFAULT_VOLUME)]
        volume: String,
        /// Why, for the ledger.
        #[arg(long, default_value = "removed")]
        reason: String,
        #[arg(long)]
        network: Option<String>,
        #[arg(long)]
        json: bool,
    },
    /// Put somebody out of the network for ever: every peer refuses that key from its next request
    /// on, and nothing that it signs is accepted. The name is not given again; what was written
    /// stays. By the network's owner, or by oneself.
    Disable {
        name: String,
        /// Why, for the ledger.
        #[arg(long, default_value = "disabled")]
        reason: String,
        #[arg(long)]
        network: Option<String>,
        #[arg(long)]
        json: bool,
    },
}

#[derive(Subcommand)]
pub enum KeyVerb {
    /// Make a key; its file is NAME, what others may see is NAME.pub.
    New {
        name: String,
        /// Ask for a passphrase that protects the file.
        #[arg(long)]
        passphrase: bool,
        #[arg(long)]
        json: bool,
    },
    /// List the keys of this user.
    Ls {
        #[arg(long)]
        json: bool,
    },
}

pub fn member(verb: MemberVerb) -> Result<ExitCode, CliError> {
    match verb {
        MemberVerb::Ls { volume, network, json: as_json } => {
            let volume = label(&volume)?;
            connected(network, async |connected| list(connected, &volume, as_json).await)
        }
        MemberVerb::Rm { name, volume, reason, network, json: as_json } => {
            let (name, volume) = (label(&name)?, label(&volume)?);
            connected(network, async |connected| {
                let epoch = remove(connected, &name, &volume, reason).await?;
                match as_json {
                    true => println!("{}", json!({ "member": name, "epoch": epoch.0 })),
                    false => {
                        println!("{name} is no member of {volume} from epoch {epoch} on");
                        println!(
                            "next   mictlan member disable {name}   (until then that key still \
                             reads the ledger and appends notes)"
                        );
                    }
                }
                Ok(())
            })
        }
        MemberVerb::Disable { name, reason, network, json: as_json } => {
            let name = label(&name)?;
            connected(network, async |connected| {
                disable(connected, &name, reason).await?;
                match as_json {
                    true => println!("{}", json!({ "disabled": name })),
                    false => {
                        println!("{name} is disabled: every peer refuses that key from now on")
                    }
                }
                Ok(())
            })
        }
        MemberVerb::Add { name, role, volume, network, json: as_json } => {
            let (name, volume, parsed) = (label(&name)?, label(&volume)?, parse_role(&role)?);
            connected(network, async |connected| {
                add(connected, &name, parsed, &volume).await?;
                match as_json {
                    true => println!("{}", json!({ "member": name, "role": role })),
                    false => println!("{name} is {role} of {volume}"),
                }
                Ok(())
            })
        }
    }
}

/// A new epoch: its secrets first, for all who stay, then the record that begins it.
async fn remove(
    connected: &Connected,
    name: &Label,
    volume: &Label,
    reason: String,
) -> Result<Epoch, CliError> {
    let id = volume_id(connected, volume).await?;
    let members = members_of(connected, id).await?;
    if !members.iter().any(|member| member.name == *name) {
        return Err(CliError::Usage(format!(
            "{name} is no member of {volume}; nothing was changed; there are: mictlan member ls"
        )));
    }
    let actor = members::actor(connected).await?;
    let now = members::epoch_of(connected, id).await?;
    let epoch = Epoch(now.0 + 1);
    let (ring, wraps) = members::ring_with_wraps(connected, id).await?;
    let present = ring.until(now).ok_or(CliError::OtherAnswer)?;
    let (going, stay): (Vec<_>, Vec<_>) = members.iter().partition(|one| one.name == *name);
    let early = wraps.iter().filter(|wrap| wrap.volume == id && wrap.key_epoch == epoch);
    let early: Vec<&Label> = early.map(|wrap| &wrap.member).collect();
    // Secrets that an interrupted removal left are as good as new ones, unless they were given to
    // somebody who does not stay.
    let good = early.iter().all(|given| stay.iter().any(|one| one.name == **given));
    let ring = match ring.current().epoch() == epoch && good {
        true => ring,
        false => with_new_secrets(&present, epoch),
    };
    let origin = connected.origin();
    let author =
        Author { network: &connected.network, origin, actor, principal: &connected.principal };
    for member in stay {
        author.wrap(id, &fit_for(&ring, member), &member.name, member.agreement).await?;
    }
    // Whose newest secrets are of the next epoch cannot be removed by its beginning. These are of
    // the present one again; the others, which he has as well, are nobody's any more.
    for member in going.into_iter().filter(|member| early.contains(&&member.name)) {
        author.wrap(id, &fit_for(&present, member), &member.name, member.agreement).await?;
    }
    let (member, volume) = (name.clone(), Some(id));
    author.append(Body::Revoke(Revoke { key_epoch: Some(epoch), member, reason, volume })).await?;
    Ok(epoch)
}

/// A name that is disabled is no member any more, so that no epoch could begin for its going: who
/// can remove it from a volume does that first.
async fn disable(connected: &Connected, name: &Label, reason: String) -> Result<(), CliError> {
    let unchanged = |why: String| Err(CliError::Usage(format!("{why}; nothing was changed")));
    let (roster, _) = roster(&connected.network, DEADLINE).await?;
    if let Err(error) = roster.keys_of(name.as_str()) {
        return unchanged(error.to_string());
    }
    if roster.peers().any(|(_, peer)| peer.name == *name) {
        return unchanged(format!("{name} is a peer of the network, and no member"));
    }
    let actor = members::actor(connected).await?;
    let Answer::Volumes(volumes) = connected.network.query(Query::Volumes, DEADLINE).await? else {
        return Err(CliError::OtherAnswer);
    };
    for volume in volumes {
        let members = members_of(connected, volume.id).await?;
        let here = members.iter().any(|member| member.name == *name);
        let owners = members.iter().filter(|member| member.role == Role::Owner);
        let owners: Vec<&Label> = owners.map(|member| &member.name).collect();
        let volume = volume.name;
        if actor == *name && owners == [name] {
            return unchanged(format!(
                "{name} is the last owner of {volume}; give the role to another first: mictlan \
                 member add OTHER --role owner --volume {volume}"
            ));
        }
        if here && owners.contains(&&actor) {
            return unchanged(format!(
                "{name} is a member of {volume} and has its present secrets; first: mictlan member \
                 rm {name} --volume {volume}"
            ));
        }
    }
    let author = Author {
        network: &connected.network,
        origin: connected.origin(),
        actor,
        principal: &connected.principal,
    };
    author.append(Body::Disable(Disable { name: name.clone(), reason })).await?;
    Ok(())
}

fn with_new_secrets(present: &KeyRing, epoch: Epoch) -> KeyRing {
    let secret = || Secret::from_bytes(host::random());
    let mut ring = present.clone();
    ring.add(EpochSecrets { epoch, meta: secret(), data: Some(secret()) });
    ring
}

fn fit_for(ring: &KeyRing, member: &Member) -> KeyRing {
    match member.role {
        Role::Auditor => ring.without_data(),
        _ => ring.clone(),
    }
}

async fn members_of(connected: &Connected, volume: VolumeId) -> Result<Vec<Member>, CliError> {
    match connected.network.query(Query::Members(volume), DEADLINE).await? {
        Answer::Members(found) => Ok(found),
        _ => Err(CliError::OtherAnswer),
    }
}

async fn list(connected: &Connected, volume: &Label, as_json: bool) -> Result<(), CliError> {
    let id = volume_id(connected, volume).await?;
    for member in members_of(connected, id).await? {
        let role = format!("{:?}", member.role).to_lowercase();
        let (name, key) = (member.name, hex::encode(member.principal.0));
        match as_json {
            true => println!("{}", json!({ "member": name, "role": role, "key": key })),
            false => println!("{name:<20} {role:<8} {key}"),
        }
    }
    Ok(())
}

async fn add(
    connected: &Connected,
    name: &Label,
    role: Role,
    volume: &Label,
) -> Result<(), CliError> {
    let id = volume_id(connected, volume).await?;
    let (roster, _) = roster(&connected.network, DEADLINE).await?;
    let keys = roster.keys_of(name.as_str()).map_err(|error| {
        CliError::Usage(format!("{error}; nothing was changed; to let somebody in: mictlan invite"))
    })?;
    let ring = members::ring(connected, id).await?;
    let ring = if role == Role::Auditor { ring.without_data() } else { ring };
    let actor = members::actor(connected).await?;
    let origin = connected.origin();
    let author =
        Author { network: &connected.network, origin, actor, principal: &connected.principal };
    author.grant(name, role, Some(id)).await?;
    author.wrap(id, &ring, name, keys.agreement).await?;
    Ok(())
}

pub fn key(verb: KeyVerb) -> Result<ExitCode, CliError> {
    let keys = Paths::of_process()?.keys();
    match verb {
        KeyVerb::New { name, passphrase, json: as_json } => {
            let name = label(&name)?;
            let passphrase = if passphrase { Some(ask_twice(&keys, &name)?) } else { None };
            let made = keyfile::generate(&keys, &name, passphrase.as_ref().map(|p| p.as_str()))?;
            let id = hex::encode(made.id().0);
            match as_json {
                true => println!("{}", json!({ "name": name, "key": id })),
                false => println!("key {name} {id} in {}", keys.display()),
            }
        }
        KeyVerb::Ls { json: as_json } => {
            let mut files: Vec<_> = std::fs::read_dir(&keys)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension().is_some_and(|end| end == "pub"))
                .collect();
            files.sort();
            for file in files {
                let (name, public) = keyfile::load_public(&file)?;
                let id = hex::encode(public.signing.0);
                match as_json {
                    true => println!("{}", json!({ "name": name, "key": id })),
                    false => println!("{name:<24} {id}"),
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn ask_twice(keys: &Path, name: &Label) -> Result<Zeroizing<String>, CliError> {
    let ask = |prompt: &str| {
        let said = rpassword::prompt_password(prompt).map(Zeroizing::new);
        said.map_err(|_| KeyError::PassphraseNeeded(keys.join(name.as_str())))
    };
    let first = ask("passphrase: ")?;
    match *first == *ask("the same again: ")? {
        true => Ok(first),
        false => Err(CliError::Usage("the two differ; no key was made".to_owned())),
    }
}

/// Runs `act` on the network and ends it in order, whatever it came to.
pub(super) fn connected(
    network: Option<String>,
    act: impl AsyncFnOnce(&Connected) -> Result<(), CliError>,
) -> Result<ExitCode, CliError> {
    log("warn");
    let network = network.as_deref().map(label).transpose()?;
    runtime()?.block_on(async {
        let connected = connect::connect(network.as_ref(), None).await?;
        let done = act(&connected).await;
        connected.close().await;
        done.map(|()| ExitCode::SUCCESS)
    })
}

fn parse_role(text: &str) -> Result<Role, CliError> {
    Ok(match text {
        "owner" => Role::Owner,
        "writer" => Role::Writer,
        "reader" => Role::Reader,
        "auditor" => Role::Auditor,
        other => {
            let text = format!("--role is owner, writer, reader or auditor, not {other:?}");
            return Err(CliError::Usage(text));
        }
    })
}
