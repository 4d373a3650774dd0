//! Snapshot roots are what the commits make, and whoever holds the meta secret can find out.

use mictlan::id::{Epoch, Ino};
use mictlan::meta::inode::{InodeMerge, ModeChange};
use mictlan::meta::tag::{Fact, Facts};
use mictlan::meta::write::WriteSet;
use mictlan::seal::Kind;
use mictlan_tests::forger;
use mictlan_tests::harness::{DEADLINE, Home, wait_until};
use mictlan_tests::three::{Three, files, write_through};
use serde_json::Value;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::Path;
use std::process::Output;
use std::time::Instant;

fn json(output: &Output) -> Value {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn status(home: &Home) -> Value {
    json(&home.run(&["status", "--json"]))
}

/// The last record that the newest root covers.
fn newest_root(home: &Home) -> Option<u64> {
    status(home)["volumes"][0]["snapshot"].as_u64()
}

/// Writes, and unmounts until that makes a root: a mount makes one if it is alone at its end.
fn write_and_make_a_root(home: &Home, write: impl Fn(&Path)) {
    let (before, began) = (newest_root(home), Instant::now());
    while newest_root(home) == before {
        assert!(began.elapsed() < DEADLINE, "no root is made{}", home.log());
        let dir = home.mount("mnt");
        write(&dir);
        home.unmount(&dir);
    }
}

fn wait_published(home: &Home) {
    wait_until("everything is under a checkpoint", || {
        let status = status(home);
        status["published"].is_u64() && status["published"] == status["records"]
    });
}

fn replay(home: &Home) -> (Value, Option<i32>) {
    wait_published(home);
    let output = home.run(&["verify", "--replay", "--json"]);
    (json(&output), output.status.code())
}

#[test]
fn a_replay_over_two_epochs_agrees_with_every_root_and_needs_no_data_secret() {
    let three = Three::start();
    let (alice, dave) = (three.user("alice"), three.user("dave"));
    let some = |dir: &Path| {
        for n in 0..40 {
            fs::write(dir.join(format!("{n}")), n.to_string()).expect("written");
            fs::create_dir_all(dir.join(format!("dir-{n}"))).expect("made");
        }
    };
    write_and_make_a_root(&alice, some);
    let owner = &three.peers[0].home;
    owner.ok(&["member", "rm", "dave"]);
    owner.ok(&["member", "add", "dave", "--role", "auditor"]);
    write_and_make_a_root(&alice, |dir| {
        some(dir);
        fs::remove_dir(dir.join("dir-7")).expect("removed");
        fs::remove_file(dir.join("8")).expect("removed");
        let _ = fs::remove_file(dir.join("nine"));
        fs::hard_link(dir.join("9"), dir.join("nine")).expect("linked");
    });
    let (said, code) = replay(&dave);
    assert_eq!((&said["verdict"], code), (&Value::from("good"), Some(0)), "{said}");
    let right = said["right"].as_array().expect("a list");
    let epochs: Vec<_> = right.iter().filter_map(|root| root["key_epoch"].as_u64()).collect();
    assert!(epochs.contains(&1) && epochs.contains(&2), "{said}");
    assert_eq!(said["roots"].as_u64(), Some(right.len() as u64), "{said}");
    assert_eq!(said["newest"]["position"].as_u64(), newest_root(&alice), "{said}");
    assert_eq!(said["void"], Value::Array(vec![]), "{said}");
}

#[test]
fn a_payload_that_not_everyone_can_open_is_void_for_everyone() {
    let three = Three::start();
    let (alice, bob, dave) = (three.user("alice"), three.user("bob"), three.user("dave"));
    write_and_make_a_root(&alice, |dir| fs::write(dir.join("a"), b"a").expect("written"));
    // An auditor has no data secret, and in the second epoch.
    let owner = &three.peers[0].home;
    owner.ok(&["member", "rm", "dave"]);
    owner.ok(&["member", "add", "dave", "--role", "auditor"]);
    let dir = alice.mount("mnt");
    let before = fs::metadata(dir.join("a")).expect("there");
    let closed = |_| {
        let (mut writes, mut facts) = (WriteSet::new(), Facts::default());
        let ino = Ino(before.ino());
        let mode = Some(ModeChange::Set(0));
        writes.merge_inode(ino, InodeMerge { mode, ..InodeMerge::default() });
        facts.write(Fact::Attr(ino));
        vec![(writes, facts)]
    };
    let as_data = forger::commit_sealed(&bob, Kind::Data, None, closed);
    let of_old = forger::commit_sealed(&bob, Kind::Payload, Some(Epoch(1)), closed);
    // Whatever is written here now comes behind both.
    write_through(&dir.join("b"), b"b").expect("written");
    let after = fs::metadata(dir.join("a")).expect("there");
    assert_eq!(after.mode(), before.mode(), "{}", alice.log());
    alice.unmount(&dir);
    let (said, code) = replay(&dave);
    assert_eq!((&said["verdict"], code), (&Value::from("good"), Some(0)), "{said}");
    let void: Vec<_> = said["void"].as_array().expect("a list").iter().collect();
    let records: Vec<_> = void.iter().map(|void| void["record"].as_u64()).collect();
    assert_eq!(records, [Some(as_data.0), Some(of_old.0)], "{said}");
    assert!(void.iter().all(|void| void["signed_by"] == "bob"), "{said}");
}

#[test]
fn a_forged_root_is_found_by_a_replay_with_its_signer() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    write_and_make_a_root(&alice, |dir| fs::write(dir.join("a"), b"a").expect("written"));
    let record = forger::order(&bob, forger::forged_root);
    let forged = record.0 - 1;
    let (said, code) = replay(&alice);
    assert_eq!((&said["verdict"], code), (&Value::from("mismatch"), Some(13)), "{said}");
    assert_eq!(said["mismatches"][0]["record"], Value::from(record.0), "{said}");
    assert_eq!(said["mismatches"][0]["signed_by"], Value::from("bob"), "{said}");
    assert_eq!(said["mismatches"].as_array().map(Vec::len), Some(1), "{said}");
    let output = alice.run(&["verify", "--replay"]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let sentence = format!(
        "root-mismatch: record {record}, signed by bob: it names a tree that the commits up to \
         record {forged} do not make\n"
    );
    assert!(said.contains(&sentence), "{said}");
    assert!(said.contains("next: mictlan member rm bob"), "{said}");
    assert_eq!(output.status.code(), Some(13), "{said}");
    let plain = alice.run(&["verify"]);
    assert_eq!(plain.status.code(), Some(0), "nothing is wrong with the ledger");
}

#[test]
fn a_root_that_another_member_folded_again_is_confirmed_once_in_the_ledger() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    write_and_make_a_root(&alice, |dir| fs::write(dir.join("a"), b"alice").expect("written"));
    let confirm = || {
        wait_published(&bob);
        let output = bob.run(&["verify", "--replay", "--confirm", "--json"]);
        let said = json(&output);
        assert_eq!((&said["verdict"], output.status.code()), (&"good".into(), Some(0)), "{said}");
        said
    };
    let first = confirm();
    let record = first["confirmed_by"].as_u64().expect("it was recorded");
    let second = confirm();
    assert_eq!(second["confirmed_by"], Value::Null, "once is enough: {second}");
    assert_eq!(second["newest"]["record"].as_u64(), Some(record), "{second}");
    assert_eq!(second["newest"]["signed_by"], Value::from("bob"), "{second}");
    assert_eq!(second["newest"]["confirms"], first["newest"]["record"], "{second}");
    let dir = alice.mount("mnt");
    assert_eq!(fs::read(dir.join("a")).expect("a mount begins with it"), b"alice");
}

