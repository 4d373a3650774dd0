//! A mount's life: the check of its directory, the mount itself, its end.
//!
//! Owns: mount(2), fusermount3, what a dead mount leaves behind, the kernel's read-ahead.
//! Invariant: a directory that a dead daemon left as "Transport endpoint is not connected" is
//! usable again after `prepare`; a directory that is in use is never touched.

use crate::fuse::Fuse;
use crate::options::{KernelFlag, Options};
use crate::vfs::Vfs;
use crate::workers;
pub use fuser::INodeNo;
use fuser::{Config, MountOption, Notifier, Session, SessionACL};
use rustix::mount::UnmountFlags;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

/// The type in /proc/self/mountinfo is `fuse.mictlan`.
const SUBTYPE: &str = "mictlan";

/// The kernel asks for at most this much ahead of a reader, where we may say so (as root).
const READ_AHEAD_KIB: u32 = 1024;

/// Requests are served by this many threads; none is ever blocked (see `Fuse::answer`).
const THREADS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    #[error("{0}: no such directory; make it first: mkdir -p {0}")]
    NoDirectory(PathBuf),
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    #[error("{0} is not empty; what is in it would be hidden: choose an empty directory")]
    NotEmpty(PathBuf),
    #[error("{0} has a mount that works already; to end it: mictlan umount {0}")]
    AlreadyMounted(PathBuf),
    #[error("{0} has a dead mount that could not be removed ({1}); try: umount -l {0}")]
    Dead(PathBuf, std::io::Error),
    #[error("{0}: {1}")]
    Directory(PathBuf, std::io::Error),
    #[error(
        "/dev/fuse: {0}; is the fuse module loaded, and may this user open it? Without it the \
         volume is there too: mictlan put, get, ls, rm"
    )]
    Device(std::io::Error),
    #[error(
        "the kernel refused the mount on {0}: {1}; unprivileged mounts need fusermount3 \
         (package fuse3), and allow_other needs user_allow_other in /etc/fuse.conf"
    )]
    Refused(PathBuf, std::io::Error),
}

/// Makes sure that `dir` can be mounted on, clearing a dead mount away, and returns its real path.
pub fn prepare(dir: &Path) -> Result<PathBuf, MountError> {
    if is_dead(dir) {
        tracing::warn!(dir = %dir.display(), "removing a dead mount");
        unmount(dir, true).map_err(|error| MountError::Dead(dir.into(), error))?;
    }
    let meta = std::fs::metadata(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => MountError::NoDirectory(dir.into()),
        _ => MountError::Directory(dir.into(), error),
    })?;
    if !meta.is_dir() {
        return Err(MountError::NotADirectory(dir.into()));
    }
    let dir = dir.canonicalize().map_err(|error| MountError::Directory(dir.into(), error))?;
    let in_use = || mounted_type(&dir).is_some_and(|kind| kind.starts_with("fuse"));
    if in_use() {
        return Err(MountError::AlreadyMounted(dir));
    }
    let mut entries =
        std::fs::read_dir(&dir).map_err(|error| MountError::Directory(dir.clone(), error))?;
    if entries.next().is_some() {
        // What is in it may be of a mount that came just now.
        let why = if in_use() { MountError::AlreadyMounted } else { MountError::NotEmpty };
        return Err(why(dir));
    }
    Ok(dir)
}

/// A mount whose daemon is gone answers every question with ENOTCONN, and those that were asked
/// while it died with ECONNABORTED. `stat` may still be answered from what the kernel remembers;
/// statfs always asks the daemon.
fn is_dead(dir: &Path) -> bool {
    use rustix::io::Errno;
    matches!(rustix::fs::statfs(dir), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// The file system type mounted exactly on `dir`, from mountinfo, which asks no daemon anything.
pub fn mounted_type(dir: &Path) -> Option<String> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    let mut found = None;
    for line in table.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b' ');
        let Some(point) = fields.nth(4) else { continue };
        if unescape(point) == dir.as_os_str().as_bytes() {
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            // The last line is the mount on top.
            found = Some(String::from_utf8_lossy(kind).into_owned());
        }
    }
    found
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Unmounts `dir`, as root directly, otherwise through fusermount3. `lazy` detaches at once and
/// lets open files end by themselves.
pub fn unmount(dir: &Path, lazy: bool) -> std::io::Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(dir, flags) {
        Err(rustix::io::Errno::PERM) => {}
        done => return Ok(done?),
    }
    let mut command = std::process::Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(dir);
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            // Its words are all that it tells; they are the C library's for the errno.
            match said.ends_with("Device or resource busy") {
                true => Err(std::io::ErrorKind::ResourceBusy.into()),
                false => Err(std::io::Error::other(said)),
            }
        }
    }
}

