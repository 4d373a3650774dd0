//! A POSIX filesystem in memory: the one definition of right that the namespace is held against.
//!
//! Written for reading, not for speed: link counts are counted, bytes are kept by the block, and
//! an inode without a name stays until it is reaped.

use mictlan::file::Extent;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode, Stamp};
use mictlan::meta::namespace::*;
use std::collections::BTreeMap;

/// Every offset and length in these tests is a multiple of this, which no bucket boundary is.
pub const BLOCK: u64 = 100_000;
pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";
/// Where the first byte of a block comes from: chunk, and place in it.
pub type Origin = (u8, u64);

/// An ACL with one named user: owner, user 7, group, mask, other.
pub type List = [u32; 5];

#[derive(Clone)]
pub struct Node {
    pub inode: Inode,
    pub names: BTreeMap<Name, Ino>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub blocks: BTreeMap<u64, Origin>,
    pub access: Option<List>,
    pub default: Option<List>,
}

pub struct Model {
    pub nodes: BTreeMap<Ino, Node>,
}

type Done = Result<Reply, FsError>;

impl Model {
    pub fn founded(root: Inode) -> Self {
        Model { nodes: BTreeMap::from([(Ino::ROOT, Node::new(root))]) }
    }

    /// The attributes, with what can be counted counted.
    pub fn inode(&self, ino: Ino) -> Inode {
        let node = &self.nodes[&ino];
        let links: Vec<Ino> = self.nodes.values().flat_map(|n| n.names.values()).copied().collect();
        let named = links.iter().filter(|to| **to == ino).count() as u32;
        let subdirs = node.names.values().filter(|to| self.is_dir(**to)).count() as u32;
        let nlink = match self.is_dir(ino) {
            true if named == 0 && ino != Ino::ROOT => 0,
            true => 2 + subdirs,
            false => named,
        };
        let bytes = node.blocks.len() as u64 * BLOCK;
        Inode { nlink, bytes, ..node.inode.clone() }
    }

    pub fn step(&mut self, now: Stamp, op: &Op) -> Done {
        match op {
            Op::Make(make) => self.make(now, make),
            Op::Link { ino, to } => self.link(now, *ino, to),
            Op::Unlink(place) => self.remove(now, place, false),
            Op::Rmdir(place) => self.remove(now, place, true),
            Op::Rename { from, to, mode } => self.rename(now, from, to, *mode),
            Op::SetAttr(set) => self.set_attr(now, set),
            Op::SetXattr(set) => self.set_xattr(now, set),
            Op::RemoveXattr { ino, name, privileged } => {
                self.remove_xattr(now, *ino, name, *privileged)
            }
            Op::Write(w) => {
                let before = self.file(w.ino)?;
                let (size, ctime) = (before.size.max(w.end), before.ctime.max(now));
                self.change(w.ino, w.mtime, w.kill_priv, size, |b| paint(b, &w.extents, 0))?;
                self.node(w.ino)?.inode.ctime = ctime;
                Ok(Reply::Attr(self.inode(w.ino)))
            }
            Op::Append(a) => {
                let before = self.file(a.ino)?;
                let (offset, ctime) = (before.size, before.ctime.max(now));
                let len: u64 = a.extents.iter().map(|e| u64::from(e.len)).sum();
                if len > 0 {
                    let paint = |b: &mut _| paint(b, &a.extents, offset);
                    self.change(a.ino, a.mtime, a.kill_priv, offset + len, paint)?;
                    self.node(a.ino)?.inode.ctime = ctime;
                }
                Ok(Reply::Appended { offset, inode: self.inode(a.ino) })
            }
            Op::Allocate(a) => self.allocate(now, a),
            Op::Copy(copy) => self.copy(now, copy),
            Op::Reap { ino } => match self.node(*ino)? {
                _ if self.inode(*ino).nlink > 0 => Err(FsError::Busy),
                _ => {
                    self.nodes.remove(ino);
                    Ok(Reply::Done)
                }
            },
        }
    }

    fn make(&mut self, now: Stamp, make: &Make) -> Done {
        let dir = self.living_dir(make.at.dir)?;
        if dir.names.contains_key(&make.at.name) {
            return Err(FsError::Exists);
        }
        let is_dir = make.kind == FileKind::Dir;
        let (mut access, mut default, mut mode) = (None, None, make.mode);
        match dir.default {
            _ if make.kind == FileKind::Symlink => mode = 0o777,
            None => mode &= !make.umask,
            Some(list) => {
                let limited = chmod_list(list, permissions(list) & mode);
                mode = mode & !0o777 | permissions(limited);
                access = Some(limited);
                default = is_dir.then_some(list);
            }
        }
        let mut gid = make.gid;
        if dir.inode.mode & 0o2000 != 0 {
            gid = dir.inode.gid;
            mode |= if is_dir { 0o2000 } else { 0 };
        }
        let mut inode = dir.inode.clone();
        (inode.atime, inode.mtime, inode.ctime, inode.btime) = (now, now, now, now);
        (inode.kind, inode.mode, inode.uid, inode.gid) = (make.kind, mode, make.uid, gid);
        (inode.rdev, inode.home) = (make.rdev, make.at.dir);
        (inode.size, inode.target) = (make.target.len() as u64, make.target.clone());
        self.nodes.insert(make.ino, Node { access, default, ..Node::new(inode) });
        self.set_name(now, &make.at, Some(make.ino));
        Ok(Reply::Entry { ino: make.ino, inode: self.inode(make.ino) })
    }

