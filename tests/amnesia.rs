//! A voter that has lost its log, or has an older one: it forgets what it promised, and nothing that
//! was acknowledged may be lost by that, and no other voter may fall.

use mictlan_daemon::store::durable::rename;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Peer, Three, write_through};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn status(home: &Home) -> serde_json::Value {
    serde_json::from_slice(&home.run(&["status", "--json"]).stdout).expect("one JSON object")
}

/// Who leads, and the two others; the last one did not found the network.
fn roles<'a>(three: &'a Three, user: &Home) -> [&'a Peer; 3] {
    wait_until("somebody leads", || status(user)["leader"].is_u64());
    let leads = status(user)["leader"].as_u64().expect("a peer") as usize - 1;
    let mut others: Vec<usize> = (0..3).filter(|at| *at != leads).collect();
    others.sort_unstable();
    [leads, others[0], others[1]].map(|at| &three.peers[at])
}

/// All that a peer's processes said until now.
fn told(peer: &Peer) -> String {
    fs::read_to_string(peer.home.path().join("processes.log")).expect("a log")
}

/// Waits until a peer says something that it had not said `before`.
fn wait_told(peer: &Peer, before: &str, what: &str) {
    wait_until(what, || told(peer)[before.len()..].contains(what));
}

/// Whoever loses his disk still finds the others: they are in his configuration.
fn wait_known(three: &Three, by: &Peer) {
    let file = by.home.path().join("home/config/config.toml");
    wait_until("its configuration names the others", || {
        let config = fs::read_to_string(&file).expect("a configuration");
        let mut others = three.peers.iter().filter(|peer| peer.listen != by.listen);
        others.all(|peer| config.contains(&format!("\"{}\"", peer.listen)))
    });
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(done.expect("cp is installed").success());
}

/// One disk is lost and one voter was away: the commit is on one voter only, and the two others,
/// who are a majority, must not go on without it.
#[test]
fn a_voter_with_an_empty_disk_does_not_vote_a_commit_away() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    write_through(&dir.join("first"), b"first").expect("on its peers");
    three.wait_level(&[0, 1, 2]);
    let [leader, away, loser] = roles(&three, &alice);
    away.kill();
    write_through(&dir.join("precious"), b"precious").expect("on two peers");
    wait_known(&three, loser);
    loser.kill();
    let before = told(loser);
    fs::remove_dir_all(loser.data()).expect("its disk is new");
    loser.serve_until("serving");
    // The leader, or who would lead, speaks to it, and is none the worse for it.
    wait_until("the one without a log refuses to count", || {
        let told = &told(loser)[before.len()..];
        told.contains("no leader is sure yet") || told.contains("it grants no vote")
    });
    assert!(leader.runs(), "{}", leader.home.log());

    leader.kill();
    let alone = told(loser);
    away.serve_until("serving");
    wait_told(loser, &alone, "it grants no vote");
    assert!(status(&alice)["leader"].is_null(), "{}", away.home.log());
    leader.serve();
    wait_until("they go on with the one who has it", || {
        fs::read(dir.join("precious")).is_ok_and(|bytes| bytes == b"precious")
    });
    write_through(&dir.join("later"), b"later").expect("on its peers");
    wait_told(loser, &before, "this peer's log is complete");
    three.wait_level(&[0, 1, 2]);
    alice.unmount(&dir);

    // Now its vote counts again: it is one of two.
    away.kill();
    let dir = alice.mount("mnt");
    assert_eq!(fs::read(dir.join("precious")).expect("it is there"), b"precious");
    write_through(&dir.join("last"), b"last").expect("on its peers");
    alice.unmount(&dir);
}

/// Makes `peer`'s directory what it was when `older` was copied; the peer does not run.
fn put_back(peer: &Peer, older: &Path) {
    fs::remove_dir_all(peer.data()).expect("removed");
    copy(older, &peer.data());
}

/// Copies the directories of peers that start again afterwards.
fn keep_copies<'a>(peers: &[&'a Peer]) -> Vec<(&'a Peer, PathBuf)> {
    let keep = |peer: &&'a Peer| {
        let older = peer.home.path().join("older");
        peer.kill();
        copy(&peer.data(), &older);
        peer.serve();
        (*peer, older)
    };
    peers.iter().map(keep).collect()
}

