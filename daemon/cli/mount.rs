//! `mictlan mount`, `mount.mictlan` and `mictlan umount`.
//!
//! Owns: the arguments of mount(8), the mount's life from its directory's check to its end.
//! Invariant: the mount is removed and everything committed before the process ends by a signal
//! that asks for it; a second one ends it at once, and the journal keeps what was not committed.

use super::connect::{self, Connected, DEFAULT_VOLUME};
use super::error::CliError;
use super::placing::Placing;
use super::signals::{Ends, Hangup};
use super::standing::{End, Standing};
use super::{background, log, remount, runtime, standing};
use crate::chunks::Chunks;
use crate::config::Paths;
use crate::ledger::{Ledger, LedgerTree, fetch};
use crate::metrics;
use crate::store::durable::{self, DiskError};
use crate::volume::{Stale, Start, Volume};
use clap::{Args, Parser};
use mictlan::id::Label;
use mictlan_mount::graft::Graft;
use mictlan_mount::options::Options;
use mictlan_mount::session::{self, INodeNo, Mounted};
use rustix::fs::{FlockOperation, flock};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, mpsc};

#[derive(Args)]
#[command(after_help = super::manual::mount_options())]
pub struct MountArgs {
    /// [NETWORK[:VOLUME]] DIR
    #[arg(required = true, num_args = 1..=2, value_name = "[NETWORK[:VOLUME]] DIR")]
    what: Vec<OsString>,
    /// Options as mount(8) writes them: -o ro,key=alice,memory=512M; below is what each does
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Stay in front; a hangup of the terminal then ends the mount in order.
    #[arg(short, long)]
    foreground: bool,
    /// Print one JSON object once the mount answers.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct UmountArgs {
    dir: PathBuf,
    /// Detach now, even if files are open.
    #[arg(short, long)]
    lazy: bool,
    /// Print one JSON object when it is unmounted.
    #[arg(long)]
    json: bool,
}

/// One mount, parsed.
struct Wanted {
    network: Option<Label>,
    volume: Label,
    dir: PathBuf,
    options: Options,
    json: bool,
}

/// What was typed, or given by mount(8).
pub struct Asked {
    what: Vec<OsString>,
    pub lists: Vec<String>,
    foreground: bool,
    fake: bool,
    json: bool,
}

impl From<MountArgs> for Asked {
    fn from(args: MountArgs) -> Self {
        let MountArgs { what, options: lists, foreground, json } = args;
        Self { what, lists, foreground, fake: false, json }
    }
}

pub fn mount(args: MountArgs) -> Result<ExitCode, CliError> {
    obey(args.into())
}

/// Called as `mount.mictlan`: the arguments that mount(8) gives its helpers.
pub fn helper(arguments: Vec<OsString>) -> Result<ExitCode, CliError> {
    if arguments.iter().any(|argument| argument == "-h" || argument == "--help") {
        print!("{}", helper_usage());
        return Ok(ExitCode::SUCCESS);
    }
    obey(asked_by_mount(arguments)?)
}

pub fn helper_usage() -> String {
    let usage = "usage: mount.mictlan [NETWORK[:VOLUME]] DIR [-sfnv] [-N NS] [-o OPTIONS]";
    format!("{usage}\n\n{}\n", super::manual::mount_options())
}

/// What a process with these arguments, its name first, was asked to mount.
pub fn asked(arguments: Vec<OsString>) -> Result<Asked, CliError> {
    if super::is_helper(&arguments) {
        return asked_by_mount(arguments[1..].to_vec());
    }
    match super::Cli::try_parse_from(arguments) {
        Ok(super::Cli { verb: super::Verb::Mount(args) }) => Ok(args.into()),
        _ => Err(CliError::Usage("this process mounts nothing".to_owned())),
    }
}

fn asked_by_mount(arguments: Vec<OsString>) -> Result<Asked, CliError> {
    let (what, lists) = (Vec::new(), Vec::new());
    let mut asked = Asked { what, lists, foreground: false, fake: false, json: false };
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let value = |rest: &mut dyn Iterator<Item = OsString>| {
            let missing = || CliError::Usage(format!("{} wants a value", argument.display()));
            rest.next().ok_or_else(missing)
        };
        match argument.as_bytes() {
            b"-o" => asked.lists.push(value(&mut rest)?.to_string_lossy().into_owned()),
            b"-t" | b"-N" => drop(value(&mut rest)?),
            b"-f" => asked.fake = true,
            b"-s" | b"-n" | b"-v" => {}
            bytes if bytes.starts_with(b"-o") => {
                asked.lists.push(String::from_utf8_lossy(&bytes[2..]).into_owned());
            }
            bytes if bytes.starts_with(b"-") => {
                let text = argument.display();
                return Err(CliError::Usage(format!("unknown argument {text}; try --help")));
            }
            _ => asked.what.push(argument),
        }
    }
    Ok(asked)
}

