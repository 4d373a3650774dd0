//! What a command says when it fails: what happened, the cause, the next command; and its exit
//! code.

use super::shown::shown;
use crate::network::CallError;
use mictlan::id::Label;
use mictlan::meta::error::FsError;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    #[error("{0}")]
    Key(#[from] crate::identity::keyfile::KeyError),
    #[error("{0}")]
    Transport(#[from] crate::http::transport::TransportError),
    #[error("{0}")]
    Here(#[from] crate::here::HereError),
    #[error("{0}")]
    Record(#[from] crate::founding::FoundingError),
    #[error("the network could not be founded: {0}; nothing of it is kept: try again")]
    Founding(String),
    #[error("{0}")]
    Call(#[from] CallError),
    #[error("{0}")]
    Link(#[from] crate::link::LinkError),
    #[error("{0}")]
    Ledger(#[from] crate::ledger::LedgerError),
    #[error("{0}")]
    Disk(#[from] crate::store::durable::DiskError),
    #[error(
        "unmounted, but not everything could be committed ({0}); it is in this host's journal, \
         and the next mount of the volume with the same key commits it"
    )]
    NotAllCommitted(crate::store::durable::DiskError),
    #[error("{0}")]
    Mount(#[from] mictlan_mount::session::MountError),
    #[error("{0}")]
    Option(#[from] mictlan_mount::options::OptionError),
    #[error("{0}")]
    Metrics(#[from] crate::metrics::MetricsError),
    #[error("{0}")]
    Open(#[from] crate::volume::OpenError),
    #[error("{0}")]
    Join(#[from] crate::identity::join::JoinError),
    #[error("{0}")]
    Invite(#[from] crate::identity::invite::InviteError),
    #[error("{0}")]
    LedgerVerb(#[from] super::ledger::LedgerCliError),
    #[error("{0}")]
    Replay(#[from] crate::volume::ReplayError),
    #[error("{}: {}", shown(.0.as_os_str().as_bytes()), .1)]
    Io(PathBuf, io::Error),
    #[error("{0}")]
    Runtime(io::Error),
    #[error(
        "no network is configured here; make one: mictlan init, or join one: mictlan join CODE"
    )]
    NoNetwork,
    #[error("no network {name:?} is configured here; there are: {there}")]
    UnknownNetwork { name: String, there: String },
    #[error(
        "this machine's peer is another mictlan ({holder}) that does not answer; wait for its end, \
         or end it: mictlan umount DIR, or kill it, which loses nothing acknowledged"
    )]
    Held { holder: String },
    #[error(
        "other processes of this machine work on network {network}, or make it; end them first: \
         mictlan umount DIR"
    )]
    InUse { network: String },
    #[error(
        "a network {0:?} is configured already; nothing was done; choose another name: mictlan \
         init NAME"
    )]
    NetworkExists(String),
    #[error(
        "this machine's peer runs already, inside a mount or a verb that works ({holder}), and does \
         not listen; nothing was changed; in this order: {next}"
    )]
    ServedInside { holder: String, next: String },
    #[error(
        "no key is configured; name one in the configuration (key = \"NAME\"; mictlan key ls), or \
         come in by an invite: mictlan join CODE"
    )]
    NoKey,
    #[error(
        "this machine is a peer of {network}, and the only key here is the peer's, which opens no \
         volume and signs nobody's records; nothing was done. Here work: mictlan status, peer ls, \
         df, verify, ledger verify. To work in a volume here as well: elsewhere mictlan invite \
         --role writer, and here mictlan join CODE --name NAME"
    )]
    OnlyPeer { network: Label },
    #[error(
        "{path}: this key has no data secret of the volume (role auditor): it sees names and \
         attributes, and no content; for that: mictlan invite --role reader"
    )]
    NoContent { path: String },
    #[error(
        "{0:?} is not a name: 1 to 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
    )]
    BadName(String),
    #[error("{} is no mount of mictlan; nothing was done. What is mounted: mictlan status", .0.display())]
    NotMounted(PathBuf),
    #[error(
        "{dir} is in use and stays mounted: end what works in it (fuser -vm {dir} names it), or \
         detach it at once: mictlan umount --lazy {dir}"
    )]
    MountInUse { dir: String },
    #[error(
        "files on {dir} are open for writing, so it cannot become read-only; nothing was changed: \
         end what writes (fuser -vm {dir} names it), then again"
    )]
    StillWritten { dir: String },
    #[error("a peer answered another question than was asked")]
    OtherAnswer,
    #[error("{0}")]
    Usage(String),
    /// What it leaves is known to the verb (`Left`).
    #[error("{path}: {error}")]
    Volume { path: String, error: FsError },
    #[error(
        "this key may read volume {0} and not change it, so nothing was changed; an owner can let \
         it write: mictlan member add NAME --role writer --volume {0}"
    )]
    Reader(mictlan::id::Label),
    #[error("{cause}; {left}")]
    Left { cause: Box<CliError>, left: String },
    #[error(
        "not everything could be committed ({0}); it is in this host's journal, and the next \
         mount or put of the volume with the same key commits it"
    )]
    NotCommitted(FsError),
    #[error(
        "the code of the invite could not be printed ({error}): nobody has it, so nobody can use \
         it, and it ends at {until}; make another: mictlan invite"
    )]
    CodeNotPrinted { error: io::Error, until: String },
    #[error("interrupted")]
    Interrupted,
    #[error(
        "{} has a network that the configuration does not name, and it may be the only copy: move \
         it away, or restore {}; nothing was changed", .dir.display(), .config.display()
    )]
    Orphaned { dir: PathBuf, config: PathBuf },
}

