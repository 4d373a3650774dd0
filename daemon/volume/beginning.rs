//! Where a volume that comes up begins in the log.
//!
//! Owns: the newest root that can be had, and who may say so; and what is known before it.
//! Never: rests on a root that no member signed, or that is not the tree its record names.
//! Invariant: a root of which the first chunk is lost keeps nobody out: the one before it takes its
//! place, or the first commit, with the commits since.

use super::belief::Belief;
use super::secrets::{Known, may_write, roster_before};
use super::start::{Held, OpenError, Opening, Start, other_answer};
use crate::chunks::GetError;
use mictlan::hash;
use mictlan::id::{LedgerHash, Position, VolumeId};
use mictlan::ledger::merkle;
use mictlan::ledger::record::Line;
use mictlan::ledger::record::body::Body;
use mictlan::ledger::roster::Roster;
use mictlan::meta::tree::{Node, NodeRef, Tree};
use mictlan::seal;
use mictlan::wire::{Answer, Follow, Query, RootInfo, VolumeInfo};

/// A view before the log from `next` on is applied to it.
pub(super) struct Beginning {
    pub held: Held,
    /// The map at `position`.
    pub tree: Tree,
    pub position: Position,
    pub next: Position,
    /// Whose keys count before `next`; the records from there on change it once more, in order.
    pub roster: Roster,
    pub belief: Belief,
    /// The ledger lets this key read, and no more.
    pub reads: bool,
}

/// The beginning at the root that `info` names, or at the newest one before it that is not lost.
/// `size`: as far as the log is proven, where it is not asked for from a quorum.
pub(super) async fn beginning(
    start: &Start,
    info: &mut VolumeInfo,
    size: Option<Position>,
) -> Opening<Beginning> {
    loop {
        match try_to_begin(start, info, size).await {
            Err(OpenError::RootLost { record, why }) => {
                tracing::warn!(%record, %why, "the newest root of the volume is lost; nothing \
                    else is: this mount begins at an older one, or with the first commit, and \
                    that takes longer");
                info.root = root_before(start, info.id, record).await?;
            }
            begun => return begun,
        }
    }
}

async fn try_to_begin(
    start: &Start,
    info: &VolumeInfo,
    size: Option<Position>,
) -> Opening<Beginning> {
    let next = applied_at_start(info);
    let Known { roster, wraps, before } =
        roster_before(&start.network, start.options.deadline, next).await?;
    let held = Held::of(start, info, &roster, &wraps)?;
    let reads = size.is_none()
        && !start.options.read_only
        && !may_write(start, info.id, &held.actor).await?;
    let belief = Belief::new(start.ledger.clone(), size, reads);
    if let Some(root) = &info.root {
        let leaf = check_root(start, info.id, root, &roster).await?;
        belief.applied(root.record, leaf, false);
    }
    let (tree, position) = tree_of(start, info, &held).await?;
    Ok(Beginning { held, tree, position, next, roster: before, belief, reads })
}

/// The newest root that a record before `record` names.
async fn root_before(
    start: &Start,
    volume: VolumeId,
    record: Position,
) -> Opening<Option<RootInfo>> {
    let answer = start.network.query(Query::Roots(volume), start.options.deadline).await?;
    let Answer::Roots(roots) = answer else { return Err(other_answer()) };
    let older = roots.into_iter().filter(|root| root.record < record);
    Ok(older.max_by_key(|root| root.record))
}

/// Where a view begins: after its newest root, or with the record that made the volume.
fn applied_at_start(info: &VolumeInfo) -> Position {
    info.root.as_ref().map_or(info.made, |root| Position(root.position.0 + 1))
}

/// The newest root's tree and the position it stands for; a young volume has none, and begins
/// empty before the record that made it.
async fn tree_of(start: &Start, info: &VolumeInfo, held: &Held) -> Opening<(Tree, Position)> {
    match &info.root {
        Some(root) => {
            let node = root_node(start, root, held).await?;
            Ok((Tree::new(node, held.nodes.clone()), root.position))
        }
        None => Ok((held.empty_tree(), before(info.made))),
    }
}

/// Where the map is empty: just before the record that made the volume.
pub(super) fn before(made: Position) -> Position {
    Position(made.0.saturating_sub(1))
}

/// A peer's word for the newest root counts only with the record that a member signed: otherwise
/// an old root could be passed off as a newer one, and the commits between would be gone unseen. The record's leaf comes back, to be found in the verified log.
async fn check_root(
    start: &Start,
    volume: VolumeId,
    root: &RootInfo,
    roster: &Roster,
) -> Opening<LedgerHash> {
    let follow = Follow { volume: Some(volume), from: root.record, max_bytes: 1, wait_ms: 0 };
    let page = start
        .network
        .voter(start.options.deadline, |link| {
            let follow = follow.clone();
            async move { link.follow(follow).await }
        })
        .await?;
    let bad = |why: &str| OpenError::Ledger(format!("record {}: {why}", root.record));
    let entry = page.entries.first().filter(|entry| entry.position == root.record);
    let entry = entry.ok_or_else(|| bad("the peer that named it as a root does not show it"))?;
    let line = Line::parse(&entry.line).map_err(|error| bad(&error.to_string()))?;
    let key = roster.key_of(line.p.actor).map_err(|error| bad(&error.to_string()))?;
    let signed = seal::verify(&key, &line.message(&roster.origin()), &line.sig);
    let named = match line.p.body() {
        Ok(Body::Root(body)) => {
            (body.volume, body.position, body.address, body.identity, body.key_epoch)
                == (volume, root.position, root.address, root.identity, root.epoch)
        }
        _ => false,
    };
    match signed && named && line.i == root.record {
        true => Ok(merkle::leaf(&entry.line)),
        false => Err(bad("it is not the root that a peer said it is")),
    }
}

async fn root_node(start: &Start, root: &RootInfo, held: &Held) -> Opening<NodeRef> {
    let Held { ring, keys, nodes, .. } = held;
    let lost = |why: String| OpenError::RootLost { record: root.record, why };
    let no_key = || OpenError::Root(format!("no key of epoch {} here", root.epoch));
    let epoch = ring.epoch(root.epoch).ok_or_else(no_key)?;
    let opened = start.chunks.open(ring, root.address, start.options.deadline).await;
    let plain = opened.map_err(|error| match error {
        // It may be on a peer that is away, and an older root would be longer to read.
        GetError::NotInTime { .. } => OpenError::Root(error.to_string()),
        GetError::NoGoodCopy { .. } | GetError::NotOpened { .. } => lost(error.to_string()),
    })?;
    let another = |why: String| lost(format!("chunk {}: {why}", root.address));
    let node = Node::decode(plain.to_vec()).map_err(|error| another(error.to_string()))?;
    let identity = node.identity(keys);
    if hash::keyed(epoch.root_key(), &[&identity.0]) != root.identity {
        return Err(another("it is not the tree that its record names".to_owned()));
    }
    let named = NodeRef { identity, address: root.address };
    nodes.insert(named, node);
    Ok(named)
}
