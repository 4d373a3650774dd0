//! The promises of mictlan, each a test.

pub mod sample_log;
