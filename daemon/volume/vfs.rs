//! The kernel's questions, answered by the volume: one thin method each.
//!
//! Owns: translation between `mount`'s words and the namespace's, and the options that change how
//! inodes are shown.
//! Never: has a rule of the filesystem; `meta::namespace` has them.

use super::local::now;
use super::state::Mode;
use super::virtual_xattr::{self, Virtual};
use super::{Volume, caller};
use crate::counts::COUNTS;
use bytes::Bytes;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode};
use mictlan::meta::namespace::{
    self, Allocate as AllocateOp, AllocateMode, Copy, Op, Place, RenameMode, Reply, SetXattr,
    XattrMode, read,
};
use mictlan_mount::vfs::{
    Allocate, Attr, Caller, CopyRange, Found, Listed, Make, OpenHow, Opened, RenameHow, Seek,
    SetAttr, SetTime, Space, Vfs, WriteAt, XattrFlags,
};
use std::sync::Arc;
use std::time::{Duration, Instant};

type Answer<T> = Result<T, FsError>;

impl Volume {
    fn attr(&self, ino: Ino, mut inode: Inode, lifetime: Duration) -> Attr {
        inode.uid = self.options.uid.unwrap_or(inode.uid);
        inode.gid = self.options.gid.unwrap_or(inode.gid);
        let blocks = inode.bytes.div_ceil(512);
        Attr { ino, inode, blocks, lifetime }
    }

    fn found(&self, ino: Ino, inode: Inode) -> Found {
        let lifetime = self.lifetime();
        Found::Here { attr: self.attr(ino, inode, lifetime), entry_lifetime: lifetime }
    }

    pub(super) fn new_ino(&self) -> Answer<Ino> {
        if self.mode() == Mode::Reader {
            return Err(self.read_only());
        }
        let mut core = self.core();
        // Four thousand million inodes later a new session brings a new block.
        core.inodes_made = core.inodes_made.checked_add(1).ok_or(FsError::NoSpace)?;
        Ok(Ino::of(core.session.id, core.inodes_made))
    }

    async fn make_inode(
        &self,
        who: Caller,
        dir: Ino,
        name: Name,
        make: Make,
    ) -> Answer<(Ino, Inode)> {
        let op = Op::Make(namespace::Make {
            at: Place { dir, name },
            ino: self.new_ino()?,
            kind: make.kind,
            mode: make.mode,
            umask: make.umask,
            uid: who.uid,
            gid: who.gid,
            rdev: make.rdev,
            target: make.target,
        });
        match self.run(op).await? {
            Reply::Entry { ino, inode } => Ok((ino, inode)),
            other => unreachable!("make answers with an entry, not {other:?}"),
        }
    }

    async fn open_inode(
        self: &Arc<Self>,
        who: Caller,
        ino: Ino,
        inode: &Inode,
        how: OpenHow,
    ) -> Answer<Opened> {
        if inode.kind == FileKind::Dir && how.write {
            return Err(FsError::IsDir);
        }
        if how.write && self.mode() == Mode::Reader {
            return Err(self.read_only());
        }
        let handle = self.opened(ino);
        if how.truncate {
            let set = SetAttr { size: Some(0), ..SetAttr::default() };
            if let Err(error) = self.set(who, ino, set).await {
                self.released(ino).await?;
                return Err(error);
            }
        }
        // Under the lease nobody else changes anything. Without it the kernel may not have been told
        // yet what was applied a moment ago.
        let keep_cache = matches!(self.mode(), Mode::Leased { .. });
        Ok(Opened { handle, keep_cache, direct: false })
    }

