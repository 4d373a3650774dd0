//! What a mount on three peers does when a disk of one of them fails, when the leader falls silent,
//! and when all are gone: an exact error or none, and everything that was acknowledged is there
//! afterwards.

use mictlan_tests::disk::{Disk, needs_root};
use mictlan_tests::files::{same, write_and_close};
use mictlan_tests::harness::{Home, alive, signal, wait_until};
use mictlan_tests::three::{Three, files, noise, write_through};
use std::cell::Cell;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// What `status` says under a code.
fn said(home: &Home, code: &str) -> Option<String> {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list");
    let problem = problems.iter().find(|problem| problem["code"] == code)?;
    Some(problem["what"].as_str().expect("a sentence").to_owned())
}

#[test]
fn a_peer_whose_disk_fails_leaves_service_and_gets_its_copies_when_it_is_back() {
    needs_root("a disk that fails");
    let three = Three::start();
    let victim = &three.peers[2];
    victim.kill();
    let disk = Disk::with_power(&victim.data().join("store"), &victim.home.path().join("disk.img"));
    victim.serve();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    let content = |n: u64| noise(n, 1 << 20);
    for n in 0..12 {
        if n == 4 {
            wait_until("the disk has a share of it", || victim.stored_bytes() >= 4 << 20);
            disk.cut_power();
        }
        let written = write_through(&dir.join(n.to_string()), &content(n));
        written.unwrap_or_else(|error| panic!("file {n}: {error}{}", alice.log()));
    }
    for n in 0..12 {
        same(&dir.join(n.to_string()), &content(n), &alice);
    }
    // A voter that cannot store what it votes for must not go on: it ends, and says why.
    assert_eq!(victim.ended(), Some(8), "{}", victim.home.log());
    let log = fs::read_to_string(victim.home.path().join("processes.log")).expect("a log");
    for part in [
        "this peer can go on no more; nothing that it acknowledged is lost",
        "the store takes no writes since 2",
        "Input/output error",
        "check the disk, then restart this peer",
    ] {
        assert!(log.contains(part), "no {part:?}{log}");
    }
    // Whichever its disk refused first: an append, or the sync after it.
    assert!(log.contains("Z: cannot "), "{log}");
    let silent = said(&alice, "peer-silent").expect("status names it");
    assert!(silent.starts_with("peer 3 (c) does not answer: "), "{silent}");
    let peers = alice.run(&["peer", "ls"]).stdout;
    assert!(String::from_utf8_lossy(&peers).contains("c: peer "), "{peers:?}");
    assert!(said(&alice, "no-quorum").is_none(), "two of three are enough");
    wait_until("what it lacks is owed", || said(&alice, "copies-owed").is_some());
    // Nothing is tried again on the same bad disk.
    let again = victim.home.run(&["serve"]);
    let why = String::from_utf8_lossy(&again.stderr).into_owned();
    assert_eq!(again.status.code(), Some(8), "{why}");
    assert!(why.contains("Input/output error"), "{why}");
    disk.power_again();
    victim.serve();
    wait_until("the last copies are made", || said(&alice, "copies-owed").is_none());
    wait_until("and are there", || victim.stored_bytes() >= 12 << 20);
    assert!(said(&alice, "peer-silent").is_none(), "a start on a good disk heals it");
    alice.unmount(&dir);
}

