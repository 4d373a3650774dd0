//! A mount reads parts of chunks: over real TLS, from real stores, past who lies.

use super::*;
use crate::chunks::{self, Chunks, Placement};
use crate::network::{Known, Network};
use mictlan::cluster::part::{Reading, Want};
use mictlan::cluster::place::{Copies, place};
use mictlan::file::Extent;
use mictlan::id::ChunkId;
use mictlan::seal::{self, Codec, EpochSecrets, FRAME_BYTES, KeyRing, Kind, Sealed};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

const FRAMES: usize = 9;
const DEADLINE: Duration = Duration::from_secs(25);

fn ring() -> KeyRing {
    let secret = |n| Secret::from_bytes([n; 32]);
    KeyRing::new(
        secret(3),
        EpochSecrets { epoch: Epoch(1), meta: secret(1), data: Some(secret(2)) },
    )
}

/// Bytes of `FRAMES` frames, the last one short.
fn plaintext(seed: u64, codec: Codec) -> Vec<u8> {
    let len = FRAMES * FRAME_BYTES - 1000;
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    if codec == Codec::Zstd {
        bytes.iter_mut().for_each(|byte| *byte = b'a' + *byte % 4);
    }
    bytes
}

/// A chunk that belongs first of all on `peer`, and what it holds.
fn chunk_of(peer: u64, peers: &[PeerInfo], codec: Codec) -> (Sealed, Vec<u8>) {
    let layout = chunks::layout(peers).expect("a layout");
    let made = |seed| {
        let plaintext = plaintext(seed, codec);
        let sealed = seal::seal(ring().current(), Kind::Data, codec, &[], &plaintext);
        (sealed.expect("good input"), plaintext)
    };
    let first = |(sealed, _): &(Sealed, _)| place(sealed.address, &layout)[0].peer;
    (0..).map(made).find(|chunk| first(chunk) == PeerId(peer)).expect("one in a few")
}

fn reader(peers: &[PeerInfo], copies: u8) -> Arc<Chunks> {
    let transport = Transport::new(principal(4)).expect("a transport");
    let known = peers.iter().map(|info| Known {
        link: transport.link(info.principal, &info.addresses),
        info: info.clone(),
    });
    let placement = Placement {
        layout: chunks::layout(peers).expect("a layout"),
        copies: Copies::new(copies).expect("above zero"),
        voters: 1,
        own: label("here"),
    };
    Chunks::new(Arc::new(Network::new(known.collect())), placement, 64 << 20)
}

/// `len` bytes at `at` of a chunk, wanted by who reads here and there.
fn want(chunk: ChunkId, at: usize, len: usize) -> Want {
    // As it lies in a file: not at the beginning of an extent that could be all of the chunk.
    let at = at as u32;
    let extent = Extent { offset: 0, len: FRAME_BYTES as u32, chunk, at, packed: None };
    let extent = if at == 0 { Extent { len: 1 << 20, ..extent } } else { extent };
    Want::of(&extent, 0..len as u64, Reading::Scattered)
}

async fn read(chunks: &Arc<Chunks>, chunk: ChunkId, at: usize, len: usize) -> Bytes {
    let want = want(chunk, at, len);
    let read = within(chunks.read(&ring(), chunk, &want, DEADLINE)).await;
    read.expect("one good copy").expect("the chunk has them")
}

#[tokio::test]
async fn any_part_of_a_chunk_is_the_same_read_alone_and_read_whole() {
    let host = Host::start(1).await;
    let peers = [fetching::info(1, &host.address.to_string())];
    for codec in [Codec::Stored, Codec::Zstd] {
        let (sealed, plaintext) = chunk_of(1, &peers, codec);
        within(host.link_of(3).put(vec![sealed.bytes.clone()])).await.expect("room");
        let last = plaintext.len() - 1;
        let edge = FRAME_BYTES;
        let parts =
            [(0, 1), (edge - 1, 1), (edge - 1, 2), (3 * edge + 5, 4096), (last, 1), (last - 9, 10)];
        for (at, len) in parts {
            // A mount of its own for each, so that each comes from the peer.
            let chunks = reader(&peers, 1);
            for _ in 0..2 {
                let bytes = read(&chunks, sealed.address, at, len).await;
                assert!(bytes == plaintext[at..at + len], "{codec:?} {at} {len}");
                assert!(chunks.opened_already(sealed.address).is_none(), "{at} {len}: read whole");
            }
        }
        let chunks = reader(&peers, 1);
        for frame in 0..FRAMES {
            let at = frame * FRAME_BYTES + 100;
            let bytes = read(&chunks, sealed.address, at, 500).await;
            assert!(bytes == plaintext[at..at + 500], "{codec:?} frame {frame}");
        }
        assert!(chunks.opened_already(sealed.address).is_some(), "much of it was wanted");
        let beyond = want(sealed.address, last, 2);
        let read = within(chunks.read(&ring(), sealed.address, &beyond, DEADLINE)).await;
        assert!(read.expect("a good copy").is_none(), "never zeros behind the end");
    }
}