    /// Changes attributes. A change of times alone leaves unsealed bytes where they are and
    /// becomes the time that they will carry; everything else comes after them.
    async fn set(self: &Arc<Self>, who: Caller, ino: Ino, set: SetAttr) -> Answer<Inode> {
        let file = self.core().files.get(&ino).cloned();
        let order = match &file {
            Some(file) if set.size.is_some() || set.mode.is_some() || set.mtime.is_some() => {
                // Bytes on their way into the view carry a time and may clear bits of the mode.
                let order = file.order.lock().await;
                let clears = file.data().pending.is_some_and(|pending| pending.kill_priv);
                if set.size.is_some() || set.mode.is_some() && clears {
                    self.seal_file(file, super::file::What::Everything).await?;
                }
                Some(order)
            }
            _ => None,
        };
        let time = |time: Option<SetTime>| {
            time.map(|time| match time {
                SetTime::Now => namespace::SetTime::Now,
                SetTime::At(stamp) => namespace::SetTime::At(stamp),
            })
        };
        let op = Op::SetAttr(namespace::SetAttr {
            ino,
            mode: set.mode,
            uid: set.uid,
            gid: set.gid,
            size: set.size,
            atime: time(set.atime),
            mtime: time(set.mtime),
            kill_priv: set.size.is_some() && !caller::may_keep_setid(who),
            // The kernel did this already where it is needed (setattr_prepare).
            kill_sgid: false,
        });
        let at = now();
        self.run_at(op, at).await?;
        if let (Some(file), Some(mtime)) = (&file, set.mtime) {
            let mtime = match mtime {
                SetTime::Now => at,
                SetTime::At(stamp) => stamp,
            };
            if let Some(pending) = &mut file.data().pending {
                pending.mtime = mtime;
            }
        }
        drop(order);
        self.inode(ino).await
    }

    /// What changes a file's extents comes after its unsealed bytes.
    async fn after_bytes(self: &Arc<Self>, ino: Ino, op: Op) -> Answer<Reply> {
        let file = self.core().files.get(&ino).cloned();
        let Some(file) = file else { return self.run(op).await };
        let _order = file.order.lock().await;
        self.seal_file(&file, super::file::What::Everything).await?;
        self.run(op).await
    }

    async fn sealed(self: &Arc<Self>, ino: Ino) -> Answer<()> {
        let Some(file) = self.core().files.get(&ino).cloned() else { return Ok(()) };
        let _order = file.order.lock().await;
        self.seal_file(&file, super::file::What::Everything).await
    }
}

impl Vfs for Volume {
    async fn lookup(self: Arc<Self>, _who: Caller, dir: Ino, name: Name) -> Answer<Found> {
        self.fresh().await?;
        match self.find(dir, &name).await {
            Ok((ino, inode)) => Ok(self.found(ino, inode)),
            Err(FsError::NotFound) => Ok(Found::Nothing { entry_lifetime: self.lifetime() }),
            Err(error) => Err(error),
        }
    }

    fn forget(&self, _ino: Ino, _count: u64) {}

    async fn getattr(self: Arc<Self>, ino: Ino, _handle: Option<u64>) -> Answer<Attr> {
        // `stat` of the root is what `df` and path walks need; it never waits for the network.
        if ino != Ino::ROOT {
            self.fresh().await?;
        }
        let inode = self.inode(ino).await?;
        Ok(self.attr(ino, inode, self.lifetime()))
    }

    async fn setattr(
        self: Arc<Self>,
        who: Caller,
        ino: Ino,
        _handle: Option<u64>,
        set: SetAttr,
    ) -> Answer<Attr> {
        let inode = self.set(who, ino, set).await?;
        Ok(self.attr(ino, inode, self.lifetime()))
    }

    async fn readlink(self: Arc<Self>, ino: Ino) -> Answer<Box<[u8]>> {
        self.believed()?;
        self.ask(|core| read::readlink(&core.view, ino)).await
    }

    async fn make(self: Arc<Self>, who: Caller, dir: Ino, name: Name, make: Make) -> Answer<Found> {
        let (ino, inode) = self.make_inode(who, dir, name, make).await?;
        Ok(self.found(ino, inode))
    }

    async fn create(
        self: Arc<Self>,
        who: Caller,
        dir: Ino,
        name: Name,
        make: Make,
        how: OpenHow,
        exclusive: bool,
    ) -> Answer<(Attr, Duration, Opened)> {
        let made = self.make_inode(who, dir, name.clone(), make).await;
        let (ino, inode, opened) = match made {
            // Nothing to truncate in a new file.
            Ok((ino, inode)) => {
                let handle = self.opened(ino);
                (ino, inode, Opened { handle, keep_cache: true, direct: false })
            }
            Err(FsError::Exists) if !exclusive => {
                let (ino, inode) = self.find(dir, &name).await?;
                let opened = self.open_inode(who, ino, &inode, how).await?;
                (ino, self.inode(ino).await?, opened)
            }
            Err(error) => return Err(error),
        };
        let lifetime = self.lifetime();
        Ok((self.attr(ino, inode, lifetime), lifetime, opened))
    }

