//! Clocks that are wrong, and clocks that are set while everything runs: nothing that was
//! acknowledged is lost, work goes on, and the ledger's time neither leaps nor goes back.

use mictlan::id::TimeMs;
use mictlan::ledger::record::time;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, noise};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

const DAY: i64 = 24 * 3600;
const YEAR: i64 = 365 * DAY;

/// From now on the programs that this home starts see the time of day that `set_clock` says.
fn with_a_clock(home: &Home) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/clock.c");
    let library = home.path().join("clock.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(compiler.status().expect("the compiler that cargo links with").success());
    set_clock(home, 0);
    home.set("MICTLAN_TEST_CLOCK", home.path().join("clock"));
    home.set("MICTLAN_TEST_UPTIME", home.path().join("uptime"));
    home.set("LD_PRELOAD", library);
}

/// At once, the time of day is off by so many seconds.
fn set_clock(home: &Home, seconds: i64) {
    tell(home, "clock", seconds);
}

/// At once, so many seconds have passed: as when a machine has slept.
fn let_pass(home: &Home, seconds: i64) {
    tell(home, "uptime", seconds);
    tell(home, "clock", seconds);
}

fn tell(home: &Home, which: &str, seconds: i64) {
    // In place and of one length: a look at the same moment sees the old time or the new one.
    let file = home.path().join(which);
    let file = File::options().create(true).truncate(false).write(true).open(file);
    let written = file.and_then(|mut file| write!(file, "{seconds:019}"));
    written.expect("written");
}

#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Too large for the commit, so that chunks are put and receipts have an age.
fn text(name: &str) -> String {
    format!("{name} is what it says\n").repeat(20_000)
}

fn write_all_of(dir: &Path, name: &str, home: &Home) {
    write(&dir.join(name), &text(name)).unwrap_or_else(|e| panic!("{name}: {e}{}", home.log()));
}

fn same(dir: &Path, name: &str, home: &Home) {
    let found = fs::read_to_string(dir.join(name));
    let found = found.unwrap_or_else(|e| panic!("{name}: {e}{}", home.log()));
    assert!(found == text(name), "{name} has other content{}", home.log());
}

#[test]
fn a_clock_that_jumps_stops_nobody_and_loses_nothing() {
    let home = Home::new();
    with_a_clock(&home);
    let mut dir = home.mount("mnt");
    let jumps = [0, 3600, -3600, YEAR, -YEAR, 0];
    for (n, jump) in jumps.into_iter().enumerate() {
        set_clock(&home, jump);
        write_all_of(&dir, &n.to_string(), &home);
        // In the journal alone, and then for a daemon that starts at this time of day.
        fs::write(dir.join(format!("{n}-small")), &text("small")[..100]).expect("written");
        home.kill_daemon(&dir);
        dir = home.mount("mnt");
        for old in 0..=n {
            same(&dir, &old.to_string(), &home);
            let small = fs::read_to_string(dir.join(format!("{old}-small"))).expect("readable");
            assert!(small == text("small")[..100], "{old} at {n}, the small one");
        }
    }
    home.unmount(&dir);
    home.start(&["serve", "--listen", "127.0.0.1:0"], "serving");
    let said = home.ok(&["ledger", "verify"]);
    assert!(said.contains("good"), "{said}");
}

