//! The invite code: one line that a person can read out, and all that `join` needs.
//!
//! Owns: its bytes (docs/FORMAT.md), its letters and its checksum.
//! Never: shows the secret in a log or an error: `Invite` has no `Debug`.
//! Invariant: a code that parses is what was printed, but for a chance of one in 2^32.
//!
//! The secret is the seed of a principal of its own. Its public half is in the owner's record;
//! the newcomer's record is signed with its private half. So the secret itself never travels,
//! and volume secrets can be wrapped to it before the newcomer has a key.

use crate::http::tls::FINGERPRINT_BYTES;
use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::hash;
use mictlan::id::{Label, NetworkId, TimeMs};
use mictlan::ledger::record::body::Role;
use mictlan::seal::{Principal, Secret};
use zeroize::Zeroizing;

const PREFIX: &str = "mictlan1";
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// A second genesis with the same 16 bytes costs 2^128.
const NETWORK_BYTES: usize = 16;
const ADDRESSES_MAX: usize = 8;
const ADDRESS_BYTES_MAX: usize = 255;
const CODE_CHARS_MAX: usize = 4096;
const VOTER: u8 = 0x80;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    #[error(
        "this is not an invite code; it begins with `{PREFIX}`: copy all that mictlan invite said"
    )]
    NotACode,
    #[error("the invite code has a letter that none has: {0:?}")]
    Letter(char),
    #[error("the invite code was mistyped or cut off; copy all of it")]
    Checksum,
    #[error("the invite code cannot be read: {0}")]
    Bytes(#[from] DecodeError),
    #[error("the invite has expired; ask for another, or set this machine's clock if it is wrong")]
    Expired,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Invite {
    /// The first bytes of the network's id.
    pub network: [u8; NETWORK_BYTES],
    /// The inviting peer's key (`tls::fingerprint`).
    pub peer: [u8; FINGERPRINT_BYTES],
    pub secret: Zeroizing<[u8; 16]>,
    pub expires: TimeMs,
    pub role: Role,
    pub voter: bool,
    /// `host:port`, most useful first.
    pub addresses: Vec<String>,
}

impl Invite {
    /// What of a network's id is in the code.
    pub fn prefix(network: &NetworkId) -> [u8; NETWORK_BYTES] {
        let mut prefix = [0; NETWORK_BYTES];
        prefix.copy_from_slice(&network.0[..NETWORK_BYTES]);
        prefix
    }

    /// The invite's own principal: its keys are in the owner's record.
    pub fn principal(&self) -> Principal {
        let seed = hash::derive("mictlan v4 invite", self.secret.as_ref());
        Principal::from_seed(Secret::from_bytes(seed))
    }

    /// Its actor name, which both sides derive from its key.
    pub fn actor(&self) -> Label {
        let id = self.principal().id();
        Label::parse(&format!("invite-{}", hex::encode(&id.0[..8]))).expect("lower-case hex")
    }

    pub fn is_of(&self, network: &NetworkId) -> bool {
        network.0[..NETWORK_BYTES] == self.network
    }

    pub fn check_time(&self, now: TimeMs) -> Result<(), InviteError> {
        if now < self.expires { Ok(()) } else { Err(InviteError::Expired) }
    }

    /// The code, in groups of five letters that are easy to read out.
    pub fn code(&self) -> Zeroizing<String> {
        let mut w = Writer::new();
        w.u8(VERSION).raw(&self.network).raw(&self.peer).raw(self.secret.as_ref());
        let role = role_byte(self.role) | if self.voter { VOTER } else { 0 };
        w.varint(self.expires.0 / 1000).u8(role).varint(self.addresses.len() as u64);
        for address in &self.addresses {
            w.bytes(address.as_bytes());
        }
        let mut bytes = Zeroizing::new(w.finish());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum);
        let letters = Zeroizing::new(letters(&bytes));
        let mut code = Zeroizing::new(PREFIX.to_owned());
        for group in letters.as_bytes().chunks(5) {
            code.push('-');
            code.push_str(std::str::from_utf8(group).expect("the alphabet is ASCII"));
        }
        code
    }

    /// Capitals, spaces and missing hyphens are forgiven; nothing else is.
    pub fn parse(code: &str) -> Result<Self, InviteError> {
        let plain: Zeroizing<String> = Zeroizing::new(
            code.chars()
                .filter(|c| *c != '-' && !c.is_whitespace())
                .map(|c| c.to_ascii_lowercase())
                .collect(),
        );
        if plain.len() > CODE_CHARS_MAX {
            return Err(InviteError::NotACode);
        }
        let letters = plain.strip_prefix(PREFIX).ok_or(InviteError::NotACode)?;
        let bytes = Zeroizing::new(unletters(letters)?);
        let split = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(InviteError::Checksum)?;
        let (body, sum) = bytes.split_at(split);
        if checksum(body) != sum {
            return Err(InviteError::Checksum);
        }
        Ok(Self::read(body)?)
    }

    fn read(body: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(body);
        match r.u8("version")? {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let (network, peer) = (r.array("network")?, r.array("peer's key")?);
        let secret = Zeroizing::new(r.array("secret")?);
        let expires =
            r.varint("expiry")?.checked_mul(1000).ok_or(DecodeError::TooLarge("expiry"))?;
        let role = r.u8("role")?;
        let count = r.count(2, "addresses")?;
        if count == 0 || count > ADDRESSES_MAX {
            return Err(DecodeError::TooLarge("number of addresses"));
        }
        let mut addresses = Vec::with_capacity(count);
        for _ in 0..count {
            let text = std::str::from_utf8(r.bytes(ADDRESS_BYTES_MAX, "address")?);
            let text = text.map_err(|_| DecodeError::NotCanonical("address"))?;
            addresses.push(text.to_owned());
        }
        r.finish()?;
        Ok(Self {
            network,
            peer,
            secret,
            expires: TimeMs(expires),
            role: role_of(role & !VOTER).ok_or(DecodeError::Unknown("role"))?,
            voter: role & VOTER != 0,
            addresses,
        })
    }
}

const ROLES: [Role; 5] = [Role::Owner, Role::Writer, Role::Reader, Role::Auditor, Role::Storage];

fn role_byte(role: Role) -> u8 {
    let at = ROLES.iter().position(|known| *known == role);
    at.expect("every role is in the list") as u8
}

fn role_of(byte: u8) -> Option<Role> {
    ROLES.get(usize::from(byte)).copied()
}

fn checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = hash::derive("mictlan v4 invite checksum", bytes);
    [hash[0], hash[1], hash[2], hash[3]]
}

