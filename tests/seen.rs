//! What a peer and a mount tell whoever watches them.

use mictlan_tests::harness::{Home, output, wait_until};
use mictlan_tests::three::{Three, addresses, page};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// The number behind `name` with its labels, such as `leads` or `commits_total{result="ordered"}`.
fn number(page: &str, name: &str) -> f64 {
    let start = format!("mictlan_{name} ");
    let line = page.lines().find_map(|line| line.strip_prefix(&start));
    let number = line.and_then(|number| number.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in:\n{page}"))
}

/// Waits for it: an answer is counted when all of it was sent, or has arrived, and what it brought
/// may be known by another way before.
fn at_least(address: &str, expected: &[(&str, f64)]) {
    for (name, least) in expected {
        let start = format!("mictlan_{name} ");
        wait_until(&format!("{name} is {least} or more"), || {
            let page = page(address, "/metrics");
            let line = page.lines().find_map(|line| line.strip_prefix(&start));
            line.and_then(|number| number.parse().ok()).is_some_and(|there: f64| there >= *least)
        });
    }
}

/// On its peers when this returns.
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is counted")]
fn write_through(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("a new file");
    file.write_all(bytes).and_then(|()| file.sync_all()).expect("on its peers");
}

#[test]
fn what_a_peer_and_its_mounts_count_is_told_on_loopback() {
    let home = Home::new();
    let places = addresses(4);
    let [listen, of_peer, of_writer, of_reader] = &places[..] else { panic!("four") };
    home.ok(&["init", "--listen", listen]);
    let config = home.path().join("home/config/config.toml");
    let text = fs::read_to_string(&config).expect("a configuration");
    fs::write(&config, text.replace("127.0.0.1:4511", of_peer)).expect("written");
    home.start(&["serve"], "serving");

    let mut bytes = vec![0; 3_000_000];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    let dir = home.mount_with("writer", &["-o", &format!("metrics={of_writer}")]);
    write_through(&dir.join("file"), &bytes);
    at_least(
        of_writer,
        &[
            ("file_written_bytes_total", 3e6),
            ("fsync_seconds_count{result=\"ok\"}", 1.0),
            ("commits_total{result=\"ordered\"}", 1.0),
        ],
    );
    assert_eq!(number(&page(of_writer, "/metrics"), "copies_owed_chunks"), 0.0);

    let other = home.mount_with("reader", &["-o", &format!("ro,metrics={of_reader}")]);
    assert!(fs::read(other.join("file")).expect("readable") == bytes);
    let missed = ("chunk_reads_total{result=\"miss\"}", 1.0);
    at_least(of_reader, &[("file_read_bytes_total", 3e6), missed]);

    at_least(
        of_peer,
        &[
            ("requests_total{route=\"chunks/put\",outcome=\"ok\"}", 1.0),
            ("request_seconds_count{route=\"append\"}", 1.0),
            ("received_bytes_total{route=\"chunks/put\"}", 3e6),
            ("sent_bytes_total{route=\"chunks/one\"}", 3e6),
            ("disk_sync_seconds_count{result=\"ok\"}", 1.0),
            ("store_chunks", 1.0),
        ],
    );
    for place in &places[1..] {
        wait_until("all is well", || page(place, "/health") == "ok\n");
    }
    let third = home.empty("third");
    let third = third.to_str().expect("a plain path");
    let taken = format!("metrics={of_writer}");
    let refused = output(&mut home.command(&["mount", "-o", &taken, third]));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("choose another port"), "{said}");
}

#[test]
fn a_mount_keeps_nothing_of_files_that_nobody_has_open() {
    let home = Home::new();
    let places = addresses(1);
    let dir = home.mount_with("mnt", &["-o", &format!("metrics={}", places[0])]);
    for n in 0..200 {
        fs::write(dir.join(format!("empty-{n}")), b"").expect("made");
        fs::write(dir.join(format!("small-{n}")), b"small").expect("made");
    }
    fs::write(dir.join("large"), vec![7; 3 << 20]).expect("made");
    fs::remove_file(dir.join("empty-0")).expect("removed");
    let open = || number(&page(&places[0], "/metrics"), "open_files");
    wait_until("all is committed and forgotten", || open() == 0.0);
    for n in 0..200 {
        assert_eq!(fs::read(dir.join(format!("small-{n}"))).expect("readable"), b"small");
    }
    let held = fs::File::open(dir.join("large")).expect("readable");
    wait_until("only what is open is kept", || open() == 1.0);
    drop(held);
    wait_until("nothing is kept", || open() == 0.0);
}

#[test]
fn a_peer_that_goes_and_comes_back_is_told_with_its_time() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount("mnt");
    let away = || {
        let report = alice.run(&["status", "--json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
        let problems = report["problems"].as_array().expect("a list").clone();
        problems.into_iter().find(|problem| problem["code"] == "peer-away")
    };
    three.peers[2].kill();
    wait_until("status says who is away", || away().is_some());
    let said = away().expect("still")["what"].to_string();
    assert!(said.contains("peer 3 has not answered this mount since 20"), "{said}");
    wait_until("the voter that leads says so too", || {
        three.peers[..2].iter().any(|peer| peer.home.log().contains("a peer is away peer=3"))
    });
    three.peers[2].serve();
    wait_until("it is back", || away().is_none());
    for line in ["a peer is away peer=3", "a peer is back peer=3"] {
        assert!(alice.log().contains(line), "no {line:?}{}", alice.log());
    }
    alice.unmount(&dir);
}

#[test]
fn a_store_that_was_lost_and_one_that_is_full_are_named() {
    let three = Three::start();
    let told = |code: &str| {
        let report = three.peers[0].home.run(&["status", "--json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
        let problems = report["problems"].as_array().expect("a list").clone();
        let said = problems.iter().find(|problem| problem["code"] == code);
        said.map(|problem| problem["what"].to_string()).unwrap_or_default()
    };
    assert_eq!((told("store-new"), told("store-full")), Default::default());
    three.peers[2].kill();
    fs::remove_dir_all(three.peers[2].data().join("store")).expect("removed");
    three.peers[2].serve();
    wait_until("the empty store is told", || told("store-new").contains("peer 3 "));
    assert_eq!(told("store-full"), "");
    // Less than the smallest piece of room that is lent to anybody.
    three.peers[1].kill();
    three.peers[1].offer("1M");
    wait_until("the full store is told", || told("store-full").contains("peer 2 "));
    assert!(told("store-new").contains("peer 3 "));
}
