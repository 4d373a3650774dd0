//! One record of the ledger: a line of canonical JSON, signed by its actor, hashed as it stands.
//!
//! Owns: what a line looks like, which bytes are signed, which are hashed, and what names them.
//! Never: decides whether a record is allowed (the sequencer does), or draws time or randomness.
//! Invariant: `Line::parse` accepts exactly the bytes that `write_line` makes, so a record has one
//! form and one hash.
//!
//! ```text
//! {"i":N,"p":{"actor":…,"body":{…},"kind":…,"nonce":N?,"req":…},"prev":"<64 hex>","sig":"<base64>",
//!  "t":"<24>","v":1}\n
//! ```

pub mod body;
pub mod json;
pub mod text;
pub mod time;
pub mod ulid;

use crate::hash::sha256;
use crate::id::{Label, LedgerHash, NetworkId, Position, TimeMs};
pub use body::Body;
use json::{DEPTH_MAX, INTEGER_MAX, JsonError, Scanner};
use serde::{Deserialize, Serialize};
use std::fmt;
pub use ulid::Ulid;

/// The longest record, its LF included.
pub const RECORD_MAX: usize = 16_384;
/// `prev` of record 0.
pub const NO_RECORD: LedgerHash = LedgerHash([0; 32]);

/// Why bytes are not a record, or a record is not what its kind says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("a record of {0} bytes; at most 16,384 are allowed")]
    TooLarge(usize),
    #[error("the line does not end with one LF")]
    NoLineEnd,
    #[error("the record is not in the ledger's JSON profile: {0}")]
    Json(#[from] JsonError),
    #[error("the kind {0:?} is not known to this program")]
    UnknownKind(String),
    #[error("the body does not fit the kind {kind}: {why}")]
    Body { kind: &'static str, why: String },
}

/// The log's name on its checkpoints: `<network name>/<16 hex of the genesis hash>`.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Origin(String);

impl Origin {
    pub fn new(network: &Label, genesis: &NetworkId) -> Self {
        Self(format!("{network}/{}", hex::encode(&genesis.0[..8])))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an actor signs: who wants what, under which request name.
#[derive(Debug, Clone, PartialEq)]
pub struct Proposal {
    pub actor: Label,
    pub req: Ulid,
    /// Only where the network asks for proof of work.
    pub nonce: Option<u64>,
    pub body: Body,
}

impl Proposal {
    pub fn new(actor: Label, req: Ulid, body: Body) -> Self {
        Self { actor, req, nonce: None, body }
    }

    /// The canonical bytes of `p`.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let body = self.body.to_json()?;
        let kind = self.body.kind();
        let mut p = format!("{{\"actor\":\"{}\",\"body\":", self.actor).into_bytes();
        p.extend_from_slice(&body);
        p.extend_from_slice(format!(",\"kind\":\"{kind}\"").as_bytes());
        if let Some(nonce) = self.nonce {
            assert!(nonce <= INTEGER_MAX, "a nonce fits the ledger's integers");
            p.extend_from_slice(format!(",\"nonce\":{nonce}").as_bytes());
        }
        p.extend_from_slice(format!(",\"req\":\"{}\"}}", self.req).as_bytes());
        // Together with the shortest envelope it must still be a record.
        if p.len() > RECORD_MAX {
            return Err(RecordError::TooLarge(p.len()));
        }
        Signed::parse(&p)?;
        Ok(p)
    }

    /// The strict opposite of `encode`, for kinds that this program knows.
    pub fn parse(p: &[u8]) -> Result<Self, RecordError> {
        let signed = Signed::parse(p)?;
        Ok(Self {
            actor: signed.actor_label(),
            req: signed.req,
            nonce: signed.nonce,
            body: signed.body()?,
        })
    }
}

/// The bytes of a `p`, taken apart without copying; the kind may be one that is not known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    pub actor: &'a str,
    pub kind: &'a str,
    pub body: &'a [u8],
    pub nonce: Option<u64>,
    pub req: Ulid,
    /// All of `p`, as it was signed.
    pub bytes: &'a [u8],
}

impl<'a> Signed<'a> {
    pub fn parse(p: &'a [u8]) -> Result<Self, RecordError> {
        let mut scanner = Scanner::new(p)?;
        let signed = Self::scan(&mut scanner, p)?;
        scanner.finish()?;
        Ok(signed)
    }

    fn scan(s: &mut Scanner<'a>, all: &'a [u8]) -> Result<Self, JsonError> {
        let start = s.position();
        s.expect(b"{\"actor\":", "p with its actor is expected")?;
        let actor = label(s)?;
        s.expect(b",\"body\":", "the body is expected")?;
        let body = s.value(DEPTH_MAX - 2)?;
        if body[0] != b'{' {
            return s.error("a body that is not an object");
        }
        s.expect(b",\"kind\":", "the kind is expected")?;
        let kind = label(s)?;
        let nonce = match s.take(b",\"nonce\":") {
            true => Some(s.natural("a nonce is an integer")?),
            false => None,
        };
        s.expect(b",\"req\":\"", "the request's name is expected")?;
        let Some(req) = Ulid::parse(s.raw(26, "the request's name is a ULID")?) else {
            return s.error("the request's name is not a ULID");
        };
        s.expect(b"\"}", "the end of p is expected")?;
        Ok(Self { actor, kind, body, nonce, req, bytes: &all[start..s.position()] })
    }

    pub fn actor_label(&self) -> Label {
        Label::parse(self.actor).expect("the scanner accepted it as a label")
    }

    /// The typed body; an error for unknown kinds and for bodies that do not fit theirs.
    pub fn body(&self) -> Result<Body, RecordError> {
        Body::parse(self.kind, self.body)
    }

    /// SHA-256 of `p`: of record 0 the network's name; with proof of work, what has leading zeros.
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.bytes)
    }
}

