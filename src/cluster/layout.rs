//! The versioned list of storage peers with their weights and failure domains.
//!
//! Owns: what a layout may hold and how a delta changes it.
//! Never: decides where a chunk lies (`place` does) or who may change the layout.
//! Invariant: a version names one content: a delta applies to exactly the version before its own.

use crate::id::{Label, PeerId};
use crate::ledger::record::body as record;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A weight is a share of the placed chunks, usually the GiB that a peer offers; 0 takes none.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct Weight(pub u64);

/// One storage peer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Member {
    /// 0: it keeps what it has and still answers, but is placed nothing (it is being drained).
    pub weight: Weight,
    /// What fails together: by default the name of its machine.
    pub domain: Label,
}

/// A change of a layout: members put (added or replaced) and removed. A change of none is a
/// version too, since its record may change other things.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Delta {
    pub put: BTreeMap<PeerId, Member>,
    pub remove: Vec<PeerId>,
}

/// Why a delta does not apply. The layout is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    #[error("the change would make layout {version}, and the layout is at {at}; look again")]
    OtherVersion { version: u64, at: u64 },
    #[error("peer {0} is not in the layout")]
    NoSuchPeer(PeerId),
    #[error("peer {0} is both put and removed")]
    PutAndRemoved(PeerId),
    #[error("a layout has at most {PEERS_MAX} peers")]
    TooMany,
    #[error("peer {0}: a failure domain is a name [a-z0-9][a-z0-9._-]{{0,62}}")]
    BadDomain(PeerId),
    #[error("peer {0}: the weight is at least 1")]
    NoWeight(PeerId),
}

impl Delta {
    /// What a `net.layout` record changes in placement.
    pub fn of(record: &record::Layout) -> Result<Self, LayoutError> {
        let mut put = BTreeMap::new();
        for set in &record.set {
            let domain = Label::parse(&set.domain).ok_or(LayoutError::BadDomain(set.peer))?;
            if set.weight == 0 {
                return Err(LayoutError::NoWeight(set.peer));
            }
            put.insert(set.peer, Member { weight: Weight(set.weight), domain });
        }
        Ok(Self { put, remove: record.remove.clone() })
    }
}

/// Placement scores every peer for every chunk, so their number is bounded.
pub const PEERS_MAX: usize = 1024;

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Layout {
    version: u64,
    members: BTreeMap<PeerId, Member>,
}

impl Layout {
    /// Version 0, without peers.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every storage peer, by number, drained ones too.
    pub fn members(&self) -> impl Iterator<Item = (PeerId, &Member)> {
        self.members.iter().map(|(peer, member)| (*peer, member))
    }

    pub fn member(&self, peer: PeerId) -> Option<&Member> {
        self.members.get(&peer)
    }

    /// How many peers chunks are placed on.
    pub fn placed_peers(&self) -> usize {
        self.members.values().filter(|member| member.weight > Weight(0)).count()
    }

    /// The layout `version`, which must be the next one.
    pub fn change(&self, version: u64, delta: &Delta) -> Result<Self, LayoutError> {
        if Some(version) != self.version.checked_add(1) {
            return Err(LayoutError::OtherVersion { version, at: self.version });
        }
        let mut members = self.members.clone();
        for peer in &delta.remove {
            if delta.put.contains_key(peer) {
                return Err(LayoutError::PutAndRemoved(*peer));
            }
            members.remove(peer).ok_or(LayoutError::NoSuchPeer(*peer))?;
        }
        members.extend(delta.put.iter().map(|(peer, member)| (*peer, member.clone())));
        if members.len() > PEERS_MAX {
            return Err(LayoutError::TooMany);
        }
        Ok(Self { version, members })
    }

    /// The same layout where `drained` peers are placed nothing; they still answer.
    pub fn without_weight(&self, drained: impl Fn(PeerId) -> bool) -> Self {
        let mut out = self.clone();
        for (peer, member) in &mut out.members {
            if drained(*peer) {
                member.weight = Weight(0);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(peer: u64, weight: u64, domain: &str) -> Delta {
        let domain = Label::parse(domain).expect("a label");
        let member = Member { weight: Weight(weight), domain };
        Delta { put: [(PeerId(peer), member)].into(), remove: vec![] }
    }

    #[test]
    fn a_delta_applies_to_the_version_before_its_own_only() {
        let one = Layout::new().change(1, &put(1, 10, "attic")).expect("added");
        let two = one.change(2, &put(2, 7, "cellar")).expect("added");
        assert_eq!((two.version(), two.members().count(), two.placed_peers()), (2, 2, 2));
        assert_eq!(two.without_weight(|peer| peer == PeerId(2)).placed_peers(), 1);
        for version in [0, 1, 3] {
            let other = one.change(version, &put(2, 1, "cellar"));
            assert_eq!(other, Err(LayoutError::OtherVersion { version, at: 1 }));
        }
    }

    #[test]
    fn only_members_are_removed_and_not_while_they_are_put() {
        let one = Layout::new().change(1, &put(1, 10, "attic")).expect("added");
        let gone = Delta { remove: vec![PeerId(1)], ..Delta::default() };
        assert_eq!(one.change(2, &gone).map(|l| l.members().count()), Ok(0));
        let stranger = Delta { remove: vec![PeerId(9)], ..Delta::default() };
        assert_eq!(one.change(2, &stranger), Err(LayoutError::NoSuchPeer(PeerId(9))));
        let both = Delta { remove: vec![PeerId(1)], ..put(1, 2, "attic") };
        assert_eq!(one.change(2, &both), Err(LayoutError::PutAndRemoved(PeerId(1))));
    }

    #[test]
    fn a_record_says_domain_and_weight_or_is_refused() {
        let set = |domain: &str, weight| {
            let peer = record::LayoutPeer { domain: domain.to_owned(), peer: PeerId(4), weight };
            record::Layout { faults: None, remove: vec![], set: vec![peer], version: 1 }
        };
        assert_eq!(Delta::of(&set("attic", 10)), Ok(put(4, 10, "attic")));
        assert_eq!(Delta::of(&set("Attic!", 10)), Err(LayoutError::BadDomain(PeerId(4))));
        assert_eq!(Delta::of(&set("attic", 0)), Err(LayoutError::NoWeight(PeerId(4))));
    }
}
