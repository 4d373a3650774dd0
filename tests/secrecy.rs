//! P2: what a mount writes shows in no peer's files, in no log, and in no byte between them.
//!
//! The words that are looked for stand in names, contents, attributes and link targets; the keys
//! are looked for as well. What may be seen is in docs/what-a-peer-sees.md.

use mictlan::id::{Label, NetworkId};
use mictlan::ledger::record::body::{Body, Wrap, wrap_info};
use mictlan::ledger::record::text::from_base64;
use mictlan::ledger::record::{Line, Origin};
use mictlan::seal::{self, KeyRing, Principal, Secret};
use mictlan_tests::canary::{Canary, Search};
use mictlan_tests::capture::Capture;
use mictlan_tests::disk::needs_root;
use mictlan_tests::harness::{Home, wait_until};
use mictlan_tests::three::{Peer, Three, files, metrics};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const NAME: &str = "canary-of-a-name-7c1f0e";
const OLD_NAME: &str = "canary-of-a-name-that-was-55d2a1";
const SMALL: &str = "canary-of-a-small-content-b83d52";
const PACKED: &str = "canary-of-a-packed-content-3f9b20";
const TEXT: &str = "canary-of-a-long-text-91e6c4";
const NOISE: &str = "canary-between-noise-d07a3e";
const TARGET: &str = "canary-of-a-target-04e9aa";
const ATTRIBUTE: &str = "user.canary-of-an-attribute-f6617d";
const VALUE: &str = "canary-of-a-value-2b8c19";
/// Ledger notes are read by everybody in the network, and by nobody on the wire.
const NOTE: &str = "canary-of-a-note-a4417f";

const NOISE_BYTES: usize = 3 << 20;

/// Bytes that do not compress, with a word in them here and there.
fn noise_with(word: &str) -> Vec<u8> {
    let mut bytes = vec![0; NOISE_BYTES];
    blake3::Hasher::new().update(word.as_bytes()).finalize_xof().fill(&mut bytes);
    for part in bytes.chunks_mut(50_000) {
        let end = word.len().min(part.len());
        part[..end].copy_from_slice(&word.as_bytes()[..end]);
    }
    bytes
}

fn words() -> Vec<Canary> {
    let all = [NAME, OLD_NAME, SMALL, PACKED, TEXT, NOISE, TARGET, &ATTRIBUTE[5..], VALUE];
    all.map(|word| Canary { name: word.to_owned(), bytes: word.into() }).into()
}

/// On its peers, or the error that says that it is not.
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
fn write(path: &Path, bytes: &[u8]) {
    let mut file = File::create(path).expect("a new file");
    file.write_all(bytes).expect("written");
    file.sync_all().expect("on its peers");
}

fn attribute(arguments: &[&str], path: &Path) -> String {
    let program = if arguments[0] == "-n" { "setfattr" } else { "getfattr" };
    let output = Command::new(program).args(arguments).arg(path).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}; packaging/install-needs"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Each way in which bytes leave a mount: inside a commit, in a pack, in chunks of their own, over
/// bytes that were there, and in the tree.
fn write_all(dir: &Path) {
    let sub = dir.join(NAME);
    fs::create_dir(&sub).expect("a directory");
    write(&sub.join("small"), SMALL.as_bytes());
    for n in 0..8 {
        fs::write(sub.join(format!("{NAME}-{n}")), PACKED.repeat(400 + n)).expect("written");
    }
    write(&sub.join("text"), TEXT.repeat(100_000).as_bytes());
    write(&sub.join("noise"), &noise_with(NOISE));
    let over = File::options().write(true).open(sub.join("noise")).expect("opens");
    over.write_all_at(SMALL.as_bytes(), 1_000_000).expect("written over");
    std::os::unix::fs::symlink(TARGET, sub.join("link")).expect("a link");
    attribute(&["-n", ATTRIBUTE, "-v", VALUE], &sub.join("small"));
    fs::hard_link(sub.join("small"), sub.join(format!("{NAME}-linked"))).expect("a hard link");
    fs::write(sub.join(OLD_NAME), PACKED).expect("written");
    let moved = Command::new("mv").arg(sub.join(OLD_NAME)).arg(sub.join("moved")).status();
    assert!(moved.expect("mv is installed").success());
    write(&sub.join("last"), b"commits all that stands before it");
}

