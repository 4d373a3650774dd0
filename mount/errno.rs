//! The one table from meaning to number.
//!
//! Each doubtful choice says why; everything else is the number that POSIX gives the meaning.

use fuser::Errno;
use mictlan::meta::error::FsError;

pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDir => Errno::ENOTDIR,
        FsError::IsDir => Errno::EISDIR,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid => Errno::EINVAL,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::NotPermitted => Errno::EPERM,
        FsError::Denied => Errno::EACCES,
        FsError::NoXattr => Errno::ENODATA,
        FsError::XattrRange => Errno::ERANGE,
        FsError::XattrTooBig => Errno::E2BIG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::Busy => Errno::EBUSY,
        FsError::ReadOnly => Errno::EROFS,
        FsError::Stale => Errno::ESTALE,
        // Not EIO: the bytes are not known to be bad, and a program that retries may succeed.
        FsError::TimedOut => Errno::ETIMEDOUT,
        FsError::Io => Errno::EIO,
        FsError::NotSupported => Errno::EOPNOTSUPP,
        FsError::FileTooBig => Errno::EFBIG,
        FsError::CrossDevice => Errno::EXDEV,
        FsError::Overflow => Errno::EOVERFLOW,
        FsError::NoDevice => Errno::ENXIO,
        FsError::Loop => Errno::ELOOP,
        FsError::Interrupted => Errno::EINTR,
    }
}
