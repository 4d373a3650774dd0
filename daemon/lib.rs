//! The process: mounts, peers, sequencer and command line.

pub mod config;
pub mod http;
pub mod identity;
pub mod link;
pub mod peer;
pub mod sequencer;
pub mod store;
