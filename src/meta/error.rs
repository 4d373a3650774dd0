//! What an operation on the namespace may answer instead of a result.
//!
//! Owns: the meanings. `mount/errno` has the one table that turns them into numbers.
//! Invariant: `Missing` is no failure: the caller fetches the node and asks again.

use crate::meta::tree::{NodeError, NodeRef};
use serde::{Deserialize, Serialize};

/// Why an operation on the namespace was refused; the same for every caller.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    thiserror::Error,
)]
pub enum FsError {
    #[error("no such file or directory")]
    NotFound,
    #[error("the name exists already")]
    Exists,
    #[error("not a directory")]
    NotDir,
    #[error("is a directory")]
    IsDir,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the name is too long")]
    NameTooLong,
    #[error("an argument makes no sense")]
    Invalid,
    #[error("no space left")]
    NoSpace,
    /// EPERM: not the owner, or an operation that nobody may do.
    #[error("the operation is not permitted")]
    NotPermitted,
    /// EACCES: the mode or an ACL forbids it.
    #[error("access denied")]
    Denied,
    /// ENODATA.
    #[error("no such extended attribute")]
    NoXattr,
    /// ERANGE: the caller's buffer is too small.
    #[error("the value is larger than the buffer")]
    XattrRange,
    /// E2BIG.
    #[error("the extended attribute is too large")]
    XattrTooBig,
    #[error("too many links")]
    TooManyLinks,
    #[error("the file is busy")]
    Busy,
    #[error("the volume is read-only")]
    ReadOnly,
    #[error("the file is gone")]
    Stale,
    #[error("no answer before the deadline")]
    TimedOut,
    #[error("data could not be read or written")]
    Io,
    #[error("not supported")]
    NotSupported,
    #[error("the file would be too large")]
    FileTooBig,
    #[error("not within one filesystem")]
    CrossDevice,
    #[error("the number does not fit")]
    Overflow,
    #[error("no such device or address")]
    NoDevice,
    #[error("too many levels of symbolic links")]
    Loop,
    #[error("interrupted")]
    Interrupted,
}

/// Why a question to the metadata has no answer now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The answer itself: refused, and asking again does not help.
    #[error(transparent)]
    Refused(#[from] FsError),
    /// Fetch this node, insert it into the cache, call again.
    #[error("tree node {0:?} is not in memory")]
    Missing(NodeRef),
    /// The snapshot is not well formed: an I/O error, and its builder is to be named.
    #[error("tree node {0:?} contradicts the node that refers to it")]
    Broken(NodeRef),
}

impl From<NodeError> for ReadError {
    fn from(error: NodeError) -> Self {
        match error {
            NodeError::Missing(node) => Self::Missing(node),
            NodeError::Broken(node) => Self::Broken(node),
        }
    }
}
