//! Peers that store and do not vote: they follow the ledger, prove it, serve it, and know by it who
//! may do what; and a network has more peers than copies.

use mictlan::hash::address;
use mictlan::id::Label;
use mictlan::seal::{Principal, Secret};
use mictlan::wire::Failure;
use mictlan_daemon::http::transport::Transport;
use mictlan_daemon::identity::keyfile;
use mictlan_daemon::link::{Link, LinkError, Trouble};
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Peer, Three, metrics, noise, write_through};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

fn mount(home: &Home) -> PathBuf {
    home.mount_with("mnt", &["-o", "deadline=60"])
}

/// How whoever has `key` reaches the peer whose own key is `name`.
fn link(key: Principal, peer: &Peer, name: &str) -> Link {
    let public = peer.home.path().join(format!("home/config/keys/{name}.pub"));
    let (_, public) = keyfile::load_public(&public).expect("a peer's key");
    let transport = Transport::new(Arc::new(key)).expect("a transport");
    transport.link(public.signing, std::slice::from_ref(&peer.listen))
}

fn key_of(home: &Home) -> Principal {
    let name = Label::parse("default").expect("a label");
    keyfile::load(&home.path().join("home/config/keys"), &name, || None).expect("a key")
}

fn refused<T>(answer: Result<T, LinkError>) -> bool {
    matches!(answer, Err(LinkError::Refused { why: Failure::NotAllowed, .. }))
}

#[test]
fn a_peer_without_a_vote_follows_proves_and_serves_the_ledger() {
    let mut three = Three::start();
    three.add_storage("d");
    let alice = three.user("alice");
    let dir = mount(&alice);
    for n in 0..5 {
        write_through(&dir.join(n.to_string()), &noise(n, 200_000)).expect("on its peers");
    }
    alice.unmount(&dir);
    three.wait_level(&[0, 1, 2, 3]);
    let d = &three.peers[3];
    let size = d.published().min(three.peers[0].published());

    // As plain files, which prove themselves. A record may still come, and change them meanwhile.
    let files = d.data().join("sequencer/ledger");
    let proof = ["ledger", "verify", "--json", "--from", files.to_str().expect("a plain path")];
    wait_until("its files prove themselves", || {
        let said = alice.run(&proof).stdout;
        let said: serde_json::Value = serde_json::from_slice(&said).unwrap_or_default();
        said["verdict"] == "good" && said["size"].as_u64() >= Some(size)
    });

    // On the same route as a voter, the same bytes.
    let run = tokio::runtime::Runtime::new().expect("a runtime");
    assert!(size < 256, "one partial tile has it all");
    for row in ["0", "entries"] {
        let tile = |peer: &Peer, name: &str| {
            let link = link(key_of(&alice), peer, name);
            let path = format!("tile/{row}/000.p/{size}");
            run.block_on(link.ledger_file(path, None)).expect("an answer").expect("a tile")
        };
        assert!(tile(&three.peers[0], "peer-net") == tile(d, "peer-d"), "tile {row}");
    }

    // And it says what it is and how far it is.
    wait_until("it is listed as what it is", || {
        let listed = d.home.run(&["peer", "ls", "--json"]).stdout;
        let listed: serde_json::Value = serde_json::from_slice(&listed).unwrap_or_default();
        let own = &listed[3];
        let far = ["records", "published"].map(|name| own[name].as_u64() >= Some(size));
        own["voter"] == false && own["storage"] == true && far == [true, true]
    });
    wait_until("people read the same", || {
        let shown = String::from_utf8(d.home.run(&["peer", "ls"]).stdout).expect("text");
        let own = shown.lines().find(|line| line.starts_with('4')).unwrap_or_default();
        own.contains(" storage ") && own.ends_with(" records")
    });
    let said = String::from_utf8(metrics(&d.talk())).expect("text");
    let gauge = |name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("mictlan_{name} ")));
        line.expect("a number").parse::<u64>().expect("a number")
    };
    assert_eq!(gauge("votes"), 0);
    assert!(gauge("ledger_published_records") >= size, "also when it has started again");
}

#[test]
fn a_peer_without_a_vote_knows_who_may_do_what() {
    let mut three = Three::start();
    three.add_storage("d");
    let (writer, reader) = (three.user("alice"), Home::new());
    let code = three.invite(&["--role", "reader"]);
    reader.ok(&["join", &code, "--name", "bob"]);
    let run = tokio::runtime::Runtime::new().expect("a runtime");
    let d = &three.peers[3];
    let (alice, bob) = (link(key_of(&writer), d, "peer-d"), link(key_of(&reader), d, "peer-d"));
    let stranger = Principal::from_seed(Secret::from_bytes([7; 32]));
    let stranger = link(stranger, d, "peer-d");
    let chunk = bytes::Bytes::from(noise(1, 100_000));
    let name = address(&chunk);
    // It learns of members a moment after the voters.
    wait_until("it knows alice", || run.block_on(alice.put(vec![chunk.clone()])).is_ok());
    wait_until("it knows bob", || run.block_on(bob.head()).is_ok());
    assert!(run.block_on(bob.get(name)).expect("a reader reads") == Some(chunk.clone()));
    // Its answer does not wait for the bytes, so the door may close before it is read.
    wait_until("and does not write", || {
        let answer = run.block_on(bob.put(vec![chunk.clone()]));
        assert!(answer.is_err(), "a reader's chunk was taken");
        refused(answer)
    });
    assert!(refused(run.block_on(stranger.get(name))), "a stranger does neither");

    // What lies on another peer alone it fetches for whoever may read.
    let elsewhere = bytes::Bytes::from(noise(2, 100_000));
    let name = address(&elsewhere);
    let founder = link(key_of(&writer), &three.peers[0], "peer-net");
    run.block_on(founder.put(vec![elsewhere.clone()])).expect("stored");
    assert_eq!(run.block_on(bob.get(name)).expect("an answer"), None, "it is not here");
    let fetched = run.block_on(bob.fetch(name)).expect("an answer");
    assert!(fetched == Some(elsewhere), "it is brought");
    assert!(refused(run.block_on(stranger.fetch(name))));
}

