//! P6 under running mounts: a member is removed while others work, and each knows at once.

use mictlan::id::Epoch;
use mictlan_tests::forger;
use mictlan_tests::harness::{Home, alive, signal, wait_until};
use mictlan_tests::three::{Three, noise, write_through};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Small ones, which are packed, and some that are chunks of their own.
fn content(n: u64) -> Vec<u8> {
    noise(n, if n.is_multiple_of(5) { 2 << 20 } else { 20_000 })
}

/// The ledger's records as a mount shows them, up to those that are there now.
fn records(dir: &Path) -> Vec<Value> {
    let all = fs::read_to_string(dir.join("ledger/records/000/000/000.ndjson"));
    let all = all.expect("the ledger's records");
    all.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn is_removal(record: &Value) -> bool {
    record["p"]["kind"] == "id.revoke"
}

/// Every commit after the removal is of the second epoch, and there is one.
fn assert_epochs(dir: &Path) {
    let commits = |records: &[Value]| -> Vec<u64> {
        let commits = records.iter().filter(|record| record["p"]["kind"] == "fs.commit");
        commits.filter_map(|record| record["p"]["body"]["key_epoch"].as_u64()).collect()
    };
    wait_until("commits of the new epoch are published", || {
        let all = records(dir);
        let removal = all.iter().position(is_removal);
        removal.is_some_and(|at| !commits(&all[at..]).is_empty())
    });
    let all = records(dir);
    let at = all.iter().position(is_removal).expect("it is there");
    assert!(commits(&all[..at]).iter().all(|epoch| *epoch == 1));
    assert!(commits(&all[at..]).iter().all(|epoch| *epoch == 2));
}

fn remove(three: &Three, name: &str) {
    three.peers[0].home.ok(&["member", "rm", name]);
}

/// Writes files until the member is removed, and some more.
fn write_during(dir: &Path, home: &Home, removal: impl FnOnce()) -> u64 {
    let removed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (mut n, mut after) = (0, 0);
            while after < 10 {
                after += u64::from(removed.load(Ordering::SeqCst));
                let written = fs::write(dir.join(n.to_string()), content(n));
                written.unwrap_or_else(|error| panic!("file {n}: {error}{}", home.log()));
                n += 1;
            }
            n
        });
        removal();
        removed.store(true, Ordering::SeqCst);
        writer.join().expect("it wrote all")
    })
}

fn assert_content(dir: &Path, count: u64, home: &Home) {
    for n in 0..count {
        let read = fs::read(dir.join(n.to_string()));
        let read = read.unwrap_or_else(|error| panic!("file {n}: {error}{}", home.log()));
        assert!(read == content(n), "file {n} is another{}", home.log());
    }
}

