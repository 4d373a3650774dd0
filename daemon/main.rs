//! The `mictlan` program; called as `mount.mictlan` it mounts.

fn main() {}
