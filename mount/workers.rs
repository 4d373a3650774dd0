//! The threads that serve a mount's requests.
//!
//! Owns: for each thread a session of the FUSE library, on a descriptor of its own; a session that
//! ends before the mount does is replaced.
//! Never: mounts or unmounts.
//! Invariant: a request at which the library panics, as it does at some times that a program may
//! set, costs whoever sent it an error (`ECONNABORTED`), and nobody else anything.

use fuser::{Config, Filesystem, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

/// `FUSE_DEV_IOC_CLONE` of linux/fuse.h.
const CLONE: libc::c_ulong = rustix::ioctl::opcode::read::<u32>(229, 0) as libc::c_ulong;

/// What a session is made of.
struct Maker<F> {
    device: OwnedFd,
    filesystem: F,
    acl: SessionACL,
    config: Config,
}

/// Serves the mount of `device`, whose first request was answered, by `count` threads that end with
/// it.
pub fn serve<F: Filesystem + Clone>(
    device: BorrowedFd<'_>,
    filesystem: &F,
    config: &Config,
    count: usize,
) -> io::Result<Vec<JoinHandle<()>>> {
    let mut config = config.clone();
    config.n_threads = Some(1);
    let maker = Arc::new(Maker {
        device: device.try_clone_to_owned()?,
        filesystem: filesystem.clone(),
        acl: config.acl,
        config,
    });
    let worker = |n: usize| {
        let (maker, first) = (maker.clone(), maker.session()?);
        Builder::new().name(format!("fuse-{n}")).spawn(move || maker.work(first))
    };
    (0..count).map(worker).collect()
}

impl<F: Filesystem + Clone> Maker<F> {
    fn work(&self, mut session: Session<F>) {
        while let Err(error) = session.run() {
            tracing::error!(%error, "a request ended the thread that served it; another goes on");
            session = match self.session() {
                Ok(session) => session,
                Err(error) => return tracing::debug!(%error, "the mount is gone"),
            };
        }
    }

    /// A session on a clone of the device. The library makes none without the kernel's first
    /// request, which was answered on the device itself; so it is shown one of ours, on a socket
    /// whose descriptor then becomes the clone's.
    fn session(&self) -> io::Result<Session<F>> {
        let clone = cloned(self.device.as_fd())?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::write(&ours, &first_request())?;
        let filesystem = self.filesystem.clone();
        let session = Session::from_fd(filesystem, theirs, self.acl, self.config.clone())?;
        let place = session.as_fd().as_raw_fd();
        // SAFETY: both descriptors are open, and the session, which owns `place`, goes on owning it.
        match unsafe { libc::dup3(clone.as_raw_fd(), place, libc::O_CLOEXEC) } {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(session),
        }
    }
}

/// Another descriptor of the same mount, with requests of its own.
fn cloned(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = std::fs::File::options().read(true).write(true).open("/dev/fuse")?;
    let mut source = device.as_raw_fd() as u32;
    // SAFETY: the call reads one u32, which lives as long as it takes.
    match unsafe { libc::ioctl(clone.as_raw_fd(), CLONE as _, &raw mut source) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(clone.into()),
    }
}

/// `struct fuse_in_header` and `struct fuse_init_in` of linux/fuse.h, from a kernel that has all.
fn first_request() -> [u8; 104] {
    const INIT: u32 = 26;
    let (major, minor, read_ahead) = (7, 31, 1 << 17);
    let mut bytes = [0; 104];
    let words = [
        // The header: length, kind, half of its number; the inode and the caller are zero.
        (0, 104),
        (4, INIT),
        (8, 1),
        // What it asks; the last two are abilities.
        (40, major),
        (44, minor),
        (48, read_ahead),
        (52, u32::MAX),
        (56, u32::MAX),
    ];
    for (at, word) in words {
        bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
    }
    bytes
}
