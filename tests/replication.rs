//! P1 and P5 with three peers as processes: any one may vanish, and nothing acknowledged is lost.

use mictlan_tests::harness::{Home, assert_same_tree, signal, wait_until};
use mictlan_tests::three::{Three, damage, noise, write_through};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../src"))
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp is installed");
    assert!(done.success());
}

fn mount(home: &Home) -> PathBuf {
    home.mount_with("mnt", &["-o", "deadline=30"])
}

#[test]
fn a_tree_written_to_three_peers_is_there_on_another_machine() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    copy(tree(), &dir.join("src"));
    let large = noise(1, 9 << 20);
    write_through(&dir.join("large"), &large).expect("on its peers");
    assert_same_tree(tree(), &dir.join("src"));
    for peer in &three.peers {
        wait_until("every peer has a copy", || peer.stored_bytes() >= large.len() as u64);
    }
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = mount(&bob);
    assert_same_tree(tree(), &dir.join("src"));
    assert!(fs::read(dir.join("large")).expect("readable") == large);
}

#[test]
fn any_one_peer_may_be_killed_while_files_are_written() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    for (round, victim) in three.peers.iter().enumerate() {
        let name = |n: usize| dir.join(format!("{round}-{n}"));
        let content = |n: usize| noise((round * 100 + n) as u64, 300_000);
        for n in 0..20 {
            if n == 5 {
                victim.kill();
            }
            let written = write_through(&name(n), &content(n));
            written
                .unwrap_or_else(|error| panic!("round {round}, file {n}: {error}{}", alice.log()));
        }
        for n in 0..20 {
            assert!(fs::read(name(n)).expect("readable") == content(n), "round {round}, file {n}");
        }
        victim.serve();
        three.wait_level(&[0, 1, 2]);
    }
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = mount(&bob);
    let names = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("an entry"));
    // Beside them the root lists `ledger`, which is no file of the volume.
    let written = names.filter(|entry| entry.file_name() != "ledger");
    assert_eq!(written.count(), 60);
}

#[test]
fn settings_of_a_volume_hold_for_what_is_written_from_then_on() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    let stored = || three.peers.iter().map(|peer| peer.stored_bytes()).sum::<u64>();
    write_through(&dir.join("before"), &[b'a'; 4 << 20]).expect("on its peers");
    let before = stored();
    assert!(before < 4 << 20, "{before} bytes for what compresses well");
    let set = ["volume", "set", "main", "--replicas", "2", "--compress", "off"];
    let refused = alice.run(&set);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("nothing was changed") && said.contains("its owner's"), "{said}");
    three.peers[0].home.ok(&set);
    let copies = || {
        Command::new("getfattr")
            .args(["--only-values", "-n", "user.mictlan.replicas"])
            .arg(dir.join("before"))
            .output()
            .expect("getfattr runs")
    };
    wait_until("the running mount knows", || copies().stdout == b"2");
    write_through(&dir.join("after"), &[b'b'; 4 << 20]).expect("on its peers");
    wait_until("two copies are made", || stored() >= before + (8 << 20));
    alice.unmount(&dir);
    assert!(stored() < before + (9 << 20), "no third one: {} bytes", stored() - before);
    let listed = alice.ok(&["volume", "ls"]);
    assert!(listed.contains("2 copies, not compressed"), "{listed}");
}

/// What `status` says under a code, if it does.
fn problem(home: &Home, code: &str) -> Option<serde_json::Value> {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list").clone();
    problems.into_iter().find(|problem| problem["code"] == code)
}

#[test]
fn copies_that_are_owed_show_in_status_until_they_are_made() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    let owed = || problem(&alice, "copies-owed");
    three.peers[2].kill();
    write_through(&dir.join("file"), &noise(1, 3 << 20)).expect("two of three are enough");
    wait_until("status says what is owed", || owed().is_some());
    let said = owed().expect("still")["what"].to_string();
    assert!(said.contains("not yet at all their copies"), "{said}");
    three.peers[2].serve();
    wait_until("the last copies are made", || owed().is_none());
    wait_until("and are there", || three.peers[2].stored_bytes() >= 3 << 20);
}

