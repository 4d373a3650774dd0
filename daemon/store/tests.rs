//! The store's promises on a real file system; the harder faults are in the tests' crate.