#[test]
fn with_all_peers_gone_nothing_acknowledged_is_lost_and_each_error_is_exact() {
    let three = Three::start();
    let alice = three.user("alice");
    let (warm, cold) = (noise(1, 2 << 20), noise(2, 2 << 20));
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    write_through(&dir.join("warm"), &warm).expect("on its peers");
    write_through(&dir.join("cold"), &cold).expect("on its peers");
    alice.unmount(&dir);
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    same(&dir.join("warm"), &warm, &alice);
    three.peers.iter().for_each(|peer| peer.kill());

    // While the lease lasts, what is closed is in the journal; after that, and from the first
    // moment for what is large, the answer is that no peer took it.
    let mut closed = Vec::new();
    let refused = (0..).find_map(|n: u64| {
        let name = dir.join(format!("small-{n}"));
        let written = write_and_close(&name, &noise(n, 1000));
        written.map(|()| closed.push(n)).err()
    });
    let refused = refused.expect("an endless search ends with a find");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}{}", alice.log());
    let refused =
        write_through(&dir.join("large"), &noise(3, 2 << 20)).expect_err("no peer has it");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}{}", alice.log());
    same(&dir.join("warm"), &warm, &alice);
    let refused = fs::read(dir.join("cold")).expect_err("no copy can be had");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}{}", alice.log());

    let daemon = alice.daemon_of(&dir);
    signal(daemon, libc::SIGTERM);
    wait_until("the daemon ends", || !alive(daemon));
    assert_eq!(fs::read_dir(&dir).expect("no dead mount is left").count(), 0);
    let log = alice.log();
    let left = "not everything could be committed; it is in this host's journal, and the next \
                mount of the volume with the same key commits it";
    assert!(log.contains(left) && log.contains("/journals/"), "{log}");
    assert!(said(&alice, "no-quorum").is_some_and(|what| what.contains("nothing acknowledged")));
    let waits = said(&alice, "journal-waits").expect("status names the journal");
    assert!(waits.contains("bytes of an ended mount may not be committed: "), "{waits}");

    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let dir = alice.mount_with("mnt", &["-o", "deadline=30"]);
    same(&dir.join("warm"), &warm, &alice);
    same(&dir.join("cold"), &cold, &alice);
    for n in &closed {
        same(&dir.join(format!("small-{n}")), &noise(*n, 1000), &alice);
    }
    write_through(&dir.join("after"), b"after").expect("work goes on");
    assert!(said(&alice, "journal-waits").is_none(), "it was taken over");
    alice.unmount(&dir);
}

/// A mount whose voters are away, with a closed file that is in its journal alone.
fn cut_off(three: &Three, alice: &Home, options: &str) -> PathBuf {
    let dir = alice.mount_with("mnt", &["-o", options]);
    wait_until("it is alone on the volume", || !alice.is_beside_others());
    three.peers[1..].iter().for_each(|peer| peer.kill());
    write_and_close(&dir.join("file"), b"closed").expect("in the journal");
    dir
}

#[test]
fn an_unmount_that_cannot_commit_all_returns_when_the_journal_is_the_next_mounts() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = cut_off(&three, &alice, "deadline=5");
    let daemon = alice.daemon_of(&dir);
    let ended = alice.run(&["umount", dir.to_str().expect("a plain path")]);
    assert_eq!(ended.status.code(), Some(11), "{ended:?}");
    assert!(!alive(daemon), "nobody has the journal any more");
    three.peers[1..].iter().for_each(|peer| peer.serve_until("serving"));
    let dir = alice.mount_with("mnt", &["-o", "deadline=30"]);
    same(&dir.join("file"), b"closed", &alice);
    assert!(said(&alice, "journal-waits").is_none(), "it was taken over");
}

#[test]
fn a_mount_that_begins_while_another_one_ends_waits_for_it_and_then_says_so() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = cut_off(&three, &alice, "deadline=60");
    let daemon = alice.daemon_of(&dir);
    // A plain umount waits for nothing.
    let done = Command::new("umount").arg(&dir).status().expect("umount is installed");
    assert!(done.success());
    let ending = || {
        let journals = files(&alice.path().join("home/state/journals"));
        journals.iter().any(|(file, _)| file.ends_with("ending"))
    };
    wait_until("the daemon tries to commit a last time", ending);
    signal(daemon, libc::SIGSTOP);
    three.peers[1..].iter().for_each(|peer| peer.serve_until("serving"));
    let words = "an earlier mount of this volume has not ended yet";
    let dir = alice.mount_with("other", &["-o", "deadline=30"]);
    assert!(alice.log().contains(words), "it waited, and says why it has not all{}", alice.log());
    alice.unmount(&dir);
    signal(daemon, libc::SIGCONT);
    wait_until("the daemon ends", || !alive(daemon));
    let dir = alice.mount_with("mnt", &["-o", "deadline=30"]);
    same(&dir.join("file"), b"closed", &alice);
}

