//! The secrets of a volume and every key that is derived from them.
//!
//! Owns: the derivation contexts, the key ring of one volume, its bytes inside an `id.wrap`.
//! Never: shows a key: nothing here has `Debug`, and all of it is wiped on drop.
//! Invariant: data keys come from the data secret alone, so an auditor's ring has none of them.

use crate::codec::{DecodeError, Reader, Writer};
use crate::hash;
use crate::id::Epoch;
use std::collections::BTreeMap;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// 32 secret bytes: not shown, compared in constant time, wiped on drop.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Secret([u8; 32]);

impl Secret {
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for a derivation or for wrapping; never for a log.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl Eq for Secret {}

/// One generation of a volume's secrets. An auditor is given no `data`.
#[derive(Clone, PartialEq, Eq)]
pub struct EpochSecrets {
    pub epoch: Epoch,
    pub meta: Secret,
    pub data: Option<Secret>,
}

/// What seals and opens the chunks of one family: the key of the siv hash, and the secret that
/// together with a siv gives a chunk's key.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct FamilyKeys {
    pub siv: [u8; 32],
    pub chunk: [u8; 32],
}

/// The keys of one epoch.
#[derive(Clone, ZeroizeOnDrop)]
pub struct EpochKeys {
    #[zeroize(skip)]
    epoch: Epoch,
    meta: FamilyKeys,
    data: Option<FamilyKeys>,
    tag: [u8; 32],
    root: [u8; 32],
    cut: Option<[u8; 32]>,
}

