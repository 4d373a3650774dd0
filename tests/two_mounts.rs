//! Two mounts of one volume that change the same things at once.

use mictlan_tests::three::Three;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, Command};

const LINES: usize = 300;

/// A process that appends its lines to `log` in `dir`, each with one `write`.
fn appender(dir: &Path, word: &str, script: &str) -> Child {
    let mut command = Command::new("bash");
    command.args(["-ec", script, word]).current_dir(dir).spawn().expect("bash is there")
}

/// Every line of every writer is there once, and those of one writer in their order.
fn check(text: &str, words: &[&str], lines: usize, log: &str) {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let (word, n) = line.split_once(' ').unwrap_or_else(|| panic!("torn: {line:?}{log}"));
        assert!(words.contains(&word), "torn: {line:?}{log}");
        let next = seen.entry(word).or_default();
        assert_eq!(n.parse(), Ok(*next), "of {word}{log}");
        *next += 1;
    }
    for word in words {
        assert_eq!(seen.get(word), Some(&lines), "lines of {word}{log}");
    }
}

#[test]
fn two_mounts_that_append_to_one_file_lose_no_line_of_each_other() {
    let kept_open = "exec >> log; for n in $(seq 0 299); do echo $0 $n; done";
    let opened_again = "for n in $(seq 0 299); do echo $0 $n >> log; done";
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let (a, b) = (alice.mount("mnt"), bob.mount("mnt"));
    for script in [kept_open, opened_again] {
        File::create(a.join("log")).expect("made");
        let writers = [appender(&a, "one", script), appender(&b, "other", script)];
        for mut writer in writers {
            assert!(
                writer.wait().expect("it was started").success(),
                "{}{}",
                alice.log(),
                bob.log()
            );
        }
        for dir in [&a, &b] {
            let text = fs::read_to_string(dir.join("log")).expect("readable");
            check(&text, &["one", "other"], LINES, &alice.log());
        }
    }
    bob.unmount(&b);
    let text = fs::read_to_string(a.join("log")).expect("readable");
    check(&text, &["one", "other"], LINES, &alice.log());
}

#[test]
fn lines_of_a_killed_mount_come_back_behind_those_that_were_appended_since() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let append = |dir: &Path, word: &str| {
        for n in 0..LINES {
            let log = File::options().append(true).open(dir.join("log"));
            log.and_then(|mut log| writeln!(log, "{word} {n}")).expect("appended");
        }
    };
    let dir = alice.mount("mnt");
    let log = File::create(dir.join("log")).expect("made");
    // SAFETY: the descriptor is open as long as `log` lives.
    assert_eq!(unsafe { libc::fsync(log.as_raw_fd()) }, 0, "it is committed");
    drop(log);
    // Without a majority nothing more is committed: the lines are in the journal alone.
    three.peers[1].kill();
    three.peers[2].kill();
    append(&dir, "killed");
    alice.kill_daemon(&dir);
    three.peers[1].serve_until("serving");
    three.peers[2].serve_until("serving");
    let other = bob.mount("mnt");
    append(&other, "since");
    bob.unmount(&other);
    let dir = alice.mount("mnt");
    let text = fs::read_to_string(dir.join("log")).expect("readable");
    check(&text, &["killed", "since"], LINES, &alice.log());
    assert!(text.starts_with("since 0\n"), "what was committed keeps its place");
}
