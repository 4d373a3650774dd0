//! `mictlan ledger verify` and `mictlan ledger append`.
//!
//! Owns: what they print, and their exit codes.
//! Never: trusts a peer: everything that decides is computed here from the bytes.
//!
//! | exit code of verify | means |
//! | --- | --- |
//! | 0 | every record, link, signature and checkpoint is right |
//! | 1 | something is wrong, or missing in a copy; each finding is printed with its code |
//! | 5 | the ledger could not be read to its end; nothing is said of it |

use super::whose::{self, Given};
use super::{copy, typed};
use crate::ledger::fetch::{self, Fetch};
use crate::ledger::{Ledger, LedgerError};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::{StreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use mictlan::cluster::refusal::Refusal;
use mictlan::cluster::state::{Outcome, Submission};
use mictlan::id::{Label, NetworkId, PeerId, Position, TimeMs};
use mictlan::ledger::checkpoint::{self, Checkpoint, CheckpointError};
use mictlan::ledger::record::body::Note;
use mictlan::ledger::record::{Body, Proposal, RecordError, Ulid, record_message};
use mictlan::ledger::roots::Claims;
use mictlan::ledger::tile::{self, TileId, WIDTH};
use mictlan::ledger::verify::{Fault, Finding, Report, Verifier};
use mictlan::seal::Principal;
use serde_json::json;
use std::fmt::Display;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Bundles under way, and bundles that are checked together: enough for all cores.
const AHEAD: usize = 16;
const BATCH: usize = 16;
/// Batches that wait for the checking thread.
const WAITING: usize = 2;
/// How often `--wait=published` looks, and how long.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const PUBLISHED_WITHIN: Duration = Duration::from_secs(60);
/// The newest note, where peers and copies have it.
const CHECKPOINT: &str = "checkpoint";

#[derive(Args, Debug, Default)]
pub struct VerifyArgs {
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
    /// Verify a copy of the static tree in this directory, also an older one, instead of asking
    /// peers for all of it; each file of its records/ and each tile as well
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct AppendArgs {
    /// What the note is about: a name of a-z, 0-9, '.', '_' and '-'
    #[arg(long, value_name = "TOPIC")]
    pub topic: String,
    /// Any JSON of the ledger's profile: integers, no floats, keys of a-z, 0-9 and '_'
    #[arg(value_name = "JSON")]
    pub data: String,
    /// Wait until a checkpoint with its quorum covers the record
    #[arg(long, value_name = "WHEN")]
    pub wait: Option<Wait>,
    /// Print one JSON object instead of lines
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Wait {
    Published,
}

#[derive(Debug, thiserror::Error)]
pub enum LedgerCliError {
    #[error("the ledger could not be read: {path}: {why}; nothing is said of it")]
    Unreadable { path: String, why: String },
    #[error("the newest checkpoint is not a checkpoint: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("{0}")]
    Ledger(#[from] LedgerError),
    #[error("nothing was written: {0:?} is not a topic; a topic is like 'inventory' or 'build-7'")]
    Topic(String),
    #[error("nothing was written: the argument is not JSON that a note can hold: {0}")]
    Json(serde_json::Error),
    #[error("nothing was written: {0}")]
    Record(#[from] RecordError),
    #[error(
        "nothing was written: this key is no actor of the network; ask an owner for an invite: \
         mictlan invite"
    )]
    NoActor,
    #[error("nothing was written: no randomness for the request's name: {0}")]
    Random(getrandom::Error),
    #[error("the record may not have been written: {0}; see: mictlan ledger verify")]
    NotOrdered(String),
    #[error("nothing was written, because it was refused: {0}")]
    Refused(Refusal),
    #[error(
        "record {position} is written, but no checkpoint covers it after {} s; see \
         /ledger/status.json for who is missing", PUBLISHED_WITHIN.as_secs()
    )]
    NotPublished { position: Position },
    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
    #[error("the checking thread ended: {0}")]
    Thread(#[from] tokio::task::JoinError),
}

impl LedgerCliError {
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Topic(_) | Self::Json(_) | Self::Record(_) => 2,
            Self::NoActor => 4,
            _ => 5,
        })
    }
}

/// The stable name of a finding's kind, for scripts.
pub fn code(fault: &Fault) -> &'static str {
    match fault {
        Fault::Record(_) => "record",
        Fault::Index(_) => "index",
        Fault::Link { .. } => "link",
        Fault::Time(_) => "time",
        Fault::RequestTime(_) => "request-time",
        Fault::Repeated => "repeated",
        Fault::OtherNetwork { .. } => "other-network",
        Fault::Roster(_) => "roster",
        Fault::Signature(_) => "signature",
        Fault::Checkpoint(_) => "checkpoint",
        Fault::Root { .. } => "root",
        Fault::Rewritten { .. } => "rewritten",
        Fault::Truncated(_) => "truncated",
        Fault::Copy(_) => "copy",
    }
}