#[test]
fn a_mount_that_is_told_to_end_under_writing_keeps_all_that_was_closed() {
    let three = Three::start();
    let alice = three.user("alice");
    // With a peer away copies are owed, and the end takes its time.
    three.peers[2].kill();
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    let daemon = alice.daemon_of(&dir);
    // A mount that is detached is no longer below its path, but below this.
    let open = File::open(&dir).expect("the root");
    let below = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    let name = |n: u64| format!("file-{n}");
    let mut closed = 0;
    let refusal = loop {
        match write_and_close(&below.join(name(closed)), &noise(closed, 3000)) {
            Ok(()) => closed += 1,
            Err(refusal) => break refusal,
        }
        if closed == 20 {
            signal(daemon, libc::SIGTERM);
        }
        // A program that writes now and then: all is committed at some moment of the end, and more
        // comes behind it.
        let then = Instant::now();
        wait_until("it has more", || then.elapsed() >= Duration::from_millis(30));
    };
    assert!(closed >= 20, "{refusal}{}", alice.log());
    wait_until("the daemon ends", || !alive(daemon));
    let dir = alice.mount("mnt");
    for n in 0..closed {
        same(&dir.join(name(n)), &noise(n, 3000), &alice);
    }
}

/// Which of the peers leads.
fn leader(home: &Home) -> usize {
    let found = Cell::new(None);
    wait_until("somebody leads", || {
        let report = home.run(&["status", "--json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
        found.set(report["leader"].as_u64());
        found.get().is_some()
    });
    found.get().expect("it was waited for") as usize - 1
}

#[test]
fn a_leader_that_falls_silent_does_not_stop_a_writer() {
    let three = Three::start();
    let alice = three.user("alice");
    // More than an election takes, less than a call to one voter is given.
    let dir = alice.mount_with("mnt", &["-o", "deadline=40"]);
    wait_until("it has its lease", || !alice.is_beside_others());
    let leader = &three.peers[leader(&alice)];
    // The connection that this goes over is the one that the next commit finds.
    write_through(&dir.join("before"), b"before").expect("on its peers");
    leader.hang();
    for (name, bytes) in [("small", noise(1, 1000)), ("large", noise(2, 2 << 20))] {
        let written = write_through(&dir.join(name), &bytes);
        written.unwrap_or_else(|error| panic!("{name}: {error}{}", alice.log()));
        same(&dir.join(name), &bytes, &alice);
    }
    leader.go_on();
    write_through(&dir.join("after"), b"after").expect("work goes on");
    alice.unmount(&dir);
}

#[test]
fn a_leader_that_falls_silent_does_not_stop_those_who_ask_it() {
    let three = Three::start();
    let (alice, bob, carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    // A new leader lets nobody pass for one term of leases.
    let dir = alice.mount_with("mnt", &["-o", "deadline=40"]);
    let beside = bob.mount_with("mnt", &["-o", "deadline=40"]);
    let reader = carol.mount_with("mnt", &["-o", "ro,coherent,deadline=40"]);
    write_through(&dir.join("file"), b"before").expect("on its peers");
    write_through(&dir.join("other"), b"other").expect("on its peers");
    let leader = &three.peers[leader(&alice)];
    same(&beside.join("file"), b"before", &bob);
    same(&reader.join("file"), b"before", &carol);
    leader.hang();
    // A name that the kernel does not know: of one that it knows it would ask twice.
    same(&reader.join("other"), b"other", &carol);
    write_through(&dir.join("file"), b"while it is silent").expect("on the other peers");
    same(&reader.join("file"), b"while it is silent", &carol);
    same(&beside.join("file"), b"while it is silent", &bob);
    write_through(&beside.join("file"), b"by the other").expect("on the other peers");
    same(&dir.join("file"), b"by the other", &alice);
    leader.go_on();
    for (home, dir) in [(&alice, &dir), (&bob, &beside), (&carol, &reader)] {
        home.unmount(dir);
    }
}