/// A string that is a label: kinds and actors share its alphabet.
fn label<'a>(s: &mut Scanner<'a>) -> Result<&'a str, JsonError> {
    let text = s.plain("a name has no escapes")?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good = matches!(text.len(), 1..=63)
        && plain(text[0])
        && text.iter().all(|b| plain(*b) || matches!(b, b'.' | b'_' | b'-'));
    match std::str::from_utf8(text) {
        Ok(text) if good => Ok(text),
        _ => s.error("not a name [a-z0-9][a-z0-9._-]{0,62}"),
    }
}

/// A whole record, taken apart without copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    pub i: Position,
    pub p: Signed<'a>,
    pub prev: LedgerHash,
    pub sig: [u8; 64],
    pub t: TimeMs,
    /// The line as stored, LF included.
    pub bytes: &'a [u8],
}

impl<'a> Line<'a> {
    /// Accepts exactly the bytes that `write_line` makes.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        if bytes.len() > RECORD_MAX {
            return Err(RecordError::TooLarge(bytes.len()));
        }
        let Some((b'\n', line)) = bytes.split_last() else {
            return Err(RecordError::NoLineEnd);
        };
        let mut s = Scanner::new(line)?;
        let line = Self::scan(&mut s, bytes)?;
        s.finish()?;
        Ok(line)
    }

    fn scan(s: &mut Scanner<'a>, bytes: &'a [u8]) -> Result<Self, JsonError> {
        s.expect(b"{\"i\":", "a record with its index is expected")?;
        let i = Position(s.natural("the index is an integer")?);
        s.expect(b",\"p\":", "p is expected")?;
        let p = Signed::scan(s, bytes)?;
        s.expect(b",\"prev\":\"", "prev is expected")?;
        let Some(prev) = text::hex32(s.raw(64, "prev is 64 hex digits")?) else {
            return s.error("prev is not 64 lower-case hex digits");
        };
        s.expect(b"\",\"sig\":\"", "the signature is expected")?;
        let Some(sig) = text::signature(s.raw(88, "the signature is 88 letters of base64")?) else {
            return s.error("the signature is not canonical base64 of 64 bytes");
        };
        s.expect(b"\",\"t\":\"", "the time is expected")?;
        let Some(t) = time::parse(s.raw(24, "the time has 24 bytes")?) else {
            return s.error("not a time of the form 2026-11-21T19:27:14.123Z");
        };
        s.expect(b"\",\"v\":1}", "the format's version 1 and the end are expected")?;
        Ok(Self { i, p, prev: LedgerHash(prev), sig, t, bytes })
    }

    /// What the next record carries as `prev`, and `sha256sum` prints for the file.
    pub fn hash(&self) -> LedgerHash {
        record_hash(self.bytes)
    }

    /// What the actor signed; `origin` is not used for record 0, which has none yet.
    pub fn message(&self, origin: &Origin) -> Vec<u8> {
        match self.i {
            Position(0) => genesis_message(self.p.bytes),
            _ => record_message(origin, self.p.bytes),
        }
    }
}

/// SHA-256 of a whole line.
pub fn record_hash(line: &[u8]) -> LedgerHash {
    LedgerHash(sha256(line))
}

/// The network's name for machines: SHA-256 of the genesis record's `p`.
pub fn genesis_hash(p: &[u8]) -> NetworkId {
    NetworkId(sha256(p))
}

/// The bytes that are signed for every record but the first.
pub fn record_message(origin: &Origin, p: &[u8]) -> Vec<u8> {
    [origin.as_str().as_bytes(), b"/record/v1\n", p].concat()
}

/// The bytes that are signed for record 0.
pub fn genesis_message(p: &[u8]) -> Vec<u8> {
    [b"mictlan/genesis/v1\n", p].concat()
}