    fn link(&mut self, now: Stamp, ino: Ino, to: &Place) -> Done {
        self.node(ino)?;
        if self.living_dir(to.dir)?.names.contains_key(&to.name) {
            return Err(FsError::Exists);
        }
        if self.is_dir(ino) {
            return Err(FsError::NotPermitted);
        }
        if self.inode(ino).nlink == 0 {
            return Err(FsError::NotFound);
        }
        self.set_name(now, to, Some(ino));
        self.node(ino)?.inode.ctime = now;
        Ok(Reply::Entry { ino, inode: self.inode(ino) })
    }

    fn remove(&mut self, now: Stamp, place: &Place, dir: bool) -> Done {
        let ino = *self.dir(place.dir)?.names.get(&place.name).ok_or(FsError::NotFound)?;
        match (dir, self.is_dir(ino)) {
            (false, true) => return Err(FsError::IsDir),
            (true, false) => return Err(FsError::NotDir),
            _ => {}
        }
        self.empty(ino)?;
        self.set_name(now, place, None);
        self.node(ino)?.inode.ctime = now;
        Ok(Reply::Removed { ino, last: self.inode(ino).nlink == 0 })
    }

    fn rename(&mut self, now: Stamp, from: &Place, to: &Place, mode: RenameMode) -> Done {
        self.dir(from.dir)?;
        self.living_dir(to.dir)?;
        let source = *self.dir(from.dir)?.names.get(&from.name).ok_or(FsError::NotFound)?;
        let target = self.dir(to.dir)?.names.get(&to.name).copied();
        if mode == RenameMode::NoReplace && target.is_some() {
            return Err(FsError::Exists);
        }
        if mode == RenameMode::Exchange && target.is_none() {
            return Err(FsError::NotFound);
        }
        if target == Some(source) {
            return Ok(Reply::Renamed { replaced: None });
        }
        self.not_below(source, to.dir)?;
        let exchanged = target.filter(|_| mode == RenameMode::Exchange);
        if let Some(other) = exchanged {
            self.not_below(other, from.dir)?;
        } else if let Some(target) = target {
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(FsError::NotDir),
                (false, true) => return Err(FsError::IsDir),
                _ => self.empty(target)?,
            }
        }
        self.set_name(now, from, exchanged);
        self.set_name(now, to, Some(source));
        for (ino, home) in [(Some(source), to.dir), (exchanged, from.dir)] {
            if let Some(ino) = ino {
                let inode = &mut self.node(ino)?.inode;
                inode.ctime = now;
                // A rename within one directory is no move: a file with several names may live
                // in another one.
                if from.dir != to.dir {
                    inode.home = home;
                }
            }
        }
        let lost = target.filter(|_| exchanged.is_none());
        if let Some(lost) = lost {
            self.node(lost)?.inode.ctime = now;
        }
        Ok(Reply::Renamed { replaced: lost.filter(|lost| self.inode(*lost).nlink == 0) })
    }

    fn set_attr(&mut self, now: Stamp, set: &SetAttr) -> Done {
        self.node(set.ino)?;
        if let Some(size) = set.size {
            self.file(set.ino)?;
            self.change(set.ino, now, set.kill_priv, size, |blocks| {
                blocks.retain(|block, _| block * BLOCK < size)
            })?;
        }
        let node = self.node(set.ino)?;
        if node.inode.kind == FileKind::Symlink && set.mode.is_some() {
            return Err(FsError::NotSupported);
        }
        let owned = set.uid.is_some() || set.gid.is_some();
        let times = set.atime.is_some() || set.mtime.is_some();
        if owned || !times && set.mode.is_none() && set.size.is_none() {
            node.kill_privileges();
            node.drop_capability();
        }
        let inode = &mut node.inode;
        inode.ctime = now;
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        let time = |t: SetTime| if let SetTime::At(t) = t { t } else { now };
        inode.atime = set.atime.map_or(inode.atime, time);
        inode.mtime = set.mtime.map_or(inode.mtime, time);
        if let Some(mode) = set.mode {
            let kill = set.kill_sgid && inode.kind != FileKind::Dir;
            inode.mode = if kill { mode & !0o2000 } else { mode };
            node.access = node.access.map(|list| chmod_list(list, mode));
        }
        Ok(Reply::Attr(self.inode(set.ino)))
    }

    fn set_xattr(&mut self, now: Stamp, set: &SetXattr) -> Done {
        let node = self.node(set.ino)?;
        may_set(&node.inode, &set.name, set.privileged)?;
        match (set.mode, node.xattr(&set.name).is_some()) {
            (XattrMode::Create, true) => return Err(FsError::Exists),
            (XattrMode::Replace, false) => return Err(FsError::NoXattr),
            _ => {}
        }
        if *set.name == *ACCESS || *set.name == *DEFAULT {
            let list = match set.value.len() {
                28 | 44 => set.value[4..].chunks(8).map(|e| u32::from(e[2])).collect::<Vec<_>>(),
                _ => return Err(FsError::Invalid),
            };
            let access = *set.name == *ACCESS;
            if !access && node.inode.kind != FileKind::Dir {
                return Err(FsError::Denied);
            }
            let full = <List>::try_from(list.clone()).ok();
            match full {
                _ if !access => node.default = full,
                Some(list) => node.set_permissions(permissions(list)),
                None => node.set_permissions(list[0] << 6 | list[1] << 3 | list[2]),
            }
            if access {
                node.access = full;
                node.inode.mode &= if set.kill_sgid { !0o2000 } else { !0 };
            }
        } else {
            node.xattrs.insert(set.name.to_vec(), set.value.to_vec());
        }
        node.inode.ctime = now;
        Ok(Reply::Done)
    }

    fn remove_xattr(&mut self, now: Stamp, ino: Ino, name: &[u8], privileged: bool) -> Done {
        let node = self.node(ino)?;
        may_set(&node.inode, name, privileged)?;
        if node.xattr(name).is_some() {
            node.inode.ctime = now;
        } else if name != ACCESS && name != DEFAULT {
            return Err(FsError::NoXattr);
        }
        match name {
            ACCESS => node.access = None,
            DEFAULT => node.default = None,
            _ => drop(node.xattrs.remove(name)),
        }
        Ok(Reply::Done)
    }

    fn allocate(&mut self, now: Stamp, a: &Allocate) -> Done {
        let size = self.file(a.ino)?.size;
        if a.len == 0 {
            return Err(FsError::Invalid);
        }
        let range = a.offset / BLOCK..(a.offset + a.len) / BLOCK;
        let keeps = !matches!(a.mode, AllocateMode::Reserve | AllocateMode::Zero);
        let size = if keeps { size } else { size.max(a.offset + a.len) };
        self.change(a.ino, now, a.kill_priv, size, |blocks| {
            if !matches!(a.mode, AllocateMode::Reserve | AllocateMode::ReserveKeepSize) {
                blocks.retain(|block, _| !range.contains(block));
            }
        })?;
        Ok(Reply::Attr(self.inode(a.ino)))
    }

    fn copy(&mut self, now: Stamp, op: &mictlan::meta::namespace::Copy) -> Done {
        let source = self.file(op.from)?;
        let size = self.file(op.to)?.size;
        let len = op.len.min(source.size.saturating_sub(op.from_offset));
        if len == 0 {
            return Ok(Reply::Copied { len, inode: self.inode(op.to) });
        }
        if op.from == op.to && op.from_offset.abs_diff(op.to_offset) < len {
            return Err(FsError::Invalid);
        }
        let from = self.nodes[&op.from].blocks.clone();
        let (first, to) = (op.from_offset / BLOCK, op.to_offset / BLOCK);
        self.change(op.to, now, op.kill_priv, size.max(op.to_offset + len), |blocks| {
            for block in 0..len / BLOCK {
                match from.get(&(first + block)) {
                    Some(origin) => blocks.insert(to + block, *origin),
                    None => blocks.remove(&(to + block)),
                };
            }
        })?;
        Ok(Reply::Copied { len, inode: self.inode(op.to) })
    }

    /// What any change of a file's bytes does besides.
    fn change(
        &mut self,
        ino: Ino,
        now: Stamp,
        kill_priv: bool,
        size: u64,
        change: impl FnOnce(&mut BTreeMap<u64, Origin>),
    ) -> Result<(), FsError> {
        let node = self.node(ino)?;
        change(&mut node.blocks);
        (node.inode.size, node.inode.mtime, node.inode.ctime) = (size, now, now);
        node.drop_capability();
        if kill_priv {
            node.kill_privileges();
        }
        Ok(())
    }

    /// A name now leads to `ino`, or nowhere; its directory knows when.
    fn set_name(&mut self, now: Stamp, place: &Place, ino: Option<Ino>) {
        let dir = self.nodes.get_mut(&place.dir).expect("checked");
        match ino {
            Some(ino) => dir.names.insert(place.name.clone(), ino),
            None => dir.names.remove(&place.name),
        };
        (dir.inode.mtime, dir.inode.ctime) = (now, now);
    }

    fn not_below(&self, moved: Ino, dir: Ino) -> Result<(), FsError> {
        let mut above = dir;
        while above != Ino::ROOT && above != moved {
            above = self.nodes[&above].inode.home;
        }
        if above == moved && self.is_dir(moved) { Err(FsError::Invalid) } else { Ok(()) }
    }

    fn empty(&self, ino: Ino) -> Result<(), FsError> {
        if self.nodes[&ino].names.is_empty() { Ok(()) } else { Err(FsError::NotEmpty) }
    }

    fn is_dir(&self, ino: Ino) -> bool {
        self.nodes[&ino].inode.kind == FileKind::Dir
    }

    fn node(&mut self, ino: Ino) -> Result<&mut Node, FsError> {
        self.nodes.get_mut(&ino).ok_or(FsError::Stale)
    }

    fn dir(&mut self, ino: Ino) -> Result<&mut Node, FsError> {
        let node = self.node(ino)?;
        if node.inode.kind == FileKind::Dir { Ok(node) } else { Err(FsError::NotDir) }
    }

    fn living_dir(&mut self, ino: Ino) -> Result<Node, FsError> {
        let dir = self.dir(ino)?.clone();
        if self.inode(ino).nlink == 0 { Err(FsError::NotFound) } else { Ok(dir) }
    }

    fn file(&mut self, ino: Ino) -> Result<Inode, FsError> {
        match self.node(ino)?.inode.clone() {
            inode if inode.kind == FileKind::File => Ok(inode),
            inode if inode.kind == FileKind::Dir => Err(FsError::IsDir),
            _ => Err(FsError::Invalid),
        }
    }
}

