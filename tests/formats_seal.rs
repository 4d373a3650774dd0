//! The chunk format against its golden vectors, by two implementations.
//!
//! Owns: a second reader and writer of chunks, made from docs/FORMAT.md with the aes-gcm crate.
//! Never: uses anything of `mictlan::seal` inside that second implementation.
//! Invariant: a vector, once landed, stays readable for ever.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use mictlan::id::{ChunkId, Epoch};
use mictlan::seal::{self, Codec, EpochSecrets, KeyRing, Kind, Secret};
use serde_json::Value;

const FRAME: usize = 65_536;
const GOOD: &str = include_str!("vectors/chunk/good.json");
const BAD: &str = include_str!("vectors/chunk/bad.json");

/// The secrets of every vector: 32 times one byte each.
const VOLUME: [u8; 32] = [0x11; 32];
const META: [u8; 32] = [0x22; 32];
const DATA: [u8; 32] = [0x33; 32];
const EPOCH: u32 = 7;

fn ring() -> KeyRing {
    let [volume, meta, data] = [VOLUME, META, DATA].map(Secret::from_bytes);
    KeyRing::new(volume, EpochSecrets { epoch: Epoch(EPOCH), meta, data: Some(data) })
}

struct Vector {
    name: String,
    kind: u8,
    codec: u8,
    links: Vec<[u8; 32]>,
    plaintext: Vec<u8>,
    address: String,
    /// Left out of the file where it would be large: the address says the same.
    chunk: Option<Vec<u8>>,
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value}"))
}

fn bytes(value: &Value, field: &str) -> Vec<u8> {
    hex::decode(text(value, field)).expect("hex in a vector")
}

fn vectors() -> Vec<Vector> {
    let all: Value = serde_json::from_str(GOOD).expect("a JSON file");
    let vector = |v: &Value| {
        let len = v["plaintext_len"].as_u64().expect("a length") as usize;
        let pattern = bytes(v, "plaintext_pattern");
        let links = v["links"].as_array().expect("a list").iter();
        Vector {
            name: text(v, "name").to_owned(),
            kind: v["kind"].as_u64().expect("a kind") as u8,
            codec: v["codec"].as_u64().expect("a codec") as u8,
            links: links.map(|l| [l.as_u64().expect("a byte") as u8; 32]).collect(),
            plaintext: pattern.into_iter().cycle().take(len).collect(),
            address: text(v, "address").to_owned(),
            chunk: v["chunk"].as_str().map(|chunk| hex::decode(chunk).expect("hex")),
        }
    };
    all.as_array().expect("a list of vectors").iter().map(vector).collect()
}

fn derive(context: &str, secret: &[u8; 32]) -> [u8; 32] {
    blake3::derive_key(context, secret)
}

fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_le_bytes());
        all.extend_from_slice(part);
    }
    *blake3::keyed_hash(key, &all).as_bytes()
}

fn family(kind: u8) -> ([u8; 32], [u8; 32]) {
    match kind {
        0..16 => {
            (derive("mictlan v4 data chunk siv", &DATA), derive("mictlan v4 data chunk key", &DATA))
        }
        _ => {
            (derive("mictlan v4 meta chunk siv", &META), derive("mictlan v4 meta chunk key", &META))
        }
    }
}

fn nonce(i: usize, count: usize) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&(i as u32).to_le_bytes());
    nonce[11] = u8::from(i + 1 == count);
    nonce
}

/// The second writer: a chunk of stored pieces.
fn write_stored(v: &Vector) -> Vec<u8> {
    let mut before = b"MCT4".to_vec();
    before.extend_from_slice(&[v.kind, 0, 0, 0]);
    before.extend_from_slice(&EPOCH.to_le_bytes());
    let mut after = (v.links.len() as u32).to_le_bytes().to_vec();
    after.extend(v.links.concat());
    after.extend_from_slice(&(v.plaintext.len() as u32).to_le_bytes());
    let (siv_key, chunk_key) = family(v.kind);
    let siv = keyed(&siv_key, &[&before, &after, &v.plaintext]);
    let mut out = [&before[..], &siv, &after].concat();
    let aad = *blake3::hash(&out).as_bytes();
    let key = Aes256Gcm::new(&keyed(&chunk_key, &[&siv]).into());
    let mut pieces: Vec<&[u8]> = v.plaintext.chunks(FRAME).collect();
    if pieces.is_empty() {
        pieces.push(&[]);
    }
    for (i, msg) in pieces.iter().enumerate() {
        let nonce = Nonce::from(nonce(i, pieces.len()));
        out.extend(key.encrypt(&nonce, Payload { msg, aad: &aad }).expect("encrypts"));
    }
    out
}

