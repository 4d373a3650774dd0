//! The client's name for a request: 48 bits of time, 80 random bits, 26 letters.
//!
//! Owns: the one written form of a ULID (Crockford's base 32, upper case).
//! Never: draws randomness; the caller brings it.

use crate::id::TimeMs;
use serde::{Deserialize, Serialize};
use std::fmt;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ulid(u128);

impl Ulid {
    pub fn new(time: TimeMs, random: [u8; 10]) -> Self {
        assert!(time.0 < 1 << 48, "a ULID's time has 48 bits");
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&time.0.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(u128::from_be_bytes(bytes))
    }

    /// Exactly 26 letters of the alphabet, the first at most `7`; the text has one form.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let text: &[u8; 26] = text.try_into().ok()?;
        if text[0] > b'7' {
            return None;
        }
        let mut n = 0u128;
        for letter in text {
            n = n << 5 | u128::from(value(*letter)?);
        }
        Some(Self(n))
    }

    pub fn time(self) -> TimeMs {
        TimeMs((self.0 >> 80) as u64)
    }
}

/// The value of a letter, by a table because a verifier does this 26 times a record.
fn value(letter: u8) -> Option<u8> {
    const NONE: u8 = 0xff;
    const VALUES: [u8; 256] = {
        let mut table = [NONE; 256];
        let mut i = 0;
        while i < 32 {
            table[ALPHABET[i] as usize] = i as u8;
            i += 1;
        }
        table
    };
    let v = VALUES[letter as usize];
    (v != NONE).then_some(v)
}

impl fmt::Display for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for shift in (0..130).step_by(5).rev() {
            let letter = ALPHABET[(self.0 >> shift) as usize & 31];
            write!(f, "{}", char::from(letter))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ulid({self})")
    }
}

impl TryFrom<String> for Ulid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(text.as_bytes()).ok_or_else(|| format!("{text:?} is not a ULID"))
    }
}

impl From<Ulid> for String {
    fn from(ulid: Ulid) -> String {
        ulid.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_known_ulid_has_its_known_form() {
        let ulid = Ulid::parse(b"01ARZ3NDEKTSV4RRFFQ69G5FAV").expect("the example of the spec");
        assert_eq!(ulid.time(), TimeMs(1_469_922_850_259));
        assert_eq!(ulid.to_string(), "01ARZ3NDEKTSV4RRFFQ69G5FAV");
        assert_eq!(
            Ulid::new(TimeMs((1 << 48) - 1), [0xff; 10]).to_string(),
            "7".to_owned() + &"Z".repeat(25)
        );
    }

    #[test]
    fn every_other_form_is_refused() {
        for bad in [
            "",
            "01arz3ndektsv4rrffq69g5fav",
            "81ARZ3NDEKTSV4RRFFQ69G5FAV",
            "01ARZ3NDEKTSV4RRFFQ69G5FAI",
            "01ARZ3NDEKTSV4RRFFQ69G5FA",
            "01ARZ3NDEKTSV4RRFFQ69G5FAVV",
        ] {
            assert_eq!(Ulid::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_ulid_is_read_back(ms in 0u64..1 << 48, random: [u8; 10]) {
            let ulid = Ulid::new(TimeMs(ms), random);
            prop_assert_eq!(Ulid::parse(ulid.to_string().as_bytes()), Some(ulid));
            prop_assert_eq!(ulid.time(), TimeMs(ms));
        }
    }
}
