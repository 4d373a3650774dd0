//! Who one is in a network, and the secrets that one holds.

use super::connect::Connected;
use super::error::CliError;
use crate::founding::Author;
use crate::identity::invite::Invite;
use crate::network::Network;
use crate::volume::roster;
use mictlan::id::{Label, VolumeId};
use mictlan::ledger::record::Origin;
use mictlan::ledger::record::body::{Wrap, wrap_info};
use mictlan::seal::{self, KeyRing, Principal};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

/// The name under which the connected principal is known.
pub async fn actor(connected: &Connected) -> Result<Label, CliError> {
    let (roster, _) = roster(&connected.network, DEADLINE).await?;
    let unknown = || CliError::Usage("this key is not known in the network".to_owned());
    roster.owner_of(&connected.principal.id()).cloned().ok_or_else(unknown)
}

/// The volume's secrets, as far as the connected principal has them.
pub async fn ring(connected: &Connected, volume: VolumeId) -> Result<KeyRing, CliError> {
    let (roster, wraps) = roster(&connected.network, DEADLINE).await?;
    let actor = roster.owner_of(&connected.principal.id()).cloned();
    let actor = actor.ok_or_else(|| CliError::Usage("this key is not known here".to_owned()))?;
    opened(&wraps, &roster.origin(), volume, &actor, &connected.principal)
}

fn opened(
    wraps: &[Wrap],
    origin: &Origin,
    volume: VolumeId,
    member: &Label,
    principal: &Principal,
) -> Result<KeyRing, CliError> {
    let mine = wraps.iter().filter(|wrap| wrap.volume == volume && wrap.member == *member);
    let none =
        || CliError::Usage(format!("the secrets of volume {volume} are not wrapped for {member}"));
    let wrap = mine.max_by_key(|wrap| wrap.key_epoch).ok_or_else(none)?;
    let info = wrap_info(origin, &volume, wrap.key_epoch, member);
    let plain = seal::unwrap(principal, &info, &wrap.wrap)
        .map_err(|error| CliError::Usage(error.to_string()))?;
    KeyRing::decode(&plain).map_err(|error| CliError::Usage(error.to_string()))
}

/// A newcomer wraps what waits for the invite's key for its own: the invite's secret is worth
/// nothing afterwards.
pub async fn take_over(
    network: &Network,
    invite: &Invite,
    name: &Label,
    principal: &Principal,
) -> Result<(), CliError> {
    let (roster, wraps) = roster(network, DEADLINE).await?;
    let origin = roster.origin();
    let waiting: Vec<VolumeId> =
        wraps.iter().filter(|wrap| wrap.member == invite.actor()).map(|wrap| wrap.volume).collect();
    let author = Author { network, origin: origin.clone(), actor: name.clone(), principal };
    for volume in waiting {
        let ring = opened(&wraps, &origin, volume, &invite.actor(), &invite.principal())?;
        author.wrap(volume, &ring, name, principal.public().agreement).await?;
    }
    Ok(())
}
