//! The *void* rule: a commit changes nothing that its tags do not say.
//!
//! Owns: what each change must have among its write and add tags, and which payloads are void.
//! Never: asks the state; every follower judges by the payload, its tags and its links alone,
//! with `fresh` as the one question about the past: is this number of the session's own block (or
//! of one that it succeeds), and was no inode ever put under it.
//! Invariant: a payload that passes conflicts, by its tags, with whatever it could disturb.
//!
//! "A" is a write tag or an add tag, "W" a write tag; a row needs all that it names.
//!
//! | change | needs |
//! |---|---|
//! | put or delete a dirent | W name(dir, name) · A children(dir) |
//! | range of dirents | void |
//! | put or delete an extent | W data(ino); or A data(ino) · W bucket(ino, b), the extent within b |
//! | range of extents, of one file | W data(ino); or A data(ino) · W of every bucket it reaches |
//! | put or delete an attribute, range of a file's attributes | W attr(ino) |
//! | put an inode | it is fresh (an existing one is changed by merges only) |
//! | delete an inode | W exists · W attr · W links · W data, all of it |
//! | merge size: max; merge held bytes | A data |
//! | merge size: set | W data |
//! | merge atime, mtime | A data, A children or W attr |
//! | merge ctime | A data, A children, W attr or W links |
//! | merge mode, uid, gid | W attr |
//! | merge mode: kill privileges | A data or W attr |
//! | merge nlink | A children or W links |
//! | merge home | W links |
//! | put or delete an orphan | W links(ino) |
//! | merge a counter | nothing: sums conflict with nobody |
//! | put or delete a counter | void |
//! | put or delete a setting | W attr(root) |
//! | any other range | void |
//!
//! Extents and attributes of an inode that the same payload puts need no tag: nobody else can
//! know its number yet. Its dirents do, since another commit may act on the directory right after.

use crate::codec::DecodeError;
use crate::file::BUCKET;
use crate::id::{ChunkId, Ino};
use crate::meta::inode::{InodeMerge, ModeChange, SizeChange};
use crate::meta::key::{Key, KeyBytes};
use crate::meta::payload;
use crate::meta::tag::{Fact, TAGS_MAX, TagList};
use crate::meta::value::Value;
use crate::meta::write::{Change, Merge, WriteSet};

/// Why a payload is void: it is skipped by every follower, and its author is named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Void {
    #[error("the payload is malformed: {0}")]
    Malformed(#[from] DecodeError),
    #[error("the payload changes {0:?}, which its tags do not cover")]
    Key(Key),
    #[error("the payload deletes a range that its tags do not cover")]
    Range,
    #[error("the payload's links are not the chunks that it refers to")]
    Links,
}

/// What a payload changes, or why it is void. `links` are those in its chunk's header.
pub fn judge(
    bytes: &[u8],
    chunk_links: &[ChunkId],
    tags: &TagList,
    tag_key: &[u8; 32],
    fresh: impl Fn(Ino) -> bool,
) -> Result<WriteSet, Void> {
    let writes = payload::decode(bytes)?;
    if payload::links(&writes) != chunk_links {
        return Err(Void::Links);
    }
    covered(&writes, tags, tag_key, fresh)?;
    Ok(writes)
}

/// Whether `tags` say all that `writes` change.
pub fn covered(
    writes: &WriteSet,
    tags: &TagList,
    tag_key: &[u8; 32],
    fresh: impl Fn(Ino) -> bool,
) -> Result<(), Void> {
    let cover = Cover { writes, tags, tag_key };
    for (from, to) in writes.ranges() {
        if !cover.range(from, to) {
            return Err(Void::Range);
        }
    }
    for (key, change) in writes.changes() {
        let key: &KeyBytes = key;
        let key = key.key();
        if !cover.change(&key, change, &fresh) {
            return Err(Void::Key(key));
        }
    }
    Ok(())
}

struct Cover<'a> {
    writes: &'a WriteSet,
    tags: &'a TagList,
    tag_key: &'a [u8; 32],
}

