//! The kernel's side of mictlan: FUSE requests become calls of the `Vfs` trait.

pub mod errno;
pub mod fuse;
pub mod graft;
pub mod options;
pub mod session;
pub mod vfs;
mod workers;