#[test]
fn a_mount_that_ends_makes_the_copies_that_it_owes() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    three.peers[2].kill();
    let content = noise(1, 3 << 20);
    write_through(&dir.join("file"), &content).expect("two of three are enough");
    three.peers[2].serve_until("serving");
    alice.unmount(&dir);
    let (stored, log) = (three.peers[2].stored_bytes(), alice.log());
    assert!(stored >= content.len() as u64, "{stored} bytes are there{log}");
}

#[test]
fn copies_that_a_killed_mount_owed_are_made_by_the_peers() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    three.peers[2].kill();
    let content = noise(1, 3 << 20);
    write_through(&dir.join("file"), &content).expect("two of three are enough");
    alice.kill_daemon(&dir);
    // Those that have it may have been started again since.
    for peer in &three.peers[..2] {
        peer.kill();
        peer.serve_until("serving");
    }
    wait_until("status says what is missing", || problem(&alice, "copies-missing").is_some());
    three.peers[2].serve();
    let all = content.len() as u64;
    wait_until("the others bring it what it lacks", || three.peers[2].stored_bytes() >= all);
    wait_until("and nothing is missing", || problem(&alice, "copies-missing").is_none());
}

#[test]
fn with_two_of_three_gone_reads_go_on_and_writes_fail_clearly_and_nothing_is_lost() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=5"]);
    let kept = noise(7, 2 << 20);
    write_through(&dir.join("kept"), &kept).expect("on its peers");
    for peer in &three.peers {
        wait_until("every peer has a copy", || peer.stored_bytes() >= kept.len() as u64);
    }
    three.peers[1].kill();
    three.peers[2].kill();
    assert!(fs::read(dir.join("kept")).expect("reads go on") == kept);
    let refused = write_through(&dir.join("late"), &noise(8, 2 << 20));
    let errno = refused.expect_err("no majority has it").raw_os_error();
    assert_eq!(errno, Some(libc::ETIMEDOUT), "{}", alice.log());
    three.peers[1].serve_until("serving");
    three.peers[2].serve_until("serving");
    wait_until("writes go on", || write_through(&dir.join("after"), b"after").is_ok());
    assert!(fs::read(dir.join("kept")).expect("readable") == kept);
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = mount(&bob);
    assert!(fs::read(dir.join("kept")).expect("readable") == kept);
    assert_eq!(fs::read(dir.join("after")).expect("readable"), b"after");
}

#[test]
fn a_peer_that_hangs_fills_no_memory_and_gets_its_copies_later() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=30,memory=64M"]);
    three.peers[2].hang();
    let part = 8 << 20;
    for n in 0..32 {
        let written = write_through(&dir.join(n.to_string()), &noise(n, part));
        written.unwrap_or_else(|error| panic!("file {n}: {error}{}", alice.log()));
    }
    let most = peak_memory(alice.daemon_of(&dir));
    assert!(most <= 128 << 20, "{most} bytes in memory, with a ceiling of 64 MiB");
    three.peers[2].go_on();
    let all = 32 * part as u64;
    wait_until("the peer that was away has every copy", || three.peers[2].stored_bytes() >= all);
}

/// The most bytes that a process ever had in memory, without the pages of the program file itself:
/// those of a debug build are many, the kernel can drop them, and no ceiling bounds them.
fn peak_memory(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let bytes = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("in kB");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    };
    bytes("VmHWM:") - bytes("RssFile:")
}

#[test]
fn what_was_closed_before_umount_returns_is_on_the_peers() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    copy(tree(), &dir.join("src"));
    let daemon = alice.daemon_of(&dir);
    alice.ok(&["umount", dir.to_str().expect("a plain path")]);
    // The machine, with its journal, is gone the moment after.
    signal(daemon, libc::SIGKILL);
    let bob = three.user("bob");
    let dir = mount(&bob);
    assert_same_tree(tree(), &dir.join("src"));
}

#[test]
fn a_chunk_that_is_damaged_on_one_peer_is_read_from_another() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = mount(&alice);
    let content = noise(9, 6 << 20);
    write_through(&dir.join("file"), &content).expect("on its peers");
    for peer in &three.peers {
        wait_until("every peer has a copy", || peer.stored_bytes() >= content.len() as u64);
    }
    alice.unmount(&dir);
    let bob = three.user("bob");
    damage(&three.peers[1].data().join("store"));
    // Half of the good copies are away too, so the damaged ones are asked for.
    three.peers[2].kill();
    let dir = mount(&bob);
    assert!(fs::read(dir.join("file")).expect("one good copy is enough") == content);
}
