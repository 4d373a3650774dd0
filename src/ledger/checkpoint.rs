//! Checkpoints: the log's size and root as a signed note, cosigned by a quorum of the voters.
//!
//! Owns: the bytes of C2SP `signed-note`, `tlog-checkpoint` and `tlog-cosignature`; the policy
//! that says who must have signed.
//! Never: signs; who holds a key signs the message that is made here and hands the 64 bytes back.
//! Invariant: a note is believed only with the log's signature and the quorum's; a known key with
//! a wrong signature makes the whole note wrong; unknown keys are ignored.

use super::record::text::{base64, from_base64};
use super::record::{Origin, json::INTEGER_MAX};
use super::signed_by;
use super::tile::decimal;
use crate::hash::sha256;
use crate::id::LedgerHash;
use std::fmt::Write as _;

/// The longest note that is read; 16 signatures must be accepted, and ours are below 200 bytes.
pub const NOTE_MAX: usize = 65_536;

/// What is wrong with a note or key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("not a signed note: {0}")]
    NotANote(&'static str),
    #[error("not a checkpoint: {0}")]
    NotACheckpoint(&'static str),
    #[error("not a verifier key: {0}")]
    NotAKey(&'static str),
    #[error("the checkpoint is of the log {found:?}, not of {expected:?}")]
    OtherLog { found: String, expected: String },
    #[error("the signature of {0} does not verify")]
    BadSignature(String),
    #[error("the log's key has not signed")]
    NotSigned,
    #[error("{have} of {need} needed cosignatures; missing: {missing}")]
    NoQuorum { have: usize, need: usize, missing: String },
}

/// Size and root of a log: three lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: LedgerHash,
}

impl Checkpoint {
    pub fn new(origin: &Origin, size: u64, root: LedgerHash) -> Self {
        Self { origin: origin.as_str().to_owned(), size, root }
    }

    /// The note's text: what the log signs.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, base64(&self.root.0))
    }

    /// Exactly three lines; extension lines are not part of this log's format.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let fail = CheckpointError::NotACheckpoint;
        let lines = text.strip_suffix('\n').ok_or(fail("no LF at the end"))?;
        let mut lines = lines.split('\n');
        let (Some(origin), Some(size), Some(root), None) =
            (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(fail("it has not three lines"));
        };
        let size = decimal(size).filter(|s| *s <= INTEGER_MAX).ok_or(fail("size"))?;
        let root = from_base64(root.as_bytes()).and_then(|r| <[u8; 32]>::try_from(r).ok());
        let root = LedgerHash(root.ok_or(fail("the root is not 32 bytes of base64"))?);
        if origin.is_empty() {
            return Err(fail("an empty origin"));
        }
        Ok(Self { origin: origin.to_owned(), size, root })
    }

    /// What a voter signs: that at this time (Unix seconds) this was the largest tree it knew.
    pub fn cosigned_message(&self, time: u64) -> Vec<u8> {
        format!("cosignature/v1\ntime {time}\n{}", self.text()).into_bytes()
    }
}

/// The signature types of `signed-note` that this log uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The log's own, plain Ed25519 over the text.
    Log = 0x01,
    /// A voter's, with a time.
    Cosigner = 0x04,
}

/// A key that signs notes, under its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    pub name: String,
    pub kind: KeyKind,
    pub key: [u8; 32],
}

impl VerifierKey {
    /// The log's key; its name is the origin.
    pub fn log(origin: &Origin, key: [u8; 32]) -> Self {
        Self { name: origin.as_str().to_owned(), kind: KeyKind::Log, key }
    }

    /// A voter's key; its name is the origin and the peer's actor name.
    pub fn voter(origin: &Origin, peer: &str, key: [u8; 32]) -> Self {
        Self { name: format!("{origin}/{peer}"), kind: KeyKind::Cosigner, key }
    }

    /// The first four bytes of the SHA-256 of name, LF, type and key.
    pub fn id(&self) -> [u8; 4] {
        let bytes = [self.name.as_bytes(), b"\n", &[self.kind as u8], &self.key].concat();
        let [a, b, c, d, ..] = sha256(&bytes);
        [a, b, c, d]
    }

    /// `name+id+base64(type, key)`: what foreign tools are configured with.
    pub fn vkey(&self) -> String {
        let key = base64(&[&[self.kind as u8], &self.key[..]].concat());
        format!("{}+{}+{key}", self.name, hex::encode(self.id()))
    }