/// What a mount says of itself.
fn view(dir: &Path) -> String {
    let path = CString::new(dir.as_os_str().as_bytes()).expect("a plain path");
    let name = CString::new("user.mictlan.view").expect("a plain name");
    let mut value = vec![0_u8; 65_536];
    let (at, len) = (value.as_mut_ptr().cast(), value.len());
    // SAFETY: both strings end in NUL, and the buffer is as long as it is said to be.
    let len = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), at, len) };
    assert!(len >= 0, "{}", std::io::Error::last_os_error());
    value.truncate(len as usize);
    String::from_utf8(value).expect("text")
}

/// The last record that is in the tree which a mount rests on.
fn rests_on(dir: &Path) -> Option<u64> {
    view(dir).lines().find_map(|line| line.strip_prefix("root ")?.parse().ok())
}

#[test]
fn a_mount_that_builds_no_roots_rests_on_those_that_others_build() {
    let home = Home::new();
    let reader = home.mount_with("reader", &["-o", "ro"]);
    for n in 0..3 {
        let file = n.to_string();
        write_and_make_a_root(&home, |dir| fs::write(dir.join(&file), &file).expect("written"));
        let root = newest_root(&home);
        wait_until("the reader has gone over to it", || rests_on(&reader) == root);
        for n in 0..=n {
            let read = fs::read_to_string(reader.join(n.to_string()));
            assert_eq!(read.expect("it is there"), n.to_string());
        }
    }
}

