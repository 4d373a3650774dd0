//! The JSON profile of the ledger: RFC 8785 bytes, and of those only what every tool reads alike.
//!
//! Owns: the scanner that accepts canonical bytes and nothing else, and the writer that makes them.
//! Invariant: what the scanner accepts, the writer would have written byte for byte; so a signed
//! value has one form, and `jq -cjS` prints it.
//!
//! The profile: integers from −(2^53−1) to 2^53−1, no fractions, no exponents; keys `[a-z0-9_]+`,
//! sorted, none twice; strings of UTF-8 without U+007F (which jq escapes and RFC 8785 does not),
//! so without lone surrogates; no space between tokens; at most 32 levels deep.

use serde::Serialize;
use serde_json::Value;

/// The largest integer that every JSON reader holds exactly: 2^53 − 1.
pub const INTEGER_MAX: u64 = (1 << 53) - 1;
/// Deep enough for any record, shallow enough for every reader's stack.
pub const DEPTH_MAX: usize = 32;

/// Why bytes are not in the profile, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("byte {at}: {what}")]
pub struct JsonError {
    pub at: usize,
    pub what: &'static str,
}

/// Bytes that do not stand for themselves in a string.
const SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        table[byte] = true;
        byte += 1;
    }
    table[b'"' as usize] = true;
    table[b'\\' as usize] = true;
    table[0x7f] = true;
    table
};

/// Walks canonical bytes; each call takes one token or value, or says what is wrong.
pub struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// `bytes` must be UTF-8, which is checked here, once, and not again at each string.
    pub fn new(bytes: &'a [u8]) -> Result<Self, JsonError> {
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(Self { bytes, at: 0 }),
            Err(e) => Err(JsonError { at: e.valid_up_to(), what: "not UTF-8" }),
        }
    }

    pub fn error<T>(&self, what: &'static str) -> Result<T, JsonError> {
        Err(JsonError { at: self.at, what })
    }

    pub fn position(&self) -> usize {
        self.at
    }

    fn peek(&self) -> u8 {
        // NUL is no token of JSON, so it stands for the end as well.
        self.bytes.get(self.at).copied().unwrap_or(0)
    }

    /// Takes exactly these bytes.
    pub fn expect(&mut self, text: &[u8], what: &'static str) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(text) {
            return self.error(what);
        }
        self.at += text.len();
        Ok(())
    }

    /// Takes these bytes if they come next.
    pub fn take(&mut self, text: &[u8]) -> bool {
        let found = self.bytes[self.at..].starts_with(text);
        self.at += if found { text.len() } else { 0 };
        found
    }

    /// Takes exactly `len` bytes, whatever they are: the caller checks them.
    pub fn raw(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], JsonError> {
        match self.bytes.get(self.at..self.at + len) {
            Some(bytes) => {
                self.at += len;
                Ok(bytes)
            }
            None => self.error(what),
        }
    }

    /// An integer of at least 0.
    pub fn natural(&mut self, what: &'static str) -> Result<u64, JsonError> {
        let start = self.at;
        let mut n = 0u64;
        while self.peek().is_ascii_digit() {
            n = n.saturating_mul(10).saturating_add(u64::from(self.peek() - b'0'));
            self.at += 1;
        }
        let digits = self.at - start;
        if digits == 0 || digits > 1 && self.bytes[start] == b'0' || n > INTEGER_MAX {
            self.at = start;
            return self.error(what);
        }
        Ok(n)
    }

    /// A string without escapes: names, hashes and times have none. The quotes are not included.
    pub fn plain(&mut self, what: &'static str) -> Result<&'a [u8], JsonError> {
        let inner = self.string()?;
        if inner.contains(&b'\\') { self.error(what) } else { Ok(inner) }
    }

    /// A string in its canonical form; gives the bytes between the quotes.
    pub fn string(&mut self) -> Result<&'a [u8], JsonError> {
        self.expect(b"\"", "a string is expected")?;
        let start = self.at;
        loop {
            // Nearly all bytes of a log are passed here, so one look at a table each.
            let rest = &self.bytes[self.at..];
            self.at += rest.iter().position(|b| SPECIAL[*b as usize]).unwrap_or(rest.len());
            match self.bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.escape()?,
                Some(0x7f) => return self.error("U+007F is not allowed"),
                Some(_) => return self.error("a control character that is not escaped"),
                None => return self.error("the string does not end"),
            }
        }
        self.at += 1;
        Ok(&self.bytes[start..self.at - 1])
    }

    /// The only escapes of RFC 8785: seven short ones, and `\u00xx` for the other control characters.
    fn escape(&mut self) -> Result<(), JsonError> {
        let rest = &self.bytes[self.at + 1..];
        let len = match rest {
            [b'"' | b'\\' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [b'u', b'0', b'0', b'0', b'0'..=b'7' | b'b' | b'e' | b'f', ..] => 6,
            [b'u', b'0', b'0', b'1', b'0'..=b'9' | b'a'..=b'f', ..] => 6,
            _ => return self.error("an escape that RFC 8785 does not write"),
        };
        self.at += len;
        Ok(())
    }

    /// Any value; `depth` is how many levels may still open.
    pub fn value(&mut self, depth: usize) -> Result<&'a [u8], JsonError> {
        let start = self.at;
        match self.peek() {
            b'"' => drop(self.string()?),
            b'{' => self.object(depth)?,
            b'[' => self.array(depth)?,
            b't' => self.expect(b"true", "an unknown word")?,
            b'f' => self.expect(b"false", "an unknown word")?,
            b'n' => self.expect(b"null", "an unknown word")?,
            b'-' => {
                self.at += 1;
                if self.natural("not an integer of the profile")? == 0 {
                    return self.error("minus zero");
                }
            }
            b'0'..=b'9' => drop(self.natural("not an integer of the profile")?),
            _ => return self.error("a value is expected"),
        }
        Ok(&self.bytes[start..self.at])
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth == 0 {
            return self.error("nested too deep");
        }
        self.at += 1;
        let mut before: &[u8] = b"";
        if self.take(b"}") {
            return Ok(());
        }
        loop {
            let key = self.string()?;
            let plain = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_');
            if key.is_empty() || !key.iter().all(plain) {
                return self.error("a key other than [a-z0-9_]+");
            }
            // No key is empty, so the first one is greater than the empty start.
            if key <= before {
                return self.error("keys are not sorted, or one stands twice");
            }
            before = key;
            self.expect(b":", "a colon is expected")?;
            self.value(depth - 1)?;
            match self.peek() {
                b',' => self.at += 1,
                b'}' => break,
                _ => return self.error("a comma or the object's end is expected"),
            }
        }
        self.at += 1;
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonError> {
        if depth == 0 {
            return self.error("nested too deep");
        }
        self.at += 1;
        if self.take(b"]") {
            return Ok(());
        }
        loop {
            self.value(depth - 1)?;
            match self.peek() {
                b',' => self.at += 1,
                b']' => break,
                _ => return self.error("a comma or the array's end is expected"),
            }
        }
        self.at += 1;
        Ok(())
    }

    /// Nothing may be left.
    pub fn finish(self) -> Result<(), JsonError> {
        if self.at == self.bytes.len() { Ok(()) } else { self.error("bytes are left over") }
    }
}