    /// The strict opposite of `vkey`.
    pub fn parse(vkey: &str) -> Result<Self, CheckpointError> {
        let fail = CheckpointError::NotAKey;
        let mut parts = vkey.splitn(3, '+');
        let (Some(name), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(fail("it is not name+id+key"));
        };
        let key = from_base64(key.as_bytes()).ok_or(fail("the key is not base64"))?;
        let (kind, key) = match key.split_first() {
            Some((0x01, key)) => (KeyKind::Log, key),
            Some((0x04, key)) => (KeyKind::Cosigner, key),
            _ => return Err(fail("an unknown signature type")),
        };
        let key = key.try_into().map_err(|_| fail("a key of another length than 32 bytes"))?;
        let parsed = Self { name: name.to_owned(), kind, key };
        if !is_key_name(name) || parsed.vkey() != vkey {
            return Err(fail("the id is not that of name and key"));
        }
        Ok(parsed)
    }

    /// The public key as PEM, for `openssl`.
    pub fn pem(&self) -> String {
        // The DER of an Ed25519 SubjectPublicKeyInfo is these 12 bytes and the key.
        const DER: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 6, 3, 0x2b, 0x65, 0x70, 3, 0x21, 0];
        let der = base64(&[&DER[..], &self.key].concat());
        format!("-----BEGIN PUBLIC KEY-----\n{der}\n-----END PUBLIC KEY-----\n")
    }

    /// The signature line of the log: `signature` is over the checkpoint's text.
    pub fn log_line(&self, signature: &[u8; 64]) -> String {
        assert!(self.kind == KeyKind::Log, "a cosigner's line has a time");
        self.line(signature)
    }

    /// The signature line of a voter: `signature` is over `cosigned_message(time)`.
    pub fn cosigned_line(&self, time: u64, signature: &[u8; 64]) -> String {
        assert!(self.kind == KeyKind::Cosigner, "the log's line has no time");
        self.line(&[&time.to_be_bytes()[..], signature].concat())
    }

    fn line(&self, signature: &[u8]) -> String {
        format!("— {} {}\n", self.name, base64(&[&self.id()[..], signature].concat()))
    }
}

fn is_key_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c == '+' || c.is_control())
}

/// A signed note taken apart; nothing in it is believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note<'a> {
    /// All that is signed, its last LF included.
    pub text: &'a str,
    pub lines: Vec<NoteLine<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteLine<'a> {
    pub name: &'a str,
    pub id: [u8; 4],
    pub signature: Vec<u8>,
}

impl<'a> Note<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, CheckpointError> {
        let fail = CheckpointError::NotANote;
        if bytes.len() > NOTE_MAX {
            return Err(fail("it is longer than 65,536 bytes"));
        }
        let note = std::str::from_utf8(bytes).map_err(|_| fail("not UTF-8"))?;
        if note.contains(|c: char| c < ' ' && c != '\n') {
            return Err(fail("a control character"));
        }
        let at = note.rfind("\n\n").ok_or(fail("no empty line before the signatures"))?;
        let (text, signatures) = (&note[..=at], &note[at + 2..]);
        let signatures = signatures.strip_suffix('\n').ok_or(fail("no LF at the end"))?;
        let lines = signatures.split('\n').map(Self::line).collect::<Option<_>>();
        Ok(Self { text, lines: lines.ok_or(fail("a malformed signature line"))? })
    }

    fn line(line: &'a str) -> Option<NoteLine<'a>> {
        let (name, signature) = line.strip_prefix("— ")?.split_once(' ')?;
        let bytes = from_base64(signature.as_bytes())?;
        let (id, signature) = bytes.split_first_chunk::<4>()?;
        let good = is_key_name(name) && !signature.is_empty();
        good.then(|| NoteLine { name, id: *id, signature: signature.to_vec() })
    }
}

/// A whole note: a checkpoint and its signature lines.
pub fn write_note(checkpoint: &Checkpoint, lines: &[String]) -> String {
    let mut note = checkpoint.text() + "\n";
    lines.iter().for_each(|line| note.push_str(line));
    note
}

/// How many lying voters of `n` are provided for when the network sets nothing.
pub fn default_faults(n: usize) -> usize {
    if n <= 3 { 0 } else { (n - 1) / 3 }
}

/// The least k of `n` voters with 2k − n > f: two quorums share more voters than may lie.
pub fn quorum(n: usize, f: usize) -> usize {
    (n + f) / 2 + 1
}

/// Whose signatures make a checkpoint of one size believable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub log: VerifierKey,
    /// By name.
    pub voters: Vec<VerifierKey>,
    /// How many lying voters cannot show two histories.
    pub faults: usize,
}

