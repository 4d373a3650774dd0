//! `mictlan verify`: the ledger, and with `--replay` what a volume's log folds to.
//!
//! Owns: what it prints of a volume, and its exit codes. `ledger` has those of the ledger alone.
//! Never: says anything of a volume whose ledger is not good.
//!
//! | exit code | means |
//! | --- | --- |
//! | 0 | the ledger is right; with `--replay`, so is each snapshot root of the volume |
//! | 1 | something is wrong with the ledger; each finding is printed with its code |
//! | 5 | the ledger or the volume's log could not be had; nothing is said of it |
//! | 7 | this key cannot open the volume's log |
//! | 13 | a snapshot root is not what the commits make |
//! | 14 | a chunk is missing, so it could not be finished |

use super::connect::{self, Connected, label};
use super::error::CliError;
use super::ledger::{self, Beside, LedgerCliError};
use super::placing::Placing;
use super::{log, mount, runtime, whose};
use crate::ledger::{Ledger, fetch};
use crate::volume::{FollowError, Replay, ReplayError, Replayed, Void, Wrong};
use clap::Args;
use mictlan::id::{Label, Position};
use mictlan::ledger::roots::{Claim, Claims};
use mictlan::ledger::verify::Report;
use mictlan_mount::options::Options;
use serde_json::{Value, json};
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use tokio::time::Instant;

const MISMATCH: u8 = 13;
const UNFINISHED: u8 = 14;
/// How long a checkpoint of what there is at the start is waited for: voters cosign every 10 s.
const PUBLISHED_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(Args)]
pub struct VerifyArgs {
    /// [NETWORK[:VOLUME]]
    what: Option<String>,
    /// Fold the volume's commits again from the first one, and compare each snapshot root with that
    #[arg(long)]
    replay: bool,
    /// With every root right, record that the newest one is; takes a writer's key
    #[arg(long, requires = "replay")]
    confirm: bool,
    /// The key file to use; by default the configured one. An auditor's will do
    #[arg(long)]
    key: Option<String>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    json: bool,
}

/// The exit code of a replay that came to no end.
pub fn code_of(error: &ReplayError) -> u8 {
    match error {
        ReplayError::Missing(_) => UNFINISHED,
        ReplayError::Open(_) | ReplayError::NoKey(_) => 7,
        ReplayError::Disk(_) | ReplayError::Tree(_) => 1,
        _ => 5,
    }
}

pub fn verify(args: VerifyArgs) -> Result<ExitCode, CliError> {
    log("error");
    let (network, volume) = mount::volume_of(args.what.as_deref())?;
    let key = args.key.as_deref().map(label).transpose()?;
    runtime()?.block_on(async {
        let connected = match args.replay {
            true => connect::connect(network.as_ref(), key.as_ref()).await?,
            false => connect::connect_to_look(network.as_ref(), key.as_ref()).await?,
        };
        let done = on(&connected, &volume, &args).await;
        connected.close().await;
        done
    })
}

async fn on(
    connected: &Connected,
    volume: &Label,
    args: &VerifyArgs,
) -> Result<ExitCode, CliError> {
    wait_published(connected).await;
    let remembered = Ledger::remembered(connected.id, &connected.ledger_state()?)?;
    let known = remembered.as_ref().map(|remembered| remembered.size);
    let replay = match args.replay {
        true => Some(begin(connected, volume).await?),
        false => None,
    };
    let claims = replay.as_ref().map(|replay| Claims::of(replay.volume()));
    let fetch = fetch::from_network(connected.network.clone());
    let checked =
        ledger::read_and_check(connected.id, fetch, remembered.as_ref(), args.json, claims);
    let (report, claims) = checked.await?;
    let mut out = io::stdout();
    let (Some(replay), Some(claims), true) = (replay, claims, ledger::is_good(&report)) else {
        let each = fetch::from_each(&connected.network);
        let given = match ledger::is_good(&report) {
            true => Vec::new(),
            false => whose::ask(connected.id, &each, remembered.as_ref()).await,
        };
        let beside = Beside { given, ..Beside::default() };
        ledger::print(&report, args.json, known, &beside, &mut out).map_err(output)?;
        return Ok(ExitCode::from(u8::from(!ledger::is_good(&report))));
    };
    if !args.json {
        ledger::print(&report, false, known, &Beside::default(), &mut out).map_err(output)?;
    }
    let bar = ledger::progress(report.size, args.json);
    let told = |next: Position| bar.set_position(next.0);
    let done = replay.run(&claims, report.size, report.head, args.confirm, &told).await;
    bar.finish_and_clear();
    match done {
        Ok(replayed) => {
            let said = match args.json {
                true => writeln!(out, "{}", to_json(volume, &report, &claims, &replayed)),
                false => print(volume, &replayed, &mut out),
            };
            said.map_err(output)?;
            Ok(ExitCode::from(if replayed.wrong.is_empty() { 0 } else { MISMATCH }))
        }
        Err(ReplayError::Missing(error)) if args.json => {
            let said = unfinished(volume, &report, &error);
            writeln!(out, "{said}").map_err(output)?;
            Ok(ExitCode::from(UNFINISHED))
        }
        Err(error) => Err(error.into()),
    }
}