/// A mount that answers.
pub struct Mounted {
    workers: Vec<JoinHandle<()>>,
    notifier: Notifier,
    dir: PathBuf,
    /// The library's own session, which unmounts when it is dropped.
    _session: Box<dyn Send>,
}

/// Mounts `vfs` on `dir` (from `prepare`), shown as `source` in the mount table. When this returns,
/// the kernel's first request has been answered. What has been mounted there since `prepare` stays
/// alone there; whoever mounts at the same time, as root may, is kept away by the caller.
pub fn mount<V: Vfs>(
    vfs: Arc<V>,
    dir: &Path,
    source: &str,
    options: &Options,
    runtime: tokio::runtime::Handle,
) -> Result<Mounted, MountError> {
    if mounted_type(dir).is_some_and(|kind| kind.starts_with("fuse")) {
        return Err(MountError::AlreadyMounted(dir.into()));
    }
    if let Err(error) = std::fs::File::open("/dev/fuse") {
        return Err(MountError::Device(error));
    }
    let refused = |error| MountError::Refused(dir.into(), error);
    let fuse = Fuse::new(vfs, runtime);
    let config = config(source, options);
    let session = Session::new(fuse.clone(), dir, &config).map_err(refused)?;
    let workers = workers::serve(session.as_fd(), &fuse, &config, THREADS).map_err(refused)?;
    raise_read_ahead(dir);
    let notifier = session.notifier();
    Ok(Mounted { workers, notifier, dir: dir.into(), _session: Box::new(session) })
}

fn config(source: &str, options: &Options) -> Config {
    let root = rustix::process::geteuid().is_root();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(source.to_owned()),
        // fuser gives a subtype to fusermount3 alone; the kernel takes it as an option too.
        match root {
            true => MountOption::CUSTOM(format!("subtype={SUBTYPE}")),
            false => MountOption::Subtype(SUBTYPE.to_owned()),
        },
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.mount_options.extend(options.kernel.iter().map(|flag| match flag {
        KernelFlag::Dev => MountOption::Dev,
        KernelFlag::NoDev => MountOption::NoDev,
        KernelFlag::Suid => MountOption::Suid,
        KernelFlag::NoSuid => MountOption::NoSuid,
        KernelFlag::Exec => MountOption::Exec,
        KernelFlag::NoExec => MountOption::NoExec,
        KernelFlag::NoAtime => MountOption::NoAtime,
    }));
    // Device nodes and setuid programs of the volume work as root expects of a local disk; the
    // kernel gives unprivileged mounts neither.
    if root && !options.kernel.contains(&KernelFlag::NoDev) {
        config.mount_options.push(MountOption::Dev);
    }
    if root && !options.kernel.contains(&KernelFlag::NoSuid) {
        config.mount_options.push(MountOption::Suid);
    }
    config.acl = match options.allow_other.unwrap_or(root) {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    config
}

/// The kernel offers FUSE 128 KiB of read-ahead; only its backing-device knob goes higher.
fn raise_read_ahead(dir: &Path) {
    let Ok(stat) = rustix::fs::stat(dir) else { return };
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = std::fs::write(&knob, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, "read-ahead stays at the kernel's default");
    }
}

impl Mounted {
    /// Tells the kernel what it must forget; to be called from a thread that serves no request.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits until somebody unmounts it.
    pub fn wait(self) {
        for worker in self.workers {
            worker.join().expect("it does nothing but serve, in threads of its own");
        }
    }
}

/// A path as mountinfo wrote it.
pub fn mount_point(field: &[u8]) -> PathBuf {
    PathBuf::from(std::ffi::OsString::from_vec(unescape(field)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_escapes_are_undone() {
        assert_eq!(unescape(br"/mnt/a\040b\134c"), b"/mnt/a b\\c");
        assert_eq!(unescape(br"/mnt/\9"), br"/mnt/\9");
        assert_eq!(mount_point(b"/mnt"), PathBuf::from("/mnt"));
    }

    #[test]
    fn a_directory_that_cannot_be_mounted_on_is_named_with_its_reason() {
        let temp = std::env::temp_dir();
        let missing = temp.join("mictlan-no-such-directory");
        assert!(matches!(prepare(&missing), Err(MountError::NoDirectory(_))));
        assert!(matches!(prepare(Path::new("/")), Err(MountError::NotEmpty(_))));
        assert!(matches!(prepare(Path::new("/proc/version")), Err(MountError::NotADirectory(_))));
        assert_eq!(mounted_type(Path::new("/proc")).as_deref(), Some("proc"));
    }
}