/// What this machine verified before.
pub struct Remembered {
    /// What the log is compared with.
    with: Checkpoint,
    /// How many records were verified.
    known: u64,
}

impl From<Checkpoint> for Remembered {
    fn from(newest: Checkpoint) -> Self {
        Self { known: newest.size, with: newest }
    }
}

impl Remembered {
    /// Peers show the newest that they have, so a log of theirs that ends before what is remembered
    /// lacks records. A copy (`--from`) may be older: it has to be the beginning of that.
    pub async fn of(args: &VerifyArgs, ledger: &Ledger) -> Result<Option<Self>, LedgerCliError> {
        let Some(seen) = ledger.seen() else { return Ok(None) };
        let mut remembered = Self::from(seen.checkpoint().clone());
        if let Some(dir) = &args.from {
            let copy = fetch::from_dir(dir.clone());
            let size = size_of(&first(&copy, vec![CHECKPOINT.to_owned()]).await?)?;
            if (1..remembered.known).contains(&size) {
                remembered.with.root = ledger.root_at(&seen, size).await?;
                remembered.with.size = size;
            }
        }
        Ok(Some(remembered))
    }
}

/// Reads the whole log and checks everything that can be checked without a volume's keys;
/// `network` is who this machine trusts, `each` are the peers alone, who are asked when something is
/// wrong.
pub async fn verify(
    args: &VerifyArgs,
    network: NetworkId,
    fetch: Fetch,
    each: &[(PeerId, Fetch)],
    remembered: Option<Remembered>,
    out: &mut (dyn Write + Send),
) -> Result<ExitCode, LedgerCliError> {
    let with = remembered.as_ref().map(|remembered| &remembered.with);
    let known = remembered.as_ref().map(|remembered| remembered.known);
    let Some(dir) = args.from.clone() else {
        let (report, _) = read_and_check(network, fetch, with, args.json, None).await?;
        let beside = match is_good(&report) {
            true => Beside::default(),
            false => Beside { given: whose::ask(network, each, with).await, ..Beside::default() },
        };
        print(&report, args.json, known, &beside, out)?;
        return Ok(exit(&report));
    };
    let fetch = fetch::from_dir(dir.clone());
    let size = size_of(&first(&fetch, vec![CHECKPOINT.to_owned()]).await?)?;
    let looked = tokio::task::spawn_blocking(move || copy::look(&dir, size)).await?;
    let looked = looked.map_err(|why| {
        let (path, why) = ("a file of the copy".to_owned(), why.to_string());
        LedgerCliError::Unreadable { path, why }
    })?;
    let whole = Some(looked.bundles);
    let (mut report, _) = read_so_far(network, fetch, with, args.json, None, whole).await?;
    report.findings.extend(looked.findings);
    report.findings.sort_by_key(|finding| finding.index);
    let beside = Beside { absent: looked.absent, ..Beside::default() };
    print(&report, args.json, known, &beside, out)?;
    Ok(exit(&report))
}