#[test]
fn a_forged_root_is_not_gone_over_to_and_removing_its_signer_brings_the_volume_back() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    fs::write(dir.join("a"), b"alice").expect("written");
    assert_eq!(fs::read(dir.join("a")).expect("it is there"), b"alice");
    alice.unmount(&dir);
    let (dir, before) = (alice.mount("mnt"), newest_root(&alice));
    let record = forger::order(&bob, forger::forged_root);
    wait_until("the mount finds it out", || view(&dir).contains("contradiction"));
    let said = view(&dir);
    assert!(said.contains(&format!("record {record}, signed by bob")), "{said}");
    let read = fs::read(dir.join("a")).map_err(|error| error.raw_os_error());
    assert_eq!(read, Err(Some(libc::EIO)), "nothing is believed any more");
    assert_ne!(rests_on(&dir), Some(record.0 - 1), "and nothing rests on it");
    let told = || String::from_utf8_lossy(&alice.run(&["status"]).stdout).into_owned();
    wait_until("status tells it", || {
        let told = told();
        told.contains("[contradiction]") && told.contains("verify --replay")
    });
    alice.kill_daemon(&dir);
    alice.forget(&dir);
    three.peers[0].home.ok(&["member", "rm", "bob"]);
    assert_eq!(newest_root(&alice), before, "it counts no more");
    let dir = alice.mount("mnt");
    assert_eq!(fs::read(dir.join("a")).expect("it is there"), b"alice");
}

/// Links whose targets are more metadata than one node of a tree has room for.
const LINKS: usize = 100;

fn make_links(dir: &Path) {
    for n in 0..LINKS {
        let _ = symlink("to/".repeat(1_000), dir.join(format!("link-{n}")));
    }
}

fn check_links(dir: &Path, home: &Home) {
    for n in 0..LINKS {
        let found = fs::read_link(dir.join(format!("link-{n}")));
        let found = found.unwrap_or_else(|error| panic!("link {n}: {error}{}", home.log()));
        assert_eq!(found.as_os_str().len(), 3_000, "link {n}");
    }
}

#[test]
fn a_root_of_which_a_node_is_missing_is_not_gone_over_to() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    write_and_make_a_root(&alice, make_links);
    let (dir, before) = (alice.mount("mnt"), newest_root(&alice));
    let (record, hole) = forger::root_with_a_hole(&bob);
    let said = || alice.log().contains(&hole.to_string());
    wait_until("the mount has looked at it", || said() || rests_on(&dir) == Some(record.0 - 1));
    check_links(&dir, &alice);
    assert_eq!(rests_on(&dir), before, "{}", alice.log());
    assert!(alice.log().contains("not all of its tree can be had"), "{}", alice.log());
}