/// The line of a record. `p` must be a proposal's bytes, which is checked again here, because
/// what goes into the log stays there.
pub fn write_line(
    i: Position,
    prev: &LedgerHash,
    t: TimeMs,
    p: &[u8],
    sig: &[u8; 64],
) -> Result<Vec<u8>, RecordError> {
    Signed::parse(p)?;
    if i.0 > INTEGER_MAX {
        return Err(JsonError { at: 0, what: "the index is above 2^53−1" }.into());
    }
    let mut line = format!("{{\"i\":{i},\"p\":").into_bytes();
    line.extend_from_slice(p);
    let (sig, t) = (text::base64(sig), time::format(t));
    let tail = format!(",\"prev\":\"{prev}\",\"sig\":\"{sig}\",\"t\":\"{t}\",\"v\":1}}\n");
    line.extend_from_slice(tail.as_bytes());
    if line.len() > RECORD_MAX {
        return Err(RecordError::TooLarge(line.len()));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use body::Note;

    fn proposal() -> Proposal {
        let topic = Label::parse("greetings").expect("a label");
        let note = Note { data: serde_json::json!({"text": "a \"word\" é", "n": -7}), topic };
        let req = Ulid::new(TimeMs(1_795_289_234_123), [7; 10]);
        Proposal::new(Label::parse("alice").expect("a label"), req, Body::Note(note))
    }

    fn line() -> Vec<u8> {
        let p = proposal().encode().expect("in the profile");
        let t = TimeMs(1_795_289_234_124);
        write_line(Position(41), &LedgerHash([0xab; 32]), t, &p, &[9; 64]).expect("a record")
    }

    #[test]
    fn a_record_has_exactly_this_form() {
        let expected = concat!(
            r#"{"i":41,"p":{"actor":"alice","body":{"data":{"n":-7,"text":"a \"word\" é"},"#,
            r#""topic":"greetings"},"kind":"note","req":"01M7ZS7EPB0W3GE1R70W3GE1R7"},"prev":""#,
            "abababababababababababababababababababababababababababababababab",
            r#"","sig":"CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJ"#,
            r#"CQkJCQkJCQkJCQkJCQkJCQkJCQ==","t":"2026-11-21T19:27:14.124Z","v":1}"#,
            "\n"
        );
        let line = line();
        assert_eq!(String::from_utf8_lossy(&line), expected);
    }

    #[test]
    fn a_record_is_read_back() {
        let line = line();
        let read = Line::parse(&line).expect("what we wrote");
        assert_eq!((read.i, read.t), (Position(41), TimeMs(1_795_289_234_124)));
        assert_eq!((read.prev, read.sig), (LedgerHash([0xab; 32]), [9; 64]));
        assert_eq!(Proposal::parse(read.p.bytes), Ok(proposal()));
        assert_eq!(read.hash(), record_hash(&line));
        let origin = Origin::new(&Label::parse("net").expect("a label"), &NetworkId([1; 32]));
        assert!(read.message(&origin).starts_with(b"net/0101010101010101/record/v1\n{\"actor\""));
    }

    #[test]
    fn any_other_byte_makes_another_record_or_none() {
        let good = line();
        let parsed = Line::parse(&good).expect("what we wrote");
        for at in 0..good.len() {
            for flip in [0x01, 0x20, 0x80] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                if let Ok(other) = Line::parse(&bad) {
                    assert_ne!(other, parsed, "byte {at}");
                }
            }
            assert!(Line::parse(&good[..at]).is_err(), "cut at {at}");
        }
        assert!(Line::parse(&[&good[..], b"\n"].concat()).is_err());
        assert!(Line::parse(&[b" ", &good[..]].concat()).is_err());
    }

    #[test]
    fn a_record_of_16_kib_is_the_longest() {
        let with = |len: usize| {
            let mut proposal = proposal();
            let Body::Note(note) = &mut proposal.body else { unreachable!("it is a note") };
            note.data = "x".repeat(len).into();
            let p = proposal.encode().expect("in the profile");
            write_line(Position(1), &NO_RECORD, TimeMs(0), &p, &[0; 64])
        };
        let rest = with(0).expect("short").len();
        let longest = with(RECORD_MAX - rest).expect("exactly the limit");
        assert_eq!(longest.len(), RECORD_MAX);
        assert!(Line::parse(&longest).is_ok());
        assert_eq!(with(RECORD_MAX - rest + 1), Err(RecordError::TooLarge(RECORD_MAX + 1)));
    }

    #[test]
    fn an_unknown_kind_is_a_record_but_has_no_typed_body() {
        let p = br#"{"actor":"a","body":{},"kind":"vote.open","req":"01ARZ3NDEKTSV4RRFFQ69G5FAV"}"#;
        let signed = Signed::parse(p).expect("a well-formed p");
        assert_eq!(signed.body(), Err(RecordError::UnknownKind("vote.open".to_owned())));
    }

    #[test]
    fn a_body_has_one_form() {
        let good = br#"{"member":"bob","role":"reader"}"#;
        assert!(Body::parse("id.grant", good).is_ok());
        for bad in [
            r#"{"member":"bob","role":"reader","until":null}"#,
            r#"{"extra":1,"member":"bob","role":"reader"}"#,
            r#"{"member":"bob"}"#,
            r#"{"member":"Bob","role":"reader"}"#,
            r#"{"member":"bob","role":"king"}"#,
            r#"{"member":"bob","role":"reader","volume":"00"}"#,
            r#"{"role":"reader","member":"bob"}"#,
        ] {
            assert!(Body::parse("id.grant", bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