    async fn unlink(self: Arc<Self>, _who: Caller, dir: Ino, name: Name) -> Answer<()> {
        let reply = self.run(Op::Unlink(Place { dir, name })).await?;
        if let Reply::Removed { ino, last: true } = reply {
            self.lost_last_name(ino).await;
        }
        Ok(())
    }

    async fn rmdir(self: Arc<Self>, _who: Caller, dir: Ino, name: Name) -> Answer<()> {
        let reply = self.run(Op::Rmdir(Place { dir, name })).await?;
        if let Reply::Removed { ino, .. } = reply {
            self.lost_last_name(ino).await;
        }
        Ok(())
    }

    async fn rename(
        self: Arc<Self>,
        _who: Caller,
        from: (Ino, Name),
        to: (Ino, Name),
        how: RenameHow,
    ) -> Answer<()> {
        let mode = match how {
            RenameHow::Replace => RenameMode::Replace,
            RenameHow::NoReplace => RenameMode::NoReplace,
            RenameHow::Exchange => RenameMode::Exchange,
        };
        let from = Place { dir: from.0, name: from.1 };
        let to = Place { dir: to.0, name: to.1 };
        let reply = self.run(Op::Rename { from, to, mode }).await?;
        if let Reply::Renamed { replaced: Some(ino) } = reply {
            self.lost_last_name(ino).await;
        }
        Ok(())
    }

    async fn link(self: Arc<Self>, _who: Caller, ino: Ino, dir: Ino, name: Name) -> Answer<Found> {
        match self.run(Op::Link { ino, to: Place { dir, name } }).await? {
            Reply::Entry { ino, .. } => {
                let inode = self.inode(ino).await?;
                Ok(self.found(ino, inode))
            }
            other => unreachable!("link answers with an entry, not {other:?}"),
        }
    }

    async fn open(self: Arc<Self>, who: Caller, ino: Ino, how: OpenHow) -> Answer<Opened> {
        self.fresh().await?;
        let inode = self.inode(ino).await?;
        self.open_inode(who, ino, &inode, how).await
    }

    async fn read(self: Arc<Self>, ino: Ino, _handle: u64, offset: u64, len: u32) -> Answer<Bytes> {
        self.believed()?;
        let read = self.read_bytes(ino, offset, len).await;
        COUNTS.file_read(read.as_ref().map_or(0, Bytes::len));
        read
    }

    async fn write(
        self: Arc<Self>,
        _who: Caller,
        ino: Ino,
        _handle: u64,
        write: WriteAt,
    ) -> Answer<u32> {
        let written = self.write_bytes(ino, write).await;
        COUNTS.file_written(written.map_or(0, |len| len as usize));
        written
    }

    async fn flush(self: Arc<Self>, ino: Ino, _handle: u64) -> Answer<()> {
        self.close(ino).await
    }

    async fn release(self: Arc<Self>, ino: Ino, _handle: u64) -> Answer<()> {
        self.released(ino).await
    }

    async fn fsync(self: Arc<Self>, ino: Ino, _handle: Option<u64>) -> Answer<()> {
        let began = Instant::now();
        let synced = self.sync(ino).await;
        COUNTS.fsync(&synced, began.elapsed());
        synced
    }

    async fn list(
        self: Arc<Self>,
        dir: Ino,
        cookie: u64,
        limit: usize,
        with_attr: bool,
    ) -> Answer<Vec<Listed>> {
        self.fresh().await?;
        let entries = self.ask(|core| read::readdir(&core.view, dir, cookie, limit)).await?;
        let lifetime = self.lifetime();
        let mut listed = Vec::with_capacity(entries.len());
        for entry in entries {
            let attr = match with_attr {
                // A name whose inode went meanwhile is left out, as if it had been read later.
                true => match self.inode(entry.ino).await {
                    Ok(inode) => Some(self.attr(entry.ino, inode, lifetime)),
                    Err(FsError::Stale) => continue,
                    Err(error) => return Err(error),
                },
                false => None,
            };
            let (cookie, ino, kind, name) = (entry.cookie, entry.ino, entry.kind, entry.name);
            listed.push(Listed { cookie, ino, kind, name, attr });
        }
        Ok(listed)
    }

    async fn statfs(self: Arc<Self>) -> Answer<Space> {
        Ok(self.space())
    }

