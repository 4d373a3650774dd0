//! The command line.
//!
//! Owns: verbs, their arguments, what they print and their exit codes.

mod admin;
mod advice;
mod announce;
mod audit;
pub mod background;
pub mod connect;
mod copy;
pub mod error;
mod files;
pub mod ledger;
mod lines;
mod listening;
mod manual;
mod members;
mod mount;
mod near;
mod peers;
mod placing;
mod remount;
mod serve;
mod shown;
mod signals;
mod standing;
mod status;
mod typed;
mod verify;
mod volumes;
mod whose;

use clap::{Parser, Subcommand};
use error::CliError;
use lines::{complain, log};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

/// A shared directory that any machine can join, that no storage host can read, and that anyone
/// can audit.
#[derive(Parser)]
#[command(name = "mictlan", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a network of one peer: this machine.
    Init(serve::Init),
    /// Run this machine's peer: it keeps chunks, and orders the ledger with the others.
    Serve(serve::ServeArgs),
    /// Mount a volume on a directory.
    Mount(mount::MountArgs),
    /// Unmount a directory; what is not committed yet is committed first.
    Umount(mount::UmountArgs),
    /// Print a code by which one other machine or person joins.
    Invite(peers::InviteArgs),
    /// Join a network with the code of an invite.
    Join(peers::JoinArgs),
    /// Copy files and directories into a volume, without a mount.
    Put(files::PutArgs),
    /// Copy files and directories out of a volume, without a mount.
    Get(files::GetArgs),
    /// List a directory of a volume, without a mount.
    Ls(files::LsArgs),
    /// Remove files and directories of a volume, without a mount.
    Rm(files::RmArgs),
    /// Check the ledger; with --replay, the snapshot roots of a volume as well.
    Verify(verify::VerifyArgs),
    /// Say whether the network works, what does not, and what to type next.
    Status(status::StatusArgs),
    /// Peers of the network.
    #[command(subcommand)]
    Peer(status::PeerVerb),
    /// Say how much room the stores have.
    Df(status::Which),
    /// Volumes of the network.
    #[command(subcommand)]
    Volume(volumes::VolumeVerb),
    /// Who may work in a volume.
    #[command(subcommand)]
    Member(admin::MemberVerb),
    /// Keys of this user.
    #[command(subcommand)]
    Key(admin::KeyVerb),
    /// Check the ledger, or append a note to it.
    #[command(subcommand)]
    Ledger(audit::LedgerVerb),
    /// Print a script that completes these verbs in a shell.
    Completions { shell: clap_complete::Shell },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
}

/// Runs the program; called as `mount.mictlan` it mounts.
pub fn run() -> ExitCode {
    crate::host::keep_freed_memory_together();
    lines::end_where_nothing_can_be_printed();
    if background::is_waited_for() {
        background::take_name();
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let done = match is_helper(&arguments) {
        true => mount::helper(arguments[1..].to_vec()),
        false => match Cli::parse().verb {
            Verb::Init(args) => serve::init(args),
            Verb::Serve(args) => serve::serve(args),
            Verb::Mount(args) => mount::mount(args),
            Verb::Umount(args) => mount::umount(args),
            Verb::Invite(args) => peers::invite(args),
            Verb::Join(args) => peers::join(args),
            Verb::Put(args) => files::put(args),
            Verb::Get(args) => files::get(args),
            Verb::Ls(args) => files::ls(args),
            Verb::Rm(args) => files::rm(args),
            Verb::Verify(args) => verify::verify(args),
            Verb::Status(args) => status::status(args),
            Verb::Peer(verb) => status::peer(verb),
            Verb::Df(which) => status::df(which),
            Verb::Volume(verb) => volumes::volume(verb),
            Verb::Member(verb) => admin::member(verb),
            Verb::Key(verb) => admin::key(verb),
            Verb::Ledger(verb) => audit::run(verb),
            Verb::Completions { shell } => manual::completions(shell),
            Verb::Man => manual::man(),
        },
    };
    done.unwrap_or_else(|error| {
        let said = match error.next() {
            Some(next) => format!("{error}; {next}"),
            None => error.to_string(),
        };
        complain(&format!("mictlan: {}", shown::message(&said)));
        error.code()
    })
}

/// Whether it is called as mount(8) calls it: the second name is that of the type in the kernel's
/// table, which a remount goes by.
fn is_helper(arguments: &[OsString]) -> bool {
    let name = arguments.first().and_then(|name| Path::new(name).file_name());
    name.is_some_and(|name| name == "mount.mictlan" || name == "mount.fuse.mictlan")
}

/// The runtime of a command.
fn runtime() -> Result<tokio::runtime::Runtime, CliError> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(CliError::Runtime)
}
