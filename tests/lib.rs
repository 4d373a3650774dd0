//! The promises of mictlan, each a test.

pub mod harness;
pub mod sample_log;
