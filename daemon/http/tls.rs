//! TLS 1.3 between machines: both certificates carry nothing but a principal's key.
//!
//! Owns: how a handshake proves a key, and how the key that a client expects reaches its verifier.
//! Never: knows a certificate authority, a host's name, or another protocol version.
//! Invariant: a client's handshake completes only with the expected key; a server's only with a
//! client that holds the private key of the certificate it shows. What that key may do is asked
//! on every request (`peer`), so any key gets this far.

use mictlan::hash;
use mictlan::id::PrincipalId;
use mictlan::seal::Principal;
use rcgen::{CertificateParams, PublicKeyData, SerialNumber, SignatureAlgorithm as CertAlgorithm};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error,
    PeerMisbehaved, ServerConfig, SignatureAlgorithm, SignatureScheme,
};
use std::fmt;
use std::sync::Arc;

/// SubjectPublicKeyInfo of Ed25519 (RFC 8410) up to the 32 bytes of the key.
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];
/// The top label of the host names that stand for keys; they are never asked of a DNS server.
const DOMAIN: &str = "mictlan";
/// The bytes of a key's fingerprint in an invite: a second key with the same one costs 2^128.
pub const FINGERPRINT_BYTES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate could be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("no randomness for a certificate: {0}")]
    Random(getrandom::Error),
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] Error),
}

/// Which server key a client accepts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    Key(PrincipalId),
    /// From an invite, which has no room for a whole key.
    Fingerprint([u8; FINGERPRINT_BYTES]),
}

pub fn fingerprint(key: &PrincipalId) -> [u8; FINGERPRINT_BYTES] {
    let hash = hash::derive("mictlan v4 key fingerprint", &key.0);
    let mut out = [0; FINGERPRINT_BYTES];
    out.copy_from_slice(&hash[..FINGERPRINT_BYTES]);
    out
}

impl Expected {
    /// The host name under which a pool keeps connections to this key: one pool serves all peers,
    /// and the verifier learns from the name which key to insist on.
    pub fn host(&self) -> String {
        match self {
            Expected::Key(key) => {
                format!("k{}.{}.{DOMAIN}", &key.to_hex()[..32], &key.to_hex()[32..])
            }
            Expected::Fingerprint(print) => format!("f{}.{DOMAIN}", hex::encode(print)),
        }
    }

    fn parse(host: &str) -> Option<Self> {
        let name = host.strip_suffix(DOMAIN)?.strip_suffix('.')?;
        if let Some(print) = name.strip_prefix('f') {
            let mut out = [0; FINGERPRINT_BYTES];
            hex::decode_to_slice(print, &mut out).ok()?;
            return Some(Expected::Fingerprint(out));
        }
        let (high, low) = name.strip_prefix('k')?.split_once('.')?;
        PrincipalId::from_hex(&format!("{high}{low}")).map(Expected::Key)
    }

    fn accepts(&self, key: &PrincipalId) -> bool {
        match self {
            Expected::Key(expected) => expected == key,
            Expected::Fingerprint(expected) => *expected == fingerprint(key),
        }
    }
}

/// The key that a certificate carries; the handshake proves that the other side holds it.
pub fn key_of(certificate: &CertificateDer<'_>) -> Result<PrincipalId, Error> {
    let parsed = ParsedCertificate::try_from(certificate)?;
    let spki = parsed.subject_public_key_info();
    let key = spki.strip_prefix(&SPKI_PREFIX).and_then(|key| key.try_into().ok());
    key.map(PrincipalId).ok_or_else(|| CertificateError::BadEncoding.into())
}

pub fn server_config(principal: &Arc<Principal>) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyKey(provider())))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified(principal)?)));
    // A resumed session would be authenticated by a ticket; every handshake proves the key anew.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

pub fn client_config(principal: &Arc<Principal>) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NamedKey(provider())))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified(principal)?)));
    config.resumption = Resumption::disabled();
    // The name is the peer's key; it would be the one part of the handshake in clear.
    config.enable_sni = false;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    // Both ends are this program: the hybrid first, so that what is recorded today stays closed.
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519];
    Arc::new(provider)
}

fn certified(principal: &Arc<Principal>) -> Result<CertifiedKey, TlsError> {
    let key = Key { id: principal.id(), principal: principal.clone() };
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(TlsError::Random)?;
    serial[0] &= 0x7f;
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let certificate = params.self_signed(&key)?;
    Ok(CertifiedKey::new(vec![certificate.der().clone()], Arc::new(key)))
}

/// A principal's key as rcgen and rustls want it; the seed never leaves `Principal`.
#[derive(Clone)]
struct Key {
    id: PrincipalId,
    principal: Arc<Principal>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({:?})", self.id)
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.id.0
    }

    fn algorithm(&self) -> &'static CertAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.principal.sign(message).to_vec())
    }
}

impl SigningKey for Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let ours = offered.contains(&SignatureScheme::ED25519);
        ours.then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ED25519
    }
}

impl Signer for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        Ok(self.principal.sign(message).to_vec())
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ED25519
    }
}

/// Proof of possession, the only thing that a signature in a handshake is for here.
fn holds_key(
    provider: &CryptoProvider,
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    if signed.scheme != SignatureScheme::ED25519 {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    }
    let algorithms = &provider.signature_verification_algorithms;
    verify_tls13_signature(message, certificate, signed, algorithms)
}

/// Only TLS 1.3 is configured, so this is never asked.
fn never_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
}

/// A client's verifier: the key that the host name stands for, and no other.
#[derive(Debug)]
struct NamedKey(Arc<CryptoProvider>);

impl ServerCertVerifier for NamedKey {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ServerName::DnsName(name) = server_name else {
            return Err(CertificateError::NotValidForName.into());
        };
        let expected = Expected::parse(name.as_ref()).ok_or(CertificateError::NotValidForName)?;
        match expected.accepts(&key_of(end_entity)?) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        never_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        holds_key(&self.0, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// A server's verifier: a certificate with an Ed25519 key, whoever's.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        key_of(end_entity).map(|_| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        never_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        holds_key(&self.0, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_stands_for_one_key() {
        let key = PrincipalId([0xab; 32]);
        for expected in [Expected::Key(key), Expected::Fingerprint(fingerprint(&key))] {
            assert_eq!(Expected::parse(&expected.host()), Some(expected));
            assert!(expected.accepts(&key) && !expected.accepts(&PrincipalId([0xac; 32])));
        }
        for bad in ["", "mictlan", ".mictlan", "kab.cd.mictlan", "example.org", "f00.mictlan"] {
            assert_eq!(Expected::parse(bad), None, "{bad}");
        }
    }
}