#[test]
fn a_mount_whose_clock_is_a_day_off_works_and_so_do_its_verbs() {
    let three = Three::start();
    let alice = three.user("alice");
    with_a_clock(&alice);
    for (round, (before, after)) in [(-DAY, DAY), (DAY, -DAY)].into_iter().enumerate() {
        set_clock(&alice, before);
        let dir = alice.mount_with("mnt", &["-o", "deadline=30"]);
        write_all_of(&dir, &format!("{round}-before"), &alice);
        set_clock(&alice, after);
        write_all_of(&dir, &format!("{round}-after"), &alice);
        alice.ok(&["ledger", "append", "--topic", "clock", "\"off by a day\""]);
        same(&dir, &format!("{round}-before"), &alice);
        alice.unmount(&dir);
    }
    let bob = three.user("bob");
    let dir = bob.mount("mnt");
    for round in 0..2 {
        same(&dir, &format!("{round}-before"), &bob);
        same(&dir, &format!("{round}-after"), &bob);
    }
    // Whoever invites may be wrong about the time: the code is good for as long as was asked.
    let founder = &three.peers[0].home;
    with_a_clock(founder);
    set_clock(founder, -2 * DAY);
    let code = three.invite(&["--role", "writer", "--hours", "24"]);
    let carol = Home::new();
    carol.ok(&["join", &code, "--name", "carol"]);
}

#[test]
fn a_peer_whose_clock_is_a_day_off_holds_nobody_up_and_dates_no_record() {
    let three = Three::prepared(with_a_clock);
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    let wrong: Vec<(usize, i64)> =
        [DAY, -DAY].into_iter().flat_map(|by| (0..3).map(move |peer| (peer, by))).collect();
    for (peer, by) in &wrong {
        let (home, name) = (&three.peers[*peer].home, format!("peer {peer} by {by} s"));
        set_clock(home, *by);
        write_all_of(&dir, &name, &alice);
        set_clock(home, 0);
        write_all_of(&dir, &format!("{name}, and right again"), &alice);
    }
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = bob.mount("mnt");
    for (peer, by) in &wrong {
        same(&dir, &format!("peer {peer} by {by} s"), &bob);
    }
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis() as u64;
    let late = time::format(TimeMs(since + 3_600_000));
    let status = fs::read(dir.join("ledger/status.json")).expect("readable");
    let status: serde_json::Value = serde_json::from_slice(&status).expect("one JSON object");
    let last = status["time"].as_str().expect("the time of the last record");
    assert!(last < late.as_str(), "a clock that was ahead dated a record: {last}");
}

/// A mount sleeps for most of a day, with chunks on their peers that no record names yet. They may
/// be near their collection.
#[test]
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn receipts_that_grew_old_are_refused_and_the_chunks_are_stamped_again() {
    let mut three = Three::prepared(with_a_clock);
    // Without the voters nothing is ordered, and there are peers enough for a chunk to be durable.
    three.add_storage("d");
    three.add_storage("e");
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    with_a_clock(&alice);
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    let mut file = File::create(dir.join("file")).expect("made");
    file.sync_all().expect("committed");
    three.peers[..3].iter().for_each(|peer| peer.kill());
    let bytes = noise(1, 2 << 20);
    file.write_all(&bytes).expect("taken");
    let late = || {
        let refused = file.sync_all().expect_err("nobody orders it").raw_os_error();
        assert_eq!(refused, Some(libc::ETIMEDOUT), "{}", alice.log());
    };
    late();
    let stored = || three.peers[3..].iter().map(|peer| peer.stored_bytes()).sum::<u64>();
    wait_until("the chunks are on their peers", || stored() >= 2 * bytes.len() as u64);
    three.peers[..3].iter().for_each(|peer| let_pass(&peer.home, 7 * 3600));
    let_pass(&alice, 7 * 3600);
    // What was to be asked of the voters before has come to its end, and is asked with its age now.
    let log = || fs::read_to_string(alice.path().join("home/state/mount.log")).expect("a log");
    let tries = || log().matches("not committed yet").count();
    let before = tries();
    wait_until("it is tried again", || tries() > before);
    three.peers[..3].iter().for_each(|peer| peer.serve_until("serving"));
    wait_until("it is committed", || file.sync_all().is_ok());
    let log = log();
    assert!(log.contains("over 6 hours ago; stamp the chunks again"), "{log}");
    drop(file);
    alice.unmount(&dir);
    let dir = bob.mount("mnt");
    assert!(fs::read(dir.join("file")).expect("readable") == bytes, "{}", bob.log());
}