#[test]
fn mounts_go_on_in_the_new_epoch_when_a_member_is_removed() {
    let three = Three::start();
    let (alice, bob, _carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    // Alone, so that it holds back what it acknowledged; its own machine's journal has it.
    let dir = alice.mount("mnt");
    let count = write_during(&dir, &alice, || remove(&three, "carol"));
    write_through(&dir.join("last"), b"last").expect("committed");
    assert_content(&dir, count, &alice);
    let other = bob.mount("mnt");
    assert_content(&other, count, &bob);
    assert_epochs(&other);
    alice.unmount(&dir);
    assert_content(&other, count, &bob);
}

#[test]
fn two_mounts_see_each_other_over_a_change_of_epochs() {
    let three = Three::start();
    let (alice, bob, _carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    let (one, other) = (alice.mount("mnt"), bob.mount("mnt"));
    let count = write_during(&one, &alice, || remove(&three, "carol"));
    assert_content(&other, count, &bob);
    write_through(&other.join("from-bob"), b"bob").expect("committed");
    assert_eq!(fs::read(one.join("from-bob")).expect("readable"), b"bob");
    assert_epochs(&one);
}

#[test]
fn a_journal_of_the_old_epoch_is_committed_in_the_new_one() {
    let three = Three::start();
    let (alice, bob, _carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    let dir = alice.mount("mnt");
    for n in 0..6 {
        fs::write(dir.join(n.to_string()), content(n)).expect("acknowledged");
    }
    alice.kill_daemon(&dir);
    alice.forget(&dir);
    remove(&three, "carol");
    let dir = alice.mount("mnt");
    assert_content(&dir, 6, &alice);
    write_through(&dir.join("last"), b"last").expect("committed");
    assert_epochs(&dir);
    let other = bob.mount("mnt");
    assert_content(&other, 6, &bob);
}

#[test]
fn a_removed_member_is_told_and_what_it_had_not_committed_is_kept() {
    let three = Three::start();
    let (alice, carol) = (three.user("alice"), three.user("carol"));
    let unread = alice.path().join("unread");
    fs::write(&unread, content(7)).expect("written");
    alice.ok(&["put", unread.to_str().expect("a plain path"), "/unread"]);
    let dir = carol.mount("mnt");
    write_through(&dir.join("before"), b"before").expect("committed");
    remove(&three, "carol");
    let denied = |result: std::io::Result<()>| {
        result.is_err_and(|error| error.raw_os_error() == Some(libc::EACCES))
    };
    wait_until("a write is refused for that", || denied(fs::write(dir.join("late"), b"late")));
    let read = fs::read(dir.join("unread"));
    assert!(denied(read.map(drop)), "what it never read is not for it either");
    let said = || String::from_utf8_lossy(&carol.run(&["status"]).stdout).into_owned();
    wait_until("status tells it", || said().contains("[removed]"));
    let daemon = carol.daemon_of(&dir);
    signal(daemon, libc::SIGKILL);
    wait_until("it is gone", || !alive(daemon));
    carol.forget(&dir);
    assert!(said().contains("[journal-waits]"), "{}", said());
    let refused = carol.run(&["mount", dir.to_str().expect("a plain path")]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("no access"), "{why}");
    let other = alice.mount("mnt");
    assert_eq!(fs::read(other.join("before")).ok().as_deref(), Some(b"before".as_slice()));
}

#[test]
fn an_interrupted_removal_is_in_nobody_s_way() {
    let three = Three::start();
    let (alice, bob, carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    three.peers[0].home.ok(&["member", "add", "alice", "--role", "owner"]);
    forger::interrupted_removal(&alice, "carol");
    // Bob has what was to be kept from carol; who comes now gets nothing of that.
    let dave = three.user("dave");
    let next = Epoch(2);
    assert_eq!(forger::secrets_of(&dave, next).len(), 0);
    let burnt = forger::secrets_of(&bob, next);
    assert_eq!(burnt.len(), 1);
    alice.ok(&["member", "rm", "bob"]);
    let known = forger::secrets_of(&carol, next);
    assert!(known.len() == 1 && known.is_disjoint(&burnt), "bob reads on");
    assert!(known.is_subset(&forger::secrets_of(&alice, next)), "one key for all");
    let dir = carol.mount("mnt");
    write_through(&dir.join("hers"), b"carol").expect("she was not removed");
    let other = dave.mount("mnt");
    assert_eq!(fs::read(other.join("hers")).expect("readable"), b"carol");
    let refused = bob.run(&["ls", "/"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && why.contains("no access"), "{why}");
    carol.unmount(&dir);
    alice.ok(&["member", "rm", "carol"]);
    write_through(&other.join("late"), b"late").expect("in the third epoch");
    assert_eq!(forger::secrets_of(&carol, Epoch(3)).len(), 0);
    // A removal that is finished for the same person goes on with what is there.
    forger::interrupted_removal(&alice, "dave");
    let left = forger::secrets_of(&alice, Epoch(4));
    alice.ok(&["member", "rm", "dave"]);
    assert_eq!(forger::secrets_of(&alice, Epoch(4)), left);
}

/// Fails with `code` and says `part`.
fn refused(home: &Home, arguments: &[&str], code: i32, part: &str) {
    let output = home.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(part), "{arguments:?}: {said}");
}

#[test]
fn a_member_who_is_disabled_is_refused_by_every_peer() {
    let three = Three::start();
    let (owner, bob) = (&three.peers[0].home, three.user("bob"));
    let appends = ["ledger", "append", "--topic", "t", "1"];
    let disable = ["member", "disable", "bob"];
    refused(owner, &disable, 2, "first: mictlan member rm bob --volume main");
    let said = owner.ok(&["member", "rm", "bob"]);
    assert!(said.contains("next   mictlan member disable bob"), "{said}");
    bob.ok(&appends);
    bob.ok(&["ledger", "verify"]);
    let said = owner.ok(&disable);
    assert!(said.contains("every peer refuses that key"), "{said}");
    for verb in [&appends[..], &["ledger", "verify"]] {
        wait_until("the peers know it, and refuse", || bob.run(verb).status.code() == Some(5));
    }
    refused(owner, &disable, 2, "the actor bob is disabled; nothing was changed");
    refused(owner, &["member", "add", "bob"], 2, "the actor bob is disabled");
    refused(owner, &["member", "disable", "nobody"], 2, "nobody");
    refused(owner, &["member", "disable", "default"], 2, "default is the last owner of main");
    assert!(owner.ok(&["ledger", "verify"]).starts_with("good: "));
}