    async fn getxattr(self: Arc<Self>, ino: Ino, name: Box<[u8]>) -> Answer<Bytes> {
        if let Some(which) = virtual_xattr::named(&name) {
            return self.virtual_xattr(ino, which).await;
        }
        self.fresh().await?;
        let value = self.ask(|core| read::getxattr(&core.view, ino, &name, true)).await?;
        Ok(Bytes::from(value))
    }

    async fn listxattr(self: Arc<Self>, who: Caller, ino: Ino) -> Answer<Vec<Box<[u8]>>> {
        self.fresh().await?;
        let privileged = caller::is_privileged(who);
        self.ask(|core| read::listxattr(&core.view, ino, privileged)).await
    }

    async fn setxattr(
        self: Arc<Self>,
        who: Caller,
        ino: Ino,
        name: Box<[u8]>,
        value: Bytes,
        flags: XattrFlags,
    ) -> Answer<()> {
        match virtual_xattr::named(&name) {
            Some(Virtual::Replicas) | None => {}
            Some(_) => return Err(FsError::NotPermitted),
        }
        let mode = match flags {
            XattrFlags { create: true, replace: true } => return Err(FsError::Invalid),
            XattrFlags { create: true, .. } => XattrMode::Create,
            XattrFlags { replace: true, .. } => XattrMode::Replace,
            XattrFlags { .. } => XattrMode::Any,
        };
        let privileged = caller::is_privileged(who);
        let kill_sgid = caller::must_lose_setgid(who, &self.inode(ino).await?);
        let value = value.to_vec().into();
        let op = SetXattr { ino, name, value, mode, privileged, kill_sgid };
        self.run(Op::SetXattr(op)).await?;
        Ok(())
    }

    async fn removexattr(self: Arc<Self>, who: Caller, ino: Ino, name: Box<[u8]>) -> Answer<()> {
        if !matches!(virtual_xattr::named(&name), Some(Virtual::Replicas) | None) {
            return Err(FsError::NotPermitted);
        }
        let privileged = caller::is_privileged(who);
        self.run(Op::RemoveXattr { ino, name, privileged }).await?;
        Ok(())
    }

    async fn allocate(
        self: Arc<Self>,
        who: Caller,
        ino: Ino,
        _handle: u64,
        offset: u64,
        len: u64,
        how: Allocate,
    ) -> Answer<()> {
        let mode = match how {
            Allocate::Extend => AllocateMode::Reserve,
            Allocate::KeepSize => AllocateMode::ReserveKeepSize,
            Allocate::Punch => AllocateMode::Punch,
            Allocate::Zero { keep_size: false } => AllocateMode::Zero,
            Allocate::Zero { keep_size: true } => AllocateMode::ZeroKeepSize,
        };
        if matches!(how, Allocate::Extend | Allocate::KeepSize) {
            self.room_for(self.inode(ino).await?.bytes, len)?;
        }
        let kill_priv = !caller::may_keep_setid(who);
        let op = Op::Allocate(AllocateOp { ino, mode, offset, len, kill_priv });
        self.after_bytes(ino, op).await?;
        Ok(())
    }

    async fn seek(self: Arc<Self>, ino: Ino, _handle: u64, offset: u64, seek: Seek) -> Answer<u64> {
        self.believed()?;
        self.sealed(ino).await?;
        let what = match seek {
            Seek::Data => read::Seek::Data,
            Seek::Hole => read::Seek::Hole,
        };
        self.ask(|core| read::seek(&core.view, ino, offset, what)).await
    }

    async fn copy_range(self: Arc<Self>, who: Caller, copy: CopyRange) -> Answer<u32> {
        if copy.from != copy.to {
            self.sealed(copy.from).await?;
        }
        if !self.may_share(copy.from, copy.to).await? {
            // The kernel then reads and writes the bytes, and they get the copies of what is written.
            return Err(FsError::NotSupported);
        }
        // The reply counts in 32 bits.
        let len = copy.len.min(1 << 30);
        let op = Op::Copy(Copy {
            from: copy.from,
            from_offset: copy.from_offset,
            to: copy.to,
            to_offset: copy.to_offset,
            len,
            kill_priv: !caller::may_keep_setid(who),
        });
        match self.after_bytes(copy.to, op).await? {
            Reply::Copied { len, .. } => Ok(len as u32),
            Reply::Done => Ok(0),
            other => unreachable!("copy answers with a length, not {other:?}"),
        }
    }
}