impl Node {
    fn new(inode: Inode) -> Node {
        let (names, xattrs, blocks) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Node { inode, names, xattrs, blocks, access: None, default: None }
    }

    pub fn xattr(&self, name: &[u8]) -> Option<Vec<u8>> {
        match name {
            ACCESS => self.access.map(list_bytes),
            DEFAULT => self.default.map(list_bytes),
            _ => self.xattrs.get(name).cloned(),
        }
    }

    fn set_permissions(&mut self, permissions: u32) {
        self.inode.mode = self.inode.mode & !0o777 | permissions;
    }

    fn kill_privileges(&mut self) {
        if self.inode.kind != FileKind::Dir {
            let group_may_run = self.inode.mode & 0o010 != 0;
            self.inode.mode &= if group_may_run { !0o6000 } else { !0o4000 };
        }
    }

    fn drop_capability(&mut self) {
        if self.inode.kind != FileKind::Dir {
            self.xattrs.remove(b"security.capability".as_slice());
        }
    }
}

fn may_set(inode: &Inode, name: &[u8], privileged: bool) -> Result<(), FsError> {
    let user = matches!(inode.kind, FileKind::File | FileKind::Dir);
    match name.split(|b| *b == b'.').next() {
        Some(b"user") if user && !name.starts_with(b"user.mictlan.") => Ok(()),
        Some(b"user") => Err(FsError::NotPermitted),
        Some(b"trusted") if !privileged => Err(FsError::NotPermitted),
        Some(b"trusted" | b"security") => Ok(()),
        Some(b"system") if inode.kind != FileKind::Symlink => Ok(()),
        _ => Err(FsError::NotSupported),
    }
}

fn permissions([owner, _, _, mask, other]: List) -> u32 {
    owner << 6 | mask << 3 | other
}

fn chmod_list([_, user, group, _, _]: List, mode: u32) -> List {
    [mode >> 6 & 7, user, group, mode >> 3 & 7, mode & 7]
}

/// The kernel's form; a list of three is one without names.
pub fn list_bytes([owner, user, group, mask, other]: List) -> Vec<u8> {
    let entries = [(1, owner, !0), (2, user, 7), (4, group, !0), (16, mask, !0), (32, other, !0)];
    acl_bytes(&entries)
}

pub fn acl_bytes(entries: &[(u16, u32, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend((*permissions as u16).to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn paint(blocks: &mut BTreeMap<u64, Origin>, extents: &[Extent], shift: u64) {
    for extent in extents {
        let starts = extent.offset.next_multiple_of(BLOCK)..extent.end();
        for at in starts.step_by(BLOCK as usize) {
            let place = u64::from(extent.at) + at - extent.offset;
            blocks.insert((shift + at) / BLOCK, (extent.chunk.0[0], place));
        }
    }
}
