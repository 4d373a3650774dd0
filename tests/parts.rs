//! A cold read fetches what it needs of a chunk, from three peers as processes; and what it fetches
//! is right, whoever is damaged or killed.

use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Three, damage, metrics, noise, write_through};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MIB: usize = 1 << 20;

/// Places all over a file, each further than a chunk's usual length from those before it.
fn places(len: usize) -> impl Iterator<Item = usize> {
    let count = len / MIB;
    (1..count).map(move |n| (n * 7 % count) * MIB + n * 4099 % (MIB / 2))
}

fn assert_scattered_reads(file: &Path, content: &[u8]) {
    let file = File::open(file).expect("readable");
    for at in places(content.len()) {
        let mut got = vec![0; 4096];
        file.read_exact_at(&mut got, at as u64).expect("one good copy is enough");
        assert!(got == content[at..at + 4096], "at {at}");
    }
}

fn cold(home: &Home) -> PathBuf {
    home.mount_with("mnt", &["-o", "deadline=30"])
}

/// Bytes of chunks and of proofs that the peers have sent since they began.
fn sent(places: &[String]) -> usize {
    let of_chunks = ["chunks/one", "chunks/proof"]
        .map(|route| format!("mictlan_sent_bytes_total{{route=\"{route}\"}} "));
    let pages = places.iter().map(|place| String::from_utf8(metrics(place)).expect("text"));
    let of = |page: String| -> usize {
        let number = |line: &str| {
            let found = of_chunks.iter().find_map(|start| line.strip_prefix(start));
            found.map_or(0, |number| number.parse::<usize>().expect("a number"))
        };
        page.lines().map(number).sum()
    };
    pages.map(of).sum()
}

/// A file of noise that every peer has.
fn everywhere(three: &Three, dir: &Path, len: usize) -> Vec<u8> {
    let content = noise(5, len);
    write_through(&dir.join("file"), &content).expect("on its peers");
    for peer in &three.peers {
        wait_until("every peer has a copy", || peer.stored_bytes() >= len as u64);
    }
    content
}

#[test]
fn scattered_reads_of_a_cold_file_move_little_more_than_they_need() {
    let three = Three::start();
    let watched: Vec<String> = three.peers.iter().map(|peer| peer.talk()).collect();
    let alice = three.user("alice");
    let dir = cold(&alice);
    let content = everywhere(&three, &dir, 24 * MIB);
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = cold(&bob);
    let before = sent(&watched);
    assert_scattered_reads(&dir.join("file"), &content);
    let moved = sent(&watched) - before;
    // A short chunk is fetched whole; the tree's nodes are in it as well.
    assert!(moved < content.len() / 3, "{moved} bytes for {} of 4 KiB", content.len() / MIB - 1);
    assert!(fs::read(dir.join("file")).expect("readable") == content, "parts and the whole agree");
}

#[test]
fn a_small_file_is_read_without_its_pack_and_a_directory_with_it() {
    let three = Three::start();
    let watched: Vec<String> = three.peers.iter().map(|peer| peer.talk()).collect();
    let alice = three.user("alice");
    let dir = cold(&alice);
    let (count, len) = (600, 4096);
    let name = |n: usize| format!("file-{n}");
    for n in 0..count {
        fs::write(dir.join(name(n)), noise(n as u64, len)).expect("written");
    }
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = cold(&bob);
    // What is asked of the tree is not what is measured.
    for n in 0..count {
        assert_eq!(fs::metadata(dir.join(name(n))).expect("there").len(), len as u64);
    }
    let read = |n: usize| {
        assert!(fs::read(dir.join(name(n))).expect("readable") == noise(n as u64, len), "{n}");
    };
    let before = sent(&watched);
    read(count / 2);
    let one = sent(&watched) - before;
    assert!(one < 600 << 10, "{one} bytes for one file of {len}");
    (0..count).for_each(read);
    let all = sent(&watched) - before;
    assert!(all < 2 * count * len, "{all} bytes for {}", count * len);
}

#[test]
fn a_part_of_a_chunk_that_is_damaged_on_one_peer_is_read_from_another() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = cold(&alice);
    let content = everywhere(&three, &dir, 12 * MIB);
    alice.unmount(&dir);
    let bob = three.user("bob");
    damage(&three.peers[1].data().join("store"));
    // Half of the good copies are away too, so the damaged ones are asked for.
    three.peers[2].kill();
    let dir = cold(&bob);
    assert_scattered_reads(&dir.join("file"), &content);
}

#[test]
fn a_peer_may_be_killed_while_parts_are_read() {
    let three = Three::start();
    let alice = three.user("alice");
    let dir = cold(&alice);
    let content = everywhere(&three, &dir, 12 * MIB);
    alice.unmount(&dir);
    let bob = three.user("bob");
    let dir = cold(&bob);
    let file = File::open(dir.join("file")).expect("readable");
    for (n, at) in places(content.len()).enumerate() {
        if n == 4 {
            three.peers[1].kill();
        }
        let mut got = vec![0; 4096];
        file.read_exact_at(&mut got, at as u64).expect("two copies are left");
        assert!(got == content[at..at + 4096], "at {at}");
    }
}
