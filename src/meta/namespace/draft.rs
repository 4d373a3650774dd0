//! A plan in the making: what was read, what will be written, and the facts of both.
//!
//! Owns: how a name, an inode, an attribute and a counter are looked up and changed, each with
//! the facts of the design's table.
//! Invariant: a name's hash is its own within its directory, unless two sessions collide in 60
//! keyed bits at once; a listing is right even then.

use super::{COUNTER_BYTES, COUNTER_INODES, Env, Place, read};
use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, Inode, InodeMerge};
use crate::meta::key::{Key, Span};
use crate::meta::tag::{Fact, Facts};
use crate::meta::tree::Read;
use crate::meta::value::Value;
use crate::meta::write::{Merge, WriteSet};
pub(super) use read::Found;

pub(super) struct Draft<'a, R> {
    pub read: &'a R,
    pub env: &'a Env<'a>,
    pub facts: Facts,
    writes: WriteSet,
}

impl<'a, R: Read> Draft<'a, R> {
    pub fn new(read: &'a R, env: &'a Env<'a>) -> Self {
        Draft { read, env, facts: Facts::default(), writes: WriteSet::default() }
    }

    pub fn finish(self) -> (WriteSet, Facts) {
        (self.writes, self.facts)
    }

    pub fn inode(&self, ino: Ino) -> Result<Inode, ReadError> {
        read::getattr(self.read, ino)
    }

    pub fn dir(&self, ino: Ino) -> Result<Inode, ReadError> {
        let inode = self.inode(ino)?;
        if inode.kind == FileKind::Dir { Ok(inode) } else { Err(FsError::NotDir.into()) }
    }

    /// A directory that may take a new name: an open one that was removed may not.
    pub fn living_dir(&self, ino: Ino) -> Result<Inode, ReadError> {
        let inode = self.dir(ino)?;
        if inode.nlink > 0 { Ok(inode) } else { Err(FsError::NotFound.into()) }
    }

    pub fn dirent(&self, place: &Place) -> Result<Option<Found>, ReadError> {
        read::find(self.read, self.env.dirent_key, place.dir, &place.name)
    }

    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Box<[u8]>>, ReadError> {
        match self.read.get(&Key::Xattr { ino, name: name.into() })? {
            Some(Value::Xattr(value)) => Ok(Some(value)),
            _ => Ok(None),
        }
    }

    /// A new name in a directory that must exist.
    pub fn insert(&mut self, at: &Place, ino: Ino, kind: FileKind) -> Result<(), ReadError> {
        self.facts.read(Fact::Exists(at.dir));
        let hash = read::free_hash(self.read, self.env.dirent_key, at.dir, &at.name)?;
        self.put_dirent(at, hash, ino, kind);
        Ok(())
    }

    /// A name that is there already, or whose place was found, now leads to `ino`.
    pub fn put_dirent(&mut self, at: &Place, hash: u64, ino: Ino, kind: FileKind) {
        self.facts.write(Fact::Name(at.dir, at.name.clone()));
        let key = Key::Dirent { dir: at.dir, hash, name: at.name.clone() };
        self.put(key, Value::Dirent { ino, kind });
    }

    pub fn remove(&mut self, at: &Place, hash: u64) {
        self.facts.write(Fact::Name(at.dir, at.name.clone()));
        self.delete(Key::Dirent { dir: at.dir, hash, name: at.name.clone() });
    }

    /// The directory's side of a change of its names.
    pub fn parent(&mut self, dir: Ino, nlink: i32) {
        self.facts.add(Fact::Children(dir));
        let now = Some(self.env.now);
        self.change(dir, InodeMerge { nlink, mtime: now, ctime: now, ..InodeMerge::default() });
    }

    pub fn put(&mut self, key: Key, value: Value) {
        self.writes.put(key, value);
    }

    pub fn delete(&mut self, key: Key) {
        self.writes.delete(key);
    }

    pub fn delete_span(&mut self, span: Span) {
        self.writes.delete_span(span);
    }

    pub fn put_xattr(&mut self, ino: Ino, name: &[u8], value: Box<[u8]>) {
        self.put(Key::Xattr { ino, name: name.into() }, Value::Xattr(value));
    }

    pub fn change(&mut self, ino: Ino, merge: InodeMerge) {
        self.writes.merge_inode(ino, merge);
    }

    /// The volume's count of bytes; the file's own goes with its inode merge.
    pub fn count_bytes(&mut self, delta: i64) {
        self.count(COUNTER_BYTES, delta);
    }

    pub fn count_inodes(&mut self, delta: i64) {
        self.count(COUNTER_INODES, delta);
    }

    fn count(&mut self, counter: u8, delta: i64) {
        if delta != 0 {
            self.writes.merge(Key::Counter(counter), Merge::Counter(delta));
        }
    }
}
