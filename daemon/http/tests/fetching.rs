//! Any peer answers for any chunk: what one lacks it fetches from the others.

use super::*;
use crate::chunks::{self, Chunks, Placement};
use crate::link::{LinkError, Trouble};
use crate::network::{Known, Network};
use crate::peer::Caller;
use mictlan::cluster::place::{Copies, place};
use mictlan::hash::address;
use mictlan::id::ChunkId;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio_rustls::TlsAcceptor;

pub(super) fn info(n: u8, address: &str) -> PeerInfo {
    PeerInfo {
        id: PeerId(n.into()),
        name: label(&format!("peer{n}")),
        principal: principal(n).id(),
        addresses: vec![address.to_owned()],
        storage: true,
        voter: true,
        domain: format!("house{n}"),
        weight: 1,
    }
}

/// Each of them knows all of them.
async fn hosts(which: &[u8]) -> Vec<Host> {
    let mut hosts = Vec::new();
    for n in which {
        hosts.push(Host::start(*n).await);
    }
    let peers: Vec<PeerInfo> =
        which.iter().zip(&hosts).map(|(n, host)| info(*n, &host.address.to_string())).collect();
    for host in &hosts {
        *host.ledger.peers.lock().expect("no holder panics") = peers.clone();
    }
    hosts
}

/// Where nobody listens, as long as the socket is kept.
pub(super) fn nowhere() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let address = socket.local_addr().expect("a bound socket").to_string();
    (socket, address)
}

/// A chunk that the layout of `host` places on `peer`.
fn placed_on(peer: u64, host: &Host) -> (ChunkId, Bytes) {
    let peers = host.ledger.peers.lock().expect("no holder panics").clone();
    let layout = chunks::layout(&peers).expect("a layout");
    let chunk = |n: u32| Bytes::from(n.to_le_bytes().repeat(20));
    let named = |bytes: Bytes| (address(&bytes), bytes);
    let mut all = (0u32..).map(|n| named(chunk(n)));
    all.find(|(chunk, _)| place(*chunk, &layout)[0].peer == PeerId(peer)).expect("one in a few")
}

#[tokio::test]
async fn a_peer_that_lacks_a_chunk_fetches_it_and_keeps_what_belongs_to_it() {
    let hosts = hosts(&[1, 2, 5]).await;
    for (place, is_kept) in [(1, true), (2, false)] {
        let (chunk, bytes) = placed_on(place, &hosts[0]);
        within(hosts[2].link_of(3).put(vec![bytes.clone()])).await.expect("room");
        let reader = hosts[0].link_of(4);
        assert_eq!(within(reader.get(chunk)).await.expect("an answer"), None, "not here");
        assert_eq!(within(reader.fetch(chunk)).await.expect("an answer"), Some(bytes.clone()));
        let after = within(reader.get(chunk)).await.expect("an answer");
        assert_eq!(after.is_some(), is_kept, "a chunk of peer {place}");
        let stamp = within(hosts[0].link_of(3).have(vec![chunk])).await.expect("an answer");
        assert_eq!(stamp[0].is_some(), is_kept);
    }
    let nowhere = within(hosts[0].link_of(4).fetch(address(b"never stored"))).await;
    assert_eq!(nowhere.expect("every peer was heard"), None);
}

#[tokio::test]
async fn a_peer_is_answered_from_the_store_alone_so_that_none_ask_in_a_circle() {
    let hosts = hosts(&[1, 2, 5]).await;
    let (chunk, bytes) = placed_on(1, &hosts[0]);
    within(hosts[2].link_of(3).put(vec![bytes.clone()])).await.expect("room");
    let answer = within(hosts[0].link_of(2).fetch(chunk)).await;
    assert_eq!(answer.expect("an answer"), None, "peer 2 can ask peer 5 itself");
    let answer = within(hosts[0].link_of(4).fetch(chunk)).await;
    assert_eq!(answer.expect("an answer"), Some(bytes), "a member cannot always");
}

