//! Names for a person's eyes.
//!
//! Owns: which names are written as they are. They come from other members, and a terminal obeys
//! what is written to it.
//! Invariant: what is shown has no control character, and two names are never shown alike.

/// Marks that change the order or the lines of the text around them; they are no controls.
const MARKS: [std::ops::RangeInclusive<char>; 4] = [
    '\u{61c}'..='\u{61c}',
    '\u{200e}'..='\u{200f}',
    '\u{2028}'..='\u{202e}',
    '\u{2066}'..='\u{2069}',
];

fn is_plain(c: char) -> bool {
    !c.is_control() && !MARKS.iter().any(|marks| marks.contains(&c))
}

/// A name or a path as it is, where all of it is text that shows; otherwise quoted so that a shell
/// takes it back, as `ls` of coreutils does it on a terminal: `'a'$'\033''b'`.
pub fn shown(name: &[u8]) -> String {
    let text = std::str::from_utf8(name).ok();
    // A quote is quoted as well, or a name could pass for another one's quoted form.
    if let Some(text) = text.filter(|text| text.chars().all(|c| is_plain(c) && c != '\'')) {
        return text.to_owned();
    }
    let mut quoted = Quoted { text: String::from("'"), escaping: false };
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match is_plain(c) {
                true => quoted.plain(c),
                false => quoted.escape(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        quoted.escape(chunk.invalid());
    }
    quoted.text.push('\'');
    quoted.text
}

struct Quoted {
    text: String,
    /// The open quotes are `$'`, in which a backslash has a meaning.
    escaping: bool,
}

impl Quoted {
    fn plain(&mut self, c: char) {
        if std::mem::take(&mut self.escaping) {
            self.text.push_str("''");
        }
        match c {
            '\'' => self.text.push_str("'\\''"),
            c => self.text.push(c),
        }
    }

    fn escape(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if !std::mem::replace(&mut self.escaping, true) {
                self.text.push_str("'$'");
            }
            match byte {
                b'\n' => self.text.push_str("\\n"),
                b'\r' => self.text.push_str("\\r"),
                b'\t' => self.text.push_str("\\t"),
                byte => self.text.push_str(&format!("\\{byte:03o}")),
            }
        }
    }
}

/// A whole message, whoever's words are in it: without controls, of which it has only line ends.
pub fn message(text: &str) -> String {
    let mut said = String::with_capacity(text.len());
    for c in text.chars() {
        match c == '\n' || is_plain(c) {
            true => said.push(c),
            false => said.extend(c.escape_default()),
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_as_it_is_unless_a_terminal_would_obey_it() {
        for plain in ["a", "two words", "größe", "$HOME \\ \"x\"", "e\u{301}", "🌵"] {
            assert_eq!(shown(plain.as_bytes()), plain);
        }
        for (name, quoted) in [
            (&b"it's"[..], r"'it'\''s'"),
            (b"esc\x1b[31mred\nnl", r"'esc'$'\033''[31mred'$'\n''nl'"),
            (b"\xff\xfe", r"''$'\377\376'"),
            ("a\u{202e}b".as_bytes(), r"'a'$'\342\200\256''b'"),
            (b"\x9b\xc2\x9b", r"''$'\233\302\233'"),
        ] {
            assert_eq!(shown(name), quoted);
        }
        assert_eq!(message("a: \x1b[31m\u{202e}b\nc"), "a: \\u{1b}[31m\\u{202e}b\nc");
    }

    #[test]
    fn what_is_shown_is_what_a_shell_takes_back() {
        for name in [&b"it's"[..], b"esc\x1b[31mred\nnl", b"\xff'\xfe", b"\t'$'\n''", b"a\\0\x01"] {
            let script = format!("printf %s {}", shown(name));
            let said = std::process::Command::new("bash").args(["-c", &script]).output();
            assert_eq!(said.expect("bash is installed").stdout, name);
        }
    }
}