/// One voter's directory is an older copy and one voter was away, and who leads is away when both
/// start: the two are a majority, and must not go on without what only the leader has.
#[test]
fn an_older_copy_put_back_does_not_vote_commits_away() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    write_through(&dir.join("first"), b"first").expect("on its peers");
    three.wait_level(&[0, 1, 2]);
    let [leader, away, loser] = roles(&three, &alice);
    let kept = keep_copies(&[loser]);
    write_through(&dir.join("second"), b"second").expect("on its peers");
    three.wait_level(&[0, 1, 2]);
    away.kill();
    for n in 0..5 {
        write_through(&dir.join(format!("precious-{n}")), b"precious").expect("on two peers");
    }
    loser.kill();
    put_back(loser, &kept[0].1);
    leader.kill();
    let before = told(loser);
    loser.serve_until("serving");
    away.serve_until("serving");
    wait_told(loser, &before, "is a copy");
    wait_told(loser, &before, "it grants no vote");
    assert!(status(&alice)["leader"].is_null(), "{}", away.home.log());
    leader.serve();
    for n in 0..5 {
        let file = dir.join(format!("precious-{n}"));
        wait_until("it is there", || fs::read(&file).is_ok_and(|bytes| bytes == b"precious"));
    }
    write_through(&dir.join("later"), b"later").expect("on its peers");
    wait_told(loser, &before, "it can vote");
    three.wait_level(&[0, 1, 2]);
    assert!(leader.runs(), "{}", leader.home.log());
    alice.unmount(&dir);
}

/// More voters went back than the network bears, and somebody says that their copies are all that
/// there is: who has applied more ends, with a reason, and changes nothing.
#[test]
fn who_has_applied_what_the_others_forgot_ends_and_says_that_there_are_two_histories() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    write_through(&dir.join("first"), b"first").expect("on its peers");
    three.wait_level(&[0, 1, 2]);
    let [knows, one, other] = roles(&three, &alice);
    let bob = three.user("bob");
    let kept = keep_copies(&[one, other]);
    for n in 0..5 {
        write_through(&dir.join(format!("new-{n}")), b"new").expect("on its peers");
    }
    alice.unmount(&dir);
    three.wait_level(&[0, 1, 2]);
    knows.kill();
    for (peer, older) in &kept {
        peer.kill();
        put_back(peer, older);
        fs::remove_file(peer.data().join("sequencer/place")).expect("it was noted");
    }
    kept.iter().for_each(|(peer, _)| peer.serve_until("serving"));
    let file = bob.path().join("file");
    fs::write(&file, "another history").expect("written");
    let file = file.to_str().expect("a name");
    wait_until("they go on without it", || bob.run(&["put", file, "/another"]).status.success());
    let (before, log) = (told(knows), knows.data().join("sequencer/wal"));
    knows.serve_until("serving");
    assert_eq!(knows.ended(), Some(8), "{}", knows.home.log());
    assert!(told(knows)[before.len()..].contains("two histories"), "{}", knows.home.log());
    assert!(log.exists());
    assert!(kept.iter().all(|(peer, _)| peer.runs()), "{}", one.home.log());
}

#[test]
fn a_log_that_went_back_stops_no_other_voter_and_one_that_is_gone_is_noticed() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    write_through(&dir.join("first"), b"first").expect("on its peers");
    three.wait_level(&[0, 1, 2]);
    let [leader, _, loser] = roles(&three, &alice);
    let (log, older) = (loser.data().join("sequencer"), loser.home.path().join("older"));
    loser.kill();
    copy(&log, &older);
    loser.serve();
    for n in 0..5 {
        write_through(&dir.join(format!("new-{n}")), b"new").expect("on its peers");
    }
    three.wait_level(&[0, 1, 2]);
    loser.kill();
    fs::remove_dir_all(&log).expect("removed");
    copy(&older, &log);
    loser.serve();
    three.wait_level(&[0, 1, 2]);
    assert!(leader.runs(), "{}", leader.home.log());

    // Its files say that there was a log.
    loser.kill();
    for file in fs::read_dir(log.join("wal")).expect("its log") {
        let file = file.expect("an entry").path();
        if file.extension().is_some_and(|end| end == "wal") {
            fs::remove_file(file).expect("removed");
        }
    }
    let refused = loser.home.run(&["serve"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(8), "{why}");
    assert!(why.contains("is gone") && why.contains("away and start this peer again"), "{why}");
    rename(&log, &loser.home.path().join("away")).expect("as it says");
    let before = told(loser);
    wait_known(&three, loser);
    loser.serve_until("serving");
    wait_told(loser, &before, "this peer's log is complete");
    three.wait_level(&[0, 1, 2]);
    assert!(leader.runs(), "{}", leader.home.log());
    alice.unmount(&dir);
}

#[test]
fn the_only_voter_begins_no_new_log_in_the_place_of_a_lost_one() {
    let home = Home::new();
    home.ok(&["init", "net"]);
    let log = home.path().join("home/data/networks/net/sequencer");
    let kept = home.path().join("kept");
    rename(&log, &kept).expect("moved");
    for verb in [&["serve", "--listen", "127.0.0.1:0"][..], &["ls", "/"]] {
        let refused = home.run(verb);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(8), "{verb:?}: {why}");
        assert!(why.contains("holds no log") && why.contains("only voter"), "{verb:?}: {why}");
    }
    fs::remove_dir_all(&log).expect("nothing is in it");
    rename(&kept, &log).expect("moved back");
    home.ok(&["ls", "/"]);
}
