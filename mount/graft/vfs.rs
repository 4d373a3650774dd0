//! The kernel's questions, each to the tree or on to the filesystem below.
//!
//! Owns: which of the two is asked.
//! Invariant: a question about an inode that is not the tree's reaches the filesystem unchanged.

use super::{AFTER_PARENT, AFTER_SELF, COOKIE, FIRST, FOR_EVER, Graft, NAME, Tree, is_grafted};
use crate::vfs::{
    Allocate, Attr, Caller, CopyRange, Found, Listed, Make, OpenHow, Opened, RenameHow, Seek,
    SetAttr, Space, Vfs, WriteAt, XattrFlags,
};
use bytes::Bytes;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::FileKind;
use std::sync::Arc;
use std::time::Duration;

type Answer<T> = Result<T, FsError>;

impl<V: Vfs, L: Tree> Graft<V, L> {
    /// A node with its attributes, counted as one reference of the kernel.
    async fn found(&self, node: L::Node) -> Answer<Attr> {
        let shown = self.tree.show(node).await?;
        Ok(self.attr(Ino(self.held().hold(node)), shown))
    }

    async fn lookup_below(&self, dir: Ino, name: &Name) -> Answer<Found> {
        // Names appear as the tree grows, so that one is not there holds for this moment only.
        let nothing = Found::Nothing { entry_lifetime: Duration::ZERO };
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else { return Ok(nothing) };
        let Some(node) = self.tree.lookup(self.node(dir)?, name).await? else {
            return Ok(nothing);
        };
        let attr = self.found(node).await?;
        Ok(Found::Here { entry_lifetime: attr.lifetime, attr })
    }

    async fn list_below(
        &self,
        dir: Ino,
        cookie: u64,
        limit: usize,
        with_attr: bool,
    ) -> Answer<Vec<Listed>> {
        let node = self.node(dir)?;
        let mut listed = Vec::new();
        for (after, name) in [(AFTER_SELF, &b"."[..]), (AFTER_PARENT, b"..")] {
            if cookie < after && listed.len() < limit {
                // The kernel takes neither number nor attributes of these two, nor a reference.
                let attr = match with_attr {
                    true => Some(self.attr(dir, self.tree.show(node).await?)),
                    false => None,
                };
                let kind = FileKind::Dir;
                listed.push(Listed { cookie: after, ino: dir, kind, name: name.into(), attr });
            }
        }
        let from = cookie.saturating_sub(AFTER_PARENT);
        for line in self.tree.list(node, from, limit - listed.len()).await? {
            let kind = if line.dir { FileKind::Dir } else { FileKind::File };
            let (cookie, name) = (line.next + AFTER_PARENT, line.name.into_bytes().into());
            let (ino, attr) = match with_attr {
                true => match self.found(line.node).await {
                    Ok(attr) => (attr.ino, Some(attr)),
                    Err(error) => {
                        self.unhold(&listed);
                        return Err(error);
                    }
                },
                false => (Ino(self.held().number(line.node)), None),
            };
            listed.push(Listed { cookie, ino, kind, name, attr });
        }
        Ok(listed)
    }

    /// Takes back the references of a listing that the kernel will not see.
    fn unhold(&self, listed: &[Listed]) {
        let counted = listed.iter().filter(|line| line.holds());
        counted.for_each(|line| self.held().forget(line.ino.0, 1));
    }

    /// The root's own listing, and the name behind it.
    async fn list_root(
        self: Arc<Self>,
        cookie: u64,
        limit: usize,
        with_attr: bool,
    ) -> Answer<Vec<Listed>> {
        if cookie >= COOKIE {
            return Ok(Vec::new());
        }
        let mut cookie = cookie;
        loop {
            let mut listed = self.inner.clone().list(Ino::ROOT, cookie, limit, with_attr).await?;
            let Some(last) = listed.last() else { break };
            cookie = last.cookie;
            // A file of this name that another program made in the volume is not reachable here.
            listed.retain(|line| &*line.name != NAME);
            if !listed.is_empty() {
                return Ok(listed);
            }
        }
        if self.hidden {
            return Ok(Vec::new());
        }
        // The tree may be unreachable for now; the volume's own listing must not be for that.
        let attr = match with_attr {
            true => Some(self.root_attr().await),
            false => None,
        };
        let (ino, kind, name) = (Ino(FIRST), FileKind::Dir, NAME.into());
        Ok(vec![Listed { cookie: COOKIE, ino, kind, name, attr }])
    }