/// A note that the policy accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    pub checkpoint: Checkpoint,
    /// Names of the voters who cosigned and when, in Unix seconds.
    pub cosigned: Vec<(String, u64)>,
}

impl Policy {
    pub fn quorum(&self) -> usize {
        quorum(self.voters.len(), self.faults)
    }

    /// Checks the log's signature and every known cosignature, and asks for the quorum.
    pub fn accept(&self, note: &[u8]) -> Result<Accepted, CheckpointError> {
        let accepted = self.read(note)?;
        let (have, need) = (accepted.cosigned.len(), self.quorum());
        if have < need {
            let absent = |v: &&VerifierKey| accepted.cosigned.iter().all(|(n, _)| *n != v.name);
            let missing: Vec<_> = self.voters.iter().filter(absent).map(|v| &*v.name).collect();
            let missing = missing.join(", ");
            return Err(CheckpointError::NoQuorum { have, need, missing });
        }
        Ok(accepted)
    }

    /// As `accept`, without asking for the quorum: a note on its way to publication.
    pub fn read(&self, note: &[u8]) -> Result<Accepted, CheckpointError> {
        let note = Note::parse(note)?;
        let checkpoint = Checkpoint::parse(note.text)?;
        if checkpoint.origin != self.log.name {
            let (found, expected) = (checkpoint.origin, self.log.name.clone());
            return Err(CheckpointError::OtherLog { found, expected });
        }
        let (mut signed, mut cosigned) = (false, Vec::<(String, u64)>::new());
        for line in &note.lines {
            let Some(key) = self.key_of(line) else { continue };
            let bad = || CheckpointError::BadSignature(key.name.clone());
            let time = check_line(key, &checkpoint, &line.signature).ok_or_else(bad)?;
            match time {
                None => signed = true,
                // A second line of the same voter says nothing more.
                Some(_) if cosigned.iter().any(|(name, _)| *name == key.name) => {}
                Some(time) => cosigned.push((key.name.clone(), time)),
            }
        }
        if !signed {
            return Err(CheckpointError::NotSigned);
        }
        Ok(Accepted { checkpoint, cosigned })
    }

    fn key_of(&self, line: &NoteLine<'_>) -> Option<&VerifierKey> {
        let keys = std::iter::once(&self.log).chain(&self.voters);
        keys.into_iter().find(|key| key.name == line.name && key.id() == line.id)
    }

    /// The policy in the format of C2SP `tlog-policy`.
    pub fn text(&self) -> String {
        let mut out = format!("log {}\n", self.log.vkey());
        let mut names = String::new();
        for voter in &self.voters {
            let name = voter.name.rsplit('/').next().unwrap_or(&voter.name);
            // Writing to a String cannot fail.
            let _ = writeln!(out, "witness {name} {}", voter.vkey());
            let _ = write!(names, " {name}");
        }
        let _ = write!(out, "group voters {}{names}\nquorum voters\n", self.quorum());
        out
    }

    /// The same as one line of JSON, for scripts.
    pub fn json(&self) -> String {
        let vkeys: Vec<_> = self.voters.iter().map(VerifierKey::vkey).collect();
        let (faults, log, quorum) = (self.faults, self.log.vkey(), self.quorum());
        let origin = &self.log.name;
        serde_json::json!({
            "faults": faults, "log": log, "origin": origin, "quorum": quorum, "voters": vkeys,
        })
        .to_string()
            + "\n"
    }
}

