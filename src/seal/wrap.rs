//! Secrets wrapped for one reader: HPKE base mode (RFC 9180).
//!
//! Owns: the suite (DHKEM X25519 with HKDF-SHA256, HKDF-SHA256, AES-256-GCM) and its bytes.
//! Never: draws randomness; the caller hands in 32 fresh bytes each time.
//! Invariant: `info` is bound: a wrap made for one purpose or volume opens for no other.
//!
//! ```text
//!  0  version u8 = 1
//!  1  encapsulated X25519 key [32]
//! 33  ciphertext and its 16-byte tag, sequence number 0, empty aad
//! ```

use crate::seal::{Principal, Secret};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable};
use std::convert::Infallible;
use zeroize::Zeroizing;

type Dh = X25519HkdfSha256;

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 33;
const TAG_BYTES: usize = 16;

/// Why something was not wrapped or unwrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    #[error("the key to wrap to is not a usable X25519 key")]
    BadKey,
    #[error("the wrapped bytes are too short")]
    Short,
    #[error("wrap version {0}, which this program does not know")]
    Version(u8),
    #[error("the wrap was made for another key or another purpose, or was changed")]
    NotOurs,
}

/// Hands out the caller's entropy, once: what HPKE draws is one ephemeral key's seed.
struct Once(Option<Secret>);

impl hpke::rand_core::TryRng for Once {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        unreachable!("HPKE draws bytes")
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        unreachable!("HPKE draws bytes")
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        // A second draw would repeat bytes that must be fresh, so it stops the program.
        let secret = self.0.take().expect("one wrap draws one ephemeral key");
        out.copy_from_slice(secret.expose());
        Ok(())
    }
}

impl hpke::rand_core::TryCryptoRng for Once {}

/// Wraps `plaintext` for the holder of `to`. `entropy` must be fresh random bytes: the same
/// bytes for two plaintexts would use one key and nonce twice.
pub fn wrap(
    to: &[u8; 32],
    info: &[u8],
    plaintext: &[u8],
    entropy: Secret,
) -> Result<Vec<u8>, WrapError> {
    let to = <Dh as Kem>::PublicKey::from_bytes(to).map_err(|_| WrapError::BadKey)?;
    let (key, sealed) = hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, Dh>(
        &OpModeS::Base,
        &to,
        info,
        plaintext,
        &[],
        &mut Once(Some(entropy)),
    )
    .map_err(|_| WrapError::BadKey)?;
    let mut out = Vec::with_capacity(HEAD_BYTES + sealed.len());
    out.push(VERSION);
    out.extend_from_slice(&key.to_bytes());
    out.extend_from_slice(&sealed);
    Ok(out)
}

/// What was wrapped for `principal` under the same `info`.
pub fn unwrap(
    principal: &Principal,
    info: &[u8],
    bytes: &[u8],
) -> Result<Zeroizing<Vec<u8>>, WrapError> {
    match bytes.first() {
        Some(&VERSION) if bytes.len() >= HEAD_BYTES + TAG_BYTES => {}
        Some(&VERSION) | None => return Err(WrapError::Short),
        Some(&other) => return Err(WrapError::Version(other)),
    }
    let (key, sealed) = bytes[1..].split_at(HEAD_BYTES - 1);
    let key = <Dh as Kem>::EncappedKey::from_bytes(key).map_err(|_| WrapError::NotOurs)?;
    let mine = <Dh as Kem>::PrivateKey::from_bytes(principal.agreement().as_bytes())
        .map_err(|_| WrapError::BadKey)?;
    hpke::single_shot_open::<AesGcm256, HkdfSha256, Dh>(
        &OpModeR::Base,
        &mine,
        &key,
        info,
        sealed,
        &[],
    )
    .map(Zeroizing::new)
    .map_err(|_| WrapError::NotOurs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(n: u8) -> Principal {
        Principal::from_seed(Secret::from_bytes([n; 32]))
    }

    fn wrapped() -> Vec<u8> {
        let entropy = Secret::from_bytes([9; 32]);
        wrap(&principal(1).public().agreement, b"volume 7", b"secret", entropy).expect("good key")
    }

    #[test]
    fn only_the_reader_it_was_wrapped_for_unwraps_it() {
        let back = unwrap(&principal(1), b"volume 7", &wrapped());
        assert_eq!(back.as_deref().map(Vec::as_slice), Ok(&b"secret"[..]));
        assert_eq!(unwrap(&principal(2), b"volume 7", &wrapped()), Err(WrapError::NotOurs));
        assert_eq!(unwrap(&principal(1), b"volume 8", &wrapped()), Err(WrapError::NotOurs));
    }

    #[test]
    fn a_changed_wrap_opens_for_nobody() {
        for at in 0..wrapped().len() {
            // The top bit of an X25519 key is ignored by the curve, but HPKE hashes the bytes.
            let mut bent = wrapped();
            bent[at] ^= 0x80;
            assert!(unwrap(&principal(1), b"volume 7", &bent).is_err(), "byte {at}");
        }
        for len in 0..wrapped().len() {
            assert!(unwrap(&principal(1), b"volume 7", &wrapped()[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn a_key_that_gives_everyone_the_same_secret_is_refused() {
        let entropy = Secret::from_bytes([9; 32]);
        assert_eq!(wrap(&[0; 32], b"", b"secret", entropy), Err(WrapError::BadKey));
    }
}
