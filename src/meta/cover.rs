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
//! | put or delete an heir | void: a fence does that |
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Extent;
    use crate::id::{Name, SessionId};
    use crate::meta::inode::tests::plain_file;
    use crate::meta::inode::{FileKind, Stamp};
    use crate::meta::key::Span;
    use crate::meta::tag::Facts;

    const KEY: [u8; 32] = [9; 32];
    const OLD: Ino = Ino(1 << 32 | 1);
    const NEW: Ino = Ino(7 << 32 | 1);

    fn name(n: &str) -> Name {
        Name::parse(n.as_bytes()).expect("good")
    }

    fn inode() -> Value {
        Value::Inode(plain_file())
    }

    fn extent(ino: Ino, offset: u64, len: u32) -> (Key, Value) {
        let chunk = ChunkId([3; 32]);
        let extent = Extent { offset, len, chunk, at: 0, packed: None };
        (Key::Extent { ino, offset }, Value::Extent(extent))
    }

    fn is_covered(writes: &WriteSet, wrote: &[Fact], added: &[Fact]) -> bool {
        let facts = Facts {
            writes: wrote.iter().cloned().collect(),
            adds: added.iter().cloned().collect(),
            ..Facts::default()
        };
        let tags = facts.tags(&KEY).expect("few");
        covered(writes, &tags, &KEY, |ino| ino == NEW).is_ok()
    }

    /// Covered by all of these facts, and by no fewer; nor by those of another inode.
    fn check(build: impl Fn(&mut WriteSet), wrote: &[Fact], added: &[Fact]) {
        let mut writes = WriteSet::new();
        build(&mut writes);
        assert!(is_covered(&writes, wrote, added), "{writes:?}");
        let all_written: Vec<Fact> = wrote.iter().chain(added).cloned().collect();
        assert!(
            is_covered(&writes, &all_written, &[]),
            "a write says more than an add: {writes:?}"
        );
        for i in 0..wrote.len() {
            let mut fewer = wrote.to_vec();
            let gone = fewer.remove(i);
            assert!(!is_covered(&writes, &fewer, added), "without {gone:?}: {writes:?}");
            let weaker = [added, std::slice::from_ref(&gone)].concat();
            assert!(!is_covered(&writes, &fewer, &weaker), "only added {gone:?}: {writes:?}");
        }
        for i in 0..added.len() {
            let mut fewer = added.to_vec();
            let gone = fewer.remove(i);
            assert!(!is_covered(&writes, wrote, &fewer), "without {gone:?}: {writes:?}");
        }
    }

    fn never(build: impl Fn(&mut WriteSet)) {
        let mut writes = WriteSet::new();
        build(&mut writes);
        let of = |ino| {
            let buckets = (0..3).map(move |b| Fact::Bucket(ino, b));
            let rest = [Fact::Exists(ino), Fact::Children(ino), Fact::Data(ino)];
            buckets.chain(rest).chain([
                Fact::Attr(ino),
                Fact::Links(ino),
                Fact::Name(ino, name("a")),
            ])
        };
        let all: Vec<Fact> =
            [Ino::ROOT, OLD, NEW].into_iter().flat_map(of).chain([Fact::DirMove]).collect();
        assert!(!is_covered(&writes, &all, &[]), "{writes:?}");
    }

    #[test]
    fn a_dirent_needs_its_name_and_its_directory() {
        let key = Key::Dirent { dir: OLD, hash: 5, name: name("a") };
        let value = Value::Dirent { ino: NEW, kind: FileKind::File };
        let facts = [Fact::Name(OLD, name("a"))];
        check(|w| w.put(key.clone(), value.clone()), &facts, &[Fact::Children(OLD)]);
        check(|w| w.delete(key.clone()), &facts, &[Fact::Children(OLD)]);
        never(|w| w.delete_span(Span::children(OLD)));
        let other = Key::Dirent { dir: OLD, hash: 5, name: name("b") };
        never(|w| w.delete(other.clone()));
    }

    #[test]
    fn an_extent_needs_its_file_or_its_bucket() {
        let (key, value) = extent(OLD, BUCKET + 5, 10);
        let bucket = [Fact::Bucket(OLD, 1)];
        check(|w| w.put(key.clone(), value.clone()), &bucket, &[Fact::Data(OLD)]);
        check(|w| w.put(key.clone(), value.clone()), &[Fact::Data(OLD)], &[]);
        check(|w| w.delete(key.clone()), &bucket, &[Fact::Data(OLD)]);
        let (key, value) = extent(OLD, BUCKET - 5, 10);
        never(|w| w.put(key.clone(), value.clone()));
    }

    #[test]
    fn a_range_of_extents_needs_every_bucket_it_reaches() {
        let buckets = [Fact::Bucket(OLD, 0), Fact::Bucket(OLD, 1)];
        let range = |w: &mut WriteSet| w.delete_span(Span::extents(OLD, 7, BUCKET + 1));
        check(range, &buckets, &[Fact::Data(OLD)]);
        let to_the_end = |w: &mut WriteSet| w.delete_span(Span::extents_from(OLD, 7));
        check(to_the_end, &[Fact::Data(OLD)], &[]);
        let mut long = WriteSet::new();
        to_the_end(&mut long);
        assert!(!is_covered(&long, &buckets, &[Fact::Data(OLD)]), "buckets without end");
    }

    #[test]
    fn other_ranges_are_void() {
        never(|w| w.delete_span(Span::inodes()));
        never(|w| w.delete_span(Span::orphans()));
        never(|w| w.delete_span(Span::all()));
        let two_files = Span {
            from: Span::extents_from(OLD, 0).from,
            to: Span::extents_from(Ino(OLD.0 + 1), 0).to,
        };
        never(|w| w.delete_span(two_files.clone()));
        let two_owners = Span { from: Span::xattrs(Ino(1)).from, to: Span::xattrs(OLD).to };
        never(|w| w.delete_span(two_owners.clone()));
    }

    #[test]
    fn attributes_and_settings_need_the_attribute_fact() {
        let key = |ino| Key::Xattr { ino, name: b"user.a".as_slice().into() };
        let value = Value::Xattr([1].into());
        check(|w| w.put(key(OLD), value.clone()), &[Fact::Attr(OLD)], &[]);
        check(|w| w.delete(key(OLD)), &[Fact::Attr(OLD)], &[]);
        check(|w| w.delete_span(Span::xattrs(OLD)), &[Fact::Attr(OLD)], &[]);
        let setting = Value::Setting([1].into());
        check(|w| w.put(Key::Setting(1), setting.clone()), &[Fact::Attr(Ino::ROOT)], &[]);
        check(|w| w.delete(Key::Setting(1)), &[Fact::Attr(Ino::ROOT)], &[]);
    }

    #[test]
    fn only_a_fresh_inode_is_put_and_what_comes_with_it_is_its_own() {
        let (key, value) = extent(NEW, 0, 9);
        check(
            |w| {
                w.put(Key::Inode(NEW), inode());
                w.put(key.clone(), value.clone());
                w.put(
                    Key::Xattr { ino: NEW, name: b"a".as_slice().into() },
                    Value::Xattr([].into()),
                );
            },
            &[],
            &[],
        );
        never(|w| w.put(Key::Inode(OLD), inode()));
        never(|w| {
            w.put(Key::Inode(OLD), inode());
            w.put(key.clone(), value.clone());
        });
        let mut alone = WriteSet::new();
        alone.put(key.clone(), value.clone());
        assert!(!is_covered(&alone, &[], &[]), "it may have begun in an earlier commit");
    }

    #[test]
    fn the_end_of_an_inode_needs_all_its_facts() {
        let all = [Fact::Exists(OLD), Fact::Attr(OLD), Fact::Links(OLD), Fact::Data(OLD)];
        check(|w| w.delete(Key::Inode(OLD)), &all, &[]);
        check(|w| w.put(Key::Orphan(OLD), Value::Orphan), &[Fact::Links(OLD)], &[]);
        check(|w| w.delete(Key::Orphan(OLD)), &[Fact::Links(OLD)], &[]);
    }

    #[test]
    fn nobody_names_an_heir_but_a_fence() {
        never(|w| w.put(Key::Heir(SessionId(2)), Value::Heir(SessionId(1))));
        never(|w| w.delete(Key::Heir(SessionId(2))));
    }

    #[test]
    fn each_field_of_an_inode_needs_its_fact() {
        let at = Some(Stamp { secs: 1, nanos: 2 });
        let nothing = InodeMerge::default;
        let (data, children) = ([Fact::Data(OLD)], [Fact::Children(OLD)]);
        let (attr, links) = ([Fact::Attr(OLD)], [Fact::Links(OLD)]);
        let field = |merge: InodeMerge, wrote: &[Fact], added: &[Fact]| {
            check(|w| w.merge_inode(OLD, merge.clone()), wrote, added);
        };
        field(InodeMerge { size: Some(SizeChange::Max(1)), ..nothing() }, &[], &data);
        field(InodeMerge { size: Some(SizeChange::Set(1)), ..nothing() }, &data, &[]);
        field(InodeMerge { bytes: -1, ..nothing() }, &[], &data);
        for added in [&data, &children] {
            field(InodeMerge { atime: at, mtime: at, ctime: at, ..nothing() }, &[], added);
        }
        field(InodeMerge { atime: at, mtime: at, ctime: at, ..nothing() }, &attr, &[]);
        field(InodeMerge { ctime: at, ..nothing() }, &links, &[]);
        field(InodeMerge { mode: Some(ModeChange::Set(1)), ..nothing() }, &attr, &[]);
        field(InodeMerge { mode: Some(ModeChange::KillPrivileges), ..nothing() }, &[], &data);
        field(InodeMerge { uid: Some(1), gid: Some(1), ..nothing() }, &attr, &[]);
        field(InodeMerge { nlink: 1, ..nothing() }, &links, &[]);
        field(InodeMerge { nlink: -1, ..nothing() }, &[], &children);
        field(InodeMerge { home: Some(NEW), ..nothing() }, &links, &[]);
        let mut mtime = WriteSet::new();
        mtime.merge_inode(OLD, InodeMerge { mtime: at, ..nothing() });
        assert!(!is_covered(&mtime, &links, &[]), "a link does not change the content");
    }

    #[test]
    fn counters_are_added_to_and_never_put() {
        check(|w| w.merge(Key::Counter(1), Merge::Counter(-5)), &[], &[]);
        never(|w| w.put(Key::Counter(1), Value::Counter(5)));
        never(|w| w.delete(Key::Counter(1)));
    }

    #[test]
    fn links_that_are_not_the_extents_are_void() {
        let mut writes = WriteSet::new();
        let (key, value) = extent(OLD, 0, 9);
        writes.put(key, value);
        let mut facts = Facts::default();
        facts.write(Fact::Data(OLD));
        let tags = facts.tags(&KEY).expect("one");
        let bytes = payload::encode(&writes);
        let judged = |links: &[ChunkId]| judge(&bytes, links, &tags, &KEY, |_| false);
        assert_eq!(judged(&[ChunkId([3; 32])]), Ok(writes.clone()));
        assert_eq!(judged(&[]), Err(Void::Links));
        assert_eq!(judged(&[ChunkId([3; 32]), ChunkId([4; 32])]), Err(Void::Links));
        let malformed = judge(&bytes[1..], &[], &tags, &KEY, |_| false);
        assert!(matches!(malformed, Err(Void::Malformed(_))));
    }
}
