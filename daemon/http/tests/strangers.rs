//! What comes to an open port uninvited: it learns nothing and harms nobody.

use super::*;
use crate::link::{LinkError, Trouble};
use mictlan::hash::address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longer than a test.
const FOR_EVER: Duration = Duration::from_secs(100_000);

/// A member's call, which must go on working beside whatever a test does to the port.
async fn a_member_is_served(host: &Host) {
    assert_eq!(within(host.link_of(3).head()).await.expect("a member is served"), HEAD);
}

/// Everything that the other side sends until it closes or breaks the connection.
async fn until_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut out = Vec::new();
    // A reset is an end like any other.
    let _ = within(stream.read_to_end(&mut out)).await;
    out
}

#[tokio::test]
async fn a_server_with_another_key_gets_no_request() {
    let host = Host::start(1).await;
    let transport = Transport::new(principal(3)).expect("a transport");
    let link = transport.link(principal(2).id(), &[host.address.to_string()]);
    let put = within(link.put(vec![Bytes::from_static(b"for principal 2 alone")])).await;
    let reached = matches!(&put, Err(LinkError::FailedHere { why: Trouble::NotReached(_), .. }));
    assert!(reached, "{put:?}");
    let member = host.link_of(3);
    let there = member.get(address(b"for principal 2 alone"));
    assert_eq!(within(there).await.expect("an answer"), None);
}

#[tokio::test]
async fn an_unknown_key_is_refused_alike_on_every_path() {
    let host = Host::start(1).await;
    let mut answers = Vec::new();
    for path in ["head", "status", "chunks/00", "no/such/path", "raft/vote", "ledger/checkpoint"] {
        let mut stream = host.shake_hands(9).await;
        let request =
            format!("GET /api/v4/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("an open connection");
        let answer = String::from_utf8(until_closed(&mut stream).await).expect("ASCII");
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
        let undated = answer.lines().filter(|line| !line.starts_with("date:"));
        answers.push(undated.collect::<Vec<_>>().join("\n"));
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the answers differ: {answers:?}");
    let head = within(host.link_of(9).head()).await;
    let refused = matches!(&head, Err(LinkError::Refused { why: Failure::NotAllowed, .. }));
    assert!(refused, "{head:?}");
}

#[tokio::test]
async fn plain_http_and_rubbish_get_no_answer_but_an_alert() {
    let host = Host::start(1).await;
    let big = vec![0xa5; 100_000];
    for said in
        [&b"GET /api/v4/head HTTP/1.1\r\nhost: x\r\n\r\n"[..], &big, b"\x16\x03\x01\xff\xff"]
    {
        let mut tcp = TcpStream::connect(host.address).await.expect("a listening peer");
        // It may close while we still talk.
        let _ = tcp.write_all(said).await;
        let _ = tcp.shutdown().await;
        let answer = until_closed(&mut tcp).await;
        assert!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "{answer:?}");
    }
    a_member_is_served(&host).await;
}

#[tokio::test]
async fn a_crowd_that_says_nothing_pushes_itself_out() {
    // Only by being pushed out can one go.
    let limits = Limits { waiting_max: 2, handshake: FOR_EVER, ..limits() };
    let host = Host::with(1, limits).await;
    let mut crowd = Vec::new();
    for _ in 0..5 {
        crowd.push(TcpStream::connect(host.address).await.expect("a listening peer"));
    }
    // The first three had to go for the last two; a member needs no place that they can keep.
    for silent in &mut crowd[..3] {
        assert_eq!(until_closed(silent).await, b"");
    }
    a_member_is_served(&host).await;
}

#[tokio::test]
async fn a_slow_handshake_and_a_slow_head_come_to_an_end() {
    let short = Duration::from_millis(50);
    let slow = Limits { handshake: short, header: short, stranger: FOR_EVER, ..limits() };
    let host = Host::with(1, slow).await;
    let mut silent = TcpStream::connect(host.address).await.expect("a listening peer");
    assert_eq!(until_closed(&mut silent).await, b"", "no handshake");
    let mut member = host.shake_hands(3).await;
    member.write_all(b"GET /api/v4/head HT").await.expect("an open connection");
    let answer = until_closed(&mut member).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "half a head was answered");
    // Whom nobody knows has to be done soon, whatever else it may take its time for.
    let brief = Limits { header: FOR_EVER, stranger: short, ..limits() };
    let host = Host::with(1, brief).await;
    let mut stranger = host.shake_hands(9).await;
    until_closed(&mut stranger).await;
}

