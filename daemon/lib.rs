//! The process: mounts, peers, sequencer and command line.
pub mod store;
