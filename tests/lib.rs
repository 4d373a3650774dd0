//! The promises of mictlan, each a test.

pub mod canary;
pub mod capture;
pub mod disk;
pub mod files;
pub mod forger;
pub mod harness;
pub mod liar;
pub mod sample_log;
pub mod three;
