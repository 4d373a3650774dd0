//! create, mknod, mkdir, symlink: a new inode with its first name.

use super::acl::{self, Acl};
use super::draft::Draft;
use super::op::Make;
use super::{LINK_MAX, Reply};
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, Inode, SET_GID, TARGET_MAX};
use crate::meta::key::Key;
use crate::meta::tag::Fact;
use crate::meta::tree::Read;
use crate::meta::value::Value;

pub(super) fn plan(draft: &mut Draft<impl Read>, make: &Make) -> Result<Reply, ReadError> {
    check(make)?;
    let dir = draft.living_dir(make.at.dir)?;
    if draft.dirent(&make.at)?.is_some() {
        return Err(FsError::Exists.into());
    }
    let is_dir = make.kind == FileKind::Dir;
    if is_dir && dir.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    // The child takes group and ACL from the directory as it is: a list that another session
    // has just tightened must not be passed by.
    draft.facts.read(Fact::Attr(make.at.dir));
    let (mode, gid) = inherit(draft, &dir, make)?;
    let now = draft.env.now;
    let inode = Inode {
        kind: make.kind,
        mode,
        uid: make.uid,
        gid,
        nlink: if is_dir { 2 } else { 1 },
        size: make.target.len() as u64,
        bytes: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        rdev: make.rdev,
        home: make.at.dir,
        target: make.target.clone(),
    };
    draft.put(Key::Inode(make.ino), Value::Inode(inode.clone()));
    draft.insert(&make.at, make.ino, make.kind)?;
    draft.parent(make.at.dir, is_dir.into());
    draft.count_inodes(1);
    Ok(Reply::Entry { ino: make.ino, inode })
}

fn check(make: &Make) -> Result<(), FsError> {
    let device = matches!(make.kind, FileKind::CharDevice | FileKind::BlockDevice);
    match (make.kind, make.target.len()) {
        (FileKind::Symlink, 0) => Err(FsError::NotFound),
        (FileKind::Symlink, len) if len > TARGET_MAX => Err(FsError::NameTooLong),
        (FileKind::Symlink, _) if make.target.contains(&0) => Err(FsError::Invalid),
        (FileKind::Symlink, _) => Ok(()),
        (_, len) if len > 0 => Err(FsError::Invalid),
        _ if make.rdev != 0 && !device => Err(FsError::Invalid),
        _ => Ok(()),
    }
}

/// Mode and group of the child, with what the directory hands down; its ACLs are put on the way.
fn inherit(
    draft: &mut Draft<impl Read>,
    dir: &Inode,
    make: &Make,
) -> Result<(u32, u32), ReadError> {
    let is_dir = make.kind == FileKind::Dir;
    let mut mode = make.mode & 0o7777;
    if make.kind == FileKind::Symlink {
        mode = 0o777;
    } else if let Some(default) = draft.xattr(make.at.dir, acl::DEFAULT)? {
        let list = Acl::decode(&default)?.ok_or(FsError::Io)?;
        let (access, limited) = list.inherited(mode);
        mode = limited;
        if !access.is_minimal() {
            draft.put_xattr(make.ino, acl::ACCESS, access.encode().into());
        }
        if is_dir {
            draft.put_xattr(make.ino, acl::DEFAULT, default);
        }
    } else {
        mode &= !(make.umask & 0o777);
    }
    if dir.mode & SET_GID == 0 {
        return Ok((mode, make.gid));
    }
    Ok((if is_dir { mode | SET_GID } else { mode }, dir.gid))
}
