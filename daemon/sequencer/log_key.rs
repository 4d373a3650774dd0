//! The key that signs checkpoints: opened for a round, and replaced when the voters change.
//!
//! Never: keeps the secret longer than the round or the rotation that it is opened for.
//! Invariant: a rotation is signed by the key before it and wrapped for each voter of its moment.

use super::publish::{PublishError, Publisher, sixty_four};
use crate::host;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use mictlan::cluster::state::State;
use mictlan::ledger::record::body::{KeyRotate, LogWrap, log_key_message, log_wrap_info};
use mictlan::seal::{self, Secret};
use zeroize::Zeroizing;

impl Publisher {
    /// The log's signing key, unwrapped for the moment of a round.
    pub(super) fn log_key(&self, state: &State) -> Result<Ed25519KeyPair, PublishError> {
        let key = state.network().log_key();
        let wrap = key.wraps.iter().find(|w| w.peer == self.me);
        let wrap = wrap.ok_or(PublishError::NoLogKey("there is no wrap for it"))?;
        let info = log_wrap_info(state.roster().random(), &key.key);
        let seed = seal::unwrap(&self.identity, &info, &wrap.wrap)
            .map_err(|_| PublishError::NoLogKey("the wrap does not open with this voter's key"))?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed)
            .map_err(|_| PublishError::NoLogKey("the secret has another length"))?;
        if pair.public_key().as_ref() != key.key {
            return Err(PublishError::NoLogKey("the secret belongs to another key"));
        }
        Ok(pair)
    }

    /// The record of the next key. Who takes it to be ordered may find that another was first.
    pub fn rotate(&self) -> Result<KeyRotate, PublishError> {
        let state = self.applied.state();
        let state = state.as_ref().ok_or(PublishError::NoNetwork)?;
        let old = self.log_key(state)?;
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(host::random());
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed)
            .map_err(|_| PublishError::NoLogKey("the secret has another length"))?;
        let log_key: [u8; 32] =
            pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes");
        let info = log_wrap_info(state.roster().random(), &log_key);
        let wrapped = state.network().voters().map(|peer| {
            let entropy = Secret::from_bytes(host::random());
            let wrap = seal::wrap(&peer.keys.agreement, &info, &*seed, entropy)?;
            Ok(LogWrap { peer: peer.peer, wrap })
        });
        let wraps = wrapped.collect::<Result<Vec<_>, PublishError>>()?;
        let serial = state.network().log_key().serial + 1;
        let message = log_key_message(state.origin(), serial, &log_key);
        let old_sig = sixty_four(old.sign(&message).as_ref());
        Ok(KeyRotate { log_key, old_sig, serial, wraps })
    }
}
