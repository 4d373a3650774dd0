//! The promises of mictlan, each a test.