#[tokio::test]
async fn who_may_not_read_has_nothing_fetched() {
    let hosts = hosts(&[1, 2]).await;
    let (chunk, bytes) = placed_on(1, &hosts[0]);
    within(hosts[1].link_of(3).put(vec![bytes])).await.expect("room");
    let caller = Caller { principal: principal(9).id(), local: true };
    for link in [hosts[0].link_of(9), Link::Embedded(hosts[0].peer.clone(), caller)] {
        let refused = within(link.fetch(chunk)).await;
        assert!(matches!(refused, Err(LinkError::Refused { why: Failure::NotAllowed, .. })));
    }
    let kept = within(hosts[0].link_of(4).get(chunk)).await;
    assert_eq!(kept.expect("an answer"), None, "nor was it brought here");
}

#[tokio::test]
async fn not_found_and_not_reached_are_told_apart() {
    let hosts = hosts(&[1, 2]).await;
    let mut peers = hosts[0].ledger.peers.lock().expect("no holder panics").clone();
    let (_closed, address_5) = nowhere();
    peers.push(info(5, &address_5));
    *hosts[0].ledger.peers.lock().expect("no holder panics") = peers;
    let chunk = address(b"perhaps on peer 5");
    let answer = within(hosts[0].link_of(4).fetch(chunk)).await;
    let Err(LinkError::FailedHere { why: Trouble::Said(said), .. }) = answer else {
        panic!("peer 5 may have it: {answer:?}");
    };
    assert_eq!(said, Failure::NotFetched(chunk));
}

#[tokio::test]
async fn what_another_peer_sends_is_checked_before_it_is_passed_on() {
    let hosts = hosts(&[1, 2]).await;
    let liar = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let mut peers = hosts[0].ledger.peers.lock().expect("no holder panics").clone();
    peers.push(info(5, &liar.local_addr().expect("a bound socket").to_string()));
    *hosts[0].ledger.peers.lock().expect("no holder panics") = peers;
    let asked = Arc::new(AtomicU32::new(0));
    let lying = tokio::spawn(lie(liar, asked.clone()));
    // It belongs to the liar, so that he is asked first.
    let (chunk, bytes) = placed_on(5, &hosts[0]);
    let answer = within(hosts[0].link_of(4).fetch(chunk)).await;
    assert_eq!(answer.expect("everybody was heard"), None, "nobody has it");
    assert!(asked.load(Ordering::Relaxed) > 0, "and he was asked");
    within(hosts[1].link_of(3).put(vec![bytes.clone()])).await.expect("room");
    let answer = within(hosts[0].link_of(4).fetch(chunk)).await;
    assert_eq!(answer.expect("an answer"), Some(bytes), "the good copy");
    lying.abort();
}

/// Peer 5, who answers every question with bytes of his own.
async fn lie(listener: TcpListener, asked: Arc<AtomicU32>) {
    let config = tls::server_config(&principal(5)).expect("a TLS server");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (tcp, _) = listener.accept().await.expect("a connection");
        // Who has the good copy already may hang up at any moment.
        let Ok(mut stream) = acceptor.accept(tcp).await else { continue };
        let mut request = vec![0; 4096];
        let _ = stream.read(&mut request).await;
        asked.fetch_add(1, Ordering::Relaxed);
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwrong";
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
    }
}

#[tokio::test]
async fn a_reader_gets_what_only_a_peer_can_reach() {
    let hosts = hosts(&[1, 2]).await;
    let (chunk, bytes) = placed_on(2, &hosts[0]);
    within(hosts[1].link_of(3).put(vec![bytes.clone()])).await.expect("room");
    // The reader's way to peer 2 is closed.
    let transport = Transport::new(principal(4)).expect("a transport");
    let (_closed, address_2) = nowhere();
    let addresses = [hosts[0].address.to_string(), address_2];
    let known = [1, 2].into_iter().zip(addresses).map(|(n, address)| {
        let info = info(n, &address);
        Known { link: transport.link(info.principal, &info.addresses), info }
    });
    let known: Vec<Known> = known.collect();
    let peers: Vec<PeerInfo> = known.iter().map(|known| known.info.clone()).collect();
    let placement = Placement {
        layout: chunks::layout(&peers).expect("a layout"),
        copies: Copies::new(1).expect("above zero"),
        voters: 1,
        own: label("here"),
    };
    let chunks = Chunks::new(Arc::new(Network::new(known)), placement, 64 << 20);
    let read = within(chunks.get(chunk, Duration::from_secs(25))).await;
    assert_eq!(read.expect("peer 1 fetches it from peer 2"), bytes);
}