    /// `stat` of the tree's root never waits for the network, and never fails.
    async fn root_attr(&self) -> Attr {
        let unknown = super::Shown { dir: true, size: 0, time: Default::default(), settled: false };
        let shown = self.tree.show(self.tree.root()).await.unwrap_or(unknown);
        self.attr(Ino(FIRST), shown)
    }

    async fn open_below(&self, ino: Ino, how: OpenHow) -> Answer<Opened> {
        if how.write || how.truncate || how.append {
            return Err(FsError::ReadOnly);
        }
        let (open, shown) = self.tree.open(self.node(ino)?).await?;
        let settled = shown.settled;
        let handle = self.keep(open, shown);
        Ok(Opened { handle, keep_cache: settled, direct: !settled })
    }
}

#[rustfmt::skip]
impl<V: Vfs, L: Tree> Vfs for Graft<V, L> {
    async fn lookup(self: Arc<Self>, who: Caller, dir: Ino, name: Name) -> Answer<Found> {
        if is_grafted(dir) {
            return self.lookup_below(dir, &name).await;
        }
        if self.is_name(dir, &name) {
            return Ok(match self.hidden {
                true => Found::Nothing { entry_lifetime: FOR_EVER },
                false => Found::Here { attr: self.root_attr().await, entry_lifetime: FOR_EVER },
            });
        }
        self.inner.clone().lookup(who, dir, name).await
    }

    fn forget(&self, ino: Ino, count: u64) {
        match is_grafted(ino) {
            true => self.held().forget(ino.0, count),
            false => self.inner.forget(ino, count),
        }
    }

    async fn getattr(self: Arc<Self>, ino: Ino, handle: Option<u64>) -> Answer<Attr> {
        if !is_grafted(ino) {
            return self.inner.clone().getattr(ino, handle).await;
        }
        if let Some(open) = handle.and_then(|handle| self.opened(handle).ok()) {
            return Ok(self.attr(ino, open.shown));
        }
        if ino == Ino(FIRST) {
            return Ok(self.root_attr().await);
        }
        let shown = self.tree.show(self.node(ino)?).await?;
        Ok(self.attr(ino, shown))
    }

    async fn setattr(self: Arc<Self>, who: Caller, ino: Ino, handle: Option<u64>, set: SetAttr) -> Answer<Attr> {
        if is_grafted(ino) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().setattr(who, ino, handle, set).await
    }

    async fn readlink(self: Arc<Self>, ino: Ino) -> Answer<Box<[u8]>> {
        if is_grafted(ino) {
            return Err(FsError::Invalid); // the tree has no symlinks
        }
        self.inner.clone().readlink(ino).await
    }

    async fn make(self: Arc<Self>, who: Caller, dir: Ino, name: Name, make: Make) -> Answer<Found> {
        if self.is_reserved(dir, &name) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().make(who, dir, name, make).await
    }

    async fn create(self: Arc<Self>, who: Caller, dir: Ino, name: Name, make: Make, how: OpenHow, exclusive: bool) -> Answer<(Attr, Duration, Opened)> {
        if self.is_reserved(dir, &name) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().create(who, dir, name, make, how, exclusive).await
    }

    async fn unlink(self: Arc<Self>, who: Caller, dir: Ino, name: Name) -> Answer<()> {
        if self.is_ours(dir, &name) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().unlink(who, dir, name).await
    }

    async fn rmdir(self: Arc<Self>, who: Caller, dir: Ino, name: Name) -> Answer<()> {
        if self.is_ours(dir, &name) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().rmdir(who, dir, name).await
    }

    async fn rename(self: Arc<Self>, who: Caller, from: (Ino, Name), to: (Ino, Name), how: RenameHow) -> Answer<()> {
        let swapped = how == RenameHow::Exchange && self.is_reserved(from.0, &from.1);
        if self.is_ours(from.0, &from.1) || swapped || self.is_reserved(to.0, &to.1) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().rename(who, from, to, how).await
    }

    async fn link(self: Arc<Self>, who: Caller, ino: Ino, dir: Ino, name: Name) -> Answer<Found> {
        if self.is_reserved(dir, &name) {
            return Err(FsError::ReadOnly);
        }
        if is_grafted(ino) {
            return Err(FsError::CrossDevice); // a copy is possible, another name is not
        }
        self.inner.clone().link(who, ino, dir, name).await
    }

