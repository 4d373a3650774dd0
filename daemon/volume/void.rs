//! What a commit's payload changes, or why it is void.
//!
//! Owns: everything that is checked of a payload, and the memory of those that are void.
//! Invariant: a payload that is missing is never void; one that is void is void for everyone, by
//! a pure rule over the log.

use super::Volume;
use super::follow::FollowError;
use mictlan::hash;
use mictlan::id::{Ino, Label, Position, SessionId};
use mictlan::ledger::record::body::Commit;
use mictlan::meta::cover;
use mictlan::meta::key::Key;
use mictlan::meta::tag::TagList;
use mictlan::meta::tree::NodeError;
use mictlan::meta::value::Value;
use mictlan::meta::view::View;
use mictlan::meta::write::WriteSet;
use mictlan::seal::{self, KeyRing, Kind, Opened};
use mictlan::wire::Followed;
use std::cell::Cell;
use std::collections::HashSet;
use std::sync::MutexGuard;

/// A payload that is void, for everyone who follows the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Void {
    pub record: Position,
    pub by: Label,
    pub why: String,
}

/// The first of them; a hostile writer could make more than memory holds.
#[derive(Debug, Clone, Default)]
pub struct Voids {
    pub first: Vec<Void>,
    pub more: u64,
}

const VOIDS_MAX: usize = 1_000;

impl Voids {
    pub(super) fn add(&mut self, void: Void) {
        match self.first.len() < VOIDS_MAX {
            true => self.first.push(void),
            false => self.more += 1,
        }
    }
}

impl Volume {
    pub(super) fn voids(&self) -> MutexGuard<'_, Voids> {
        self.voids.lock().expect("nothing panics while it is locked")
    }

    /// Whether this mount applied the record and found it void; of an older one it does not know.
    pub(super) fn is_known_void(&self, record: Position) -> bool {
        self.voids().first.iter().any(|void| void.record == record)
    }

    /// The write set of another session's commit, or why it is void.
    pub(super) async fn open_payload(
        &self,
        at: Position,
        commit: &Commit,
        entry: &Followed,
    ) -> Result<Result<WriteSet, String>, FollowError> {
        let chunk = commit.payload.b3;
        let sealed = match &entry.payload {
            // Whatever else the voter shows says nothing of the payload that was signed.
            Some(bytes) if hash::address(bytes) == chunk => bytes.clone().into(),
            _ => self
                .chunks
                .get(chunk, self.options.deadline)
                .await
                .map_err(|error| FollowError::Missing { at, chunk, why: error.to_string() })?,
        };
        let ring = self.ring();
        let Some(keys) = ring.epoch(commit.key_epoch) else {
            return Err(FollowError::NoKey { at, epoch: commit.key_epoch });
        };
        let tags = entry.tags.as_deref().map(TagList::decode).transpose().ok().flatten();
        let tags = tags.filter(|tags| tags.b3() == commit.tags.b3);
        let Some(tags) = tags else { return Err(FollowError::OtherTags { at }) };
        let opened = match open(&ring, commit, &sealed) {
            Ok(opened) => opened,
            Err(why) => return Ok(Err(why)),
        };
        loop {
            let verdict = {
                let core = self.core();
                let missing = Cell::new(None);
                let fresh = |ino: Ino| {
                    let looked = may_begin(&core.view, commit.session, ino);
                    looked.unwrap_or_else(|error| {
                        missing.set(Some(error));
                        false
                    })
                };
                let links = &opened.header.links;
                let verdict = cover::judge(&opened.plaintext, links, &tags, keys.tag_key(), fresh);
                match missing.into_inner() {
                    Some(error) => Err(error),
                    None => Ok(verdict),
                }
            };
            match verdict {
                Ok(judged) => return Ok(judged.map_err(|why| why.to_string())),
                Err(NodeError::Missing(node)) => self.fetch_node(node).await.map_err(|error| {
                    FollowError::Missing { at, chunk: node.address, why: error.to_string() }
                })?,
                Err(NodeError::Broken(node)) => {
                    let why = "it contradicts the node that refers to it".to_owned();
                    return Err(FollowError::Missing { at, chunk: node.address, why });
                }
            }
        }
    }
}

