//! The process: mounts, peers, sequencer and command line.

pub mod http;
pub mod link;
pub mod peer;
pub mod store;