fn exit(report: &Report) -> ExitCode {
    if is_good(report) { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// How many records a note speaks of.
fn size_of(note: &[u8]) -> Result<u64, CheckpointError> {
    Ok(Checkpoint::parse(checkpoint::Note::parse(note)?.text)?.size)
}

pub fn is_good(report: &Report) -> bool {
    report.findings.is_empty()
}

/// What is wrong with the whole log; `claims` take its records meanwhile. `quiet` shows no bar.
pub async fn read_and_check(
    network: NetworkId,
    fetch: Fetch,
    remembered: Option<&Checkpoint>,
    quiet: bool,
    claims: Option<Claims>,
) -> Result<(Report, Option<Claims>), LedgerCliError> {
    read_so_far(network, fetch, remembered, quiet, claims, None).await
}

/// The same of a log of which these bundles alone can be read, `None` being all: then it ends there.
async fn read_so_far(
    network: NetworkId,
    fetch: Fetch,
    remembered: Option<&Checkpoint>,
    quiet: bool,
    claims: Option<Claims>,
    bundles: Option<u64>,
) -> Result<(Report, Option<Claims>), LedgerCliError> {
    let note = first(&fetch, vec![CHECKPOINT.to_owned()]).await?;
    let mut verifier = Verifier::new(Some(network));
    let size = verifier.expect_note(&note)?;
    if let Some(remembered) = remembered {
        verifier.expect_remembered(remembered);
    }
    let bar = progress(size, quiet);
    let (send, batches) = mpsc::channel(WAITING);
    let checking = {
        let bar = bar.clone();
        tokio::task::spawn_blocking(move || check(verifier, batches, claims, &bar))
    };
    let read = read(&fetch, size, bundles.unwrap_or(u64::MAX), send).await;
    let checked = checking.await?;
    bar.finish_and_clear();
    read?;
    Ok(checked)
}

async fn first(fetch: &Fetch, paths: Vec<String>) -> Result<Bytes, LedgerCliError> {
    let path = paths[0].clone();
    let found = fetch::first(fetch, &paths).await;
    found.map_err(|why| LedgerCliError::Unreadable { path, why })
}

/// A bar of records, for whoever looks at a terminal.
pub fn progress(size: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{wide_bar} {human_pos}/{human_len} records, {per_sec}, {eta} left";
    let style = ProgressStyle::with_template(style).expect("a good template");
    ProgressBar::new(size).with_style(style)
}

/// Records of some bundles.
type Batch = Vec<(TileId, Bytes)>;

async fn read(
    fetch: &Fetch,
    size: u64,
    bundles: u64,
    send: mpsc::Sender<Batch>,
) -> Result<(), LedgerCliError> {
    let bundle = |index: u64| async move {
        let id = TileId::bundle(index * WIDTH, size);
        let full = TileId { width: WIDTH as u16, ..id };
        let bytes = first(fetch, vec![id.path(), full.path()]).await?;
        Ok::<_, LedgerCliError>((id, bytes))
    };
    let end = size.div_ceil(WIDTH).min(bundles);
    let bundles = stream::iter(0..end).map(bundle).buffered(AHEAD);
    let mut batches = std::pin::pin!(bundles.chunks(BATCH));
    while let Some(batch) = batches.next().await {
        let batch = batch.into_iter().collect::<Result<Batch, _>>()?;
        for (id, bytes) in &batch {
            tile::bundle_prefix(bytes, id.width).map_err(|why| {
                let why = why.to_string();
                LedgerCliError::Unreadable { path: id.path(), why }
            })?;
        }
        if send.send(batch).await.is_err() {
            break; // the checking thread ended, and says why itself
        }
    }
    Ok(())
}

/// Hashes and links one after another; signatures and bodies on all cores.
fn check(
    mut verifier: Verifier,
    mut batches: mpsc::Receiver<Batch>,
    mut claims: Option<Claims>,
    bar: &ProgressBar,
) -> (Report, Option<Claims>) {
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    while let Some(batch) = batches.blocking_recv() {
        let records = batch.iter().flat_map(|(id, bytes)| {
            tile::bundle_records(bytes, id.width).expect("it was taken apart before")
        });
        let mut push = |record| {
            claims.iter_mut().for_each(|claims| claims.see(record, verifier.roster()));
            verifier.push(record)
        };
        let deferred: Vec<_> = records.filter_map(&mut push).collect();
        let share = deferred.len().div_ceil(cores).max(1);
        let found: Vec<Finding> = std::thread::scope(|scope| {
            let check = |part| move || signatures(part);
            let threads: Vec<_> =
                deferred.chunks(share).map(|part| scope.spawn(check(part))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<Finding>>| {
                thread.join().expect("a check does not panic")
            };
            threads.into_iter().flat_map(join).collect()
        });
        found.into_iter().for_each(|finding| verifier.find(finding));
        bar.set_position(verifier.size());
    }
    let mut report = verifier.finish();
    report.findings.sort_by_key(|finding| finding.index);
    (report, claims)
}

fn signatures(part: &[mictlan::ledger::verify::Deferred<'_>]) -> Vec<Finding> {
    part.iter().filter_map(|deferred| deferred.check().err()).collect()
}

/// A report as a program reads it.
pub fn to_json(report: &Report) -> serde_json::Value {
    let Report { size, root, head, checkpoints, findings, more } = report;
    let one = |Finding { index, fault }: &Finding| json!({"code": code(fault), "record": index, "says": fault.to_string()});
    let said: Vec<_> = findings.iter().map(one).collect();
    json!({
        "checkpoints": checkpoints, "findings": said, "head": head.to_hex(),
        "more": more, "root": root.to_hex(), "size": size,
        "verdict": if is_good(report) { "good" } else { "bad" },
    })
}

/// What is said beside the report itself.
#[derive(Default)]
pub struct Beside {
    /// Parts of the tree that a copy does not have.
    pub absent: Vec<&'static str>,
    /// What each peer alone gave, when something is wrong.
    pub given: Vec<Given>,
}

/// `known`: of how many records this machine verified before; it was compared with them.
pub fn print(
    report: &Report,
    as_json: bool,
    known: Option<u64>,
    beside: &Beside,
    out: &mut (dyn Write + Send),
) -> std::io::Result<()> {
    if as_json {
        let mut said = to_json(report);
        said["known"] = json!(known);
        said["not_checked"] = json!(beside.absent);
        said["peers"] = beside.given.iter().map(Given::to_json).collect();
        return writeln!(out, "{said}");
    }
    said(report, known, out)?;
    for absent in &beside.absent {
        writeln!(out, "not checked: {absent}, which this copy does not have")?;
    }
    whose::print(&beside.given, known.is_some(), out)
}

fn said(report: &Report, known: Option<u64>, out: &mut (dyn Write + Send)) -> std::io::Result<()> {
    let Report { size, root, findings, more, .. } = report;
    let total = findings.len() as u64 + more;
    for Finding { index, fault } in findings {
        writeln!(out, "{}: record {index}: {fault}", code(fault))?;
    }
    if *more > 0 {
        writeln!(out, "and {more} findings more")?;
    }
    let against = if known.is_some() { ", and continues what was verified before" } else { "" };
    match (total, known) {
        (0, Some(known)) if known > *size => writeln!(
            out,
            "good: a copy of the first {size} records, of {known} known here, root {root}; the \
             newest of them are not in it"
        ),
        (0, _) => writeln!(out, "good: {size} records, root {root}{against}"),
        _ => writeln!(out, "BAD: {total} findings in {size} records, root {root}"),
    }
}

/// Has a note ordered under the principal's name, and prints where it stands. `submit` is the
/// network's append; it may repeat, since the request has one name.
pub async fn append<F, E>(
    args: &AppendArgs,
    ledger: &Arc<Ledger>,
    principal: &Principal,
    now: TimeMs,
    submit: impl FnOnce(Submission) -> F,
    out: &mut (dyn Write + Send),
) -> Result<Position, LedgerCliError>
where
    F: Future<Output = Result<Outcome, E>>,
    E: Display,
{
    let topic = Label::parse(&args.topic);
    let topic = topic.ok_or_else(|| LedgerCliError::Topic(args.topic.clone()))?;
    let data = typed::json(&args.data).map_err(LedgerCliError::Json)?;
    let seen = ledger.newest().await?;
    let roster = seen.roster().ok_or(LedgerCliError::NoActor)?;
    let actor = roster.owner_of(&principal.id()).cloned().ok_or(LedgerCliError::NoActor)?;
    let mut random = [0; 10];
    getrandom::fill(&mut random).map_err(LedgerCliError::Random)?;
    let body = Body::Note(Note { data, topic });
    let p = Proposal::new(actor, Ulid::new(now, random), body).encode()?;
    let sig = principal.sign(&record_message(&roster.origin(), &p));
    let outcome = submit(Submission { p, sig, commit: None }).await;
    let outcome = outcome.map_err(|error| LedgerCliError::NotOrdered(error.to_string()))?;
    let position = match outcome {
        Outcome::Refused(why) => return Err(LedgerCliError::Refused(why)),
        other => other.position().ok_or(LedgerCliError::NotOrdered("no position".to_owned()))?,
    };
    let covered = match args.wait {
        Some(Wait::Published) => Some(published(ledger, position).await?),
        None => None,
    };
    match (&covered, args.json) {
        (None, true) => writeln!(out, "{}", json!({"record": position.0}))?,
        (None, false) => writeln!(out, "record {position}")?,
        (Some(c), true) => {
            let root = c.root.to_hex();
            writeln!(out, "{}", json!({"record": position.0, "root": root, "size": c.size}))?;
        }
        (Some(c), false) => {
            let (size, root) = (c.size, c.root);
            writeln!(out, "record {position}, in the checkpoint of size {size} with root {root}")?;
        }
    }
    Ok(position)
}

/// Waits for a verified checkpoint that covers a record.
async fn published(ledger: &Arc<Ledger>, at: Position) -> Result<Checkpoint, LedgerCliError> {
    let look = async {
        let mut often = tokio::time::interval(LOOK_EVERY);
        loop {
            often.tick().await;
            match ledger.refresh().await {
                Ok(seen) if seen.size() > at.0 => return Ok(seen.checkpoint().clone()),
                Err(error @ LedgerError::Contradiction { .. }) => return Err(error.into()),
                // Not yet, or a peer that is away for the moment.
                _ => {}
            }
        }
    };
    let late = |_| LedgerCliError::NotPublished { position: at };
    tokio::time::timeout(PUBLISHED_WITHIN, look).await.map_err(late)?
}
