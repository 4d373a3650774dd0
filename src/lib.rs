//! The rules of mictlan, pure: bytes, events and time in; values and effects out.
//!
//! Owns: formats, the namespace, certification, placement, the ledger, the sequencer's state.
//! Never: touches tokio, sockets, files, FUSE, a clock or a random generator; `daemon` does.
//!
//! A module uses only what stands before it in this list; the `tidy` test keeps that.

pub mod cluster;
pub mod codec;
pub mod file;
pub mod hash;
pub mod id;
pub mod ledger;
pub mod meta;
pub mod seal;
pub mod wire;