fn output(error: io::Error) -> CliError {
    LedgerCliError::Output(error).into()
}

async fn begin(connected: &Connected, volume: &Label) -> Result<Replay, CliError> {
    let placing = Placing::of(connected, volume.clone());
    let options = Options { read_only: true, ..Options::default() };
    let start = mount::start(connected, &placing, volume.clone(), options).await?;
    Ok(Replay::of(start).await?)
}

/// Until a checkpoint covers what was ordered before the call, if one comes in time.
async fn wait_published(connected: &Connected) {
    let Ok(link) = connected.link() else { return };
    let began = Instant::now();
    let mut size = None;
    while began.elapsed() < PUBLISHED_WITHIN {
        // A peer that does not answer is told of by what comes next.
        let Ok(status) = link.status().await else { return };
        let size = *size.get_or_insert(status.head.map_or(Position(0), |head| head.size));
        if status.published.is_some_and(|published| published >= size) {
            return;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The root that a mount would begin with now.
fn newest(claims: &Claims) -> Option<&Claim> {
    claims.roots().last()
}

fn print(volume: &Label, replayed: &Replayed, out: &mut impl Write) -> io::Result<()> {
    let Replayed { commits, position, right, wrong, voids, confirmed_by, .. } = replayed;
    for Void { record, by, why } in &voids.first {
        writeln!(out, "void: record {record}, signed by {by}: {why}; nobody applies it")?;
    }
    if voids.more > 0 {
        writeln!(out, "and {} void payloads more", voids.more)?;
    }
    for Wrong { claim, why } in wrong {
        writeln!(out, "root-mismatch: record {}, signed by {}: {why}", claim.record, claim.by)?;
    }
    let made = format!("the {commits} commits of volume {volume} up to record {position}");
    if let Some(first) = wrong.first() {
        let (record, by) = (first.claim.record, &first.claim.by);
        writeln!(out, "BAD: {} of {} roots are not what {made} make", wrong.len(), all(replayed))?;
        writeln!(
            out,
            "a mount that began since record {record} may show what nobody committed; next: \
             mictlan member rm {by}, which takes back the roots that {by} named; then unmount and \
             mount"
        )?;
        return Ok(());
    }
    match right.last() {
        None => writeln!(out, "good: {made} were folded; there is no root yet"),
        Some(last) => writeln!(
            out,
            "good: {} roots are what {made} make; the newest is in record {}",
            right.len(),
            last.record
        ),
    }?;
    match confirmed_by {
        Some(record) => writeln!(out, "record {record} confirms it"),
        None => Ok(()),
    }
}

fn all(replayed: &Replayed) -> usize {
    replayed.right.len() + replayed.wrong.len()
}

fn to_json(volume: &Label, report: &Report, claims: &Claims, replayed: &Replayed) -> Value {
    let Replayed { volume: id, commits, position, right, wrong, voids, confirmed_by } = replayed;
    let root = |claim: &Claim| {
        json!({
            "confirms": claim.confirms, "key_epoch": claim.epoch, "position": claim.position,
            "record": claim.record, "signed_by": claim.by,
        })
    };
    let mismatch = |wrong: &Wrong| {
        let mut said = root(&wrong.claim);
        said["says"] = json!(wrong.why);
        said
    };
    let void = |void: &Void| json!({"record": void.record, "says": void.why, "signed_by": void.by});
    json!({
        "commits": commits,
        "confirmed_by": confirmed_by,
        "ledger": ledger::to_json(report),
        "mismatches": wrong.iter().map(mismatch).collect::<Vec<_>>(),
        "newest": newest(claims).map(root),
        "position": position,
        "right": right.iter().map(root).collect::<Vec<_>>(),
        "roots": all(replayed),
        "verdict": if wrong.is_empty() { "good" } else { "mismatch" },
        "void": voids.first.iter().map(void).collect::<Vec<_>>(),
        "void_more": voids.more,
        "volume": volume,
        "volume_id": id.to_string(),
    })
}

fn unfinished(volume: &Label, report: &Report, error: &FollowError) -> Value {
    let missing = match error {
        FollowError::Missing { at, chunk, .. } => {
            json!({"chunk": chunk.to_string(), "record": at})
        }
        _ => Value::Null,
    };
    json!({
        "ledger": ledger::to_json(report), "missing": missing, "says": error.to_string(),
        "verdict": "unfinished", "volume": volume,
    })
}