impl CliError {
    /// What to type where this user may not read or write mictlan's own files, or named what is not
    /// in a volume.
    pub fn next(&self) -> Option<String> {
        use crate::config::ConfigError;
        use crate::identity::keyfile::KeyError;
        let disk = match self {
            CliError::Disk(error)
            | CliError::Config(ConfigError::Disk(error))
            | CliError::Key(KeyError::Disk(error)) => error,
            CliError::Left { cause, .. } => return cause.next(),
            CliError::Volume { path, error: FsError::NotFound } => {
                let (dir, _) = path.trim_end_matches('/').rsplit_once('/')?;
                return Some(format!("what is there: mictlan ls {dir}/"));
            }
            _ => return None,
        };
        let denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        denied.contains(&disk.kind()).then(|| {
            let dir = disk.path.ancestors().find(|dir| dir.is_dir()).unwrap_or(&disk.path);
            format!(
                "this user may not write there: ls -ld {}; to keep all of mictlan's files in \
                 another directory: MICTLAN_HOME=DIR before the command",
                dir.display()
            )
        })
    }

    /// The codes of the manual page.
    pub fn code(&self) -> ExitCode {
        match self {
            CliError::LedgerVerb(error) => return error.code(),
            CliError::Left { cause, .. } => return cause.code(),
            CliError::Replay(error) => return ExitCode::from(super::verify::code_of(error)),
            _ => {}
        }
        ExitCode::from(match self {
            CliError::Usage(_)
            | CliError::Option(_)
            | CliError::BadName(_)
            | CliError::Metrics(_) => 2,
            CliError::NoNetwork | CliError::UnknownNetwork { .. } => 3,
            CliError::Key(_) | CliError::NoKey | CliError::OnlyPeer { .. } => 4,
            CliError::Call(_) | CliError::Link(_) => 5,
            CliError::Mount(_)
            | CliError::NotMounted(_)
            | CliError::MountInUse { .. }
            | CliError::StillWritten { .. } => 6,
            CliError::Open(_) | CliError::Reader(_) => 7,
            CliError::Here(_)
            | CliError::ServedInside { .. }
            | CliError::Held { .. }
            | CliError::InUse { .. } => 8,
            CliError::Join(_) | CliError::Invite(_) => 9,
            CliError::Volume { .. } | CliError::NoContent { .. } => 10,
            CliError::NotCommitted(_) | CliError::NotAllCommitted(_) => 11,
            CliError::Orphaned { .. } => 3,
            // As shells say it of whom SIGINT ended.
            CliError::Interrupted => 130,
            _ => 1,
        })
    }
}