#[tokio::test]
async fn a_body_that_pauses_for_ever_or_lies_about_its_length_is_cut_off() {
    let limits = Limits { body_pause: Duration::from_millis(50), ..limits() };
    let host = Host::with(1, limits).await;
    for (length, status) in [("1000", "504"), ("99999999999", "400"), ("x", "400")] {
        let mut stream = host.shake_hands(3).await;
        let head = format!(
            "POST /api/v4/chunks/put HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-length: {length}\r\n\r\nabc"
        );
        stream.write_all(head.as_bytes()).await.expect("an open connection");
        let answer = until_closed(&mut stream).await;
        let start = format!("HTTP/1.1 {status}");
        let shown = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(start.as_bytes()), "{length}: {shown}");
    }
    a_member_is_served(&host).await;
}

#[tokio::test]
async fn on_the_socket_the_same_user_is_not_enough() {
    let host = Host::start(1).await;
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("peer.sock");
    let _serving = host.unix(&socket);
    let network = host.peer.network;
    let as_whom = |n, peer| {
        let transport = Transport::new(principal(n)).expect("a transport");
        transport.unix(&socket, network, peer).expect("a socket's pool")
    };
    let stranger = within(as_whom(9, host.key.id()).head()).await;
    let refused = matches!(&stranger, Err(LinkError::Refused { why: Failure::NotAllowed, .. }));
    assert!(refused, "a proven but unknown key: {stranger:?}");
    let other = within(as_whom(3, principal(2).id()).head()).await;
    let kept = matches!(&other, Err(LinkError::FailedHere { why: Trouble::NotReached(_), .. }));
    assert!(kept, "another peer's socket learns nothing: {other:?}");

    let mut unproven = tokio::net::UnixStream::connect(&socket).await.expect("a socket");
    let request = b"GET /api/v4/head HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    unproven.write_all(request).await.expect("an open connection");
    assert!(until_closed(&mut unproven).await.starts_with(b"HTTP/1.1 401"));
}

/// The limit is the whole process's, so the test runs itself in one of its own.
#[test]
fn with_64_file_handles_all_of_them_taken_it_pauses_and_goes_on() {
    const ALONE: &str = "MICTLAN_TEST_FEW_FILES";
    if std::env::var_os(ALONE).is_none() {
        let name =
            "http::tests::strangers::with_64_file_handles_all_of_them_taken_it_pauses_and_goes_on";
        let test = std::env::current_exe().expect("a test binary");
        let mut alone = std::process::Command::new(test);
        let run = alone.args(["--exact", name]).env(ALONE, "1").output().expect("a process");
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        return;
    }
    let few = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, few).expect("a lower limit");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let host = Host::with(1, Limits::of_process()).await;
        let member = host.link_of(3);
        // It waits in the kernel's queue: the server has not run since.
        let mut waits = std::net::TcpStream::connect(host.address).expect("a listening peer");
        waits.set_nonblocking(true).expect("a socket");
        let mut taken = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            taken.push(file);
        }
        let call = Duration::from_millis(300);
        let none = tokio::time::timeout(call, member.head()).await;
        assert!(!matches!(none, Ok(Ok(_))), "there is no handle for this call");
        drop(taken);
        within(async { while member.head().await.is_err() {} }).await;
        // Rubbish on the one that waited is answered now: it was accepted after the pause.
        std::io::Write::write_all(&mut waits, &[0xa5; 64]).expect("an open connection");
        let mut waits = TcpStream::from_std(waits).expect("a socket");
        until_closed(&mut waits).await;
    });
}
