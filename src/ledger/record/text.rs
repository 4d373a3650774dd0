//! Bytes as text inside records: hex for names and hashes, base64 for signatures and sealed keys.
//!
//! Owns: the fast strict readers of the envelope, and serde for the fields of bodies.
//! Invariant: a value has one text; upper-case hex and loose base64 are refused.

use crate::id::{ChunkId, LedgerHash, PrincipalId, VolumeId};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Hex digits to bytes, by a table, because a verifier does this for every record.
pub fn hex32(text: &[u8]) -> Option<[u8; 32]> {
    let text: &[u8; 64] = text.try_into().ok()?;
    let mut out = [0; 32];
    let mut bad = 0;
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (DIGIT[pair[0] as usize], DIGIT[pair[1] as usize]);
        bad |= high | low;
        *byte = high << 4 | low & 0x0f;
    }
    (bad & 0xf0 == 0).then_some(out)
}

const DIGIT: [u8; 256] = {
    let mut table = [0xff; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// The 64 bytes of a signature from its 88 letters.
pub fn signature(text: &[u8]) -> Option<[u8; 64]> {
    let mut out = [0; 66];
    match STANDARD.decode_slice(text, &mut out) {
        Ok(64) => out[..64].try_into().ok(),
        _ => None,
    }
}

/// Standard base64 with padding.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The strict opposite of `base64`: no spaces, padding required, spare bits zero.
pub fn from_base64(text: &[u8]) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// What has a lower-case hex form of one length.
pub trait Hex: Sized {
    fn parse(text: &str) -> Option<Self>;
    fn write(&self) -> String;
}

macro_rules! hex_of {
    ($($name:ty),*) => {$(
        impl Hex for $name {
            fn parse(text: &str) -> Option<Self> {
                Self::from_hex(text)
            }
            fn write(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

hex_of!(ChunkId, LedgerHash, PrincipalId, VolumeId);

impl Hex for [u8; 32] {
    fn parse(text: &str) -> Option<Self> {
        hex32(text.as_bytes())
    }

    fn write(&self) -> String {
        hex::encode(self)
    }
}

/// `#[serde(with = "as_hex")]`
pub mod as_hex {
    use super::*;

    pub fn serialize<T: Hex, S: Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&value.write())
    }

    pub fn deserialize<'de, T: Hex, D: Deserializer<'de>>(d: D) -> Result<T, D::Error> {
        let text = String::deserialize(d)?;
        T::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("{text:?} is not the hex of its kind")))
    }
}

/// `#[serde(with = "as_hex_or_absent", default, skip_serializing_if = "Option::is_none")]`
pub mod as_hex_or_absent {
    use super::*;

    pub fn serialize<T: Hex, S: Serializer>(value: &Option<T>, s: S) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Hex::write).serialize(s)
    }

    pub fn deserialize<'de, T: Hex, D: Deserializer<'de>>(d: D) -> Result<Option<T>, D::Error> {
        // Absent is the one form of none, so `null` is refused here.
        super::as_hex::deserialize(d).map(Some)
    }
}

/// `#[serde(with = "as_base64")]` for byte strings of any length.
pub mod as_base64 {
    use super::*;

    pub fn serialize<S: Serializer>(bytes: &[u8], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&base64(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(d)?;
        from_base64(text.as_bytes()).ok_or_else(|| D::Error::custom("not canonical base64"))
    }
}

/// `#[serde(with = "as_signature")]`
pub mod as_signature {
    use super::*;

    pub fn serialize<S: Serializer>(bytes: &[u8; 64], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&base64(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 64], D::Error> {
        let text = String::deserialize(d)?;
        signature(text.as_bytes())
            .ok_or_else(|| D::Error::custom("not the base64 of a signature of 64 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hex_and_base64_have_one_form() {
        assert_eq!(hex32("0f".repeat(32).as_bytes()), Some([0x0f; 32]));
        for bad in ["0F".repeat(32), "0g".repeat(32), "0f".repeat(31), "é".repeat(32)] {
            assert_eq!(hex32(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(signature(base64(&[7; 64]).as_bytes()), Some([7; 64]));
        for bad in [base64(&[7; 63]), base64(&[7; 65]), base64(&[7; 66])] {
            assert_eq!(signature(bad.as_bytes()), None, "{bad}");
        }
        for bad in ["AAA", "AAB=", "A A=", "AA==\n", "AA-_"] {
            assert_eq!(from_base64(bad.as_bytes()), None, "{bad}");
        }
    }
}