impl Cover<'_> {
    fn written(&self, fact: Fact) -> bool {
        self.tags.is_written(fact.tag(self.tag_key))
    }

    fn added(&self, fact: Fact) -> bool {
        let tag = fact.tag(self.tag_key);
        self.tags.is_added(tag) || self.tags.is_written(tag)
    }

    /// Whether this payload is where the inode begins; that it may is checked at its own key.
    fn begins(&self, ino: Ino) -> bool {
        matches!(self.writes.get(&Key::Inode(ino).encode()), Some(Change::Put(_)))
    }

    fn change(&self, key: &Key, change: &Change, fresh: &impl Fn(Ino) -> bool) -> bool {
        match (key, change) {
            (Key::Inode(ino), Change::Put(_)) => fresh(*ino),
            (Key::Inode(ino), Change::Delete) => {
                let ino = *ino;
                let facts = [Fact::Exists(ino), Fact::Attr(ino), Fact::Links(ino), Fact::Data(ino)];
                facts.into_iter().all(|fact| self.written(fact))
            }
            (Key::Inode(ino), Change::Merge(Merge::Inode(merge))) => self.fields(*ino, merge),
            (Key::Dirent { dir, name, .. }, Change::Put(_) | Change::Delete) => {
                self.written(Fact::Name(*dir, name.clone())) && self.added(Fact::Children(*dir))
            }
            (Key::Extent { ino, offset }, Change::Put(Value::Extent(extent))) => {
                let inside = offset % BUCKET + u64::from(extent.len) <= BUCKET;
                inside && (self.begins(*ino) || self.buckets(*ino, *offset, offset + 1))
            }
            (Key::Extent { ino, offset }, Change::Delete) => {
                self.begins(*ino) || self.buckets(*ino, *offset, offset.saturating_add(1))
            }
            (Key::Xattr { ino, .. }, Change::Put(_) | Change::Delete) => {
                self.begins(*ino) || self.written(Fact::Attr(*ino))
            }
            (Key::Orphan(ino), Change::Put(_) | Change::Delete) => self.written(Fact::Links(*ino)),
            (Key::Counter(_), Change::Merge(Merge::Counter(_))) => true,
            (Key::Setting(_), Change::Put(_) | Change::Delete) => {
                self.written(Fact::Attr(Ino::ROOT))
            }
            _ => false,
        }
    }

    /// Whether what begins in `[from, to)` of a file may change.
    fn buckets(&self, ino: Ino, from: u64, to: u64) -> bool {
        if self.written(Fact::Data(ino)) {
            return true;
        }
        let buckets = from / BUCKET..=(to - 1) / BUCKET;
        // More buckets than a commit can have tags are not all tagged; nobody counts to 2^44.
        buckets.end() - buckets.start() < TAGS_MAX as u64
            && self.added(Fact::Data(ino))
            && buckets.into_iter().all(|bucket| self.written(Fact::Bucket(ino, bucket)))
    }

    fn range(&self, from: &[u8], to: &[u8]) -> bool {
        let number = |bytes: &[u8]| bytes.try_into().map(u64::from_be_bytes).ok();
        let Some(ino) = from.get(1..9).and_then(number) else { return false };
        let next = to.get(1..9).and_then(number);
        let here = Ino(ino);
        let whole = to.len() == 9 && to[0] == from[0] && next == ino.checked_add(1);
        match (from[0], from.len()) {
            (b'x', 9) => whole && (self.begins(here) || self.written(Fact::Attr(here))),
            (b'e', 17) => {
                let start = number(&from[9..]).expect("eight bytes");
                let end = if whole {
                    u64::MAX
                } else if to.len() == 17 && to[..9] == from[..9] {
                    number(&to[9..]).expect("eight bytes")
                } else {
                    return false;
                };
                self.begins(here) || self.buckets(here, start, end)
            }
            _ => false,
        }
    }

    fn fields(&self, ino: Ino, merge: &InodeMerge) -> bool {
        let data = || self.added(Fact::Data(ino));
        let children = || self.added(Fact::Children(ino));
        let attr = || self.written(Fact::Attr(ino));
        let links = || self.written(Fact::Links(ino));
        let size = match merge.size {
            None => true,
            Some(SizeChange::Max(_)) => data(),
            Some(SizeChange::Set(_)) => self.written(Fact::Data(ino)),
        };
        let bytes = merge.bytes == 0 || data();
        let mode = match merge.mode {
            None => true,
            Some(ModeChange::Set(_)) => attr(),
            Some(ModeChange::KillPrivileges) => attr() || data(),
        };
        let times = merge.atime.is_none() && merge.mtime.is_none();
        let owner = merge.uid.is_none() && merge.gid.is_none();
        size && bytes
            && mode
            && (times || data() || children() || attr())
            && (merge.ctime.is_none() || data() || children() || attr() || links())
            && (owner || attr())
            && (merge.nlink == 0 || children() || links())
            && (merge.home.is_none() || links())
    }
}
