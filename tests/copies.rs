//! `user.mictlan.replicas`: a directory or a file asks for its own number of copies.

use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, noise, write_through};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

const LEN: u64 = 4 << 20;

fn content(seed: u64) -> Vec<u8> {
    noise(seed, LEN as usize)
}

fn stored(three: &Three) -> u64 {
    three.peers.iter().map(|peer| peer.stored_bytes()).sum()
}

/// Whether it was taken.
fn ask(path: &Path, copies: &str) -> bool {
    let mut command = Command::new("setfattr");
    let asked = command.args(["-n", "user.mictlan.replicas", "-v", copies]).arg(path).output();
    asked.expect("setfattr is installed").status.success()
}

fn attribute(path: &Path, name: &str) -> String {
    let mut command = Command::new("getfattr");
    let said = command.args(["--only-values", "-n", name]).arg(path).output();
    String::from_utf8(said.expect("getfattr is installed").stdout).expect("text")
}

fn asked(path: &Path) -> String {
    attribute(path, "user.mictlan.replicas")
}

/// On how many peers each chunk of a file belongs.
fn places(path: &Path) -> Vec<usize> {
    let text = attribute(path, "user.mictlan.copies");
    text.lines().map(|line| line.split(' ').count() - 1).collect()
}

fn owes(home: &Home) -> bool {
    let report = home.run(&["status", "--json"]).stdout;
    let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
    let problems = report["problems"].as_array().expect("a list");
    problems.iter().any(|problem| problem["code"] == "copies-owed")
}

#[test]
fn what_is_written_below_a_directory_gets_the_copies_that_it_asks_for() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount("mnt");
    let (one, two) = (dir.join("one"), dir.join("one/deep/two"));
    fs::create_dir_all(&two).expect("made");
    File::create(one.join("own")).expect("made");
    for bad in ["0", "17", "three"] {
        assert!(!ask(&one, bad), "{bad}");
    }
    assert!(ask(&one, "1") && ask(&two, "2") && ask(&one.join("own"), "16"));
    let files = [(dir.join("plain"), 3), (one.join("deep/f"), 1), (two.join("f"), 2)];
    for (n, (file, copies)) in files.into_iter().chain([(one.join("own"), 3)]).enumerate() {
        let before = stored(&three);
        write_through(&file, &content(n as u64)).expect("on its peers");
        let chunks = places(&file);
        assert!(!chunks.is_empty() && chunks.iter().all(|n| *n == copies), "{file:?}: {chunks:?}");
        wait_until("its copies are made", || stored(&three) >= before + copies as u64 * LEN);
    }
    assert_eq!(asked(&one.join("deep")), "1", "what counts, wherever it was said");
    assert_eq!((asked(&one.join("own")), asked(&dir)), ("16".to_owned(), "3".to_owned()));
    let listed = Command::new("getfattr").args(["-m", "-"]).arg(&one).output();
    assert_eq!(listed.expect("getfattr is installed").stdout, b"", "answered, and not listed");
    // Small files, which share chunks.
    let before = stored(&three);
    for n in 0..20 {
        fs::write(one.join(n.to_string()), noise(100 + n, 100_000)).expect("written");
    }
    alice.unmount(&dir);
    assert!(stored(&three) >= before + 2_000_000, "they are there");
    // Three, one, two and three of the large files, one of the small ones; a peer that is slow to answer gets another beside it.
    let (all, thrice) = (stored(&three), 12 * LEN + 6_000_000);
    assert!(all < thrice - 6_000_000, "{all} bytes, and three copies of everything are {thrice}");
}

#[test]
fn a_chunk_of_several_files_has_the_most_copies_that_one_asks_for() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = alice.mount("mnt");
    let one = dir.join("one");
    fs::create_dir(&one).expect("made");
    assert!(ask(&one, "1"));
    let everywhere = |files: u64| three.peers.iter().all(|p| p.stored_bytes() >= files * LEN);
    write_through(&one.join("f"), &content(1)).expect("on its peer");
    assert!(!everywhere(1), "one copy was asked for");
    write_through(&dir.join("same"), &content(1)).expect("on its peers");
    wait_until("the same bytes elsewhere bring the other copies", || everywhere(1));
    write_through(&one.join("again"), &content(1)).expect("on its peer");
    assert!(everywhere(1), "and nobody takes them away");
    write_through(&one.join("g"), &content(2)).expect("on its peer");
    // By copy_file_range, which shares the chunks where they have copies enough.
    fs::copy(one.join("g"), dir.join("g")).expect("copied");
    wait_until("a copy has its own number", || everywhere(2));
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = bob.mount("mnt");
    for (name, seed) in [("one/f", 1), ("same", 1), ("one/again", 1), ("one/g", 2), ("g", 2)] {
        assert!(fs::read(dir.join(name)).expect("readable") == content(seed), "{name}");
    }
}

#[test]
fn copies_beyond_those_of_the_volume_are_owed_made_and_found() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    three.peers[0].home.ok(&["volume", "set", "main", "--replicas", "1"]);
    wait_until("the running mount knows", || asked(&dir) == "1");
    let many = dir.join("many");
    fs::create_dir(&many).expect("made");
    assert!(ask(&many, "3"));
    three.peers[2].kill();
    write_through(&many.join("f"), &content(1)).expect("two of three are enough");
    wait_until("status says what is owed", || owes(&alice));
    three.peers[2].serve();
    wait_until("the last copies are made", || three.peers[2].stored_bytes() >= LEN);
    wait_until("and nothing is owed", || !owes(&alice));
    let other = bob.mount_with("mnt", &["-o", "deadline=30"]);
    let mut file = File::open(other.join("many/f")).expect("it is there");
    // The first place of some chunks, and the only one that the volume's number names, is away.
    three.peers[0].kill();
    three.peers[1].kill();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).expect("the last copies are enough");
    assert!(bytes == content(1));
}