    async fn open(self: Arc<Self>, who: Caller, ino: Ino, how: OpenHow) -> Answer<Opened> {
        if is_grafted(ino) {
            return self.open_below(ino, how).await;
        }
        self.inner.clone().open(who, ino, how).await
    }

    async fn read(self: Arc<Self>, ino: Ino, handle: u64, offset: u64, len: u32) -> Answer<Bytes> {
        if is_grafted(ino) {
            let file = self.opened(handle)?;
            return self.tree.read(&file.open, offset, len as usize).await;
        }
        self.inner.clone().read(ino, handle, offset, len).await
    }

    async fn write(self: Arc<Self>, who: Caller, ino: Ino, handle: u64, write: WriteAt) -> Answer<u32> {
        if is_grafted(ino) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().write(who, ino, handle, write).await
    }

    async fn flush(self: Arc<Self>, ino: Ino, handle: u64) -> Answer<()> {
        if is_grafted(ino) {
            return Ok(());
        }
        self.inner.clone().flush(ino, handle).await
    }

    async fn release(self: Arc<Self>, ino: Ino, handle: u64) -> Answer<()> {
        if is_grafted(ino) {
            self.open_files().remove(&handle);
            return Ok(());
        }
        self.inner.clone().release(ino, handle).await
    }

    async fn fsync(self: Arc<Self>, ino: Ino, handle: Option<u64>) -> Answer<()> {
        if is_grafted(ino) {
            return Ok(());
        }
        self.inner.clone().fsync(ino, handle).await
    }

    async fn list(self: Arc<Self>, dir: Ino, cookie: u64, limit: usize, with_attr: bool) -> Answer<Vec<Listed>> {
        if is_grafted(dir) {
            return self.list_below(dir, cookie, limit, with_attr).await;
        }
        if dir == Ino::ROOT {
            return self.list_root(cookie, limit, with_attr).await;
        }
        self.inner.clone().list(dir, cookie, limit, with_attr).await
    }

    async fn statfs(self: Arc<Self>) -> Answer<Space> {
        self.inner.clone().statfs().await
    }

    async fn getxattr(self: Arc<Self>, ino: Ino, name: Box<[u8]>) -> Answer<Bytes> {
        if is_grafted(ino) {
            return Err(FsError::NoXattr);
        }
        self.inner.clone().getxattr(ino, name).await
    }

    async fn listxattr(self: Arc<Self>, who: Caller, ino: Ino) -> Answer<Vec<Box<[u8]>>> {
        if is_grafted(ino) {
            return Ok(Vec::new());
        }
        self.inner.clone().listxattr(who, ino).await
    }

    async fn setxattr(self: Arc<Self>, who: Caller, ino: Ino, name: Box<[u8]>, value: Bytes, flags: XattrFlags) -> Answer<()> {
        if is_grafted(ino) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().setxattr(who, ino, name, value, flags).await
    }

    async fn removexattr(self: Arc<Self>, who: Caller, ino: Ino, name: Box<[u8]>) -> Answer<()> {
        if is_grafted(ino) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().removexattr(who, ino, name).await
    }

    async fn allocate(self: Arc<Self>, who: Caller, ino: Ino, handle: u64, offset: u64, len: u64, how: Allocate) -> Answer<()> {
        if is_grafted(ino) {
            return Err(FsError::ReadOnly);
        }
        self.inner.clone().allocate(who, ino, handle, offset, len, how).await
    }

    async fn seek(self: Arc<Self>, ino: Ino, handle: u64, offset: u64, seek: Seek) -> Answer<u64> {
        if !is_grafted(ino) {
            return self.inner.clone().seek(ino, handle, offset, seek).await;
        }
        // The tree's files have no holes but the one behind their end.
        let size = self.opened(handle)?.shown.size;
        match seek {
            _ if offset >= size => Err(FsError::NoDevice),
            Seek::Data => Ok(offset),
            Seek::Hole => Ok(size),
        }
    }

    async fn copy_range(self: Arc<Self>, who: Caller, copy: CopyRange) -> Answer<u32> {
        match (is_grafted(copy.from), is_grafted(copy.to)) {
            (_, true) => Err(FsError::ReadOnly),
            // The kernel then reads and writes.
            (true, false) => Err(FsError::CrossDevice),
            (false, false) => self.inner.clone().copy_range(who, copy).await,
        }
    }
}
