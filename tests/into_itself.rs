//! What `put`, `get`, `ls` and `rm` refuse, and what they say of the data when they fail: a volume is
//! not copied into itself, and each verb speaks of what it itself has done.

use mictlan_tests::harness::{Home, alive, output, wait_until};
use mictlan_tests::three::files;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is in the volume, as `find` sees it.
fn listed(dir: &Path) -> String {
    let mut find = Command::new("find");
    find.arg(dir).args(["-path", "*/ledger", "-prune", "-o", "-printf", "%P %i %s\n"]);
    String::from_utf8(output(&mut find).stdout).expect("plain names")
}

/// The verb that copies a volume into itself says so, and changes nothing.
fn refused(home: &Home, dir: &Path, arguments: &[&str]) {
    let before = listed(dir);
    let output = home.run(arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", said(&output));
    for word in ["itself", "nothing was changed"] {
        assert!(said(&output).contains(word), "{arguments:?}: no {word:?}: {}", said(&output));
    }
    assert_eq!(listed(dir), before, "{arguments:?}");
}

#[test]
fn a_volume_is_not_copied_into_itself() {
    let home = Home::new();
    let dir = home.mount("mnt");
    fs::create_dir_all(dir.join("a/b")).expect("made");
    fs::write(dir.join("a/file"), b"content").expect("written");
    // The same volume by another way, below a directory of this machine.
    let above = home.empty("above");
    home.mount_with("above/mnt", &["-o", "ro"]);
    let (root, a, b) = (text(&dir), dir.join("a"), dir.join("a/b"));
    let (a, b, file) = (text(&a), text(&b), dir.join("a/file"));
    for arguments in [
        ["put", root, "/"],
        ["put", root, "/a/b"],
        ["put", a, "/a/b"],
        ["put", a, "/a/new"],
        ["put", a, "/"],
        ["put", text(&file), "/a"],
        ["put", text(&above), "/"],
        ["get", "/", a],
        ["get", "/a", b],
        ["get", "/a", root],
        ["get", "/a/file", a],
    ] {
        refused(&home, &dir, &arguments);
    }
    home.ok(&["put", a, "/c"]);
    home.ok(&["get", "/c", text(&dir.join("d"))]);
    for copy in ["c", "d"] {
        assert_eq!(fs::read(dir.join(copy).join("file")).expect("copied"), b"content");
    }
    // Another network with the same name, and a volume with the same name in it.
    let other = Home::new();
    other.ok(&["put", a, "/"]);
    assert_eq!(other.run(&["get", "/a/file", "-"]).stdout, b"content");
}

#[test]
fn an_error_says_what_its_own_verb_has_done() {
    let home = Home::new();
    let file = home.path().join("file");
    fs::write(&file, b"x").expect("written");
    let out = home.path().join("out");
    for (arguments, words) in [
        (&["ls", "/missing"][..], "nothing was changed"),
        (&["get", "/missing", text(&out)], "what was got before it is whole"),
        (&["get", "/missing", "-"], "standard output does not have all of it"),
        (&["rm", "/missing"], "what was removed before it stays removed"),
        (&["put", text(&file), "/missing/name"], "what was put before it is whole and committed"),
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(10), "{arguments:?}: {}", said(&output));
        assert!(said(&output).contains(words), "{arguments:?}: {}", said(&output));
        let speaks_of_commits = said(&output).contains("committed");
        assert_eq!(speaks_of_commits, arguments[0] == "put", "{}", said(&output));
    }
}

/// Runs a verb that would take very long, and interrupts it once it listens: what it says.
fn interrupted(home: &Home, arguments: &[&str]) -> String {
    let mut command = home.command(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let pid = child.id() as i32;
    wait_until("it listens to signals", || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = caught.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
        caught & (1 << (libc::SIGINT - 1)) != 0
    });
    mictlan_tests::harness::signal(pid, libc::SIGINT);
    wait_until("it ends", || !alive(pid));
    let ended = child.wait_with_output().expect("a child that was started");
    assert_eq!(ended.status.code(), Some(130), "{arguments:?}: {}", said(&ended));
    said(&ended)
}

#[test]
fn an_interrupted_verb_says_what_it_left_and_how_to_go_on() {
    let home = Home::new();
    let tree = home.empty("tree");
    // Much longer than it takes to hear a signal.
    let zeros = |path: &Path, mib: usize| {
        let mut file = fs::File::create(path).expect("made");
        (0..mib).for_each(|_| file.write_all(&[0; 1 << 20]).expect("written"));
    };
    zeros(&tree.join("long"), 512);
    let whole = "interrupted; what was put before is whole and committed";
    let words = interrupted(&home, &["put", text(&tree), "/"]);
    assert!(words.contains(whole) && words.contains("the same again puts all"), "{words}");
    let words = interrupted(&home, &["put", text(&tree), "/new"]);
    assert!(words.contains(whole) && words.contains("mictlan rm -r /new"), "{words}");

    let dir = home.mount("mnt");
    zeros(&dir.join("long"), 512);
    home.unmount(&dir);
    let out = home.empty("out");
    let words = interrupted(&home, &["get", "/long", text(&out)]);
    assert!(words.contains("what was got before is whole"), "{words}");
    assert!(files(&out).is_empty(), "what is not whole does not stay");
    let words = interrupted(&home, &["get", "/long", "-"]);
    assert!(words.contains("standard output does not have all of it"), "{words}");
}
