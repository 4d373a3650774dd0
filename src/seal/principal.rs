//! A person, a device or a peer: one seed, a signing key and an agreement key.
//!
//! Owns: how both keys come from the seed, signing, strict verification.
//! Never: reads key files (the daemon does), or shows a private key.
//! Invariant: what `verify` accepts has one signature encoding only (RFC 8032, cofactorless), and
//! never a key of small order, under which one signature would fit many messages.

use crate::hash;
use crate::id::PrincipalId;
use crate::seal::Secret;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use x25519_dalek::{PublicKey, StaticSecret};

/// What the world may know of a principal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Public {
    pub signing: PrincipalId,
    /// The X25519 key that volume secrets are wrapped to.
    pub agreement: [u8; 32],
}

/// A principal's private keys. No `Debug`; wiped on drop by the types inside.
pub struct Principal {
    signing: Ed25519KeyPair,
    agreement: StaticSecret,
    public: Public,
}

impl Principal {
    pub fn from_seed(seed: Secret) -> Self {
        let signing_seed =
            Secret::from_bytes(hash::derive("mictlan v4 principal signing", seed.expose()));
        let agreement =
            StaticSecret::from(hash::derive("mictlan v4 principal agreement", seed.expose()));
        let signing = Ed25519KeyPair::from_seed_unchecked(signing_seed.expose())
            .expect("any 32 bytes are an Ed25519 seed");
        let id = signing.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes");
        let public =
            Public { signing: PrincipalId(id), agreement: PublicKey::from(&agreement).to_bytes() };
        Self { signing, agreement, public }
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let signature = self.signing.sign(message);
        signature.as_ref().try_into().expect("an Ed25519 signature has 64 bytes")
    }

    pub fn public(&self) -> Public {
        self.public
    }

    pub fn id(&self) -> PrincipalId {
        self.public.signing
    }

    pub(super) fn agreement(&self) -> &StaticSecret {
        &self.agreement
    }
}

/// Whether `signature` is the principal's over `message`.
pub fn verify(principal: &PrincipalId, message: &[u8], signature: &[u8; 64]) -> bool {
    // aws-lc checks the equation without cofactor and refuses s outside the group's order, but
    // takes any key that decodes; weak and non-canonical ones are refused here.
    sound(&principal.0)
        && UnparsedPublicKey::new(&ED25519, &principal.0).verify(message, signature).is_ok()
}

fn sound(key: &[u8; 32]) -> bool {
    // y must be below p = 2^255 − 19, and the point outside the small subgroup.
    let high = key[0] >= 0xed && key[1..31].iter().all(|b| *b == 0xff) && key[31] & 0x7f == 0x7f;
    !high && ed25519_dalek::VerifyingKey::from_bytes(key).is_ok_and(|key| !key.is_weak())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn principal(n: u8) -> Principal {
        Principal::from_seed(Secret::from_bytes([n; 32]))
    }

    #[test]
    fn a_signature_fits_its_message_and_principal_only() {
        let (one, two) = (principal(1), principal(2));
        let signature = one.sign(b"hello");
        assert!(verify(&one.id(), b"hello", &signature));
        assert!(!verify(&one.id(), b"hellp", &signature));
        assert!(!verify(&two.id(), b"hello", &signature));
        let mut bent = signature;
        bent[40] ^= 1;
        assert!(!verify(&one.id(), b"hello", &bent));
    }

    #[test]
    fn a_second_library_agrees_on_keys_and_signatures() {
        use ed25519_dalek::{Signature, VerifyingKey};
        let one = principal(1);
        let key = VerifyingKey::from_bytes(&one.id().0).expect("a good key");
        let signature = Signature::from_bytes(&one.sign(b"hello"));
        assert!(key.verify_strict(b"hello", &signature).is_ok());
    }

    #[test]
    fn a_signature_has_one_form_only() {
        // s + L verifies under a check that only looks at the equation.
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9,
            0xde, 0x14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let one = principal(1);
        let mut signature = one.sign(b"hello");
        let mut carry = 0u16;
        for (s, l) in signature[32..].iter_mut().zip(L) {
            carry += u16::from(*s) + u16::from(l);
            *s = carry as u8;
            carry >>= 8;
        }
        assert!(!verify(&one.id(), b"hello", &signature));
    }

    #[test]
    fn a_key_of_small_order_signs_nothing() {
        let mut identity = [0; 32];
        identity[0] = 1;
        // R = identity, s = 0 satisfies the equation for every message under this key.
        let mut signature = [0; 64];
        signature[0] = 1;
        assert!(!verify(&PrincipalId(identity), b"anything", &signature));
        let mut non_canonical = [0xff; 32];
        non_canonical[0] = 0xee;
        non_canonical[31] = 0x7f;
        assert!(!verify(&PrincipalId(non_canonical), b"anything", &signature));
    }
}
