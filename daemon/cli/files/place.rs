//! A place in a volume, as a person types it.
//!
//! Owns: the form `[[NETWORK:]VOLUME:]/PATH`.
//! Invariant: a path has no `.` or `..`, and never begins at a name that is reserved.

use crate::cli::connect::{DEFAULT_VOLUME, label};
use crate::cli::error::CliError;
use crate::cli::shown::shown;
use mictlan::id::{Label, Name};
use mictlan_mount::graft::RESERVED;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

pub const WHY_RESERVED: &str = "this name is reserved for what a mount shows there";

/// Whether a name at the root of a volume is one that a mount answers itself.
pub fn is_reserved(name: &Name) -> bool {
    RESERVED.contains(&name.as_bytes())
}

#[derive(Debug, PartialEq, Eq)]
pub struct Place {
    pub network: Option<Label>,
    pub volume: Label,
    pub path: Vec<Name>,
    /// It ends in a slash: what is there must be a directory.
    pub is_dir: bool,
}

impl Place {
    pub fn parse(text: &OsStr) -> Result<Self, CliError> {
        let bytes = text.as_bytes();
        let wrong = |why: &str| {
            let text = text.display();
            CliError::Usage(format!(
                "{text}: {why}; a place in a volume is /PATH, VOLUME:/PATH or \
                 NETWORK:VOLUME:/PATH"
            ))
        };
        let slash = bytes.iter().position(|b| *b == b'/').unwrap_or(bytes.len());
        let (head, path) = bytes.split_at(slash);
        let head = std::str::from_utf8(head).map_err(|_| wrong("this names no volume"))?;
        let (network, volume) = match head {
            "" if !path.is_empty() => (None, label(DEFAULT_VOLUME)?),
            head => {
                let head = head.strip_suffix(':').ok_or_else(|| wrong("this names no volume"))?;
                match head.split_once(':') {
                    Some((network, volume)) => (Some(label(network)?), label(volume)?),
                    None => (None, label(head)?),
                }
            }
        };
        let mut names = Vec::new();
        for part in path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")) {
            names.push(Name::parse(part).map_err(|error| wrong(&error.to_string()))?);
        }
        if names.first().is_some_and(is_reserved) {
            return Err(wrong(WHY_RESERVED));
        }
        let is_dir = names.is_empty() || path.ends_with(b"/");
        Ok(Self { network, volume, path: names, is_dir })
    }

    /// The directory of the last name, and that name; `None` for the root.
    pub fn split(&self) -> Option<(&[Name], &Name)> {
        self.path.split_last().map(|(last, dir)| (dir, last))
    }

    /// Every place of one command is in one volume.
    pub fn same_volume(&self, other: &Place) -> bool {
        self.network == other.network && self.volume == other.volume
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(network) = &self.network {
            write!(f, "{network}:")?;
        }
        if self.network.is_some() || self.volume.as_str() != DEFAULT_VOLUME {
            write!(f, "{}:", self.volume)?;
        }
        if self.path.is_empty() {
            f.write_str("/")?;
        }
        for name in &self.path {
            write!(f, "/{}", shown(name.as_bytes()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(text: &str) -> Result<Place, CliError> {
        Place::parse(OsStr::new(text))
    }

    #[test]
    fn a_place_is_network_volume_and_path() {
        for (text, back, dirs) in [
            ("/", "/", true),
            ("/a/./b//c", "/a/b/c", false),
            ("photos:/2026/", "photos:/2026", true),
            ("home:main:/a", "home:main:/a", false),
            ("main:/a", "/a", false),
            ("photos:", "photos:/", true),
        ] {
            let place = place(text).expect("a place");
            assert_eq!((place.to_string().as_str(), place.is_dir), (back, dirs), "{text}");
        }
    }

    #[test]
    fn what_is_no_place_is_refused_with_the_form() {
        for text in ["", "a", "a/b", "/a/../b", "A:/x", "a:b:c:/x", "/ledger/x", "/.at"] {
            assert!(
                matches!(place(text), Err(CliError::Usage(_) | CliError::BadName(_))),
                "{text}"
            );
        }
        assert!(place("/a/ledger").is_ok());
    }
}
