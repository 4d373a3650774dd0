//! `mictlan ledger verify` and `mictlan ledger append`, on the configured network.
//!
//! Owns: which network, key and remembered checkpoint they work with; `ledger` has the rest.

use super::connect::{self, label};
use super::error::CliError;
use super::ledger::{self, AppendArgs, Remembered, VerifyArgs};
use super::{log, runtime};
use crate::ledger::{Ledger, fetch};
use clap::Subcommand;
use mictlan::id::Position;
use mictlan::wire::Append;
use std::process::ExitCode;
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Subcommand)]
pub enum LedgerVerb {
    /// Check every record, link, signature and checkpoint, and that nothing known was rewritten.
    Verify {
        #[command(flatten)]
        args: VerifyArgs,
        #[arg(long)]
        network: Option<String>,
    },
    /// Append a note.
    Append {
        #[command(flatten)]
        args: AppendArgs,
        #[arg(long)]
        network: Option<String>,
    },
}

pub fn run(verb: LedgerVerb) -> Result<ExitCode, CliError> {
    log("warn");
    let network = match &verb {
        LedgerVerb::Verify { network, .. } | LedgerVerb::Append { network, .. } => network,
    };
    let network = network.as_deref().map(label).transpose()?;
    runtime()?.block_on(async {
        let connected = match &verb {
            LedgerVerb::Verify { .. } => connect::connect_to_look(network.as_ref(), None).await?,
            LedgerVerb::Append { .. } => connect::connect(network.as_ref(), None).await?,
        };
        let done = on(&connected, &verb).await;
        connected.close().await;
        done
    })
}

async fn on(connected: &connect::Connected, verb: &LedgerVerb) -> Result<ExitCode, CliError> {
    let state = connected.ledger_state()?;
    let fetch = fetch::from_network(connected.network.clone());
    let mut out = std::io::stdout();
    if let Some(here) = connected.near.as_ref().and_then(|near| near.here()) {
        // A peer that has just started in this process cosigns its end of the log first.
        here.sequencer.wait_published(Position(0), DEADLINE).await;
    }
    match verb {
        LedgerVerb::Verify { args, .. } => {
            let log = Ledger::open(connected.id, &state, fetch.clone())?;
            let remembered = Remembered::of(args, &log).await?;
            let each = fetch::from_each(&connected.network);
            Ok(ledger::verify(args, connected.id, fetch, &each, remembered, &mut out).await?)
        }
        LedgerVerb::Append { args, .. } => {
            let log = Ledger::open(connected.id, &state, fetch)?;
            let network = connected.network.clone();
            let submit = |submission| async move {
                let append = Append::from(submission);
                network.append(&append, DEADLINE).await
            };
            let now = connected.network.ask_time(DEADLINE).await?;
            let principal = &connected.principal;
            ledger::append(args, &log, principal, now, submit, &mut out).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
