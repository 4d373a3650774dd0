//! POSIX access control lists: their bytes, and how they and the mode bits follow each other.
//!
//! Owns: the value of `system.posix_acl_access` and `system.posix_acl_default`, which is the
//! form the kernel hands over (version 2, little-endian).
//! Never: grants or denies access; the kernel does, from the list that is stored.
//! Invariant: a stored list is valid and says more than the mode bits can; one that does not is
//! folded into the mode and dropped, so that there is never a list that disagrees with the mode.

use crate::codec::{DecodeError, Reader, Writer};
use crate::meta::error::FsError;

pub const ACCESS: &[u8] = b"system.posix_acl_access";
pub const DEFAULT: &[u8] = b"system.posix_acl_default";

const VERSION: u32 = 2;
/// The id field of an entry that names nobody.
const NOBODY: u32 = u32::MAX;
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP: u16 = 0x04;
const NAMED_GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One list. Permissions are 0 to 7.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    owner: u32,
    users: Vec<(u32, u32)>,
    group: u32,
    groups: Vec<(u32, u32)>,
    mask: Option<u32>,
    other: u32,
}

impl Acl {
    /// `None` is the list without entries, by which a caller removes one.
    pub fn decode(bytes: &[u8]) -> Result<Option<Acl>, FsError> {
        let entries = entries(bytes).map_err(|_| FsError::Invalid)?;
        if entries.is_empty() {
            return Ok(None);
        }
        // The kernel's order: owner, users, group, groups, mask, other, each class together.
        let ordered = entries.windows(2).all(|pair| {
            let (before, after) = (pair[0].0, pair[1].0);
            before < after || before == after && matches!(after, USER | NAMED_GROUP)
        });
        let one = |tag| entries.iter().find(|e| e.0 == tag).map(|e| e.1);
        let named = |tag| {
            let all = entries.iter().filter(|e| e.0 == tag);
            all.map(|e| (e.2, e.1)).collect::<Vec<_>>()
        };
        let (Some(owner), Some(group), Some(other)) = (one(OWNER), one(GROUP), one(OTHER)) else {
            return Err(FsError::Invalid);
        };
        let (users, groups) = (named(USER), named(NAMED_GROUP));
        let acl = Acl { owner, users, group, groups, mask: one(MASK), other };
        let masked = acl.mask.is_some() || acl.users.is_empty() && acl.groups.is_empty();
        let known = entries
            .iter()
            .all(|e| matches!(e.0, OWNER | USER | GROUP | NAMED_GROUP | MASK | OTHER) && e.1 <= 7);
        if ordered && masked && known { Ok(Some(acl)) } else { Err(FsError::Invalid) }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u32(VERSION);
        let mut entry = |tag: u16, perm: u32, id: u32| {
            w.u16(tag).u16(perm as u16).u32(id);
        };
        entry(OWNER, self.owner, NOBODY);
        self.users.iter().for_each(|(id, perm)| entry(USER, *perm, *id));
        entry(GROUP, self.group, NOBODY);
        self.groups.iter().for_each(|(id, perm)| entry(NAMED_GROUP, *perm, *id));
        if let Some(mask) = self.mask {
            entry(MASK, mask, NOBODY);
        }
        entry(OTHER, self.other, NOBODY);
        w.finish()
    }

    /// Whether the nine mode bits say all that the list says.
    pub fn is_minimal(&self) -> bool {
        self.users.is_empty() && self.groups.is_empty() && self.mask.is_none()
    }

    /// The nine permission bits that stand for the list: the mask takes the group's place.
    pub fn permissions(&self) -> u32 {
        self.owner << 6 | self.mask.unwrap_or(self.group) << 3 | self.other
    }

    /// The list after a chmod: the group bits set the mask, so that they bound every named entry.
    pub fn with_permissions(mut self, mode: u32) -> Acl {
        self.owner = mode >> 6 & 7;
        self.other = mode & 7;
        match &mut self.mask {
            Some(mask) => *mask = mode >> 3 & 7,
            None => self.group = mode >> 3 & 7,
        }
        self
    }

    /// The access list of a new child under this default list, and the child's permission bits:
    /// what was asked for limits the list, and the umask plays no part.
    pub fn inherited(&self, mode: u32) -> (Acl, u32) {
        let allowed = self.permissions() & mode;
        (self.clone().with_permissions(allowed), mode & !0o777 | allowed)
    }
}

/// (tag, permissions, id) of each entry.
fn entries(bytes: &[u8]) -> Result<Vec<(u16, u32, u32)>, DecodeError> {
    let mut r = Reader::new(bytes);
    if r.u32("acl version")? != VERSION {
        return Err(DecodeError::Unknown("acl version"));
    }
    let mut entries = Vec::with_capacity(r.rest().len() / 8);
    while !r.rest().is_empty() {
        let (tag, perm) = (r.u16("acl tag")?, r.u16("acl permissions")?);
        entries.push((tag, u32::from(perm), r.u32("acl id")?));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(users: &[(u32, u32)], mask: Option<u32>) -> Acl {
        Acl { owner: 7, users: users.to_vec(), group: 5, groups: vec![], mask, other: 4 }
    }

    #[test]
    fn a_list_survives_its_bytes_and_a_bad_one_is_refused() {
        let good = acl(&[(1000, 6), (7, 1)], Some(7));
        assert_eq!(Acl::decode(&good.encode()), Ok(Some(good.clone())));
        assert_eq!(Acl::decode(&2u32.to_le_bytes()), Ok(None), "no entries: removal");

        let unmasked = Acl { mask: None, ..good.clone() };
        assert_eq!(Acl::decode(&unmasked.encode()), Err(FsError::Invalid));
        let mut twice = good.encode();
        twice.extend_from_slice(&good.encode()[4..]);
        assert_eq!(Acl::decode(&twice), Err(FsError::Invalid));
        let mut too_much = good.encode();
        too_much[6] = 8;
        assert_eq!(Acl::decode(&too_much), Err(FsError::Invalid));
        for len in 0..good.encode().len() {
            let cut = Acl::decode(&good.encode()[..len]);
            assert!(cut == Err(FsError::Invalid) || cut == Ok(None), "{len}");
        }
    }

    #[test]
    fn the_group_bits_of_a_mode_are_the_mask_of_its_list() {
        let named = acl(&[(1, 7)], Some(7));
        assert_eq!(named.permissions(), 0o774);
        let changed = named.with_permissions(0o640);
        assert_eq!((changed.group, changed.mask, changed.permissions()), (5, Some(4), 0o640));
        assert!(acl(&[], None).is_minimal() && !changed.is_minimal());
    }

    #[test]
    fn a_child_gets_no_more_than_the_default_list_and_its_maker_allow() {
        let (child, mode) = acl(&[(1, 7)], Some(6)).inherited(0o2666);
        assert_eq!(mode, 0o2664);
        assert_eq!((child.owner, child.mask, child.group, child.other), (6, Some(6), 5, 4));
    }
}
