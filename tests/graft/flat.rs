//! A filesystem of one directory in memory, to graft a tree on.

use bytes::Bytes;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode, Stamp};
use mictlan_mount::vfs::{
    Allocate, Attr, Caller, CopyRange, Found, Listed, Make, OpenHow, Opened, RenameHow, Seek,
    SetAttr, Space, Vfs, WriteAt, XattrFlags,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

type Answer<T> = Result<T, FsError>;

/// Names by cookie; a file's number is its cookie too.
#[derive(Default)]
pub struct Flat {
    files: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Flat {
    pub fn with(names: &[&str]) -> Arc<Self> {
        let cookies = [7, 1 << 40, (1 << 62) - 1];
        let files = cookies.into_iter().zip(names.iter().map(|name| name.as_bytes().to_vec()));
        Arc::new(Self { files: Mutex::new(files.collect()) })
    }

    fn attr(ino: u64) -> Attr {
        let (kind, mode) = if ino == 1 { (FileKind::Dir, 0o755) } else { (FileKind::File, 0o644) };
        let (zero, target) = (Stamp::default(), Box::default());
        let (uid, gid, nlink, size, bytes) = (0, 0, 1, 0, 0);
        let (atime, mtime, ctime, btime, rdev, home) = (zero, zero, zero, zero, 0, Ino::ROOT);
        let inode = Inode {
            kind,
            mode,
            uid,
            gid,
            nlink,
            size,
            bytes,
            atime,
            mtime,
            ctime,
            btime,
            rdev,
            home,
            target,
        };
        Attr { ino: Ino(ino), inode, blocks: 0, lifetime: Duration::ZERO }
    }

    fn find(&self, name: &[u8]) -> Option<u64> {
        let files = self.files.lock().expect("no test panics in here");
        files.iter().find(|(_, there)| *there == name).map(|(ino, _)| *ino)
    }
}

#[rustfmt::skip]
impl Vfs for Flat {
    async fn lookup(self: Arc<Self>, _: Caller, _: Ino, name: Name) -> Answer<Found> {
        let entry_lifetime = Duration::ZERO;
        Ok(match self.find(name.as_bytes()) {
            Some(ino) => Found::Here { attr: Self::attr(ino), entry_lifetime },
            None => Found::Nothing { entry_lifetime },
        })
    }
    fn forget(&self, ino: Ino, _: u64) {
        assert!(ino.0 >> 63 == 0, "the tree's inodes are not the filesystem's");
    }
    async fn getattr(self: Arc<Self>, ino: Ino, _: Option<u64>) -> Answer<Attr> {
        Ok(Self::attr(ino.0))
    }
    async fn make(self: Arc<Self>, _: Caller, _: Ino, name: Name, _: Make) -> Answer<Found> {
        let ino = 100 + name.as_bytes().len() as u64;
        self.files.lock().expect("no test panics in here").insert(ino, name.as_bytes().to_vec());
        Ok(Found::Here { attr: Self::attr(ino), entry_lifetime: Duration::ZERO })
    }
    async fn unlink(self: Arc<Self>, _: Caller, _: Ino, name: Name) -> Answer<()> {
        let ino = self.find(name.as_bytes()).ok_or(FsError::NotFound)?;
        self.files.lock().expect("no test panics in here").remove(&ino);
        Ok(())
    }
    async fn read(self: Arc<Self>, _: Ino, handle: u64, _: u64, _: u32) -> Answer<Bytes> {
        Ok(Bytes::from(handle.to_string()))
    }
    async fn list(self: Arc<Self>, _: Ino, cookie: u64, limit: usize, with_attr: bool) -> Answer<Vec<Listed>> {
        let files = self.files.lock().expect("no test panics in here");
        let line = |(ino, name): (&u64, &Vec<u8>)| Listed {
            cookie: *ino,
            ino: Ino(*ino),
            kind: FileKind::File,
            name: name.clone().into(),
            attr: with_attr.then(|| Self::attr(*ino)),
        };
        Ok(files.range(cookie + 1..).map(line).take(limit).collect())
    }
    async fn statfs(self: Arc<Self>) -> Answer<Space> {
        Ok(Space { total_bytes: 1, free_bytes: 1, available_bytes: 1, inodes_used: 1, inodes_free: 1 })
    }
    async fn open(self: Arc<Self>, _: Caller, ino: Ino, _: OpenHow) -> Answer<Opened> {
        Ok(Opened { handle: ino.0, keep_cache: false, direct: false })
    }
    async fn setattr(self: Arc<Self>, _: Caller, ino: Ino, _: Option<u64>, _: SetAttr) -> Answer<Attr> {
        Ok(Self::attr(ino.0))
    }
    async fn readlink(self: Arc<Self>, _: Ino) -> Answer<Box<[u8]>> { Err(FsError::NotSupported) }
    async fn create(self: Arc<Self>, _: Caller, _: Ino, _: Name, _: Make, _: OpenHow, _: bool) -> Answer<(Attr, Duration, Opened)> { Err(FsError::NotSupported) }
    async fn rmdir(self: Arc<Self>, _: Caller, _: Ino, _: Name) -> Answer<()> { Err(FsError::NotSupported) }
    async fn rename(self: Arc<Self>, _: Caller, _: (Ino, Name), _: (Ino, Name), _: RenameHow) -> Answer<()> { Ok(()) }
    async fn link(self: Arc<Self>, _: Caller, _: Ino, _: Ino, _: Name) -> Answer<Found> { Err(FsError::NotSupported) }
    async fn write(self: Arc<Self>, _: Caller, _: Ino, _: u64, _: WriteAt) -> Answer<u32> { Ok(1) }
    async fn flush(self: Arc<Self>, _: Ino, _: u64) -> Answer<()> { Ok(()) }
    async fn release(self: Arc<Self>, _: Ino, _: u64) -> Answer<()> { Ok(()) }
    async fn fsync(self: Arc<Self>, _: Ino, _: Option<u64>) -> Answer<()> { Ok(()) }
    async fn getxattr(self: Arc<Self>, _: Ino, _: Box<[u8]>) -> Answer<Bytes> { Err(FsError::NotSupported) }
    async fn listxattr(self: Arc<Self>, _: Caller, _: Ino) -> Answer<Vec<Box<[u8]>>> { Err(FsError::NotSupported) }
    async fn setxattr(self: Arc<Self>, _: Caller, _: Ino, _: Box<[u8]>, _: Bytes, _: XattrFlags) -> Answer<()> { Ok(()) }
    async fn removexattr(self: Arc<Self>, _: Caller, _: Ino, _: Box<[u8]>) -> Answer<()> { Ok(()) }
    async fn allocate(self: Arc<Self>, _: Caller, _: Ino, _: u64, _: u64, _: u64, _: Allocate) -> Answer<()> { Ok(()) }
    async fn seek(self: Arc<Self>, _: Ino, _: u64, _: u64, _: Seek) -> Answer<u64> { Err(FsError::NotSupported) }
    async fn copy_range(self: Arc<Self>, _: Caller, _: CopyRange) -> Answer<u32> { Ok(1) }
}