fn obey(asked: Asked) -> Result<ExitCode, CliError> {
    let Asked { what, lists, foreground, fake, json } = asked;
    if remount::is_asked(&lists) {
        let dir = what.last().ok_or_else(usage)?;
        if !fake {
            remount::remount(dir.as_ref(), &lists)?;
        }
        if json {
            println!("{}", serde_json::json!({ "dir": dir.to_string_lossy() }));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut options = Options::default();
    lists.iter().try_for_each(|list| options.parse(list))?;
    options.foreground |= foreground;
    let wanted = wanted(what, options, json)?;
    if fake { Ok(ExitCode::SUCCESS) } else { run(wanted) }
}

fn usage() -> CliError {
    CliError::Usage("usage: mictlan mount [NETWORK[:VOLUME]] DIR".to_owned())
}

fn wanted(mut what: Vec<OsString>, options: Options, json: bool) -> Result<Wanted, CliError> {
    let dir = PathBuf::from(what.pop().ok_or_else(usage)?);
    let source = what.pop();
    if !what.is_empty() {
        return Err(usage());
    }
    let named = dir.to_string_lossy();
    if source.is_none() && named.contains(':') && !named.contains('/') && !dir.exists() {
        return Err(CliError::Usage(format!(
            "{named} looks like a volume; name the directory to mount it on too: mictlan mount \
             {named} DIR"
        )));
    }
    let source = source.as_ref().map(|source| source.to_string_lossy());
    let (network, volume) = volume_of(source.as_deref())?;
    Ok(Wanted { network, volume, dir, options, json })
}

/// What `[NETWORK[:VOLUME]]` names.
pub fn volume_of(source: Option<&str>) -> Result<(Option<Label>, Label), CliError> {
    let (network, volume) = match source {
        None => (None, DEFAULT_VOLUME),
        // What fstab writes where there is nothing to say.
        Some("mictlan" | "none") => (None, DEFAULT_VOLUME),
        Some(source) => match source.split_once(':') {
            Some((network, volume)) => (Some(connect::label(network)?), volume),
            None => (Some(connect::label(source)?), DEFAULT_VOLUME),
        },
    };
    Ok((network, connect::label(volume)?))
}

fn run(wanted: Wanted) -> Result<ExitCode, CliError> {
    // Before anything else: a mistake in the directory is the most common one.
    let dir = session::prepare(&wanted.dir)?;
    if !wanted.options.foreground && !background::is_waited_for() {
        return background::start_again().map_err(CliError::Runtime);
    }
    log("warn");
    let runtime = runtime()?;
    let code = runtime.block_on(serve_mount(wanted, &dir));
    // The thread that waits for the kernel waits as long as others have files open here.
    runtime.shutdown_background();
    code
}

async fn serve_mount(wanted: Wanted, dir: &Path) -> Result<ExitCode, CliError> {
    let waited_for = background::is_waited_for() && !wanted.options.foreground;
    let connected = connect::connect(wanted.network.as_ref(), wanted.options.key.as_ref()).await?;
    if waited_for {
        background::detach().map_err(CliError::Runtime)?;
    }
    let metrics = match wanted.options.metrics {
        Some(address) => Some(metrics::listen(address).await?),
        None => None,
    };
    let (volume, stale) = open(&connected, wanted.volume.clone(), wanted.options.clone()).await?;
    let source = format!("{}:{}", connected.name, wanted.volume);
    let runtime = tokio::runtime::Handle::current();
    let grafted = Arc::new(graft(&volume, &wanted.options));
    let turn = turn(&connected)?;
    // From here on a signal that comes finds a mount to end.
    let mut ends = Ends::new(if waited_for { Hangup::Ignored } else { Hangup::Ends })?;
    let mounted = match session::mount(grafted, dir, &source, &wanted.options, runtime) {
        Ok(mounted) => mounted,
        Err(error) => {
            // Nobody wrote to it: nothing of it stays.
            finish(&volume).await;
            connected.close().await;
            return Err(error.into());
        }
    };
    drop(turn);
    forget_what_is_stale(&mounted, stale);
    // Dropped with the runtime.
    let _serving = metrics.map(|listener| metrics::serve_mount(listener, volume.clone()));
    standing::begin(&connected.paths, dir, connected.id, &volume).await;
    let said = match wanted.json {
        true => format!("{}\n", told(&connected, &wanted, dir)),
        false => String::new(),
    };
    if !waited_for {
        // Whoever reads it may be gone; the mount is there all the same.
        let _ = std::io::stdout().write_all(said.as_bytes());
    } else {
        let log = log_file(&connected)?;
        background::ready(&log, &said).map_err(|error| CliError::Io(log, error))?;
    }
    let paths = connected.paths.clone();
    let keep = standing::keep(paths, dir.to_owned(), connected.id, volume.clone());
    let standing = tokio::spawn(keep);
    let code = until_the_end(&connected, &volume, mounted, &mut ends).await?;
    standing.abort();
    standing::forget(&connected.paths, dir);
    connected.close().await;
    Ok(code)
}

/// The mount, for a program that waits for it.
fn told(connected: &Connected, wanted: &Wanted, dir: &Path) -> serde_json::Value {
    serde_json::json!({
        "dir": dir.to_string_lossy(), "network": connected.name.as_str(),
        "volume": wanted.volume.as_str(), "pid": std::process::id(),
    })
}

/// The volume with the verified ledger below it.
fn graft(volume: &Arc<Volume>, options: &Options) -> Graft<Volume, LedgerTree> {
    let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let tree = Arc::new(LedgerTree(volume.ledger().clone()));
    Graft::new(volume.clone(), tree, options.no_ledger, owner)
}

/// One process mounts at a time: each sees what the one before it has mounted, and no two are on one
/// directory.
fn turn(connected: &Connected) -> Result<File, CliError> {
    let dir = &connected.paths.state;
    crate::store::durable::create_dir(dir, 0o700)?;
    let path = dir.join("mounting.lock");
    let failed = |error| CliError::Io(path.clone(), error);
    let file = File::options().create(true).append(true).mode(0o600).open(&path).map_err(failed)?;
    let wait = || flock(&file, FlockOperation::LockExclusive);
    rustix::io::retry_on_intr(wait).map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// Where a mount in the background says what it has to say.
fn log_file(connected: &Connected) -> Result<PathBuf, CliError> {
    let dir = &connected.paths.state;
    durable::create_dir(dir, 0o700)?;
    Ok(dir.join("mount.log"))
}

/// Brings a volume up over a connected network.
pub async fn open(
    connected: &Connected,
    volume: Label,
    options: Options,
) -> Result<(Arc<Volume>, mpsc::UnboundedReceiver<Stale>), CliError> {
    let opened = bring_up(connected, volume, options, false).await?;
    for trouble in opened.0.troubles() {
        let (what, next) = (&trouble.what, &trouble.next);
        super::complain(&format!("mictlan: warning: {what}; next: {next}"));
    }
    Ok(opened)
}

/// The same without a word. `once`: for a command that reads and ends.
pub async fn bring_up(
    connected: &Connected,
    volume: Label,
    options: Options,
    once: bool,
) -> Result<(Arc<Volume>, mpsc::UnboundedReceiver<Stale>), CliError> {
    let placing = Placing::of(connected, volume.clone());
    let start = Start { once, ..start(connected, &placing, volume, options).await? };
    let (chunks, network_changed) = (start.chunks.clone(), start.network_changed.clone());
    let opened = Volume::open(start).await?;
    tokio::spawn(chunks.clone().watch());
    tokio::spawn(placing.follow(chunks, network_changed));
    Ok(opened)
}

/// What a volume is opened with.
pub async fn start(
    connected: &Connected,
    placing: &Placing,
    volume: Label,
    options: Options,
) -> Result<Start, CliError> {
    let memory = options.memory_bytes;
    let fetch = fetch::from_network(connected.network.clone());
    Ok(Start {
        network: connected.network.clone(),
        ledger: Ledger::open(connected.id, &connected.ledger_state()?, fetch)?,
        chunks: Chunks::new(connected.network.clone(), placing.now().await?, memory),
        volume,
        principal: connected.principal.clone(),
        options,
        journals: connected.paths.state.join("journals"),
        spilled: connected.paths.cache.join("overlay"),
        network_changed: Arc::new(Notify::new()),
        once: false,
    })
}

/// Tells the kernel what others changed, from a thread that serves no request of its own.
fn forget_what_is_stale(mounted: &Mounted, mut stale: mpsc::UnboundedReceiver<Stale>) {
    let notifier = mounted.notifier();
    std::thread::spawn(move || {
        while let Some(stale) = stale.blocking_recv() {
            // The kernel does not have it, or the mount is gone: both are as good as forgotten.
            let _ = match stale {
                Stale::Inode(ino) => notifier.inval_inode(INodeNo(ino.0), 0, 0),
                Stale::Entry(dir, name) => {
                    notifier.inval_entry(INodeNo(dir.0), OsStr::from_bytes(name.as_bytes()))
                }
            };
        }
    });
}

/// Waits for a signal, for somebody's umount, or for the peer in this process to fail.
async fn until_the_end(
    connected: &Connected,
    volume: &Arc<Volume>,
    mounted: Mounted,
    ends: &mut Ends,
) -> Result<ExitCode, CliError> {
    let dir = mounted.dir().to_owned();
    let mut unmounted = tokio::task::spawn_blocking(move || mounted.wait());
    let failed = async {
        match &connected.near {
            Some(near) => near.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ends.asked() => {}
        _ = &mut unmounted => return Ok(finish(volume).await),
        why = failed => {
            tracing::error!(%why, "this machine's peer ended; what was written is in the journal");
            detach(&dir);
            return Ok(ExitCode::from(8));
        }
    }
    let code = tokio::select! {
        code = finish(volume) => code,
        () = ends.insisted() => waits(volume, "a second signal"),
    };
    detach(&dir);
    // The session's threads end with the mount; open files of others may keep it a while.
    let _ = tokio::time::timeout(Duration::from_secs(2), unmounted).await;
    Ok(code)
}

fn detach(dir: &Path) {
    if let Err(error) = session::unmount(dir, true) {
        tracing::warn!(%error, dir = %dir.display(), "the mount is left to be removed: umount -l");
    }
}

async fn finish(volume: &Arc<Volume>) -> ExitCode {
    match volume.end().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => waits(volume, &error.to_string()),
    }
}

/// Says what is left behind, and how it is committed.
fn waits(volume: &Volume, why: &str) -> ExitCode {
    let (dir, bytes) = volume.journal_left().unwrap_or_default();
    tracing::error!(%why, journal = %dir.display(), bytes,
        "not everything could be committed; it is in this host's journal, and the next mount of \
         the volume with the same key commits it");
    ExitCode::from(11)
}

pub fn umount(args: UmountArgs) -> Result<ExitCode, CliError> {
    // A dead mount has no real path any more; as it was typed it will do.
    let dir = args.dir.canonicalize().unwrap_or(args.dir);
    // As root any file system could be unmounted, by a slip of the hand.
    if !session::mounted_type(&dir).is_some_and(|kind| kind.starts_with("fuse")) {
        return Err(CliError::NotMounted(dir));
    }
    // The kernel tells the mount's process that it is gone, and waits for nothing. Whoever unmounts
    // to mount elsewhere wants all of it on the peers first; a dead mount cannot be asked.
    let waits = match args.lazy {
        true => None,
        false => durable::sync_dir(&dir).err(),
    };
    let standing = standing_of(&dir);
    session::unmount(&dir, args.lazy).map_err(|error| match error.kind() {
        std::io::ErrorKind::ResourceBusy => CliError::MountInUse { dir: dir.display().to_string() },
        _ => CliError::Io(dir.clone(), error),
    })?;
    if let Some(error) = waits.filter(|error| error.kind() != std::io::ErrorKind::NotConnected) {
        left_behind(error, standing)?;
    }
    if args.json {
        println!("{}", serde_json::json!({ "dir": dir.to_string_lossy() }));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the mount said last, if it is one of this user's.
fn standing_of(dir: &Path) -> Option<Standing> {
    standing::of(&Paths::of_process().ok()?, &dir.display().to_string())
}

/// Its process tries once more, and then lets go of its journal: whoever mounts next shall find it.
fn left_behind(error: DiskError, standing: Option<Standing>) -> Result<(), CliError> {
    let not_all = CliError::NotAllCommitted(error);
    let ended = match &standing {
        Some(standing) => Some(runtime()?.block_on(standing.ended())),
        None => None,
    };
    match ended {
        Some(End::Committed) => Ok(()),
        Some(End::Left) | None => Err(not_all),
        Some(End::Tries { pid }) => {
            let left = format!(
                "its process ({pid}) has not ended yet, and has the journal until then: mount \
                 after its end"
            );
            Err(CliError::Left { cause: Box::new(not_all), left })
        }
    }
}
