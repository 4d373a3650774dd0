//! The root directory's first owner.
//!
//! Owns: handing the root of a volume in which nothing was done yet to the user who mounts it.
//! Why: every replay of the log founds the same root, so it belongs to uid 0; a volume that an
//! ordinary user made would be one that nobody could write to.
//! Invariant: a root that anybody has used or given away is left alone.

use super::Volume;
use mictlan::id::Ino;
use mictlan::meta::inode::Inode;
use mictlan::meta::namespace::{Op, SetAttr};

/// As it was founded: any change of it, and any name in it, would have moved its ctime.
fn is_untouched(root: &Inode) -> bool {
    root.uid == 0 && root.gid == 0 && root.ctime == root.btime
}

impl Volume {
    /// Without an answer the mount comes up all the same: the owner can be set by root later.
    pub(super) async fn own_root(&self) {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        if uid.is_root() {
            return;
        }
        match self.inode(Ino::ROOT).await {
            Ok(root) if is_untouched(&root) => {}
            _ => return,
        }
        let set = SetAttr {
            ino: Ino::ROOT,
            mode: None,
            uid: Some(uid.as_raw()),
            gid: Some(gid.as_raw()),
            size: None,
            atime: None,
            mtime: None,
            kill_priv: false,
            kill_sgid: false,
        };
        if let Err(error) = self.run(Op::SetAttr(set)).await {
            tracing::warn!(%error, "the root directory still belongs to uid 0");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mictlan::meta::inode::{FileKind, Stamp};

    #[test]
    fn a_root_that_was_used_or_given_away_keeps_its_owner() {
        let founded = Inode {
            kind: FileKind::Dir,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            size: 0,
            bytes: 0,
            atime: Stamp::default(),
            mtime: Stamp::default(),
            ctime: Stamp::default(),
            btime: Stamp::default(),
            rdev: 0,
            home: Ino::ROOT,
            target: [].into(),
        };
        assert!(is_untouched(&founded));
        let used = Stamp { secs: 1, nanos: 0 };
        assert!(!is_untouched(&Inode { ctime: used, ..founded.clone() }));
        assert!(!is_untouched(&Inode { uid: 1000, ..founded }));
    }
}