impl EpochKeys {
    pub fn derive(secrets: &EpochSecrets) -> Self {
        let meta = secrets.meta.expose();
        let data = secrets.data.as_ref().map(Secret::expose);
        Self {
            epoch: secrets.epoch,
            meta: FamilyKeys {
                siv: hash::derive("mictlan v4 meta chunk siv", meta),
                chunk: hash::derive("mictlan v4 meta chunk key", meta),
            },
            data: data.map(|data| FamilyKeys {
                siv: hash::derive("mictlan v4 data chunk siv", data),
                chunk: hash::derive("mictlan v4 data chunk key", data),
            }),
            tag: hash::derive("mictlan v4 meta tag", meta),
            root: hash::derive("mictlan v4 meta root", meta),
            cut: data.map(|data| hash::derive("mictlan v4 data cut", data)),
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(super) fn meta(&self) -> &FamilyKeys {
        &self.meta
    }

    pub(super) fn data(&self) -> Option<&FamilyKeys> {
        self.data.as_ref()
    }

    pub fn has_data(&self) -> bool {
        self.data.is_some()
    }

    /// Keys the hash that turns a fact into a tag.
    pub fn tag_key(&self) -> &[u8; 32] {
        &self.tag
    }

    /// Keys the hash of a root's identity that `fs.root` shows.
    pub fn root_key(&self) -> &[u8; 32] {
        &self.root
    }

    /// Keys the gear table of content-defined cutting; an auditor has none.
    pub fn cut_key(&self) -> Option<&[u8; 32]> {
        self.cut.as_ref()
    }
}

#[derive(Clone)]
struct Generation {
    secrets: EpochSecrets,
    keys: EpochKeys,
}

/// All that a member holds of one volume: its lasting secret and the secrets of each epoch.
#[derive(Clone)]
pub struct KeyRing {
    volume: Secret,
    identity: Zeroizing<[u8; 32]>,
    boundary: Zeroizing<[u8; 32]>,
    dirent: Zeroizing<[u8; 32]>,
    generations: BTreeMap<Epoch, Generation>,
}

const VERSION: u8 = 1;

impl KeyRing {
    pub fn new(volume: Secret, first: EpochSecrets) -> Self {
        let derived = |context| Zeroizing::new(hash::derive(context, volume.expose()));
        let mut ring = Self {
            identity: derived("mictlan v4 volume identity"),
            boundary: derived("mictlan v4 volume boundary"),
            dirent: derived("mictlan v4 volume dirent"),
            generations: BTreeMap::new(),
            volume,
        };
        ring.add(first);
        ring
    }

    /// Adds an epoch. What is held already stays, but an epoch known without its data secret
    /// gains it (an auditor became a reader).
    pub fn add(&mut self, secrets: EpochSecrets) {
        if let Some(held) = self.generations.get(&secrets.epoch)
            && (held.secrets.data.is_some() || secrets.data.is_none())
        {
            return;
        }
        let keys = EpochKeys::derive(&secrets);
        self.generations.insert(secrets.epoch, Generation { secrets, keys });
    }

    /// The keys of the newest epoch.
    pub fn current(&self) -> &EpochKeys {
        let newest = self.generations.last_key_value();
        &newest.expect("a ring is made with its first epoch and loses none").1.keys
    }

    pub fn epoch(&self, epoch: Epoch) -> Option<&EpochKeys> {
        self.generations.get(&epoch).map(|generation| &generation.keys)
    }

    /// The secrets themselves, for wrapping them to another member.
    pub fn secrets(&self) -> impl Iterator<Item = &EpochSecrets> {
        self.generations.values().map(|generation| &generation.secrets)
    }

    /// Keys the hash that is a tree node's identity.
    pub fn identity_key(&self) -> &[u8; 32] {
        &self.identity
    }

    /// Keys the hash that decides where tree nodes end.
    pub fn boundary_key(&self) -> &[u8; 32] {
        &self.boundary
    }

    /// Keys the hash of a name in a dirent's key.
    pub fn dirent_key(&self) -> &[u8; 32] {
        &self.dirent
    }

    /// What an auditor is given: every meta secret, no data secret.
    pub fn without_data(&self) -> KeyRing {
        let secrets = self.secrets().map(|s| EpochSecrets { data: None, ..s.clone() });
        self.of(secrets).expect("a ring is made with its first epoch and loses none")
    }

    /// Without the epochs after `last`, which have not begun; `None` when nothing is left.
    pub fn until(&self, last: Epoch) -> Option<KeyRing> {
        self.of(self.secrets().filter(|secrets| secrets.epoch <= last).cloned())
    }

    fn of(&self, mut secrets: impl Iterator<Item = EpochSecrets>) -> Option<KeyRing> {
        let mut ring = KeyRing::new(self.volume.clone(), secrets.next()?);
        secrets.for_each(|secrets| ring.add(secrets));
        Some(ring)
    }

    /// `version u8 = 1 | volume [32] | epochs varint | each: epoch u32, has data u8, meta [32],
    /// data [32] if it has`, epochs ascending.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        // Sized once: a growing vector would leave unwiped copies of the secrets behind.
        let mut out = Zeroizing::new(Vec::with_capacity(48 + self.generations.len() * 69));
        let mut head = Writer::new();
        head.varint(self.generations.len() as u64);
        out.push(VERSION);
        out.extend_from_slice(self.volume.expose());
        out.extend_from_slice(&head.finish());
        for secrets in self.secrets() {
            out.extend_from_slice(&secrets.epoch.0.to_le_bytes());
            out.push(secrets.data.is_some().into());
            out.extend_from_slice(secrets.meta.expose());
            if let Some(data) = &secrets.data {
                out.extend_from_slice(data.expose());
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("version")? {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let volume = Secret(r.array("volume secret")?);
        let count = r.count(37, "epochs")?;
        let mut ring: Option<KeyRing> = None;
        let mut last = Epoch(0);
        for _ in 0..count {
            let epoch = Epoch(r.u32("epoch")?);
            if epoch <= last {
                return Err(DecodeError::NotCanonical("epoch"));
            }
            last = epoch;
            let has_data = match r.u8("data flag")? {
                0 => false,
                1 => true,
                _ => return Err(DecodeError::NotCanonical("data flag")),
            };
            let meta = Secret(r.array("meta secret")?);
            let data = if has_data { Some(Secret(r.array("data secret")?)) } else { None };
            let secrets = EpochSecrets { epoch, meta, data };
            match &mut ring {
                Some(ring) => ring.add(secrets),
                None => ring = Some(KeyRing::new(volume.clone(), secrets)),
            }
        }
        r.finish()?;
        ring.ok_or(DecodeError::Short("first epoch"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(epoch: u32) -> EpochSecrets {
        let secret = |n: u8| Secret::from_bytes([n.wrapping_add(epoch as u8); 32]);
        EpochSecrets { epoch: Epoch(epoch), meta: secret(10), data: Some(secret(20)) }
    }

    fn ring() -> KeyRing {
        let mut ring = KeyRing::new(Secret::from_bytes([1; 32]), secrets(1));
        ring.add(secrets(3));
        ring
    }

    #[test]
    fn a_ring_comes_back_from_its_bytes() {
        let bytes = ring().encode();
        let back = KeyRing::decode(&bytes).expect("own bytes");
        assert_eq!(*back.encode(), *bytes);
        assert_eq!(back.current().epoch(), Epoch(3));
        assert!(back.epoch(Epoch(2)).is_none());
        assert_eq!(
            back.epoch(Epoch(1)).map(EpochKeys::tag_key),
            Some(ring().generations[&Epoch(1)].keys.tag_key())
        );
    }

    #[test]
    fn an_auditor_has_no_data_key_and_the_same_meta_keys() {
        let auditor = ring().without_data();
        assert!(auditor.secrets().all(|s| s.data.is_none()));
        assert!(auditor.current().cut_key().is_none() && !auditor.current().has_data());
        assert_eq!(auditor.current().tag_key(), ring().current().tag_key());
        assert_eq!(auditor.dirent_key(), ring().dirent_key());
        assert!(KeyRing::decode(&auditor.encode()).is_ok());
    }

    #[test]
    fn every_key_differs_from_every_other() {
        let ring = ring();
        let mut keys = vec![*ring.identity_key(), *ring.boundary_key(), *ring.dirent_key()];
        for epoch in [1, 3].map(Epoch) {
            let k = ring.epoch(epoch).expect("held");
            let data = k.data().expect("held");
            keys.extend([k.meta().siv, k.meta().chunk, data.siv, data.chunk]);
            keys.extend([*k.tag_key(), *k.root_key(), *k.cut_key().expect("held")]);
        }
        let count = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), count);
    }

    #[test]
    fn a_ring_in_another_form_is_refused() {
        let good = ring().encode();
        for (at, value) in [(0, 2), (33, 3), (33, 0), (34, 9), (38, 2), (38, 0)] {
            let mut bad = good.to_vec();
            bad[at] = value;
            assert!(KeyRing::decode(&bad).is_err(), "byte {at} = {value}");
        }
        let mut long = good.to_vec();
        long.push(0);
        assert!(KeyRing::decode(&long).is_err());
        assert!(KeyRing::decode(&good[..good.len() - 1]).is_err());
    }
}
