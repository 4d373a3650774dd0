//! The ceiling on bytes that wait in memory to become durable.
//!
//! Owns: how much is written and not yet on its peers. Writers wait here, instead of memory
//! growing with what they write.
//! Invariant: the sum of all living charges never exceeds the ceiling.

use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A permit is this many bytes: a semaphore counts in u32, and small writes cost a node anyway.
const GRAIN: u64 = 1024;

#[derive(Clone)]
pub struct Budget {
    permits: Arc<Semaphore>,
    total: u32,
}

/// Bytes that are accounted for until this is dropped.
#[derive(Debug)]
pub struct Charge(OwnedSemaphorePermit);

impl Charge {
    /// The part of it that `bytes` account for; never more, so that the rest is never too small.
    pub fn split(&mut self, bytes: usize) -> Charge {
        let grains = (bytes as u64 / GRAIN).min(self.0.num_permits() as u64) as usize;
        Charge(self.0.split(grains).expect("not more than it has"))
    }
}

impl Budget {
    pub fn new(bytes: u64) -> Self {
        let total = u32::try_from(bytes / GRAIN).unwrap_or(u32::MAX).max(1);
        Self { permits: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until `bytes` fit. More than the whole ceiling waits for all of it.
    pub async fn charge(&self, bytes: usize) -> Charge {
        let permit = self.permits.clone().acquire_many_owned(self.grains(bytes)).await;
        Charge(permit.expect("the semaphore is never closed"))
    }

    /// As `charge`, but `None` where it would have to wait.
    pub fn try_charge(&self, bytes: usize) -> Option<Charge> {
        self.permits.clone().try_acquire_many_owned(self.grains(bytes)).ok().map(Charge)
    }

    pub fn used_bytes(&self) -> u64 {
        u64::from(self.total - self.permits.available_permits() as u32) * GRAIN
    }

    /// Over half full: time to push data out rather than to wait for its second.
    pub fn is_tight(&self) -> bool {
        self.permits.available_permits() < self.total as usize / 2
    }

    fn grains(&self, bytes: usize) -> u32 {
        ((bytes as u64).div_ceil(GRAIN) as u32).clamp(1, self.total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_rest_of_a_split_charge_stays_charged() {
        let budget = Budget::new(8192);
        let mut charge = budget.charge(5000).await;
        let part = charge.split(2500);
        assert_eq!(budget.used_bytes(), 5120);
        drop(part);
        assert_eq!(budget.used_bytes(), 3072, "two whole grains went back");
        drop(charge.split(1 << 20));
        assert_eq!(budget.used_bytes(), 0, "not more than it has");
    }

    #[tokio::test]
    async fn writers_wait_where_memory_ends() {
        let budget = Budget::new(4096);
        let first = budget.charge(3000).await;
        assert!(budget.try_charge(2000).is_none());
        assert!(budget.is_tight() && budget.used_bytes() == 3072);
        drop(first);
        let all = budget.charge(1 << 30).await;
        assert_eq!(budget.used_bytes(), 4096);
        drop(all);
        assert_eq!(budget.used_bytes(), 0);
    }
}
