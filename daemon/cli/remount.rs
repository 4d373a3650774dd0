//! `-o remount`: what the kernel alone decides of a mount, changed while it is mounted.
//!
//! Owns: which options may change, and what is said of the others.
//! Never: asks the mount's process to change; its options are those that it was started with.
//! Invariant: all that was asked is changed, or nothing.

use super::error::CliError;
use super::mount::{self, Asked};
use super::standing;
use crate::config::Paths;
use mictlan_mount::options::{KernelFlag, OptionError, Options};
use mictlan_mount::session;
use rustix::fs::StatVfsMountFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use std::path::Path;

/// What mount(8) copies from the kernel's table into the options of a remount.
const OF_THE_TABLE: [&str; 9] = [
    "remount",
    "user_id",
    "group_id",
    "default_permissions",
    "allow_other",
    "rootmode",
    "max_read",
    "blksize",
    "fd",
];

/// Whether one of the lists has the word.
pub fn is_asked(lists: &[String]) -> bool {
    lists.iter().flat_map(|list| list.split(',')).any(|option| option == "remount")
}

pub fn remount(dir: &Path, lists: &[String]) -> Result<(), CliError> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    if !session::mounted_type(&dir).is_some_and(|kind| kind.starts_with("fuse")) {
        return Err(CliError::NotMounted(dir));
    }
    let failed = |error: Errno| CliError::Io(dir.clone(), error.into());
    let there = rustix::fs::statvfs(&dir).map_err(failed)?.f_flag;
    let running = running(&dir);
    let before = running.clone().unwrap_or_default();
    let read_only = there.contains(StatVfsMountFlags::RDONLY);
    let mut wanted = Options { read_only, kernel: Vec::new(), ..before.clone() };
    for list in lists {
        wanted.parse(&without_the_table(list))?;
    }
    if let Some(option) = before.fixed_difference(&wanted) {
        return Err(OptionError::Fixed { option }.into());
    }
    if before.read_only && !wanted.read_only {
        return Err(OptionError::Fixed { option: "ro" }.into());
    }
    let done = rustix::mount::mount_remount(&dir, flags(there, &wanted), c"");
    done.map_err(|error| match error {
        Errno::PERM => CliError::Usage(format!(
            "only root may change a mount; nothing was changed. As its owner: mictlan umount {0}, \
             and mount it again",
            dir.display()
        )),
        Errno::BUSY => CliError::StillWritten { dir: dir.display().to_string() },
        error => failed(error),
    })
}

/// The options of the process that serves the mount on `dir`, if it is this user's and lives.
fn running(dir: &Path) -> Option<Options> {
    let paths = Paths::of_process().ok()?;
    let arguments = standing::of(&paths, &dir.display().to_string())?.arguments()?;
    let Asked { lists, .. } = mount::asked(arguments).ok()?;
    let mut options = Options::default();
    lists.iter().try_for_each(|list| options.parse(list)).ok()?;
    Some(options)
}

fn without_the_table(list: &str) -> String {
    let name = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
    let own = |option: &&str| !OF_THE_TABLE.contains(&name(option).as_str());
    list.split(',').filter(own).collect::<Vec<_>>().join(",")
}

/// What is there, with what is asked for over it.
fn flags(there: StatVfsMountFlags, wanted: &Options) -> MountFlags {
    let pairs = [
        (StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ];
    let mut flags = MountFlags::empty();
    for (is, flag) in pairs {
        flags.set(flag, there.contains(is));
    }
    flags.set(MountFlags::RDONLY, wanted.read_only);
    for flag in &wanted.kernel {
        match flag {
            KernelFlag::Dev => flags.remove(MountFlags::NODEV),
            KernelFlag::NoDev => flags.insert(MountFlags::NODEV),
            KernelFlag::Suid => flags.remove(MountFlags::NOSUID),
            KernelFlag::NoSuid => flags.insert(MountFlags::NOSUID),
            KernelFlag::Exec => flags.remove(MountFlags::NOEXEC),
            KernelFlag::NoExec => flags.insert(MountFlags::NOEXEC),
            KernelFlag::NoAtime => flags.insert(MountFlags::NOATIME),
        }
    }
    flags
}
