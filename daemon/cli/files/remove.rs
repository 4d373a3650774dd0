//! `mictlan rm`: names out of a volume.

use super::place::Place;
use super::{Interrupt, Left, Open, Who, at, below};
use crate::cli::error::CliError;
use crate::cli::runtime;
use clap::Args;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::FileKind;
use mictlan_mount::vfs::Vfs;
use std::ffi::OsString;
use std::process::ExitCode;

const LEFT: Left<'static> = Left {
    failed: "what was removed before it stays removed, and nothing else changed",
    interrupted: "what was removed before stays removed; the same again removes the rest",
};

#[derive(Args)]
pub struct RmArgs {
    /// [[NETWORK:]VOLUME:]/PATH
    path: OsString,
    /// Directories too, with all that is below them.
    #[arg(short)]
    recursive: bool,
    #[command(flatten)]
    who: Who,
}

pub fn rm(args: RmArgs) -> Result<ExitCode, CliError> {
    let place = Place::parse(&args.path)?;
    if place.path.is_empty() {
        return Err(CliError::Usage(
            "the root of a volume stays, and nothing was removed; name what is in it".to_owned(),
        ));
    }
    runtime()?.block_on(async {
        let open = Open::volume(&place, &args.who, false).await?;
        let done = remove(&open, &place, args.recursive).await;
        let removed = open.finish(done, LEFT).await?;
        match args.who.json {
            true => println!("{}", serde_json::json!({ "removed": removed })),
            false => println!("removed {removed}"),
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// A name on its way out.
struct Step {
    dir: Ino,
    name: Name,
    path: String,
    /// A directory with what was in it already found.
    emptied: Option<Ino>,
}

async fn remove(open: &Open, place: &Place, recursive: bool) -> Result<u64, CliError> {
    let (parent, name) = place.split().expect("the root was refused");
    let missing = || at(place)(FsError::NotFound);
    let parent = open.find(parent).await.map_err(at(place))?.ok_or_else(missing)?;
    let attr = open.lookup(parent.ino, name).await.map_err(at(place))?.ok_or_else(missing)?;
    let is_dir = attr.inode.kind == FileKind::Dir;
    if is_dir && !recursive {
        return Err(CliError::Usage(format!("{place} is a directory; to remove it: rm -r")));
    }
    let step = |dir, name: &Name, path: String, is_dir: bool, ino| {
        let emptied = is_dir.then_some(ino);
        Step { dir, name: name.clone(), path, emptied }
    };
    let interrupt = Interrupt::watch();
    let mut waiting = vec![(step(parent.ino, name, place.to_string(), is_dir, attr.ino), false)];
    let mut removed = 0;
    while let Some((one, listed)) = waiting.pop() {
        interrupt.check()?;
        let volume = open.volume.clone();
        match one.emptied {
            Some(ino) if !listed => {
                let mut below_it = Vec::new();
                let mut cookie = 0;
                loop {
                    let page = open.page(ino, cookie).await.map_err(at(&one.path))?;
                    let Some(last) = page.last() else { break };
                    cookie = last.cookie;
                    for entry in page.iter().filter(|e| !matches!(&*e.name, b"." | b"..")) {
                        let path = below(&one.path, &entry.name);
                        let name = Name::parse(&entry.name).expect("a volume has names only");
                        let is_dir = entry.kind == FileKind::Dir;
                        below_it.push((step(ino, &name, path, is_dir, entry.ino), false));
                    }
                }
                waiting.push((one, true));
                waiting.extend(below_it);
                continue;
            }
            Some(_) => volume.rmdir(open.who, one.dir, one.name).await.map_err(at(one.path))?,
            None => volume.unlink(open.who, one.dir, one.name).await.map_err(at(one.path))?,
        }
        removed += 1;
    }
    Ok(removed)
}
