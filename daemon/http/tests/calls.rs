//! Calls that are allowed: the same over TLS, a Unix socket and in this process.

use super::*;
use crate::link::{LinkError, Trouble};
use crate::peer::Caller;
use mictlan::hash::address;
use mictlan::id::ChunkId;
use mictlan::wire::Submission;

fn submission(p: &[u8]) -> Submission {
    Submission { p: p.to_vec(), sig: [1; 64], commit: None }
}

/// Everything that a writer does, on whichever transport.
async fn a_writer_works(link: &Link) {
    let chunks: Vec<Bytes> =
        [1usize, 70_000, 3_000_000].iter().map(|len| Bytes::from(vec![*len as u8; *len])).collect();
    let receipts = link.put(chunks.clone()).await.expect("room for three chunks");
    let names: Vec<ChunkId> = chunks.iter().map(|chunk| address(chunk)).collect();
    assert_eq!(receipts.iter().map(|r| r.chunk).collect::<Vec<_>>(), names);

    let missing = address(b"never stored");
    let have = link.have(vec![names[1], missing]).await.expect("an answer");
    assert_eq!(have.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false]);
    assert_eq!(link.get(names[2]).await.expect("an answer"), Some(chunks[2].clone()));
    assert_eq!(link.get(missing).await.expect("an answer"), None);

    let range = 65_000..66_000;
    let reply = link.get_range(names[1], range.clone()).await.expect("an answer");
    let part = mictlan::seal::check(&names[1], range, &reply.expect("a stored chunk"));
    assert_eq!(part.as_deref(), Ok(&chunks[1][65_000..66_000]));

    assert_eq!(link.head().await.expect("an answer"), HEAD);
    assert_eq!(link.read_position(Barrier::default()).await.expect("an answer"), Position(5));
    let tile = link.ledger_file("tile/0/000".to_owned(), None).await.expect("an answer");
    assert_eq!(tile.as_deref(), Some(&b"the file tile/0/000"[..]));
    let part = link.ledger_file("tile/0/000".to_owned(), Some(4..8)).await.expect("an answer");
    assert_eq!(part.as_deref(), Some(&b"file"[..]));
    assert_eq!(link.ledger_file("no/such".to_owned(), None).await.expect("an answer"), None);
    let status = link.status().await.expect("an answer");
    assert_eq!(status.store.expect("a store").chunks, 3);
}

#[tokio::test]
async fn a_writer_works_over_tls() {
    let host = Host::start(1).await;
    within(a_writer_works(&host.link_of(3))).await;
}

#[tokio::test]
async fn a_writer_works_over_the_unix_socket() {
    let host = Host::start(1).await;
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("peer.sock");
    let serving = host.unix(&socket);
    let transport = Transport::new(principal(3)).expect("a transport");
    let link = transport.unix(&socket, host.peer.network, host.key.id()).expect("a socket's pool");
    within(a_writer_works(&link)).await;

    // Another process has the socket now; it does not know the token.
    within(serving.stop()).await;
    std::fs::remove_file(&socket).expect("the old socket");
    let _again = host.unix(&socket);
    within(async { while link.head().await.is_err() {} }).await;
    assert_eq!(within(link.head()).await.expect("a new proof"), HEAD);
}

#[tokio::test]
async fn a_writer_works_in_the_same_process() {
    let host = Host::start(1).await;
    let caller = Caller { principal: principal(3).id(), local: true };
    within(a_writer_works(&Link::Embedded(host.peer.clone(), caller))).await;
}

#[tokio::test]
async fn peers_reach_each_other_and_voters_messages_pass_unchanged() {
    let (one, two) = (Host::start(1).await, Host::start(2).await);
    let chunk = Bytes::from_static(b"a copy for the other");
    let receipts = within(one.link_of(2).put(vec![chunk.clone()])).await.expect("room");
    within(two.link_of(1).put(vec![chunk])).await.expect("room");
    assert_eq!(receipts[0].chunk, address(b"a copy for the other"));

    let transport = Transport::new(principal(2)).expect("a transport");
    let link = transport.voter_link(one.key.id(), &[one.address.to_string()]);
    let limit = Duration::from_secs(20);
    let vote = Bytes::from_static(b"...");
    assert_eq!(link.raft(RaftCall::Vote, vote, limit).await.expect("a reply"), "vote...");
    let note = Bytes::from_static(b"a note");
    assert_eq!(link.raft(RaftCall::Cosign, note, limit).await.expect("a reply"), "cosigna note");
}

#[tokio::test]
async fn an_error_says_refused_failed_here_or_unknown() {
    let host = Host::start(1).await;
    let caller = Caller { principal: principal(3).id(), local: true };
    for link in [host.link_of(3), Link::Embedded(host.peer.clone(), caller)] {
        let lost = within(link.append(submission(b"lost"))).await;
        assert!(matches!(lost, Err(LinkError::Unknown { .. })), "{lost:?}");
        let elsewhere = within(link.append(submission(b"elsewhere"))).await;
        let Err(LinkError::FailedHere { why: Trouble::Said(said), .. }) = elsewhere else {
            panic!("another peer leads: {elsewhere:?}");
        };
        assert_eq!(said, Failure::NotLeader { leader: Some(PeerId(2)) });
        assert!(within(link.append(submission(b"fine"))).await.is_ok());
    }
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = nobody.local_addr().expect("a bound socket").to_string();
    drop(nobody);
    let transport = Transport::new(principal(3)).expect("a transport");
    let away = within(transport.link(principal(1).id(), &[address]).append(submission(b"x"))).await;
    let reached = matches!(&away, Err(LinkError::FailedHere { why: Trouble::NotReached(_), .. }));
    assert!(reached, "what was never sent has not happened: {away:?}");
}

#[tokio::test]
async fn a_reader_cannot_put_and_a_member_is_no_voter() {
    let host = Host::start(1).await;
    let reader = host.link_of(4);
    let refused = |error: LinkError| match error {
        LinkError::Refused { why, .. } => assert_eq!(why, Failure::NotAllowed),
        other => panic!("{other}"),
    };
    let put = within(reader.put(vec![Bytes::from_static(b"x")])).await;
    refused(put.expect_err("a reader does not write"));
    refused(within(reader.have(vec![])).await.expect_err("nor renews stamps"));
    assert_eq!(within(reader.get(address(b"x"))).await.expect("a reader reads"), None);
    let writer = host.link_of(3);
    let raft = writer.raft(RaftCall::Append, Bytes::new(), Duration::from_secs(20));
    refused(within(raft).await.expect_err("a writer is no voter"));
}
