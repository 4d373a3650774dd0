//! Who is who in a network, and the secrets of a volume that are wrapped for this key.
//!
//! Owns: the reading of the records that concern everyone.
//! Invariant: a record counts with its actor's signature alone, checked against those before it.

use super::start::{OpenError, Opening, Start};
use crate::network::Network;
use mictlan::id::{Label, Position, VolumeId};
use mictlan::ledger::record::body::{Body, Wrap, wrap_info};
use mictlan::ledger::record::{Line, Origin};
use mictlan::ledger::roster::Roster;
use mictlan::seal::{self, KeyRing};
use mictlan::wire::{Answer, Follow, Query, Role, VolumeInfo};

/// No volume has this id: a follower that names it gets what concerns everyone.
const NO_VOLUME: VolumeId = VolumeId([0; 16]);

/// Who is who in the network, and whose wraps there are, from the records that concern everyone.
pub async fn roster(
    network: &Network,
    deadline: std::time::Duration,
) -> Opening<(Roster, Vec<Wrap>)> {
    let known = roster_before(network, deadline, Position(u64::MAX)).await?;
    Ok((known.roster, known.wraps))
}

/// What the records that concern everyone say.
pub(super) struct Known {
    pub roster: Roster,
    pub wraps: Vec<Wrap>,
    /// What those before a position said.
    pub before: Roster,
}

pub(super) async fn roster_before(
    network: &Network,
    deadline: std::time::Duration,
    position: Position,
) -> Opening<Known> {
    let mut before = None;
    let mut roster: Option<Roster> = None;
    let mut wraps = Vec::new();
    let mut from = Position(0);
    loop {
        // What comes back concerns everyone, or says who has which secrets.
        let follow = Follow { volume: Some(NO_VOLUME), from, max_bytes: 4 << 20, wait_ms: 0 };
        let page = network
            .voter(deadline, |link| {
                let follow = follow.clone();
                async move { link.follow(follow).await }
            })
            .await?;
        for entry in &page.entries {
            let bad = |why: String| OpenError::Ledger(format!("record {}: {why}", entry.position));
            if before.is_none() && entry.position >= position {
                before.clone_from(&roster);
            }
            let line = Line::parse(&entry.line).map_err(|error| bad(error.to_string()))?;
            roster = Some(match roster {
                None => Roster::genesis(&line.p).map_err(|error| bad(error.to_string()))?,
                Some(mut roster) => {
                    let actor = line.p.actor_label();
                    let key =
                        roster.key_of(actor.as_str()).map_err(|error| bad(error.to_string()))?;
                    if !seal::verify(&key, &line.message(&roster.origin()), &line.sig) {
                        return Err(bad(format!("it is not signed by {actor}")));
                    }
                    let body = line.p.body().map_err(|error| bad(error.to_string()))?;
                    roster.apply(&actor, &body).map_err(|error| bad(error.to_string()))?;
                    if let Body::Wrap(wrap) = body {
                        wraps.push(wrap);
                    }
                    roster
                }
            });
        }
        let done = page.next >= page.head.size;
        from = page.next;
        if done {
            break;
        }
    }
    let roster = roster.ok_or_else(|| OpenError::Ledger("it has no records".to_owned()))?;
    let before = before.unwrap_or_else(|| roster.clone());
    Ok(Known { roster, wraps, before })
}

/// Whether the ledger lets a member change the volume. What somebody gets who is no member at all,
/// the first change tells.
pub(super) async fn may_write(start: &Start, volume: VolumeId, member: &Label) -> Opening<bool> {
    let answer = start.network.query(Query::Members(volume), start.options.deadline).await?;
    let Answer::Members(members) = answer else {
        return Err(OpenError::Ledger("a voter answered another question".to_owned()));
    };
    let role = members.iter().find(|found| found.name == *member).map(|found| found.role);
    Ok(role.is_none_or(|role| matches!(role, Role::Owner | Role::Writer)))
}

/// The volume's secrets of its epoch, from the newest wrap for this key, and those of an epoch that
/// is to begin.
pub(super) fn unwrap_ring(
    start: &Start,
    info: &VolumeInfo,
    origin: &Origin,
    actor: &Label,
    wraps: &[Wrap],
) -> Opening<(KeyRing, Option<KeyRing>)> {
    let volume = &start.volume;
    let no_access = || OpenError::NoAccess { volume: volume.clone(), actor: actor.to_string() };
    // The last record counts, not the highest epoch: whose removal came between others' may have been
    // given secrets of an epoch that then began with other ones.
    let newest = |wanted: &dyn Fn(&Wrap) -> bool| {
        let mine = wraps.iter().filter(|wrap| wrap.volume == info.id && wrap.member == *actor);
        mine.filter(|wrap| wanted(wrap)).last()
    };
    let open = |wrap: &Wrap| {
        let bad = |why: String| OpenError::BadWrap { volume: volume.clone(), why };
        let about = wrap_info(origin, &info.id, wrap.key_epoch, actor);
        let plain = seal::unwrap(&start.principal, &about, &wrap.wrap)
            .map_err(|error| bad(error.to_string()))?;
        KeyRing::decode(&plain).map_err(|error| bad(error.to_string()))
    };
    let ring = open(newest(&|wrap| wrap.key_epoch <= info.epoch).ok_or_else(no_access)?)?;
    if ring.current().epoch() < info.epoch {
        return Err(no_access()); // removed since: the newer secrets are not for this key
    }
    let coming = newest(&|wrap| wrap.key_epoch > info.epoch).map(open).transpose()?;
    Ok((ring, coming))
}
