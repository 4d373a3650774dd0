//! A key that may read a volume and not change it: it mounts, reads, and every change is refused
//! with its reason; what it wrote while it might waits until it may again.

use mictlan_tests::harness::Home;
use mictlan_tests::three::{Three, noise, write_through};
use std::fs::{self, File};
use std::path::Path;

fn errno<T>(done: std::io::Result<T>) -> Option<i32> {
    done.err().and_then(|error| error.raw_os_error())
}

fn problem(home: &Home, code: &str) -> Option<serde_json::Value> {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list").clone();
    problems.into_iter().find(|problem| problem["code"] == code)
}

fn changes_are_refused(dir: &Path) {
    assert_eq!(errno(File::create(dir.join("mine"))), Some(libc::EROFS));
    assert_eq!(errno(fs::remove_file(dir.join("theirs"))), Some(libc::EROFS));
    assert_eq!(errno(File::options().append(true).open(dir.join("theirs"))), Some(libc::EROFS));
}

#[test]
fn a_reader_mounts_and_reads_and_nothing_it_tries_is_in_anybodys_way() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount("mnt");
    write_through(&dir.join("theirs"), b"content").expect("written");
    let bob = Home::new();
    bob.ok(&["join", &three.invite(&["--role", "reader"]), "--name", "bob"]);
    let said = {
        let dir = bob.empty("mnt");
        let mounted = bob.run(&["mount", dir.to_str().expect("text")]);
        assert!(mounted.status.success(), "{mounted:?}");
        bob.adopt(dir);
        String::from_utf8(mounted.stderr).expect("text")
    };
    assert!(said.contains("mounted read-only") && said.contains("--role writer"), "{said}");
    let dir = bob.path().join("mnt");
    for _ in 0..2 {
        assert_eq!(fs::read(dir.join("theirs")).expect("it reads"), b"content");
        changes_are_refused(&dir);
        let told = problem(&bob, "reader").expect("status says why");
        assert!(!told["severe"].as_bool().expect("whether"), "{told}");
        bob.unmount(&dir);
        bob.mount("mnt");
    }
    let put = bob.run(&["put", "/etc/hostname", "/hostname"]);
    assert_eq!(put.status.code(), Some(7), "{put:?}");
    let said = String::from_utf8(put.stderr).expect("text");
    assert!(
        said.contains("may read volume main") && said.contains("nothing was changed"),
        "{said}"
    );
    assert!(problem(&bob, "journal-waits").is_none(), "nothing of it waits anywhere");
}

#[test]
fn what_a_writer_wrote_who_may_only_read_now_waits_until_he_may_again() {
    let three = Three::start();
    let owner = &three.peers[0].home;
    let bob = three.user("bob");
    let dir = bob.mount("mnt");
    write_through(&dir.join("theirs"), b"content").expect("written");
    // Without a majority nothing is committed, so what is closed is in the journal alone.
    let away = &three.peers[1..];
    away.iter().for_each(|peer| peer.hang());
    fs::write(dir.join("late"), b"late").expect("it is acknowledged from the journal");
    bob.kill_daemon(&dir);
    away.iter().for_each(|peer| peer.go_on());
    owner.ok(&["member", "rm", "bob"]);
    owner.ok(&["member", "add", "bob", "--role", "reader"]);

    let dir = bob.mount("mnt");
    assert_eq!(fs::read(dir.join("theirs")).expect("it reads"), b"content");
    changes_are_refused(&dir);
    assert!(problem(&bob, "reader").is_some() && problem(&bob, "journal-waits").is_some());
    bob.unmount(&dir);
    owner.ok(&["member", "add", "bob", "--role", "writer"]);
    let dir = bob.mount("mnt");
    assert_eq!(fs::read(dir.join("late")).expect("nothing of it is lost"), b"late");
    assert!(problem(&bob, "journal-waits").is_none());
}

/// Every wrap of the volume's secrets: for whom, and whether those of content are inside.
fn wraps(dir: &Path) -> Vec<(String, bool)> {
    let records = fs::read_to_string(dir.join("ledger/records/000/000/000.ndjson"));
    let records = records.expect("the ledger's records");
    let records = records.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    records
        .filter(|record: &serde_json::Value| record["p"]["kind"] == "id.wrap")
        .map(|record| {
            let body = &record["p"]["body"];
            let member = body["member"].as_str().expect("a name");
            (member.to_owned(), body["data"].as_bool().expect("whether"))
        })
        .collect()
}

#[test]
fn an_auditor_comes_in_by_an_invite_checks_everything_and_reads_no_content() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount("mnt");
    write_through(&dir.join("small"), b"content").expect("written");
    write_through(&dir.join("large"), &noise(1, 3 << 20)).expect("written");
    alice.unmount(&dir);
    let dave = Home::new();
    let said = dave.ok(&["join", &three.invite(&["--role", "auditor"]), "--name", "dave"]);
    assert!(said.contains("next    mictlan verify --replay"), "{said}");

    let listed = dave.ok(&["ls", "-l", "/"]);
    assert!(listed.contains("small") && listed.contains(&(3 << 20).to_string()), "{listed}");
    let out = dave.empty("out");
    for name in ["small", "large"] {
        let got = dave.run(&["get", &format!("/{name}"), out.to_str().expect("text")]);
        let said = String::from_utf8(got.stderr).expect("text");
        assert_eq!(got.status.code(), Some(10), "{said}");
        let words = [&format!("/{name}: "), "role auditor", "no content"];
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
    assert_eq!(fs::read_dir(&out).expect("there").count(), 0, "nothing is left of it");
    let good = |said: String| assert!(said.contains("good: ") && !said.contains("BAD"), "{said}");
    good(dave.ok(&["ledger", "verify"]));
    good(dave.ok(&["verify", "--replay"]));

    let dir = dave.mount("mnt");
    assert_eq!(fs::metadata(dir.join("large")).expect("seen").len(), 3 << 20);
    assert_eq!(errno(fs::read(dir.join("small"))), Some(libc::EACCES));
    let wraps = wraps(&dir);
    let [.., invites, own] = &wraps[..] else { panic!("{wraps:?}") };
    assert!(invites.0.starts_with("invite-") && own.0 == "dave", "{wraps:?}");
    assert!(!invites.1 && !own.1, "content's secrets were wrapped for an auditor: {wraps:?}");
}
