//! `-o ro,coherent`: a reader sees what others have closed, or hears that it cannot be known.

use mictlan_tests::files::names;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::Three;
use std::fs::{self, File, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const OPTIONS: &str = "ro,coherent,deadline=30";

/// Somebody who may read and not write.
fn reader(three: &Three) -> Home {
    let home = Home::new();
    let code = three.invite(&["--role", "reader"]);
    home.ok(&["join", &code, "--name", "bob"]);
    home
}

fn errno<T>(done: std::io::Result<T>) -> Option<i32> {
    done.err().and_then(|error| error.raw_os_error())
}

/// What says on the reader's disk that sessions are open.
fn notes(home: &Home) -> Vec<PathBuf> {
    let below = |dir: PathBuf| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    below(home.path().join("home/state/readers")).into_iter().flat_map(below).collect()
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program's own rename is what is tested")]
fn a_coherent_reader_sees_at_once_what_a_writer_has_closed() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), reader(&three));
    let (dir, seen) = (alice.mount("mnt"), bob.mount_with("mnt", &["-o", OPTIONS]));
    fs::create_dir(dir.join("sub")).expect("made");
    for n in 0..20 {
        let (old, new) = (format!("sub/f{n}"), format!("sub/g{n}"));
        assert_eq!(fs::read(seen.join(&old)).expect_err("none").kind(), ErrorKind::NotFound);
        fs::write(dir.join(&old), format!("first {n}")).expect("written");
        assert_eq!(fs::read_to_string(seen.join(&old)).expect("there"), format!("first {n}"));
        fs::write(dir.join(&old), format!("the second {n}")).expect("written");
        assert_eq!(fs::metadata(seen.join(&old)).expect("there").len() as usize, {
            format!("the second {n}").len()
        });
        assert_eq!(fs::read_to_string(seen.join(&old)).expect("there"), format!("the second {n}"));
        fs::set_permissions(dir.join(&old), Permissions::from_mode(0o640)).expect("changed");
        let mode = fs::metadata(seen.join(&old)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        fs::rename(dir.join(&old), dir.join(&new)).expect("renamed");
        assert_eq!(names(&seen.join("sub")), [format!("g{n}")]);
        assert!(!seen.join(&old).exists() && seen.join(&new).exists());
        fs::remove_file(dir.join(&new)).expect("removed");
        assert_eq!(names(&seen.join("sub")), [""; 0]);
    }
    assert_eq!(errno(File::create(seen.join("sub/own"))), Some(libc::EROFS));
    bob.unmount(&seen);
    assert!(notes(&bob).is_empty(), "its session is closed");
}

#[test]
fn a_coherent_reader_slows_a_writer_only_while_it_looks() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), reader(&three));
    let (dir, seen) = (alice.mount("mnt"), bob.mount_with("mnt", &["-o", OPTIONS]));
    fs::write(dir.join("file"), b"before").expect("written");
    wait_until("status says that the writer waits for others", || {
        assert_eq!(fs::read(seen.join("file")).expect("there"), b"before");
        alice.is_beside_others()
    });
    wait_until("nobody looks, and it has its lease back", || !alice.is_beside_others());
    fs::write(dir.join("file"), b"behind a lease").expect("written");
    assert_eq!(fs::read(seen.join("file")).expect("there"), b"behind a lease");
    let left = notes(&bob);
    assert_eq!(left.len(), 1);
    bob.kill_daemon(&seen);
    bob.mount_with("mnt", &["-o", OPTIONS]);
    wait_until("the killed one's session is closed", || !left[0].exists());
    fs::write(dir.join("file"), b"after").expect("written");
    assert_eq!(fs::read(seen.join("file")).expect("there"), b"after");
    assert_eq!(notes(&bob).len(), 1);
}

#[test]
fn a_coherent_reader_shows_nothing_old_when_the_voters_are_away() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), reader(&three));
    let dir = alice.mount("mnt");
    let seen = bob.mount_with("mnt", &["-o", "ro,coherent,deadline=20"]);
    fs::write(dir.join("file"), b"file").expect("written");
    assert_eq!(fs::read(seen.join("file")).expect("there"), b"file");
    three.peers[1].kill();
    three.peers[2].kill();
    let file = seen.join("file");
    let looks = std::thread::scope(|looks| {
        let stat = looks.spawn(|| errno(fs::metadata(&file)));
        let open = looks.spawn(|| errno(File::open(&file)));
        let list =
            looks.spawn(|| errno(fs::read_dir(&seen).and_then(|mut all| all.next().transpose())));
        [stat, open, list].map(|look| look.join().expect("no panic"))
    });
    assert_eq!(looks, [Some(libc::ETIMEDOUT); 3]);
    assert!(fs::metadata(&seen).expect("never waits").is_dir());
    let other = bob.empty("other");
    let other = other.to_str().expect("a plain path");
    let refused = bob.run(&["mount", "-o", "ro,coherent,deadline=5", other]);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("without `coherent`"), "{said}");
    three.peers[1].serve_until("serving");
    three.peers[2].serve_until("serving");
    wait_until("it answers again", || fs::read(seen.join("file")).is_ok_and(|b| b == b"file"));
}

#[test]
fn what_a_mount_has_closed_is_there_for_get_and_ls_at_once() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), reader(&three));
    let dir = alice.mount("mnt");
    for n in 0..3 {
        // Alone on the volume it holds its lease, and what it closes is not committed at once.
        wait_until("the writer is alone", || !alice.is_beside_others());
        fs::write(dir.join("file"), format!("version {n}")).expect("written");
        assert_eq!(bob.ok(&["get", "/file", "-"]), format!("version {n}"));
        wait_until("the writer is alone", || !alice.is_beside_others());
        fs::write(dir.join(format!("new-{n}")), b"").expect("written");
        let listed = bob.ok(&["ls", "--json", "/"]);
        assert!(listed.contains(&format!("new-{n}")), "{listed}");
        assert!(!listed.contains("behind"), "there is nothing to say: {listed}");
    }
    assert!(notes(&bob).is_empty(), "each closed its session");
}