/// The payload of a commit from its chunk's bytes, or why it is void. What one member can open and
/// another cannot is void for both: a chunk of the data family, or of another epoch than the
/// record's.
pub(super) fn open(ring: &KeyRing, commit: &Commit, sealed: &[u8]) -> Result<Opened, String> {
    let opened = seal::open(ring, commit.payload.b3, sealed).map_err(|error| error.to_string())?;
    let (kind, epoch) = (opened.header.kind, opened.header.epoch);
    match (kind, epoch == commit.key_epoch) {
        (Kind::Payload, true) => Ok(opened),
        (Kind::Payload, false) => Err(format!("the payload is sealed in epoch {epoch}")),
        (kind, _) => Err(format!("the payload is sealed as a chunk of kind {}", kind as u8)),
    }
}

/// Whether an inode may begin in a commit of `session`: its number is the session's own, or of one
/// whose place it took, and no inode has it. What was not committed from here must not matter: it
/// is the same question for everybody.
fn may_begin(view: &View, session: SessionId, ino: Ino) -> Result<bool, NodeError> {
    let Some(granted) = ino.session() else { return Ok(false) };
    let its_own = has_place_of(view, session, granted)?;
    Ok(its_own && view.committed(&Key::Inode(ino))?.is_none())
}

/// Whether `session` is `other`, or went on in its place. It took that place before it committed
/// anything, so this holds for all its commits.
pub(super) fn has_place_of(
    view: &View,
    session: SessionId,
    other: SessionId,
) -> Result<bool, NodeError> {
    let (mut of, mut seen) = (session, HashSet::new());
    while of != other {
        match view.committed(&Key::Heir(of))? {
            Some(Value::Heir(earlier)) if seen.insert(earlier) => of = earlier,
            _ => return Ok(false),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::nodes::empty_tree;
    use mictlan::meta::inode::{FileKind, Inode, Stamp};
    use mictlan::meta::tree::{NodeCache, TreeKeys};
    use std::sync::Arc;

    fn view() -> View {
        let tree =
            empty_tree(&TreeKeys::new(&[1; 32], &[2; 32]), &Arc::new(NodeCache::new(1 << 20)));
        View::new(tree, Position(0))
    }

    fn put(key: Key, value: Value) -> WriteSet {
        let mut writes = WriteSet::new();
        writes.put(key, value);
        writes
    }

    fn inode() -> Inode {
        let at = Stamp::default();
        Inode {
            kind: FileKind::File,
            mode: 0o600,
            uid: 0,
            gid: 0,
            nlink: 1,
            size: 0,
            bytes: 0,
            atime: at,
            mtime: at,
            ctime: at,
            btime: at,
            rdev: 0,
            home: Ino::ROOT,
            target: Box::default(),
        }
    }

    fn may(view: &View, session: u32, ino: Ino) -> bool {
        may_begin(view, SessionId(session), ino).expect("all nodes are there")
    }

    #[test]
    fn whether_an_inode_may_begin_is_not_decided_by_what_is_not_committed_here() {
        let (mut view, ino) = (view(), Ino::of(SessionId(5), 1));
        assert!(may(&view, 5, ino) && !may(&view, 6, ino));
        let inode = inode();
        let made = Arc::new(put(Key::Inode(ino), Value::Inode(inode)));
        view.push_local(1, made.clone());
        view.push_local(2, Arc::new(put(Key::Heir(SessionId(6)), Value::Heir(SessionId(5)))));
        assert!(may(&view, 5, ino) && !may(&view, 6, ino), "others do not see it");
        view.commit_local(1, Position(1));
        assert!(!may(&view, 5, ino), "it is there");
        let mut gone = WriteSet::new();
        gone.delete(Key::Inode(ino));
        view.push_local(3, Arc::new(gone));
        assert!(!may(&view, 5, ino), "for others it is");
    }

    #[test]
    fn an_heir_has_the_places_of_all_before_it_and_of_nobody_else() {
        let mut view = view();
        for (at, (heir, earlier)) in (1..).zip([(3, 2), (5, 3), (7, 8), (8, 7)]) {
            let writes = put(Key::Heir(SessionId(heir)), Value::Heir(SessionId(earlier)));
            view.apply(Position(at), &writes);
        }
        for (session, other, has) in
            [(5, 5, true), (5, 3, true), (5, 2, true), (2, 5, false), (5, 4, false), (7, 9, false)]
        {
            let answer = has_place_of(&view, SessionId(session), SessionId(other));
            assert_eq!(answer.expect("all nodes are there"), has, "{session} of {other}");
        }
    }
}
