//! Whose bytes are wrong: when the ledger is not good, each peer is asked alone.
//!
//! Owns: what is said of each of them.
//! Never: decides whether the ledger is good; that is said before.

use super::ledger::{self, is_good};
use crate::ledger::fetch::Fetch;
use mictlan::id::{NetworkId, PeerId};
use mictlan::ledger::checkpoint::Checkpoint;
use mictlan::ledger::verify::Report;
use serde_json::{Value, json};
use std::io::{self, Write};

/// What one peer alone gave: its ledger as it was verified, or why there is none.
pub struct Given {
    peer: PeerId,
    ledger: Result<Report, String>,
}

/// Verifies the whole ledger of each peer.
pub async fn ask(
    network: NetworkId,
    each: &[(PeerId, Fetch)],
    remembered: Option<&Checkpoint>,
) -> Vec<Given> {
    let mut given = Vec::new();
    for (peer, fetch) in each {
        let checked = ledger::read_and_check(network, fetch.clone(), remembered, true, None).await;
        let ledger = checked.map(|(report, _)| report).map_err(|error| error.to_string());
        given.push(Given { peer: *peer, ledger });
    }
    given
}

impl Given {
    fn good(&self) -> Option<bool> {
        self.ledger.as_ref().ok().map(is_good)
    }

    pub fn to_json(&self) -> Value {
        match &self.ledger {
            Ok(report) => json!({ "peer": self.peer.0, "ledger": ledger::to_json(report) }),
            Err(why) => json!({ "peer": self.peer.0, "unreadable": why }),
        }
    }

    fn print(&self, out: &mut (dyn Write + Send)) -> io::Result<()> {
        let peer = self.peer;
        let report = match &self.ledger {
            Ok(report) => report,
            Err(why) => return writeln!(out, "peer {peer}: nothing could be verified: {why}"),
        };
        let size = report.size;
        match report.findings.first() {
            None => writeln!(out, "peer {peer}: gives a good ledger of {size} records"),
            Some(first) => {
                let total = report.findings.len() as u64 + report.more;
                writeln!(out, "peer {peer}: gives a BAD one: {total} findings, the first: {first}")
            }
        }
    }
}

/// `compared`: with what this machine verified before.
pub fn print(given: &[Given], compared: bool, out: &mut (dyn Write + Send)) -> io::Result<()> {
    given.iter().try_for_each(|one| one.print(out))?;
    let named = |good| {
        let peers = given.iter().filter(|one| one.good() == Some(good));
        peers.map(|one| one.peer.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (good, bad) = (named(true), named(false));
    if good.is_empty() || bad.is_empty() {
        return Ok(());
    }
    let continues = if compared { ", and it continues what was verified before" } else { "" };
    writeln!(
        out,
        "what peer {good} gives is whole{continues}; what peer {bad} gives is damaged or forged"
    )
}