/// `None` when the signature is wrong; else the time of a cosignature.
fn check_line(key: &VerifierKey, checkpoint: &Checkpoint, bytes: &[u8]) -> Option<Option<u64>> {
    let (time, message, signature) = match key.kind {
        KeyKind::Log => (None, checkpoint.text().into_bytes(), bytes),
        KeyKind::Cosigner => {
            let (time, signature) = bytes.split_first_chunk::<8>()?;
            let time = u64::from_be_bytes(*time);
            // The standard's limit on times.
            let time = i64::try_from(time).is_ok().then_some(time)?;
            (Some(time), checkpoint.cosigned_message(time), signature)
        }
    };
    signed_by(&key.key, &message, signature.try_into().ok()?).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Label, NetworkId};
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};

    fn pair(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("any 32 bytes are a seed")
    }

    fn public(seed: u8) -> [u8; 32] {
        pair(seed).public_key().as_ref().try_into().expect("32 bytes")
    }

    fn sign(seed: u8, message: &[u8]) -> [u8; 64] {
        pair(seed).sign(message).as_ref().try_into().expect("64 bytes")
    }

    fn origin() -> Origin {
        Origin::new(&Label::parse("net").expect("a label"), &NetworkId([0xab; 32]))
    }

    fn policy(voters: usize) -> Policy {
        let voter = |n| VerifierKey::voter(&origin(), &format!("p{n}"), public(n as u8 + 1));
        let voters: Vec<_> = (1..=voters).map(voter).collect();
        let faults = default_faults(voters.len());
        Policy { log: VerifierKey::log(&origin(), public(1)), voters, faults }
    }

    fn note(policy: &Policy, by: &[usize]) -> String {
        let checkpoint = Checkpoint::new(&origin(), 5, LedgerHash([3; 32]));
        let mut lines = vec![policy.log.log_line(&sign(1, checkpoint.text().as_bytes()))];
        for n in by {
            let signature = sign(*n as u8 + 1, &checkpoint.cosigned_message(1_700_000_000));
            lines.push(policy.voters[n - 1].cosigned_line(1_700_000_000, &signature));
        }
        write_note(&checkpoint, &lines)
    }

    #[test]
    fn the_quorum_is_the_least_that_cannot_show_two_histories() {
        for (n, k) in [(1, 1), (2, 2), (3, 2), (4, 3), (5, 4), (7, 5)] {
            let f = default_faults(n);
            assert_eq!(quorum(n, f), k, "{n} voters");
            assert!(2 * k > n + f && 2 * (k - 1) <= n + f);
        }
        assert_eq!(quorum(3, 1), 3);
    }

    #[test]
    fn a_note_is_accepted_only_with_its_quorum() {
        let policy = policy(3);
        let accepted = policy.accept(note(&policy, &[1, 3]).as_bytes()).expect("two of three");
        assert_eq!(accepted.checkpoint.size, 5);
        assert_eq!(accepted.cosigned[1], (policy.voters[2].name.clone(), 1_700_000_000));
        for few in [&[][..], &[2], &[2, 2]] {
            let refused = policy.accept(note(&policy, few).as_bytes());
            assert!(matches!(refused, Err(CheckpointError::NoQuorum { need: 2, .. })), "{few:?}");
        }
    }

    #[test]
    fn no_bit_of_a_note_can_change() {
        let policy = policy(1);
        let good = note(&policy, &[1]);
        for at in 0..good.len() {
            let mut bad = good.clone().into_bytes();
            bad[at] ^= 1;
            assert!(policy.accept(&bad).is_err(), "byte {at}");
            assert!(policy.accept(&good.as_bytes()[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn unknown_signatures_are_ignored_and_wrong_known_ones_are_not() {
        let policy = policy(1);
        let good = note(&policy, &[1]);
        let foreign = VerifierKey::voter(&origin(), "outside", public(9));
        let with = |line: String| policy.accept((good.clone() + &line).as_bytes());
        assert!(with(foreign.cosigned_line(1, &[0; 64])).is_ok());
        let wrong = with(policy.voters[0].cosigned_line(1, &[0; 64]));
        assert!(matches!(wrong, Err(CheckpointError::BadSignature(_))));
        let log_alone = policy.read(note(&policy, &[]).as_bytes()).expect("the log has signed");
        assert!(log_alone.cosigned.is_empty());
        let other = Policy { log: VerifierKey::log(&origin(), public(8)), ..policy.clone() };
        assert_eq!(other.accept(good.as_bytes()), Err(CheckpointError::NotSigned));
    }

    #[test]
    fn a_vkey_is_read_back_and_its_id_is_checked() {
        for key in [policy(1).log, policy(1).voters[0].clone()] {
            let vkey = key.vkey();
            assert_eq!(VerifierKey::parse(&vkey), Ok(key));
            assert!(VerifierKey::parse(&vkey.replacen("net", "nex", 1)).is_err());
            assert!(VerifierKey::parse(&vkey[..vkey.len() - 1]).is_err());
        }
        // The example key of the Go checksum database, which everybody's `go` carries.
        let go = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8";
        assert_eq!(VerifierKey::parse(go).map(|k| k.vkey()), Ok(go.to_owned()));
    }

    #[test]
    fn a_checkpoint_has_three_lines() {
        let root = base64(&[0; 32]);
        assert!(Checkpoint::parse(&format!("o\n0\n{root}\n")).is_ok());
        for bad in [
            format!("o\n0\n{root}"),
            format!("o\n00\n{root}\n"),
            format!("o\n0\n{root}\nextension\n"),
            format!("\n0\n{root}\n"),
            format!("o\n-1\n{root}\n"),
            "o\n0\nAAAA\n".to_owned(),
            "o\n0\n".to_owned(),
        ] {
            assert!(Checkpoint::parse(&bad).is_err(), "{bad}");
        }
    }
}
