//! More of the log behind a volume's newest root than one page: whoever comes then reads it all.

use mictlan_tests::three::{Three, noise, write_through};
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Each carries its bytes with it; a page ends at 4 MiB.
const COMMITS: u64 = 700;

fn set_attribute(path: &Path, value: &[u8]) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no zero in it");
    let (name, data) = (c"user.noise".as_ptr(), value.as_ptr().cast());
    // SAFETY: two strings that end with zero, and `value` with its length.
    let done = unsafe { libc::setxattr(path.as_ptr(), name, data, value.len(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_volume_with_many_pages_of_log_behind_its_root_is_open_to_everybody() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount_with("mnt", &["-o", "deadline=60"]);
    write_through(&dir.join("known"), b"content").expect("written");
    for n in 0..COMMITS {
        // An attribute is in the commit itself.
        set_attribute(&dir.join("known"), &noise(n, 12_000));
        write_through(&dir.join("small"), b"content").expect("committed");
    }
    write_through(&dir.join("last"), b"content").expect("committed");
    alice.kill_daemon(&dir);

    let bob = three.user("bob");
    let seen = bob.ok(&["ls", "/"]);
    assert!(seen.contains("known") && seen.contains("last"), "{seen}");
    // What voters read from their files comes in pages as well.
    for peer in &three.peers {
        peer.kill();
        peer.serve_until("serving");
    }
    for home in [&bob, &alice] {
        let dir = home.mount_with("mnt", &["-o", "deadline=60"]);
        assert_eq!(fs::read(dir.join("last")).expect("it is there"), b"content");
        fs::write(dir.join("new"), b"new").expect("written");
        home.unmount(&dir);
    }
}
