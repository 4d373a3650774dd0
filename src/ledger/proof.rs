//! A record's proof of inclusion as one file: C2SP `tlog-proof`.
//!
//! Owns: the text of the proof, and its check without anything else at hand.
//! Invariant: index, hashes and checkpoint are believed only together, under a policy.

use super::checkpoint::{CheckpointError, NOTE_MAX, Policy};
use super::merkle;
use super::record::text::{base64, from_base64};
use super::tile::decimal;
use crate::id::{LedgerHash, Position};

const HEADER: &str = "c2sp.org/tlog-proof@v1\n";
/// No tree is deeper, so no proof has more hashes.
const HASHES_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("not a tlog-proof: {0}")]
    Malformed(&'static str),
    #[error("the proof's checkpoint is not acceptable: {0}")]
    Checkpoint(#[from] CheckpointError),
    #[error("the record is not the one at index {0} under this checkpoint")]
    NotIncluded(Position),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub index: Position,
    /// From the leaf's sibling up.
    pub hashes: Vec<LedgerHash>,
    /// The signed checkpoint, verbatim.
    pub note: String,
}

impl Proof {
    pub fn text(&self) -> String {
        let mut out = format!("{HEADER}index {}\n", self.index);
        for hash in &self.hashes {
            out.push_str(&base64(&hash.0));
            out.push('\n');
        }
        out.push('\n');
        out.push_str(&self.note);
        out
    }

    /// How long the text is, without making it.
    pub fn text_len(index: u64, size: u64, note_len: usize) -> usize {
        let hashes = merkle::inclusion_spans(index, size).len();
        HEADER.len() + "index \n".len() + index.to_string().len() + hashes * 45 + 1 + note_len
    }

    pub fn parse(text: &[u8]) -> Result<Self, ProofError> {
        let fail = ProofError::Malformed;
        if text.len() > NOTE_MAX + HASHES_MAX * 45 + 100 {
            return Err(fail("too long"));
        }
        let text = std::str::from_utf8(text).map_err(|_| fail("not UTF-8"))?;
        let rest = text.strip_prefix(HEADER).ok_or(fail("another first line"))?;
        let (head, note) = rest.split_once("\n\n").ok_or(fail("no checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        // Extra data is never believed, so it is checked for form and dropped.
        if let Some(extra) = lines.peek().and_then(|line| line.strip_prefix("extra ")) {
            from_base64(extra.as_bytes()).ok_or(fail("extra data that is not base64"))?;
            lines.next();
        }
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(decimal);
        let index = Position(index.ok_or(fail("no index"))?);
        let hash = |line: &str| from_base64(line.as_bytes())?.try_into().ok().map(LedgerHash);
        let hashes: Option<Vec<_>> = lines.map(hash).collect();
        let hashes = hashes.filter(|h| h.len() <= HASHES_MAX).ok_or(fail("a malformed hash"))?;
        Ok(Self { index, hashes, note: note.to_owned() })
    }

    /// Whether this proves `record` under the policy.
    pub fn check(&self, record: &[u8], policy: &Policy) -> Result<(), ProofError> {
        let checkpoint = policy.accept(self.note.as_bytes())?.checkpoint;
        let leaf = merkle::leaf(record);
        let (index, size) = (self.index.0, checkpoint.size);
        if merkle::check_inclusion(&leaf, index, size, &self.hashes, &checkpoint.root) {
            Ok(())
        } else {
            Err(ProofError::NotIncluded(self.index))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_is_read_back() {
        let note = "origin\n3\nAAAA\n\n— origin AAAAAAAA\n".to_owned();
        let proof = Proof { index: Position(2), hashes: vec![LedgerHash([7; 32])], note };
        let text = proof.text();
        assert_eq!(Proof::parse(text.as_bytes()), Ok(proof.clone()));
        assert_eq!(text.len(), Proof::text_len(2, 3, proof.note.len()));
        let extra = text.replacen("index", "extra AAAA\nindex", 1);
        assert_eq!(Proof::parse(extra.as_bytes()), Ok(proof));
        for bad in ["index 02\n", "index x\n", "indes 2\n", "index 2\nAAAA\n"] {
            let bad = text.replacen("index 2\n", bad, 1);
            assert!(Proof::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