#[test]
fn a_mount_begins_at_an_older_root_when_the_newest_is_lost() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    write_and_make_a_root(&alice, make_links);
    let before = newest_root(&alice);
    let record = forger::order(&bob, forger::lost_root);
    let dir = alice.mount("mnt");
    assert_eq!(rests_on(&dir), before, "{}", alice.log());
    check_links(&dir, &alice);
    assert!(alice.log().contains("is lost; nothing else is"), "{}", alice.log());
    assert!(alice.log().contains(&format!("record={record}")), "{}", alice.log());
    fs::write(dir.join("more"), b"more").expect("written");
    alice.unmount(&dir);
    assert_ne!(newest_root(&alice), Some(record.0 - 1), "a root that is whole was made");
    let dir = alice.mount("mnt");
    check_links(&dir, &alice);
    assert_eq!(fs::read(dir.join("more")).expect("there"), b"more");
}

/// Noise in an attribute: a payload too large to travel inside its record.
fn set_large_attribute(file: &Path) {
    let mut noise = vec![0; 40_000];
    blake3::Hasher::new().finalize_xof().fill(&mut noise);
    let path = CString::new(file.as_os_str().as_bytes()).expect("a plain path");
    let set = |name: &CString| {
        let (value, len) = (noise.as_ptr().cast(), noise.len());
        // SAFETY: both names are C strings, and the value lives as long as the call.
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value, len, 0) }
    };
    let name = CString::new("user.large").expect("no zero in it");
    assert_eq!(set(&name), 0, "{}", std::io::Error::last_os_error());
}

/// The addresses and sizes of payloads that are chunks of their own.
fn large_payloads(dir: &Path) -> Vec<(String, usize)> {
    let all = fs::read_to_string(dir.join("ledger/records/000/000/000.ndjson"));
    let records: Vec<Value> = all
        .unwrap_or_default()
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let payloads = records.iter().map(|record| &record["p"]["body"]["payload"]);
    let chunk = |payload: &Value| {
        let size = payload["size"].as_u64().filter(|size| *size > 32_000)?;
        Some((payload["b3"].as_str()?.to_owned(), size as usize))
    };
    payloads.filter_map(chunk).collect()
}

/// Flips a byte of the one copy of a chunk.
fn damage(segments: &Path, chunk: &str, size: usize) {
    for (path, _) in files(segments) {
        let bytes = fs::read(&path).expect("a segment");
        let is_it = |at: &usize| {
            let here = bytes.get(*at..*at + size).filter(|here| here.starts_with(b"MCT4"));
            here.is_some_and(|here| blake3::hash(here).to_hex().as_str() == chunk)
        };
        if let Some(at) = (0..bytes.len()).find(is_it) {
            let file = fs::File::options().write(true).open(&path).expect("a segment");
            let middle = at + size / 2;
            file.write_all_at(&[bytes[middle] ^ 1], middle as u64).expect("written");
            return;
        }
    }
    panic!("chunk {chunk} is in no segment");
}

#[test]
fn a_replay_without_a_chunk_names_it_and_says_nothing_of_the_roots() {
    let home = Home::new();
    let dir = home.mount("mnt");
    fs::write(dir.join("file"), b"some").expect("written");
    set_large_attribute(&dir.join("file"));
    home.unmount(&dir);
    let dir = home.mount("mnt");
    wait_until("the large payload is under a checkpoint", || !large_payloads(&dir).is_empty());
    let (chunk, size) = large_payloads(&dir).remove(0);
    home.unmount(&dir);
    let (said, code) = replay(&home);
    assert_eq!((&said["verdict"], code), (&Value::from("good"), Some(0)), "{said}");
    damage(&home.path().join("home/data/networks/home/store/segments"), &chunk, size);
    let (said, code) = replay(&home);
    assert_eq!((&said["verdict"], code), (&Value::from("unfinished"), Some(14)), "{said}");
    assert_eq!(said["missing"]["chunk"], Value::from(chunk.clone()), "{said}");
    let output = home.run(&["verify", "--replay"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("it could not be finished") && said.contains(&chunk), "{said}");
    assert_eq!(output.status.code(), Some(14), "{said}");
}
