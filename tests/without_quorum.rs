//! A mount that begins while most voters are away, or that hears nothing: what it shows and says.

use mictlan_tests::harness::{Home, assert_same_tree, wait_until};
use mictlan_tests::three::Three;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

fn tree() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../mount"))
}

/// The value of an extended attribute, as text.
fn attribute(path: &Path, name: &str) -> String {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).expect("a plain path");
    let name = std::ffi::CString::new(name).expect("a plain name");
    let mut value = vec![0u8; 65_536];
    // SAFETY: both strings end in NUL, and the buffer is as long as it is said to be.
    let len = unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    assert!(len >= 0, "{}", std::io::Error::last_os_error());
    value.truncate(len as usize);
    String::from_utf8(value).expect("text")
}

fn status(home: &Home) -> serde_json::Value {
    serde_json::from_slice(&home.run(&["status", "--json"]).stdout).expect("one JSON object")
}

fn codes(home: &Home) -> Vec<String> {
    let report = status(home);
    let problems = report["problems"].as_array().expect("a list");
    problems.iter().map(|problem| problem["code"].as_str().expect("text").to_owned()).collect()
}

/// Everything ordered is under a checkpoint that each peer has.
fn wait_published(three: &Three, home: &Home) {
    wait_until("all is under a checkpoint", || {
        let records = status(home)["records"].as_u64().unwrap_or(u64::MAX);
        three.peers.iter().all(|peer| peer.published() == records)
    });
}

fn errno(done: std::io::Result<File>) -> Option<i32> {
    done.err().and_then(|error| error.raw_os_error())
}

#[test]
fn without_a_quorum_a_mount_comes_up_read_only_with_all_that_is_proven() {
    let three = Three::start();
    let (alice, bob, carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    let dir = alice.mount("mnt");
    let done = Command::new("cp").arg("-a").args([tree(), &dir.join("tree")]).status();
    assert!(done.expect("cp is installed").success());
    alice.unmount(&dir);
    wait_published(&three, &alice);
    for peer in &three.peers {
        wait_until("every peer has a copy", || peer.stored_bytes() > 0);
    }
    three.peers[1].kill();
    three.peers[2].kill();

    for (home, options) in [(&bob, "rw"), (&carol, "ro")] {
        let dir = home.mount_with("mnt", &["-o", options]);
        assert!(home.log().contains("mounted read-only"), "{options}: it says so{}", home.log());
        assert_same_tree(tree(), &dir.join("tree"));
        assert_eq!(errno(File::create(dir.join("new"))), Some(libc::EROFS), "{options}");
        let known = dir.join("tree/lib.rs");
        assert_eq!(errno(File::options().append(true).open(known)), Some(libc::EROFS));
        wait_until("status tells it", || {
            codes(home).iter().any(|code| code == "mounted-without-quorum")
        });
        assert!(attribute(&dir, "user.mictlan.view").contains("mounted-without-quorum"));
        assert_same_tree(tree(), &dir.join("tree"));
    }
    assert!(bob.log().contains("unmount and mount again"), "a writer is told{}", bob.log());

    three.peers[1].serve_until("serving");
    three.peers[2].serve_until("serving");
    let dir = bob.path().join("mnt");
    bob.unmount(&dir);
    let dir = bob.mount("mnt");
    fs::write(dir.join("new"), b"new").expect("written");
    // The one that stayed goes on to follow what is proven.
    let stayed = carol.path().join("mnt/new");
    wait_until("it follows", || fs::read(&stayed).is_ok_and(|bytes| bytes == b"new"));
}

#[test]
fn without_a_quorum_get_and_ls_show_what_is_proven_and_say_of_when_it_is() {
    let three = Three::start();
    let alice = three.user("alice");
    let file = alice.path().join("file");
    fs::write(&file, b"content").expect("written");
    alice.ok(&["put", file.to_str().expect("a plain path"), "/file"]);
    wait_published(&three, &alice);
    for peer in &three.peers {
        wait_until("every peer has a copy", || peer.stored_bytes() > 0);
    }
    three.peers[1].kill();
    three.peers[2].kill();

    let got = alice.run(&["get", "/file", "-"]);
    let said = String::from_utf8_lossy(&got.stderr).into_owned();
    assert!(got.status.success() && got.stdout == b"content", "{said}");
    let words = "warning: a majority of the voters does not answer: this is the volume as of 20";
    assert!(said.contains(words), "{said}");
    let listed = alice.run(&["ls", "--json", "/"]);
    let line: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("one name");
    assert_eq!(line["name"], "file");
    let as_of = line["behind"]["as_of"].as_str().expect("a time");
    assert!(said.contains(&as_of[..11]), "{as_of}: {said}");
    let what = line["behind"]["what"].as_str().expect("text");
    assert!(what.contains(as_of) && what.contains("what was changed since is missing"), "{what}");
    let out = alice.path().join("out");
    let got = alice.run(&["get", "--json", "/file", out.to_str().expect("a plain path")]);
    let got: serde_json::Value = serde_json::from_slice(&got.stdout).expect("one object");
    assert_eq!(got["files"], 1);
    assert!(got["behind"]["as_of"].is_string(), "{got}");
}

#[test]
fn a_mount_that_hears_nothing_of_the_log_says_so_and_takes_it_back() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let writer = alice.mount("mnt");
    fs::write(writer.join("file"), b"file").expect("written");
    let reader = bob.mount_with("mnt", &["-o", "ro"]);
    let mounts = [(&alice, &writer), (&bob, &reader)];
    let tells = |home: &Home, dir: &Path| {
        let told = codes(home).iter().any(|code| code == "stale-view");
        told && attribute(dir, "user.mictlan.view").contains("stale-view")
    };
    for (home, dir) in mounts {
        wait_until("a mount that hears the log is fine", || !tells(home, dir));
    }
    for peer in &three.peers {
        peer.kill();
    }
    for (home, dir) in mounts {
        wait_until("it says that its view is stale", || tells(home, dir));
    }
    for peer in &three.peers {
        peer.serve_until("serving");
    }
    for (home, dir) in mounts {
        wait_until("it takes it back", || {
            let still = codes(home).iter().any(|code| code == "stale-view");
            !still && !attribute(dir, "user.mictlan.view").contains("stale-view")
        });
    }
}
