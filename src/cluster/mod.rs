//! What the peers of a network decide together, and where chunks lie.
//!
//! Owns: layout and placement, the machines that bring a chunk to its copies and back.
//! Never: sends, waits or reads a clock.

pub mod get;
pub mod latency;
pub mod layout;
pub mod place;
pub mod put;
