//! Metadata: a volume as one ordered map, kept as a log of commits and a tree.
//!
//! Owns: keys and values, write sets and the facts they rest on, the tree of a snapshot, the view
//! that lays later commits and local operations over it, and the namespace's rules.
//! Never: fetches or seals; what is not in memory is named ([`NodeError::Missing`]) and asked for again.

pub mod cover;
pub mod error;
pub mod gather;
pub mod history;
pub mod inode;
pub mod key;
pub mod namespace;
pub mod payload;
pub mod tag;
pub mod tree;
pub mod value;
#[cfg(test)]
mod vectors;
pub mod view;
pub mod write;

pub use cover::{Void, covered, judge};
pub use error::{FsError, ReadError};
pub use gather::Gathered;
pub use inode::{FileKind, Inode, InodeMerge, ModeChange, SizeChange, Stamp};
pub use key::{Key, KeyBytes, Span};
pub use tag::{Fact, Facts, Tag, TagList};
pub use tree::{NodeCache, NodeError, NodeRef, Read, Tree, TreeKeys};
pub use value::Value;
pub use view::View;
pub use write::{Change, Merge, WriteSet};