fn read_all(dir: &Path) {
    let sub = dir.join(NAME);
    assert_eq!(fs::read(sub.join("small")).expect("readable"), SMALL.as_bytes());
    assert!(fs::read(sub.join("text")).expect("readable") == TEXT.repeat(100_000).as_bytes());
    let noise = fs::read(sub.join("noise")).expect("readable");
    assert!(noise.len() == NOISE_BYTES && noise.starts_with(NOISE.as_bytes()));
    assert_eq!(fs::read_link(sub.join("link")).expect("a link"), Path::new(TARGET));
    let said = attribute(&["-d", "--absolute-names"], &sub.join("small"));
    assert!(said.contains(ATTRIBUTE) && said.contains(VALUE), "{said}");
    assert_eq!(fs::read_dir(&sub).expect("readable").count(), 8 + 7);
}

/// The seed in a user's key file, which stands as base64 between two lines.
fn seed(home: &Home) -> [u8; 32] {
    let text = fs::read_to_string(home.path().join("home/config/keys/default")).expect("a key");
    let inside: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let bytes = from_base64(inside.as_bytes()).expect("base64");
    bytes[38..70].try_into().expect("32 bytes")
}

/// Every record that a peer's files have.
fn records(peer: &Peer) -> Vec<Vec<u8>> {
    let mut lines = Vec::new();
    for (path, _) in files(&peer.data().join("sequencer/ledger/tile/entries")) {
        let bytes = fs::read(path).unwrap_or_default();
        let mut rest = &bytes[..];
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let (line, next) = after.split_at(u16::from_be_bytes(*length).into());
            lines.push(line.to_vec());
            rest = next;
        }
    }
    lines
}

/// All that opens the volume: the user's seed, the secrets that are wrapped for it, and the keys
/// that follow from them.
fn keys(three: &Three, home: &Home, member: &str) -> Vec<Canary> {
    let seed = seed(home);
    let principal = Principal::from_seed(Secret::from_bytes(seed));
    let is_for = |wrap: &Wrap| wrap.member.as_str() == member;
    let records = records(&three.peers[0]);
    let bodies = records.iter().filter_map(|line| Line::parse(line).ok()?.p.body().ok());
    let mut wraps = bodies.filter_map(|body| match body {
        Body::Wrap(wrap) if is_for(&wrap) => Some(wrap),
        _ => None,
    });
    let wrap = wraps.next_back().expect("the volume's secrets are wrapped for each member");
    let config = fs::read_to_string(home.path().join("home/config/config.toml")).expect("one");
    let id = config.lines().find_map(|line| line.strip_prefix("id = \"")?.strip_suffix('"'));
    let id = NetworkId(hex::decode(id.expect("an id")).expect("hex").try_into().expect("32"));
    let origin = Origin::new(&Label::parse("net").expect("a name"), &id);
    let about = wrap_info(&origin, &wrap.volume, wrap.key_epoch, &wrap.member);
    let plain = seal::unwrap(&principal, &about, &wrap.wrap).expect("it is for this key");
    let ring = KeyRing::decode(&plain).expect("a ring");
    let now = ring.current();
    let mut all = vec![
        ("the seed of a user", seed),
        ("the volume's secret", plain[1..33].try_into().expect("32 bytes")),
        ("a key of identities", *ring.identity_key()),
        ("a key of boundaries", *ring.boundary_key()),
        ("a key of names", *ring.dirent_key()),
        ("a key of tags", *now.tag_key()),
        ("a key of roots", *now.root_key()),
        ("a key of cuts", *now.cut_key().expect("a writer has the data secret")),
    ];
    for secrets in ring.secrets() {
        all.push(("a meta secret", *secrets.meta.expose()));
        all.push(("a data secret", *secrets.data.as_ref().expect("a writer's").expose()));
    }
    all.into_iter().map(|(name, key)| Canary { name: name.into(), bytes: key.into() }).collect()
}

