//! `mictlan ls`: names of a volume.

use super::place::Place;
use super::{Left, Open, Who, at, say_behind};
use crate::cli::error::CliError;
use crate::cli::runtime;
use crate::cli::shown::shown;
use clap::Args;
use mictlan::id::TimeMs;
use mictlan::ledger::record::time;
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode};
use mictlan_mount::vfs::{Attr, Vfs};
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

const ONLY_READ: &str = "nothing was changed";

#[derive(Args)]
pub struct LsArgs {
    /// [[NETWORK:]VOLUME:]/PATH. To a terminal, what is no plain text in a name is quoted as a shell
    /// takes it back; a name that is not UTF-8 has all its bytes in `name_hex` of --json.
    #[arg(default_value = "/")]
    path: OsString,
    /// Mode, links, owner, size and time of each.
    #[arg(short)]
    long: bool,
    #[command(flatten)]
    who: Who,
}

pub fn ls(args: LsArgs) -> Result<ExitCode, CliError> {
    let place = Place::parse(&args.path)?;
    runtime()?.block_on(async {
        let open = Open::volume(&place, &args.who, true).await?;
        let done = list(&open, &place, &args).await;
        let left = Left { failed: ONLY_READ, interrupted: ONLY_READ };
        match open.finish(done, left).await {
            // Whoever reads, such as `head`, has enough.
            Err(CliError::Runtime(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
            done => done?,
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn list(open: &Open, place: &Place, args: &LsArgs) -> Result<(), CliError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    let found = open.find(&place.path).await.map_err(at(place))?;
    let attr = found.ok_or_else(|| at(place)(FsError::NotFound))?;
    if attr.inode.kind != FileKind::Dir {
        let name = place.path.last().expect("only the root has no name, and it is a directory");
        line(open, &mut out, name.as_bytes(), &attr, args).await?;
        return out.flush().map_err(CliError::Runtime);
    }
    let mut cookie = 0;
    loop {
        let page = open.page(attr.ino, cookie).await.map_err(at(place))?;
        let Some(last) = page.last() else { break };
        cookie = last.cookie;
        for listed in &page {
            if let (Some(attr), false) = (&listed.attr, matches!(&*listed.name, b"." | b"..")) {
                line(open, &mut out, &listed.name, attr, args).await?;
            }
        }
    }
    out.flush().map_err(CliError::Runtime)
}

async fn line(
    open: &Open,
    out: &mut impl Write,
    name: &[u8],
    attr: &Attr,
    args: &LsArgs,
) -> Result<(), CliError> {
    let inode = &attr.inode;
    let written = if args.who.json {
        let mut said = serde_json::json!({
            "name": String::from_utf8_lossy(name), "kind": word(inode.kind), "mode": format!("{:04o}", inode.mode),
            "uid": inode.uid, "gid": inode.gid, "links": inode.nlink, "size": inode.size,
            "mtime": inode.mtime.secs, "ino": attr.ino.0,
        });
        if std::str::from_utf8(name).is_err() {
            // Two such names may be one text.
            said["name_hex"] = hex::encode(name).into();
        }
        say_behind(open.behind.as_ref(), &mut said);
        writeln!(out, "{said}")
    } else if args.long {
        let Inode { nlink, uid, gid, size, .. } = inode;
        let when = time::format(TimeMs(u64::try_from(inode.mtime.secs).unwrap_or(0) * 1000));
        let mode = mode(inode);
        let target = match inode.kind {
            FileKind::Symlink => {
                let target = open.volume.clone().readlink(attr.ino).await;
                let target = target.map_err(at(shown(name)))?;
                [b" -> ", &*printed(&target)].concat()
            }
            _ => Vec::new(),
        };
        let start = format!("{mode} {nlink:>3} {uid:>5} {gid:>5} {size:>12} {when} ");
        out.write_all(&[start.as_bytes(), &printed(name), &target, b"\n"].concat())
    } else {
        out.write_all(&[&*printed(name), b"\n"].concat())
    };
    written.map_err(CliError::Runtime)
}

/// A name's own bytes, so that what reads them can use them; to a terminal only what shows.
fn printed(name: &[u8]) -> Cow<'_, [u8]> {
    match io::stdout().is_terminal() {
        true => shown(name).into_bytes().into(),
        false => name.into(),
    }
}

fn word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Dir => "directory",
        FileKind::Symlink => "link",
        FileKind::Fifo => "pipe",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

/// As `ls -l` writes it.
fn mode(inode: &Inode) -> String {
    let kind = match inode.kind {
        FileKind::File => '-',
        FileKind::Dir => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let mut text = String::from(kind);
    for (shift, special, set) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = inode.mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (inode.mode & special != 0, bits & 1 != 0) {
            (true, true) => set,
            (true, false) => set.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}
