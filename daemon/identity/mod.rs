//! Who this process is, and how a new principal comes into a network.
//!
//! Owns: key files, invite codes, and the newcomer's side of `join`.
//! Never: writes a secret into a log, an error or a world-readable file.

pub mod invite;
pub mod join;
pub mod keyfile;
