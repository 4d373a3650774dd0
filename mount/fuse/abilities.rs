//! Which of the kernel's abilities are used.
//!
//! Never: fails. A kernel that lacks one is served without it.

use fuser::{InitFlags, KernelConfig};
use std::time::Duration;

/// What is asked of the kernel. The write-back cache is not among it: the kernel would own size and
/// times, and lose another host's appends. Neither are the lock flags: the kernel keeps locks of one
/// host. Nor O_TRUNC as a part of open: the kernel would look only afterwards whether the file is a
/// program that runs (ETXTBSY), and have dropped its pages by then.
const ABILITIES: [InitFlags; 14] = [
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// What the kernel may have in flight; the rest waits in the kernel, which costs us no memory.
const BACKGROUND_MAX: u16 = 64;

pub(super) fn ask(config: &mut KernelConfig) {
    // Each is asked for alone, so that an old kernel that lacks one still gives the others.
    for ability in ABILITIES {
        if config.add_capabilities(ability).is_err() {
            tracing::debug!(?ability, "this kernel's FUSE does not have it");
        }
    }
    // The nearest allowed value comes back as the error; both are fine.
    let _ = config.set_max_write(1 << 20).or_else(|nearest| config.set_max_write(nearest));
    let _ = config.set_max_background(BACKGROUND_MAX);
    let _ = config.set_time_granularity(Duration::from_nanos(1));
}