#[tokio::test]
async fn a_part_that_its_proof_does_not_prove_is_taken_from_the_next_copy() {
    for lies_about_head in [true, false] {
        let host = Host::start(1).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let liar = listener.local_addr().expect("a bound socket").to_string();
        let peers = [fetching::info(1, &host.address.to_string()), fetching::info(5, &liar)];
        let (sealed, plaintext) = chunk_of(5, &peers, Codec::Stored);
        within(host.link_of(3).put(vec![sealed.bytes.clone()])).await.expect("room");
        let asked = Arc::new(AtomicU32::new(0));
        let head = if lies_about_head { None } else { Some(sealed.bytes.clone()) };
        let mut wrong = sealed.bytes.to_vec();
        // Frames in another order, and another header: proofs that hold, of another chunk.
        wrong[60] ^= 1;
        wrong[2 * FRAME_BYTES..].reverse();
        let lying = tokio::spawn(lie(listener, head, wrong.into(), asked.clone()));
        let chunks = reader(&peers, 2);
        let at = 3 * FRAME_BYTES + 5;
        let bytes = read(&chunks, sealed.address, at, 4096).await;
        assert!(bytes == plaintext[at..at + 4096]);
        let expected = if lies_about_head { 1 } else { 2 };
        assert_eq!(asked.load(Ordering::Relaxed), expected, "who lied is not asked again");
        assert!(chunks.opened_already(sealed.address).is_none(), "the good copy's part was used");
        lying.abort();
    }
}

#[tokio::test]
async fn a_part_comes_from_whoever_has_the_chunk_when_its_place_is_empty_or_away() {
    let hosts = [Host::start(1).await, Host::start(2).await];
    let (_closed, nowhere) = fetching::nowhere();
    let mut peers: Vec<PeerInfo> = [(1, &hosts[0]), (2, &hosts[1])]
        .map(|(n, host)| fetching::info(n, &host.address.to_string()))
        .into();
    peers.push(fetching::info(5, &nowhere));
    for first in [1, 5] {
        let (sealed, plaintext) = chunk_of(first, &peers, Codec::Stored);
        within(hosts[1].link_of(3).put(vec![sealed.bytes.clone()])).await.expect("room");
        let chunks = reader(&peers, 1);
        let at = 5 * FRAME_BYTES - 10;
        let bytes = read(&chunks, sealed.address, at, 20).await;
        assert!(bytes == plaintext[at..at + 20], "placed on peer {first}");
        assert!(chunks.opened_already(sealed.address).is_none());
    }
}

/// Peer 5, who proves to everybody what he likes: parts of `wrong`, and of `head` where one asks for
/// the beginning of a chunk.
async fn lie(listener: TcpListener, head: Option<Bytes>, wrong: Bytes, asked: Arc<AtomicU32>) {
    let config = tls::server_config(&principal(5)).expect("a TLS server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (tcp, _) = listener.accept().await.expect("a connection");
        let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
        let mut request = vec![0; 4096];
        let Ok(len) = stream.read(&mut request).await else { continue };
        let request = String::from_utf8_lossy(&request[..len]).into_owned();
        asked.fetch_add(1, Ordering::Relaxed);
        let range = request.split_once("/proof/").and_then(|(_, rest)| {
            let (from, to) = rest.split_once(' ')?.0.split_once('/')?;
            Some(from.parse::<u64>().ok()?..to.parse::<u64>().ok()?)
        });
        let body = match range {
            Some(range) if range == seal::HEAD => {
                seal::prove(head.as_ref().unwrap_or(&wrong), range).expect("inside")
            }
            Some(range) => seal::prove(&wrong, range).expect("inside"),
            None => wrong.to_vec(),
        };
        let length = body.len();
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
        let _ = stream.shutdown().await;
    }
}
