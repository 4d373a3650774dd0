//! Who one is in a network, and the secrets that one holds.

use super::connect::Connected;
use super::error::CliError;
use crate::founding::Author;
use crate::identity::invite::Invite;
use crate::network::Network;
use crate::volume::roster;
use mictlan::id::{Epoch, Label, VolumeId};
use mictlan::ledger::record::Origin;
use mictlan::ledger::record::body::{Wrap, wrap_info};
use mictlan::seal::{self, KeyRing, Principal};
use mictlan::wire::{Answer, Query};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(30);

/// The name under which the connected principal is known.
pub async fn actor(connected: &Connected) -> Result<Label, CliError> {
    let (roster, _) = roster(&connected.network, DEADLINE).await?;
    let unknown = || CliError::Usage("this key is not known in the network".to_owned());
    roster.owner_of(&connected.principal.id()).cloned().ok_or_else(unknown)
}

/// The volume's secrets up to its epoch, as far as the connected principal has them: those of an
/// epoch that has not begun are given by a removal alone, since they are not for everyone.
pub async fn ring(connected: &Connected, volume: VolumeId) -> Result<KeyRing, CliError> {
    let epoch = epoch_of(connected, volume).await?;
    ring_with_wraps(connected, volume).await?.0.until(epoch).ok_or(CliError::OtherAnswer)
}

/// All of them, those of an epoch that is to begin too, and what was ever wrapped for anybody.
pub async fn ring_with_wraps(
    connected: &Connected,
    volume: VolumeId,
) -> Result<(KeyRing, Vec<Wrap>), CliError> {
    let (roster, wraps) = roster(&connected.network, DEADLINE).await?;
    let actor = roster.owner_of(&connected.principal.id()).cloned();
    let actor = actor.ok_or_else(|| CliError::Usage("this key is not known here".to_owned()))?;
    let ring = opened(&wraps, &roster.origin(), volume, &actor, &connected.principal)?;
    Ok((ring, wraps))
}

/// The key epoch that the volume is in.
pub async fn epoch_of(connected: &Connected, volume: VolumeId) -> Result<Epoch, CliError> {
    let answer = connected.network.query(Query::Volumes, DEADLINE).await?;
    let Answer::Volumes(volumes) = answer else { return Err(CliError::OtherAnswer) };
    let found = volumes.iter().find(|known| known.id == volume).map(|known| known.epoch);
    found.ok_or(CliError::OtherAnswer)
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
