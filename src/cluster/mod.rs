//! What the peers of a network decide together, and where chunks lie.
//!
//! Owns: the sequencer's replicated state, certification, sessions, leases and space credit;
//! layout and placement, the machines that bring a chunk to its copies and back.
//! Never: sends, waits or reads a clock; time and events come in, effects go out.
//! Invariant: the same entries in the same order give the same bytes on every replica.

pub mod certify;
pub mod credit;
pub mod get;
pub mod latency;
pub mod layout;
pub mod lease;
pub mod owed;
pub mod part;
pub mod place;
pub mod put;
pub mod refusal;
pub mod session;
pub mod since;
pub mod state;