/// The second reader: the plaintext of a good chunk.
fn read(chunk: &[u8]) -> Vec<u8> {
    let word = |at: usize| -> usize {
        u32::from_le_bytes(chunk[at..at + 4].try_into().expect("four bytes")) as usize
    };
    let len_at = 48 + word(44) * 32;
    let len = word(len_at);
    let count = len.div_ceil(FRAME).max(1);
    let piece = |i: usize| (len - i * FRAME).min(FRAME);
    let table: Vec<usize> = match chunk[5] {
        0 => (0..count).map(|i| piece(i) + 16).collect(),
        _ => (0..count).map(|i| word(len_at + 4 + i * 4)).collect(),
    };
    let header_len = len_at + 4 + if chunk[5] == 0 { 0 } else { count * 4 };
    let (siv_key, chunk_key) = family(chunk[4]);
    let aad = *blake3::hash(&chunk[..header_len]).as_bytes();
    let key = Aes256Gcm::new(&keyed(&chunk_key, &[&chunk[12..44]]).into());
    let (mut at, mut stored, mut plaintext) = (header_len, Vec::new(), Vec::new());
    for (i, frame) in table.iter().enumerate() {
        let msg = &chunk[at..at + frame];
        let nonce = Nonce::from(nonce(i, count));
        let body = key.decrypt(&nonce, Payload { msg, aad: &aad }).expect("authentic");
        stored.extend_from_slice(&body);
        if body.len() == piece(i) {
            plaintext.extend(body);
        } else {
            plaintext.extend(zstd::bulk::decompress(&body, piece(i)).expect("zstd"));
        }
        at += frame;
    }
    assert_eq!(at, chunk.len());
    assert_eq!(keyed(&siv_key, &[&chunk[..12], &chunk[44..header_len], &stored]), chunk[12..44]);
    plaintext
}

#[test]
fn every_good_vector_is_sealed_and_opened_alike_by_two_implementations() {
    assert!(vectors().len() >= 8);
    for v in vectors() {
        let name = &v.name;
        let kind = Kind::from_u8(v.kind).expect("a known kind");
        let codec = Codec::from_u8(v.codec).expect("a known codec");
        let links: Vec<ChunkId> = v.links.iter().map(|l| ChunkId(*l)).collect();
        let sealed = seal::seal(ring().current(), kind, codec, &links, &v.plaintext);
        let sealed = sealed.expect("a good vector").bytes.to_vec();
        // A later zstd may compress otherwise, so only what is stored must be sealed alike.
        let chunk = match (&v.chunk, v.codec) {
            (Some(chunk), 0) => {
                assert!(sealed == *chunk && write_stored(&v) == *chunk, "{name}");
                chunk.clone()
            }
            (Some(chunk), _) => chunk.clone(),
            (None, _) => {
                assert!(write_stored(&v) == sealed, "{name}");
                sealed
            }
        };
        assert_eq!(blake3::hash(&chunk).to_hex().as_str(), v.address, "{name}");
        let address = ChunkId::from_hex(&v.address).expect("an address");
        let opened = seal::open(&ring(), address, &chunk).expect("a good vector");
        assert!(opened.plaintext == v.plaintext && read(&chunk) == v.plaintext, "{name}");
        assert_eq!((opened.header.kind, opened.header.links), (kind, links), "{name}");
    }
}

#[test]
fn every_bad_vector_is_refused_for_its_reason() {
    let all: Value = serde_json::from_str(BAD).expect("a JSON file");
    let all = all.as_array().expect("a list of vectors");
    assert!(all.len() >= 12);
    for v in all {
        let chunk = bytes(v, "chunk");
        // The address fits: each is what a hostile holder of the key could have stored.
        let address = ChunkId(*blake3::hash(&chunk).as_bytes());
        let refused = seal::open(&ring(), address, &chunk).err().map(|why| why.to_string());
        let reason = refused.unwrap_or_else(|| panic!("{} opened", text(v, "name")));
        let expected = format!("chunk {address}: {}", text(v, "refused"));
        assert_eq!(reason, expected, "{}", text(v, "name"));
    }
}
