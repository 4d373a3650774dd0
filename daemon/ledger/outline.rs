//! Where the records of a bundle end, and their times: what `stat` needs without the bytes.
//!
//! Owns: the outlines of bundles that were checked, within a bound.
//! Invariant: an outline is computed from a verified bundle, never taken from a peer.

use super::LedgerError;
use bytes::Bytes;
use mictlan::id::TimeMs;
use mictlan::ledger::record::Line;
use mictlan::ledger::tile;
use quick_cache::sync::Cache;
use std::sync::Arc;

/// Of 2.5 KiB each: those of a million records are kept.
const OUTLINES_MAX: usize = 4096;

/// One bundle.
pub struct Outline {
    /// By record: the bytes of the records up to and with it.
    ends: Vec<u32>,
    times: Vec<TimeMs>,
}

impl Outline {
    pub fn of(bundle: &Bytes, width: u16) -> Result<Self, LedgerError> {
        let (mut ends, mut times, mut end) = (Vec::new(), Vec::new(), 0);
        for record in tile::bundle_records(bundle, width)? {
            end += record.len() as u32;
            ends.push(end);
            // A record that is none stands in the log all the same, and is shown.
            times.push(Line::parse(record).map_or(TimeMs(0), |line| line.t));
        }
        Ok(Self { ends, times })
    }

    pub fn width(&self) -> u16 {
        self.ends.len() as u16
    }

    /// The bytes of the first `count` records.
    pub fn before(&self, count: u64) -> Option<u64> {
        match count.checked_sub(1) {
            None => Some(0),
            Some(last) => self.ends.get(last as usize).map(|end| u64::from(*end)),
        }
    }

    pub fn time(&self, inside: u64) -> Option<TimeMs> {
        self.times.get(inside as usize).copied()
    }
}

/// Outlines by the number of their bundle.
pub struct Outlines {
    held: Cache<u64, Arc<Outline>>,
}

impl Outlines {
    pub fn new() -> Self {
        Self { held: Cache::new(OUTLINES_MAX) }
    }

    /// One of at least this width.
    pub fn get(&self, bundle: u64, width: u16) -> Option<Arc<Outline>> {
        self.held.get(&bundle).filter(|outline| outline.width() >= width)
    }

    pub fn insert(&self, bundle: u64, outline: Arc<Outline>) {
        self.held.insert(bundle, outline);
    }
}
