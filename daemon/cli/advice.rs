//! What to type so that this machine's peer listens for other machines.
//!
//! Owns: the commands, with the directories that they are about.
//! Never: types them: a mount that is its own peer has to end first, and somebody works in it.

use super::status::look;
use crate::config::{Config, Network as Configured, Paths};
use mictlan::id::Label;

/// The commands that lead from a peer inside a mount, or inside each verb, to one that listens;
/// `None` where it listens already, or lives elsewhere.
pub fn to_listen(
    paths: &Paths,
    config: &Config,
    name: &Label,
    configured: &Configured,
) -> Option<String> {
    configured.serve.as_ref().filter(|serve| serve.listen.is_none())?;
    Some(to_serve(paths, config, name))
}

/// The commands that give it a process of its own.
pub fn to_serve(paths: &Paths, config: &Config, name: &Label) -> String {
    let mounts = look::mounts(paths, config).into_iter();
    let dirs: Vec<String> = mounts
        .filter(|mount| mount.source.split(':').next() == Some(name.as_str()))
        .map(|mount| mount.dir)
        .collect();
    let each = |verb: &str| dirs.iter().map(|dir| format!("mictlan {verb} {dir}, ")).collect();
    let (before, after): (String, String) = (each("umount"), each("mount"));
    let after = after.trim_end_matches(", ");
    let serve = "mictlan serve --listen ADDRESS:4510 &";
    match after {
        "" => serve.to_owned(),
        after => format!("{before}{serve}, {after}"),
    }
}