/// Whether `bytes` are one value of the profile in its canonical form.
pub fn check(bytes: &[u8]) -> Result<(), JsonError> {
    let mut scanner = Scanner::new(bytes)?;
    scanner.value(DEPTH_MAX)?;
    scanner.finish()
}

/// The canonical bytes of any serializable value; an error when it is outside the profile.
pub fn canonical(value: &impl Serialize) -> Result<Vec<u8>, JsonError> {
    let fail = |what| JsonError { at: 0, what };
    let value = serde_json::to_value(value).map_err(|_| fail("not a value of JSON"))?;
    let mut out = Vec::new();
    write(&value, &mut out);
    // The writer does not judge; the scanner is the one place that knows the profile.
    check(&out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| key.as_str());
            out.push(b'{');
            for (n, (key, value)) in entries.into_iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                write_string(key, out);
                out.push(b':');
                write(value, out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (n, item) in items.iter().enumerate() {
                if n > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::String(text) => write_string(text, out),
        other => out.extend_from_slice(other.to_string().as_bytes()),
    }
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn canonical_bytes_of_the_profile_are_accepted() {
        for good in [
            r#"{}"#,
            r#"[]"#,
            r#"{"a":1,"a_":2,"aa":-9007199254740991}"#,
            r#"[null,true,false,0,9007199254740991,"é\u0000\u001f\b\t\n\f\r\"\\"]"#,
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let deep = "[".repeat(33) + &"]".repeat(33);
        for bad in [
            "",
            " {}",
            "{} ",
            "{ }",
            r#"{"b":1,"a":2}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"A":1}"#,
            r#"{"":1}"#,
            r#"{"é":1}"#,
            r#"{"a" :1}"#,
            r#"{"a":1,}"#,
            "[1,]",
            "[,1]",
            "01",
            "-0",
            "-",
            "1.0",
            "1e3",
            "9007199254740992",
            "-9007199254740992",
            "99999999999999999999999",
            "NaN",
            "tru",
            "\"\u{7f}\"",
            "\"\u{1}\"",
            "\"\n\"",
            r#""\u0041""#,
            r#""\u007f""#,
            r#""\ud800""#,
            r#""\/""#,
            r#""\u000A""#,
            r#""\u000a""#,
            r#""\u0009""#,
            r#""\u001F""#,
            r#""a"#,
            "\"\\",
            "{",
            "[",
            &deep,
        ] {
            assert!(check(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(check(b"\"\xed\xa0\x80\"").is_err(), "a surrogate in UTF-8");
        assert_eq!(check(&deep.as_bytes()[1..65]), Ok(()), "32 levels are allowed");
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(INTEGER_MAX as i64)..=INTEGER_MAX as i64).prop_map(Value::from),
            "[^\u{7f}]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-c_0]{1,2}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_the_writer_makes_the_scanner_accepts(value in any_value()) {
            let bytes = canonical(&value).expect("inside the profile");
            prop_assert_eq!(check(&bytes), Ok(()));
            prop_assert_eq!(serde_json::from_slice::<Value>(&bytes).ok(), Some(value));
        }

        #[test]
        fn what_the_scanner_accepts_the_writer_makes(text in r#"[\[\]{}:,"a\\n0-1tru]{0,12}"#) {
            if check(text.as_bytes()).is_ok() {
                let value: Value = serde_json::from_str(&text).expect("it is JSON");
                prop_assert_eq!(canonical(&value), Ok(text.into_bytes()));
            }
        }
    }
}
