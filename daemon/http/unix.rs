//! The Unix socket's challenge: a client proves its principal, and the peer proves its own.
//!
//! Owns: the signed messages, the tokens that stand for a proof, and their limits.
//! Never: takes the same uid for a proof. A token lives in this process and is worth nothing
//! elsewhere; it is dropped with the process or when newer ones need its place.
//! Invariant: what is signed here begins with a line of its own, so that no signature for a
//! record or a handshake can be passed off as one.

use lru::LruCache;
use mictlan::id::{NetworkId, PrincipalId};
use mictlan::seal::{Principal, verify};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

const TOKENS_MAX: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
const CHALLENGES_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

pub type Nonce = [u8; 32];

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Hello {
    pub nonce: Nonce,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Challenge {
    pub nonce: Nonce,
    /// The peer's signature: the client talks to the peer that it means to talk to.
    pub proof: Vec<u8>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Proof {
    pub principal: PrincipalId,
    pub hello: Nonce,
    pub challenge: Nonce,
    pub proof: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Token(pub [u8; 32]);

#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    #[error("the socket is not that of peer {}", hex::encode(&.0.0[..6]))]
    AnotherPeer(PrincipalId),
    #[error("no randomness: {0}")]
    Random(getrandom::Error),
}

/// Both sides sign the same facts, each under its own first line.
fn message(
    side: &str,
    network: &NetworkId,
    server: &PrincipalId,
    client: Option<&PrincipalId>,
    nonces: [&Nonce; 2],
) -> Vec<u8> {
    let mut out = format!("mictlan/unix/{side}/v1\n").into_bytes();
    out.extend_from_slice(&network.0);
    out.extend_from_slice(&server.0);
    out.extend_from_slice(client.map_or(&[], |client| &client.0));
    out.extend_from_slice(nonces[0]);
    out.extend_from_slice(nonces[1]);
    out
}

pub fn random() -> Result<Nonce, getrandom::Error> {
    let mut nonce = [0; 32];
    getrandom::fill(&mut nonce).map(|()| nonce)
}

/// The server's side. The locks cover the tables only.
pub struct Door {
    principal: Arc<Principal>,
    network: NetworkId,
    challenges: Mutex<LruCache<Nonce, Nonce>>,
    tokens: Mutex<LruCache<[u8; 32], PrincipalId>>,
}

impl Door {
    pub fn new(principal: Arc<Principal>, network: NetworkId) -> Self {
        Self {
            principal,
            network,
            challenges: Mutex::new(LruCache::new(CHALLENGES_MAX)),
            tokens: Mutex::new(LruCache::new(TOKENS_MAX)),
        }
    }

    pub fn challenge(&self, hello: Hello) -> Result<Challenge, getrandom::Error> {
        let nonce = random()?;
        let id = self.principal.id();
        let signed = message("server", &self.network, &id, None, [&hello.nonce, &nonce]);
        let mut open = self.challenges.lock().expect("no holder of the challenges panics");
        open.put(nonce, hello.nonce);
        Ok(Challenge { nonce, proof: self.principal.sign(&signed).to_vec() })
    }

    /// A token for a good proof; each challenge is good for one.
    pub fn admit(&self, proof: &Proof) -> Result<Option<Token>, getrandom::Error> {
        let hello = {
            let mut open = self.challenges.lock().expect("no holder of the challenges panics");
            open.pop(&proof.challenge)
        };
        let id = self.principal.id();
        let nonces = [&proof.hello, &proof.challenge];
        let signed = message("client", &self.network, &id, Some(&proof.principal), nonces);
        let signature: Option<[u8; 64]> = proof.proof.as_slice().try_into().ok();
        let good = hello == Some(proof.hello)
            && signature.is_some_and(|signature| verify(&proof.principal, &signed, &signature));
        if !good {
            return Ok(None);
        }
        let token = random()?;
        let mut tokens = self.tokens.lock().expect("no holder of the tokens panics");
        tokens.put(token, proof.principal);
        Ok(Some(Token(token)))
    }

    pub fn principal_of(&self, token: &[u8; 32]) -> Option<PrincipalId> {
        let mut tokens = self.tokens.lock().expect("no holder of the tokens panics");
        tokens.get(token).copied()
    }
}

/// The client's side.
pub struct Prover {
    principal: Arc<Principal>,
    network: NetworkId,
    peer: PrincipalId,
    /// What the last proof gave; gone when the peer no longer knows it.
    token: Mutex<Option<Token>>,
}

impl Prover {
    pub fn new(principal: Arc<Principal>, network: NetworkId, peer: PrincipalId) -> Self {
        Self { principal, network, peer, token: Mutex::new(None) }
    }

    pub fn token(&self) -> Option<Token> {
        *self.token.lock().expect("no holder of the token panics")
    }

    pub fn keep(&self, token: Option<Token>) {
        *self.token.lock().expect("no holder of the token panics") = token;
    }

    pub fn hello(&self) -> Result<Hello, ProofError> {
        random().map(|nonce| Hello { nonce }).map_err(ProofError::Random)
    }

    /// Checks who opened the socket before anything about us is said.
    pub fn prove(&self, hello: Hello, challenge: &Challenge) -> Result<Proof, ProofError> {
        let nonces = [&hello.nonce, &challenge.nonce];
        let signed = message("server", &self.network, &self.peer, None, nonces);
        let signature: Option<[u8; 64]> = challenge.proof.as_slice().try_into().ok();
        if !signature.is_some_and(|signature| verify(&self.peer, &signed, &signature)) {
            return Err(ProofError::AnotherPeer(self.peer));
        }
        let principal = self.principal.id();
        let signed = message("client", &self.network, &self.peer, Some(&principal), nonces);
        Ok(Proof {
            principal,
            hello: hello.nonce,
            challenge: challenge.nonce,
            proof: self.principal.sign(&signed).to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mictlan::seal::Secret;

    fn principal(n: u8) -> Arc<Principal> {
        Arc::new(Principal::from_seed(Secret::from_bytes([n; 32])))
    }

    fn meet(door: &Door, prover: &Prover) -> Result<Proof, ProofError> {
        let hello = prover.hello()?;
        let challenge = door.challenge(hello).map_err(ProofError::Random)?;
        prover.prove(hello, &challenge)
    }

    #[test]
    fn a_proof_is_good_once_and_only_for_its_peer_and_network() {
        let network = NetworkId([5; 32]);
        let door = Door::new(principal(1), network);
        let prover = Prover::new(principal(2), network, principal(1).id());
        let proof = meet(&door, &prover).expect("the right peer");
        let token = door.admit(&proof).expect("randomness").expect("a good proof");
        assert_eq!(door.principal_of(&token.0), Some(principal(2).id()));
        assert!(door.admit(&proof).expect("randomness").is_none(), "a proof is good once");

        let elsewhere = Prover::new(principal(2), NetworkId([6; 32]), principal(1).id());
        assert!(matches!(meet(&door, &elsewhere), Err(ProofError::AnotherPeer(_))));
        let stranger = Prover::new(principal(2), network, principal(3).id());
        assert!(matches!(meet(&door, &stranger), Err(ProofError::AnotherPeer(_))));
    }

    #[test]
    fn a_proof_in_anothers_name_gets_no_token() {
        let network = NetworkId([5; 32]);
        let door = Door::new(principal(1), network);
        let prover = Prover::new(principal(2), network, principal(1).id());
        let mut proof = meet(&door, &prover).expect("the right peer");
        proof.principal = principal(3).id();
        assert!(door.admit(&proof).expect("randomness").is_none());
        assert_eq!(door.principal_of(&[0; 32]), None);
    }
}
