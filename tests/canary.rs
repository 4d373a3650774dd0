//! Words that stand nowhere else in the world, and the search for them.
//!
//! Owns: the forms in which a secret could show: as it is, as hex, as base64.
//! Invariant: a word is found at any place in any of these forms; `finds_every_form` shows it.

use aho_corasick::AhoCorasick;
use mictlan::ledger::record::text::base64;
use std::path::Path;

/// A secret that must not show, and what to call it.
pub struct Canary {
    pub name: String,
    pub bytes: Vec<u8>,
}

pub struct Search {
    names: Vec<String>,
    forms: AhoCorasick,
}

/// The letters of a base64 text that follow from `bytes` alone, where they begin `before` bytes
/// after a multiple of three.
fn base64_inside(bytes: &[u8], before: usize) -> Vec<u8> {
    let mut padded = vec![0; before];
    padded.extend_from_slice(bytes);
    let text = base64(&padded).into_bytes();
    text[(before * 8).div_ceil(6)..padded.len() * 8 / 6].to_vec()
}

fn forms(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let small = hex::encode(bytes);
    let mut all = vec![
        ("as it is", bytes.to_vec()),
        ("in hex", small.clone().into_bytes()),
        ("in HEX", small.to_uppercase().into_bytes()),
    ];
    for before in 0..3 {
        let text = base64_inside(bytes, before);
        let url = text.iter().map(|letter| match letter {
            b'+' => b'-',
            b'/' => b'_',
            other => *other,
        });
        all.push(("in base64 for addresses", url.collect()));
        all.push(("in base64", text));
    }
    all
}

impl Search {
    pub fn of(canaries: &[Canary]) -> Self {
        let (mut names, mut all) = (Vec::new(), Vec::new());
        for canary in canaries {
            assert!(canary.bytes.len() >= 12, "{} could be there by chance", canary.name);
            for (how, form) in forms(&canary.bytes) {
                names.push(format!("{}, {how}", canary.name));
                all.push(form);
            }
        }
        Self { names, forms: AhoCorasick::new(all).expect("a few short words") }
    }

    /// Which canary shows in these bytes, if one does.
    pub fn find(&self, bytes: &[u8]) -> Option<&str> {
        self.forms.find(bytes).map(|found| self.names[found.pattern().as_usize()].as_str())
    }

    /// How many bytes were searched; fails where a canary is. A file that goes meanwhile is left out.
    pub fn nothing_below(&self, dir: &Path) -> u64 {
        let mut searched = 0;
        for (path, _) in crate::three::files(dir) {
            let name = path.strip_prefix(dir).expect("below").as_os_str().as_encoded_bytes();
            let Ok(bytes) = std::fs::read(&path) else { continue };
            let found = self.find(&bytes).or_else(|| self.find(name));
            assert!(found.is_none(), "{} shows in {}", found.unwrap_or_default(), path.display());
            searched += bytes.len() as u64;
        }
        searched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_form_at_every_place() {
        let bytes = b"canary>>>of?a name\xff\xfe\xfd".to_vec();
        let search = Search::of(&[Canary { name: "it".to_owned(), bytes: bytes.clone() }]);
        for before in 0..7 {
            let mut around = vec![b'.'; before];
            around.extend_from_slice(&bytes);
            around.extend_from_slice(&vec![b'.'; 7 - before]);
            assert_eq!(search.find(&around), Some("it, as it is"));
            let hex = hex::encode(&around);
            assert_eq!(search.find(hex.as_bytes()), Some("it, in hex"));
            assert_eq!(search.find(hex.to_uppercase().as_bytes()), Some("it, in HEX"));
            let text = base64(&around);
            assert_eq!(search.find(text.as_bytes()), Some("it, in base64"));
            let url = text.replace('+', "-").replace('/', "_");
            assert_eq!(search.find(url.as_bytes()), Some("it, in base64 for addresses"));
            around[before] ^= 1;
            assert_eq!(search.find(&around), None);
            assert_eq!(search.find(base64(&around).as_bytes()), None);
        }
    }
}