#[test]
fn a_member_that_asks_for_no_room_gets_no_more_than_a_peer_s_capacity() {
    const CAPACITY: u64 = 64 << 20;
    let three = Three::start();
    let (alice, d) = (three.user("alice"), &three.peers[2]);
    d.kill();
    let serve = ["serve", "--domain", "c", "--capacity", "64M"];
    let pid = d.home.start(&serve, "voting in");
    let run = tokio::runtime::Runtime::new().expect("a runtime");
    let peer = link(key_of(&alice), d, "peer-c");
    let piece = |(seed, len)| bytes::Bytes::from(noise(seed, len));
    let (mut taken, mut seeds) = (Vec::new(), 0..1_000);
    for len in [1 << 20, 1 << 12, 100] {
        let refused = loop {
            let next = (seeds.next().expect("it takes more than it has room for"), len);
            match run.block_on(peer.put(vec![piece(next)])) {
                Ok(_) => taken.push(next),
                Err(error) => break error,
            }
        };
        let full =
            matches!(refused, LinkError::FailedHere { why: Trouble::Said(Failure::StoreFull), .. });
        assert!(full && taken.len() > 50, "{} chunks, then: {refused}", taken.len());
    }
    let store = run.block_on(peer.status()).expect("an answer").store.expect("it stores");
    assert!(store.used_bytes <= store.capacity_bytes, "{store:?}");
    // The rest is its reserve, so that removing always works.
    assert_eq!((store.capacity_bytes, store.out_of_service), (CAPACITY - CAPACITY / 20, None));
    // What it took is there, and taken again it needs no room; what needs room has it elsewhere.
    for chunk in taken.into_iter().map(piece) {
        let read = run.block_on(peer.get(address(&chunk)));
        assert!(read.expect("an answer") == Some(chunk.clone()));
        assert_eq!(run.block_on(peer.put(vec![chunk])).expect("it is there").len(), 1);
    }
    let dir = mount(&alice);
    write_through(&dir.join("more"), &noise(99, 3 << 20)).expect("two of three are enough");
    assert!(fs::read(dir.join("more")).expect("readable") == noise(99, 3 << 20));
    for n in 0..20 {
        write_through(&dir.join(n.to_string()), b"within its commit").expect("on its peers");
    }
    alice.unmount(&dir);
    // It goes on as a voter, which has to keep what the ledger orders.
    three.wait_level(&[0, 1, 2]);
    d.home.stop(pid, libc::SIGKILL);
}

#[test]
fn of_five_peers_any_two_may_be_away_and_two_may_join_while_files_are_written() {
    let mut three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    let content = |n: u64| noise(n, 300_000);
    let joined = AtomicBool::new(false);
    let count = std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let (mut n, mut after) = (0, 0);
            // As many again once both are there, so that some of those belong to them.
            while after < 40 {
                after += u64::from(joined.load(Ordering::Acquire));
                write_through(&dir.join(n.to_string()), &content(n))
                    .unwrap_or_else(|error| panic!("file {n}: {error}{}", alice.log()));
                n += 1;
            }
            n
        });
        three.add_storage("d");
        three.add_storage("e");
        joined.store(true, Ordering::Release);
        writing.join().expect("all is written")
    });
    let all = count * 300_000;
    let stored = || -> Vec<u64> { three.peers.iter().map(Peer::stored_bytes).collect() };
    wait_until("there are three copies", || stored().iter().sum::<u64>() >= 3 * all);
    alice.unmount(&dir);
    let stored = stored();
    assert!(stored[3].min(stored[4]) > 300_000, "who joined has a share: {stored:?}");
    assert!(stored[3].max(stored[4]) < all, "and not everything: {stored:?}");
    for (who, away) in [("bob", [3, 4]), ("carol", [2, 3]), ("dave", [1, 4])] {
        let reader = three.user(who);
        for peer in away {
            three.peers[peer].kill();
        }
        let dir = mount(&reader);
        for n in 0..count {
            let read = fs::read(dir.join(n.to_string()));
            let read = read.unwrap_or_else(|error| {
                panic!("file {n} without {away:?}: {error}{}", reader.log())
            });
            assert!(read == content(n), "file {n} without {away:?}");
        }
        reader.unmount(&dir);
        for peer in away {
            three.peers[peer].serve();
        }
    }
}