/// Five bits a letter, most significant first; the last letter is filled up with zeros.
fn letters(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0u32, 0);
    for byte in bytes {
        held = (held << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(char::from(ALPHABET[(held >> bits & 31) as usize]));
        }
    }
    if bits > 0 {
        out.push(char::from(ALPHABET[(held << (5 - bits) & 31) as usize]));
    }
    out
}

fn unletters(text: &str) -> Result<Vec<u8>, InviteError> {
    let mut out = Vec::with_capacity(text.len() * 5 / 8);
    let (mut held, mut bits) = (0u32, 0);
    for letter in text.chars() {
        let value = ALPHABET.iter().position(|known| char::from(*known) == letter);
        held = (held << 5) | value.ok_or(InviteError::Letter(letter))? as u32;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out.push((held >> bits) as u8);
        }
    }
    // What is left must be what `letters` fills up with.
    match bits < 5 && held & ((1 << bits) - 1) == 0 {
        true => Ok(out),
        false => Err(InviteError::Checksum),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn invite() -> Invite {
        Invite {
            network: [1; 16],
            peer: [2; 16],
            secret: Zeroizing::new([3; 16]),
            expires: TimeMs(1_800_000_000_000),
            role: Role::Storage,
            voter: true,
            addresses: vec!["192.0.2.7:4510".to_owned(), "[2001:db8::1]:4510".to_owned()],
        }
    }

    #[test]
    fn a_code_survives_being_read_out() {
        let code = invite().code();
        let spoken = code.to_uppercase().replace('-', " ");
        for text in [code.as_str(), &spoken, &code.replace('-', "")] {
            assert!(Invite::parse(text) == Ok(invite()), "{text}");
        }
    }

    #[test]
    fn a_code_with_any_letter_changed_or_lost_is_refused() {
        let code = invite().code();
        let plain = code.replace('-', "");
        for at in PREFIX.len()..plain.len() {
            let other = if &plain[at..=at] == "a" { "b" } else { "a" };
            let mut changed = plain.clone();
            changed.replace_range(at..=at, other);
            assert!(Invite::parse(&changed).is_err(), "letter {at}");
            assert!(Invite::parse(&plain[..at]).is_err(), "cut at {at}");
        }
        assert_eq!(Invite::parse("hello").err(), Some(InviteError::NotACode));
        assert_eq!(Invite::parse("mictlan1-0").err(), Some(InviteError::Letter('0')));
        assert_eq!(Invite::parse("mictlan1").err(), Some(InviteError::Checksum));
    }

    #[test]
    fn the_code_of_the_golden_file_means_what_it_meant() {
        let golden = include_str!("../../tests/vectors/identity/invite-v1.txt").trim_end();
        assert_eq!(*invite().code(), golden);
        assert!(Invite::parse(golden) == Ok(invite()));
    }

    #[test]
    fn an_expired_invite_says_so() {
        let invite = invite();
        assert_eq!(invite.check_time(TimeMs(1_799_999_999_999)), Ok(()));
        assert_eq!(invite.check_time(TimeMs(1_800_000_000_000)), Err(InviteError::Expired));
    }

    #[test]
    fn both_sides_derive_the_same_actor() {
        let parsed = Invite::parse(&invite().code()).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(parsed.actor(), invite().actor());
        assert!(parsed.is_of(&NetworkId([1; 32])) && !parsed.is_of(&NetworkId([4; 32])));
    }
}
