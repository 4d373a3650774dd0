//! The process: mounts, peers, sequencer and command line.

// `eprintln!` panics where standard error is full or closed, which must end no daemon.
#![deny(clippy::print_stderr)]

pub mod chunks;
pub mod cli;
pub mod config;
pub mod counts;
pub mod founding;
pub mod here;
pub mod host;
pub mod http;
pub mod identity;
pub mod ledger;
pub mod link;
pub mod metrics;
pub mod network;
pub mod others;
pub mod owing;
pub mod peer;
pub mod presence;
pub mod sequencer;
pub mod service;
pub mod store;
pub mod volume;
pub mod voters;