#[test]
fn nothing_that_is_written_shows_on_a_peer_or_on_the_wire() {
    needs_root("a look at what passes over the loopback");
    let three = Three::start();
    let metrics_at: Vec<String> = three.peers.iter().map(Peer::talk).collect();
    let port = |peer: &Peer| peer.listen.rsplit(':').next().and_then(|port| port.parse().ok());
    let ports: Vec<u16> = three.peers.iter().filter_map(port).collect();
    let capture = Capture::of(&ports).expect("root may listen");
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let dir = alice.mount("mnt");
    write_all(&dir);
    read_all(&dir);
    let other = bob.mount("mnt");
    read_all(&other);
    let note = format!("{{\"text\":\"{NOTE}\"}}");
    alice.ok(&["ledger", "append", "--topic", "canary", &note, "--wait", "published"]);
    alice.unmount(&dir);
    bob.unmount(&other);
    for peer in &three.peers {
        wait_until("every peer has its copies", || peer.stored_bytes() >= NOISE_BYTES as u64);
    }
    three.wait_level(&[0, 1, 2]);
    let mut hidden = words();
    hidden.extend(keys(&three, &alice, "alice"));
    let search = Search::of(&hidden);
    let clear = Search::of(&[Canary { name: "the note".into(), bytes: NOTE.into() }]);
    for (peer, at) in three.peers.iter().zip(&metrics_at) {
        assert_eq!(search.find(&metrics(at)), None);
        let searched = search.nothing_below(peer.home.path());
        assert!(searched > NOISE_BYTES as u64, "only {searched} bytes were searched");
        // The same search of the same files finds what may be there.
        let entries = files(&peer.data().join("sequencer/ledger/tile/entries"));
        let found =
            |(path, _): &(_, u64)| clear.find(&fs::read(path).unwrap_or_default()).is_some();
        assert!(entries.iter().any(found), "a note is for all who keep the ledger");
        let said = fs::read_to_string(peer.home.path().join("processes.log")).expect("a log");
        assert!(said.contains("DEBUG") || said.contains("TRACE"), "the peers were to say all");
    }
    let wire = capture.stop();
    let bytes: usize = wire.iter().map(Vec::len).sum();
    assert!(bytes > 2 * NOISE_BYTES, "{bytes} bytes passed, and two mounts have used the peers");
    for stream in &wire {
        assert_eq!(search.find(stream), None);
        assert_eq!(clear.find(stream), None, "nothing passes in clear, not even what may be known");
    }
    // What begins a conversation stands there as it is, so the capture is not of something else.
    let hello = b"\x00\x10\x00\x0b\x00\x09\x08http/1.1";
    let hello = Search::of(&[Canary { name: "a hello".into(), bytes: hello.into() }]);
    assert!(wire.iter().any(|stream| hello.find(stream).is_some()), "no TLS was seen");
}

#[test]
fn nothing_that_is_written_shows_on_the_disk_of_the_mount() {
    let home = Home::new();
    let dir = home.mount("mnt");
    write_all(&dir);
    // These are in the journal alone.
    fs::write(dir.join(format!("{NAME}-late")), SMALL).expect("written");
    home.kill_daemon(&dir);
    home.forget(&dir);
    let search = Search::of(&words());
    let searched = search.nothing_below(home.path());
    assert!(searched > NOISE_BYTES as u64, "only {searched} bytes were searched");
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join(format!("{NAME}-late"))).expect("journaled"), SMALL.as_bytes());
    read_all(&dir);
}
