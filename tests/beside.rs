//! Several commands and mounts of one user on a network whose only peer runs inside one of them.

use mictlan_tests::harness::{Home, wait_until};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

fn write_synced(path: &Path, bytes: &[u8], home: &Home) {
    let done = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        // SAFETY: the descriptor is open as long as `file` lives.
        match unsafe { libc::fsync(file.as_raw_fd()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    });
    done.unwrap_or_else(|error| panic!("{}: {error}{}", path.display(), home.log()));
}

/// What `ls` lists, in the order of names; a volume has its own.
fn listed(home: &Home, place: &str) -> Vec<String> {
    let mut names: Vec<String> = home.ok(&["ls", place]).lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn every_verb_works_beside_a_mount_that_is_its_own_peer() {
    let home = Home::new();
    let dir = home.mount("mnt");
    fs::write(dir.join("from-mount"), b"written in the mount").expect("written");
    let file = home.path().join("file");
    fs::write(&file, vec![7; 3 << 20]).expect("written");
    home.ok(&["put", text(&file), "/from-put"]);
    assert_eq!(listed(&home, "/"), ["from-mount", "from-put"]);
    assert_eq!(fs::read(dir.join("from-put")).expect("seen in the mount"), vec![7; 3 << 20]);
    let out = home.path().join("out");
    home.ok(&["get", "/from-mount", text(&out)]);
    assert_eq!(fs::read(&out).expect("a file"), b"written in the mount");
    home.ok(&["rm", "/from-put"]);
    assert!(!dir.join("from-put").exists(), "removed for the mount too");

    let said = home.ok(&["status"]);
    for part in ["home: works\n", "1 of 1 answer", "home:main on "] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    assert!(home.ok(&["status", text(&dir)]).contains("home: works\n"));
    assert!(home.ok(&["peer", "ls", "--json"]).contains("\"answers\": true"));
    assert!(home.ok(&["df"]).contains("each byte kept 1 times"));
    home.ok(&["volume", "make", "photos"]);
    assert!(home.ok(&["volume", "ls"]).contains("photos"));
    assert!(home.ok(&["member", "ls"]).contains("default"));
    home.ok(&["ledger", "append", "--topic", "test", "{\"a\":1}"]);
    home.ok(&["ledger", "verify"]);

    let socket = home.path().join("home/run/home.sock");
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(&home.path().join("home/run")), 0o700);
}

#[test]
fn when_the_mount_that_was_the_peer_ends_another_goes_on_as_the_peer() {
    let home = Home::new();
    let first = home.mount("first");
    home.ok(&["volume", "make", "photos"]);
    let photos = home.mount_with("photos", &["home:photos"]);
    let second = home.mount("second");
    write_synced(&first.join("a"), b"a", &home);
    write_synced(&photos.join("p"), b"p", &home);
    assert_eq!(fs::read(second.join("a")).expect("of the first mount"), b"a");
    home.unmount(&first);
    write_synced(&second.join("b"), b"b", &home);
    write_synced(&photos.join("q"), b"q", &home);

    // Whichever is the peer now dies without a word; the other one takes its place.
    home.kill_daemon(&photos);
    write_synced(&second.join("c"), b"c", &home);
    assert_eq!(listed(&home, "/"), ["a", "b", "c"]);
    let photos = home.mount_with("photos", &["home:photos"]);
    home.kill_daemon(&second);
    write_synced(&photos.join("r"), b"r", &home);
    assert_eq!(listed(&home, "photos:/"), ["p", "q", "r"]);
    let second = home.mount("second");
    for name in ["a", "b", "c"] {
        assert_eq!(fs::read(second.join(name)).expect("kept"), name.as_bytes());
    }
}

#[test]
fn two_first_mounts_at_once_make_one_network() {
    let home = Home::new();
    let dirs: Vec<_> = ["one", "two"].map(|name| home.adopt(home.empty(name))).into();
    let started: Vec<_> = dirs
        .iter()
        .map(|dir| home.command(&["mount", text(dir)]).spawn().expect("the program starts"))
        .collect();
    for mut child in started {
        assert!(child.wait().expect("a child").success(), "{}", home.log());
    }
    fs::write(dirs[0].join("file"), b"x").expect("written");
    wait_until("the other sees it", || dirs[1].join("file").exists());
}
