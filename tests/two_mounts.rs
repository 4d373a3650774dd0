//! Two mounts of one volume that change the same things at once.

use mictlan::id::SessionId;
use mictlan_tests::files::close;
use mictlan_tests::forger;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, files};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

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
    // How many lines were acknowledged, which `close` does: a lease may run out before the last.
    let append = |dir: &Path, word: &str| {
        let line = |n: &usize| {
            let log = File::options().append(true).open(dir.join("log"));
            let mut log = log.expect("opened");
            writeln!(log, "{word} {n}").expect("taken");
            close(log).is_ok()
        };
        (0..LINES).take_while(line).count()
    };
    let dir = alice.mount("mnt");
    let log = File::create(dir.join("log")).expect("made");
    // SAFETY: the descriptor is open as long as `log` lives.
    assert_eq!(unsafe { libc::fsync(log.as_raw_fd()) }, 0, "it is committed");
    drop(log);
    // Nobody is there to take a commit, not even to keep it for later: the lines are in the journal
    // alone.
    three.peers.iter().for_each(|peer| peer.kill());
    let killed = append(&dir, "killed");
    alice.kill_daemon(&dir);
    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let other = bob.mount("mnt");
    assert_eq!(append(&other, "since"), LINES, "{}", bob.log());
    bob.unmount(&other);
    let dir = alice.mount("mnt");
    let text = fs::read_to_string(dir.join("log")).expect("readable");
    let (old, new): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.starts_with("killed "));
    check(&new.join("\n"), &["since"], LINES, &alice.log());
    // What was refused at the end may be there all the same.
    assert!((killed..=killed + 1).contains(&old.len()), "{} of {killed}{}", old.len(), alice.log());
    check(&old.join("\n"), &["killed"], old.len(), &alice.log());
    assert!(text.starts_with("since 0\n"), "what was committed keeps its place");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program's own rename is what is tested")]
fn what_another_mount_made_impossible_is_kept_in_bytes_and_in_words() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    fs::write(dir.join("moved"), b"").expect("made");
    fs::create_dir(dir.join("sub")).expect("made");
    fs::write(dir.join("sub/shut"), b"").expect("made");
    let root = File::open(&dir).expect("a directory");
    // SAFETY: the descriptor is open as long as `root` lives.
    assert_eq!(unsafe { libc::fsync(root.as_raw_fd()) }, 0, "all is committed");
    drop(root);
    // Nobody is there to take a commit: what follows is in the journal alone.
    three.peers.iter().for_each(|peer| peer.kill());
    fs::rename(dir.join("moved"), dir.join("renamed")).expect("acknowledged");
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(dir.join("sub/shut"), mode).expect("acknowledged");
    fs::write(dir.join("new"), b"alice's").expect("acknowledged");
    alice.kill_daemon(&dir);
    three.peers.iter().for_each(|peer| peer.serve_until("serving"));
    let other = bob.mount("mnt");
    fs::remove_file(other.join("moved")).expect("bob is alone");
    fs::remove_file(other.join("sub/shut")).expect("bob is alone");
    fs::write(other.join("new"), b"bob's").expect("bob is alone");
    bob.unmount(&other);

    let dir = alice.mount("mnt");
    assert_eq!(fs::read(dir.join("new")).expect("bob was first"), b"bob's");
    let kept = |start: &str| {
        let names = fs::read_dir(&dir).expect("readable").map(|entry| entry.expect("a name"));
        let found = names
            .map(|entry| entry.path())
            .find(|path| path.file_name().expect("named").to_string_lossy().starts_with(start));
        let found = found.unwrap_or_else(|| panic!("no {start}{}", alice.log()));
        fs::read_to_string(found).expect("readable")
    };
    assert_eq!(kept("new.recovered-"), "alice's");
    let list = kept("operations.recovered-");
    let said: Vec<&str> = list.lines().collect();
    assert_eq!(said.len(), 3, "{list}");
    assert_eq!(said[0], "rename /moved to /renamed: no such file or directory");
    assert!(said[1].starts_with("set mode 0600 of /inode-"), "{list}");
    assert_eq!(said[2], "make the file /new: the name exists already");
}

/// The session of a user's only mount.
fn session(home: &Home) -> SessionId {
    let journals = files(&home.path().join("home/state/journals"));
    let mut names = journals.iter().filter_map(|(file, _)| file.parent()?.file_name()?.to_str());
    SessionId(names.next().expect("a journal").parse().expect("a session's number"))
}

#[test]
fn in_the_name_of_another_s_session_nobody_takes_leases_back() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    let session = session(&alice);
    let refused = forger::barrier(&bob, session).expect_err("it is not his");
    assert!(refused.contains("this key may not do that"), "{refused}");
    forger::barrier(&alice, session).expect("it is hers");
    alice.unmount(&dir);
}

/// A call on a thread of its own, which has begun to wait when this returns.
fn waiting<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let (begun, when) = mpsc::channel();
    let thread = thread::spawn(move || {
        // SAFETY: it takes nothing and always succeeds.
        begun.send(unsafe { libc::gettid() }).expect("somebody listens");
        call()
    });
    let id = when.recv().expect("it begins");
    wait_until("the call waits", || {
        let state = fs::read_to_string(format!("/proc/self/task/{id}/stat")).unwrap_or_default();
        thread.is_finished() || state.contains(") S ") || state.contains(") D ")
    });
    thread
}

#[test]
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn what_a_flush_had_taken_when_it_ran_out_of_time_is_taken_again() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount_with("mnt", &["-o", "deadline=9"]);
    let other = bob.mount("mnt");
    wait_until("both work on the volume", || alice.is_beside_others());
    let made = |name: &str| File::create(dir.join(name)).expect("made");
    let (mut file, held) = (made("a"), made("held"));
    let held_later: Vec<File> = (0..20).map(|n| made(&format!("later-{n}"))).collect();
    file.write_all(b"first, ").and_then(|()| file.sync_all()).expect("committed");
    let root = File::open(&dir).expect("it opens");
    // Nobody answers. A change waits until its deadline, and holds its file; the flush has taken the
    // bytes of `a` and waits for the file that is held, then for those whose changes began after it.
    three.peers.iter().for_each(|peer| peer.hang());
    // From now on a look shows what is known here, and does not wait.
    assert_eq!(file.metadata().expect("its size").len(), 7);
    let held = waiting(move || held.set_len(10));
    file.write_all(b"second").expect("in memory");
    let flush = waiting(move || root.sync_all());
    let held_later = held_later.into_iter().map(|held| waiting(move || held.set_len(10)));
    let held_later: Vec<_> = held_later.collect();
    let refused = flush.join().expect("no panic").expect_err("nobody answers");
    assert_eq!(refused.raw_os_error(), Some(libc::ETIMEDOUT), "{refused}{}", alice.log());
    for call in held_later.into_iter().chain([held]) {
        // They were only to be in the way, however they ended.
        let _ended = call.join().expect("no panic");
    }
    three.peers.iter().for_each(|peer| peer.go_on());
    wait_until("it is committed", || file.sync_all().is_ok());
    wait_until("others see it", || {
        fs::read(other.join("a")).is_ok_and(|seen| seen == b"first, second")
    });
}
