//! What the kernel does not tell about a caller, read where it is needed and only there.
//!
//! Owns: capabilities and groups of a process, from /proc.
//! Invariant: a process that cannot be asked any more counts as having no privilege.

use mictlan::meta::inode::Inode;
use mictlan_mount::vfs::Caller;

const CAP_FSETID: u32 = 4;
const CAP_SYS_ADMIN: u32 = 21;

/// `trusted.` attributes are for those who may administer the machine.
pub fn is_privileged(who: Caller) -> bool {
    who.uid == 0 || has(who, CAP_SYS_ADMIN)
}

/// Writing and truncating leave the setuid and setgid bits to those with CAP_FSETID.
pub fn may_keep_setid(who: Caller) -> bool {
    who.uid == 0 || has(who, CAP_FSETID)
}

/// Setting an ACL clears the setgid bit for whoever is not in the file's group.
pub fn must_lose_setgid(who: Caller, inode: &Inode) -> bool {
    who.gid != inode.gid && !may_keep_setid(who) && !groups(who).contains(&inode.gid)
}

fn status(who: Caller) -> Option<String> {
    std::fs::read_to_string(format!("/proc/{}/status", who.pid)).ok()
}

fn field(status: &str, name: &str) -> Option<String> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

fn has(who: Caller, capability: u32) -> bool {
    let effective = status(who).and_then(|status| field(&status, "CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(&hex, 16).ok()).unwrap_or(0);
    bits >> capability & 1 == 1
}

fn groups(who: Caller) -> Vec<u32> {
    let groups = status(who).and_then(|status| field(&status, "Groups:")).unwrap_or_default();
    groups.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_what_proc_says_it_is() {
        let uid = rustix::process::getuid().as_raw();
        let who = Caller { uid, gid: 0, pid: std::process::id() };
        let gone = Caller { uid: 1, gid: 1, pid: u32::MAX };
        assert_eq!(may_keep_setid(who), uid == 0 || has(who, CAP_FSETID));
        assert!(!is_privileged(gone) && groups(gone).is_empty());
    }
}
