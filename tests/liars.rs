//! A peer among three that lies: nobody believes it, nobody waits for it, and it is named.

use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::liar::{Liar, Lie};
use mictlan_tests::three::{Three, addresses, noise, page, write_through};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// A problem that `status` tells.
fn told(home: &Home, code: &str) -> Option<String> {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list").iter();
    let found = problems.into_iter().find(|problem| problem["code"] == code)?;
    Some(found["what"].to_string())
}

fn mount(home: &Home) -> PathBuf {
    let dir = home.mount_with("mnt", &["-o", "deadline=60"]);
    wait_until("the mount is alone on the volume", || !home.is_beside_others());
    dir
}

fn content(n: u64) -> Vec<u8> {
    noise(n, 500_000)
}

fn write(dir: &Path, n: u64, who: &Home) {
    let written = write_through(&dir.join(n.to_string()), &content(n));
    written.unwrap_or_else(|error| panic!("file {n}: {error}{}", who.log()));
}

fn same(dir: &Path, n: u64, who: &Home) {
    let read = fs::read(dir.join(n.to_string()));
    let read = read.unwrap_or_else(|error| panic!("file {n}: {error}{}", who.log()));
    assert!(read == content(n), "file {n} is another{}", who.log());
}

#[test]
fn bytes_that_are_not_the_chunk_are_never_read_and_who_sent_them_is_named() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = mount(&alice);
    write(&dir, 0, &alice);
    let liar = Liar::in_place_of(&three.peers[2], Lie::Content);
    (1..8).for_each(|n| write(&dir, n, &alice));
    assert!(liar.receipts() > 0, "it was asked to keep some{}", alice.log());
    alice.unmount(&dir);
    // Its receipts counted. The others have all the same: nothing lies with it alone.
    for peer in &three.peers[..2] {
        wait_until("both others have all", || peer.stored_bytes() >= 8 * 500_000);
    }
    let metrics = addresses(1).remove(0);
    let dir = bob.mount_with("mnt", &["-o", &format!("deadline=60,metrics={metrics}")]);
    wait_until("the mount is alone on the volume", || !bob.is_beside_others());
    // It is the only one that answers for a while, so that its bytes come first.
    let mut file = File::open(dir.join("0")).expect("it is there");
    let before = liar.shown();
    three.peers[..2].iter().for_each(|peer| peer.hang());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).map(|_| bytes)
        });
        wait_until("the liar is asked", || liar.shown() > before);
        three.peers[..2].iter().for_each(|peer| peer.go_on());
        let read = reader.join().expect("no panic");
        let read = read.unwrap_or_else(|error| panic!("{error}{}", bob.log()));
        assert!(read == content(0), "bytes of the liar{}", bob.log());
    });
    (0..8).for_each(|n| same(&dir, n, &bob));
    wait_until("status names it", || told(&bob, "peer-lied").is_some());
    let (said, log) = (told(&bob, "peer-lied").expect("still"), bob.log());
    assert!(said.contains(&format!("peer {} gave", liar.id)), "{said}");
    let line = format!("is not for it: other copies are used; find out what runs there peer={}", {
        liar.id
    });
    assert!(log.contains(&line), "{log}");
    let counted = page(&metrics, "/metrics");
    let lies = counted.lines().find_map(|line| line.strip_prefix("mictlan_lies_total "));
    assert!(lies.is_some_and(|lies| lies != "0"), "{counted}");
}

#[test]
fn a_receipt_for_something_else_is_none_and_the_copy_is_owed() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    let liar = Liar::in_place_of(&three.peers[2], Lie::Receipts);
    (0..3).for_each(|n| write(&dir, n, &alice));
    wait_until("the copy is owed", || told(&alice, "copies-owed").is_some());
    let said = told(&alice, "peer-lied").expect("it was asked before");
    assert!(said.contains(&format!("peer {} gave", liar.id)), "{said}");
    drop(liar);
    three.peers[2].serve();
    wait_until("the honest peer gets them", || told(&alice, "copies-owed").is_none());
    assert!(three.peers[2].stored_bytes() >= 3 * 500_000);
    (0..3).for_each(|n| same(&dir, n, &alice));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn one_peer_s_word_is_not_enough_for_a_journal_to_let_go_of_its_bytes() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    wait_until("the mount is alone on the volume", || !alice.is_beside_others());
    three.peers[..2].iter().for_each(|peer| peer.kill());
    let _liar = Liar::in_place_of(&three.peers[2], Lie::Content);
    fs::write(dir.join("0"), content(0)).expect("acknowledged");
    // It is sealed now, and the journal names a chunk that the liar alone has a receipt for.
    let again = File::options().write(true).open(dir.join("0")).expect("it is there");
    let refused = again.sync_all().expect_err("one receipt is not enough");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}");
    drop(again);
    alice.kill_daemon(&dir);
    three.peers[..2].iter().for_each(|peer| peer.serve_until("serving"));
    let dir = mount(&alice);
    same(&dir, 0, &alice);
}

/// With such a peer a fresh mount comes up, writes, reads what others wrote, checks the ledger and
/// ends, and `status` names it.
fn holds_nobody_up(lie: Lie) {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = mount(&alice);
    write(&dir, 0, &alice);
    let liar = Liar::in_place_of(&three.peers[2], lie);
    (1..4).for_each(|n| write(&dir, n, &alice));
    let named = |said: String| said.contains(&format!("peer {} ", liar.id));
    wait_until("status names it", || told(&alice, "peer-silent").is_some_and(named));
    wait_until("the mount names it", || told(&alice, "peer-away").is_some_and(named));
    wait_until("what it lacks is told", || told(&alice, "copies-owed").is_some());
    alice.unmount(&dir);
    let dir = mount(&bob);
    (0..4).for_each(|n| same(&dir, n, &bob));
    write(&dir, 4, &bob);
    let said = bob.ok(&["ledger", "verify"]);
    assert!(said.contains("good"), "{said}");
    bob.unmount(&dir);
}

#[test]
fn a_peer_that_answers_rubbish_holds_nobody_up_and_is_named() {
    holds_nobody_up(Lie::Rubbish);
}

#[test]
fn a_peer_that_hears_and_never_answers_holds_nobody_up_and_is_named() {
    holds_nobody_up(Lie::Silence);
}
