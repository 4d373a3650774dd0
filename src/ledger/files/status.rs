//! `status.json`: how far the log is published, by whom, and what holds the rest up.
//!
//! Owns: the file's fields.
//! Never: is proof of anything; it is not signed, and says only what this machine knows.

use super::super::checkpoint::{Accepted, Policy};
use super::super::record::time;
use crate::id::{LedgerHash, TimeMs};
use serde_json::json;

/// What a machine knows of its log.
#[derive(Debug, Clone)]
pub struct Status<'a> {
    /// The newest published checkpoint and the policy of its size; absent in the first moments.
    pub published: Option<(&'a Accepted, &'a Policy)>,
    /// Records that are ordered, published or not.
    pub ordered: u64,
    /// SHA-256 of the last ordered record.
    pub head: LedgerHash,
    /// The time of the last ordered record.
    pub time: TimeMs,
    /// Since when records wait for a checkpoint; absent when none does.
    pub pending_since: Option<TimeMs>,
    /// Names of voters that have not answered for the checkpoint under way.
    pub missing: &'a [String],
}

impl Status<'_> {
    /// One object, with LF.
    pub fn text(&self) -> String {
        let published = self.published.map(|(accepted, policy)| {
            let cosigners: Vec<_> = accepted
                .cosigned
                .iter()
                .map(|(name, at)| json!({"name": name, "unix_time": at}))
                .collect();
            json!({
                "cosigners": cosigners,
                "faults": policy.faults,
                "quorum": policy.quorum(),
                "quorum_met": cosigners.len() >= policy.quorum(),
                "root": accepted.checkpoint.root.to_hex(),
                "says": says(policy),
                "size": accepted.checkpoint.size,
                "voters": policy.voters.len(),
            })
        });
        let size = self.published.map_or(0, |(accepted, _)| accepted.checkpoint.size);
        let pending = json!({
            "missing": self.missing,
            "records": self.ordered.saturating_sub(size),
            "since": self.pending_since.map(time::format),
        });
        let all = json!({
            "chain_head": self.head.to_hex(),
            "ordered": self.ordered,
            "pending": pending,
            "published": published,
            "time": time::format(self.time),
        });
        format!("{all}\n")
    }
}

/// What the quorum rule of this network means, in words.
fn says(policy: &Policy) -> &'static str {
    let (n, f) = (policy.voters.len(), policy.faults);
    match (f, policy.quorum() > n - f.min(n)) {
        (0, _) => "a voter that shows two histories is detected by comparing notes, not prevented",
        (_, true) => "an absent voter stops publication",
        (_, false) => "as many lying voters as `faults` says cannot show two histories",
    }
}
