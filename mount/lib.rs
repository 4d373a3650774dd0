//! The kernel's side of mictlan: FUSE requests become calls of the `Vfs` trait.
