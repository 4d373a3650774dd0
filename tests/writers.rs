//! Who changed a file last, as every mount of a volume says it, and the proof for whoever trusts
//! nobody.

use mictlan::id::Ino;
use mictlan::meta::inode::{FileKind, Inode, InodeMerge, ModeChange, Stamp};
use mictlan::meta::key::Key;
use mictlan::meta::tag::{Fact, Facts};
use mictlan::meta::value::Value as MapValue;
use mictlan::meta::write::WriteSet;
use mictlan_tests::forger;
use mictlan_tests::harness::{DEADLINE, Home, wait_until};
use mictlan_tests::three::{Three, write_through};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

const WRITER: &str = "user.mictlan.writer";
const PROOF: &str = "user.mictlan.proof";

fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).expect("no NUL in it")
}

/// The value of an extended attribute, as text; a symlink's own.
fn attribute(path: &Path, name: &str) -> Result<String, i32> {
    let (path, name) = (c_string(path.as_os_str().as_bytes()), c_string(name.as_bytes()));
    let mut value = vec![0u8; 65_536];
    // SAFETY: both strings end in NUL, and the buffer is as long as it is said to be.
    let len = unsafe {
        libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    let Ok(len) = usize::try_from(len) else {
        return Err(std::io::Error::last_os_error().raw_os_error().expect("an errno"));
    };
    value.truncate(len);
    Ok(String::from_utf8(value).expect("text"))
}

/// What is said of a file's last change.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Writer {
    actor: String,
    key: String,
    record: u64,
    time: String,
}

fn writer(path: &Path, home: &Home) -> Writer {
    let text = attribute(path, WRITER);
    let text = text.unwrap_or_else(|errno| panic!("{}: {errno}{}", path.display(), home.log()));
    let mut lines = text.lines();
    let mut value = |word: &str| {
        let line = lines.next().and_then(|line| line.split_once(' '));
        let (said, value) = line.unwrap_or_else(|| panic!("no {word}: {text}"));
        assert_eq!(said, word, "{text}");
        value.to_owned()
    };
    let (actor, key) = (value("actor"), value("key"));
    let record = value("record").parse().expect("a number");
    let writer = Writer { actor, key, record, time: value("time") };
    assert!(lines.next().is_none() && text.ends_with('\n'), "{text}");
    writer
}

/// The bytes of a record, as the mounted ledger has them.
fn record(dir: &Path, index: u64) -> Vec<u8> {
    let digits = format!("{index:012}");
    let path = format!("{}/{}/{}/{digits}.json", &digits[..3], &digits[3..6], &digits[6..9]);
    fs::read(dir.join("ledger/records").join(path)).expect("a record")
}

/// The key that a record gives to an actor.
fn key_of(p: &mut Value, actor: &str) -> Option<Value> {
    let founds = p["kind"] == "net.genesis" && p["actor"] == actor;
    let body = p["body"].take();
    match founds {
        true => Some(body["principal"]["signing"].clone()),
        false => (body["name"] == actor).then(|| body["keys"]["signing"].clone()),
    }
}

/// The record is a commit of who is named, under the key that it had, at the time that is said.
fn assert_agrees_with_the_ledger(dir: &Path, writer: &Writer) {
    let line: Value = serde_json::from_slice(&record(dir, writer.record)).expect("JSON");
    assert_eq!(line["p"]["kind"], "fs.commit", "{line}");
    assert_eq!(
        (&line["p"]["actor"], &line["t"]),
        (&writer.actor.as_str().into(), &writer.time.as_str().into())
    );
    let all = fs::read_to_string(dir.join("ledger/records/000/000/000.ndjson")).expect("records");
    let all =
        all.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["p"].take());
    let keys: Vec<Value> = all.filter_map(|mut p| key_of(&mut p, &writer.actor)).collect();
    assert_eq!(keys, [Value::from(writer.key.clone())], "the one key of {}", writer.actor);
}

/// The last record that the newest root covers.
fn newest_root(home: &Home) -> u64 {
    let status: Value =
        serde_json::from_slice(&home.run(&["status", "--json"]).stdout).expect("one JSON object");
    status["volumes"][0]["snapshot"].as_u64().unwrap_or(0)
}

/// Mounts and unmounts until a root covers what there is now: a mount makes one if it is alone.
fn fold_into_a_root(home: &Home, record: u64) {
    let began = Instant::now();
    while newest_root(home) <= record {
        assert!(began.elapsed() < DEADLINE, "no root is made{}", home.log());
        let dir = home.mount("mnt");
        fs::write(dir.join("beside"), b"for a root").expect("written");
        home.unmount(&dir);
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a program's own rename is what is tested")]
fn every_mount_names_the_member_that_changed_a_file_last() {
    let three = Three::start();
    let (alice, bob) = (three.user("alice"), three.user("bob"));
    let (a, b) = (alice.mount("mnt"), bob.mount("mnt"));
    let both = |name: &str| {
        let (one, other) = (writer(&a.join(name), &alice), writer(&b.join(name), &bob));
        assert_eq!(one, other, "{name}");
        assert_agrees_with_the_ledger(&a, &one);
        one
    };
    fs::write(a.join("one"), b"alice").expect("written");
    fs::write(b.join("two"), b"bob").expect("written");
    fs::create_dir(a.join("dir")).expect("made");
    let first = both("one");
    assert_eq!((first.actor.as_str(), both("two").actor.as_str()), ("alice", "bob"));
    assert_eq!(both("dir").actor, "alice");
    fs::write(b.join("one"), b"changed").expect("written");
    let second = both("one");
    assert_eq!(second.actor, "bob");
    assert!(second.record > first.record, "{first:?} {second:?}");
    let mode = fs::Permissions::from_mode(0o600);
    fs::set_permissions(a.join("one"), mode).expect("changed");
    assert_eq!(both("one").actor, "alice", "its mode");
    // Others' files are made and changed, and this one is not.
    let before = both("two");
    fs::write(b.join("dir/inside"), b"bob").expect("written");
    fs::write(a.join("three"), b"alice").expect("written");
    assert_eq!(both("dir").actor, "bob", "what a directory holds is its own");
    assert_eq!(both("two"), before);
    fs::hard_link(a.join("two"), a.join("dir/link")).expect("linked");
    assert_eq!(both("two").actor, "alice", "the number of its links");
    assert_eq!(both("dir/link"), both("two"));
    fs::rename(b.join("three"), b.join("moved")).expect("renamed");
    assert_eq!(both("moved").actor, "bob");
    symlink("one", a.join("symlink")).expect("made");
    for name in [WRITER, PROOF] {
        let of_link = attribute(&a.join("symlink"), name);
        assert_eq!(of_link, Err(libc::ENODATA), "the kernel keeps user.* from symlinks");
    }

    let (old, root) = (both("two"), both(""));
    bob.unmount(&b);
    alice.unmount(&a);
    fold_into_a_root(&alice, root.record);
    let owner = &three.peers[0].home;
    let dave = three.user("dave");
    owner.ok(&["member", "rm", "dave"]);
    owner.ok(&["member", "add", "dave", "--role", "auditor"]);
    let c = dave.mount_with("mnt", &["-o", "ro"]);
    let view: u64 = attribute(&c, "user.mictlan.version").expect("it").parse().expect("a number");
    assert!(view > old.record, "its commit is in the root that this mount began with");
    assert_eq!(writer(&c.join("two"), &dave), old, "with the meta secret alone");
    assert_eq!(writer(&c.join("moved"), &dave).actor, "bob");
    assert_eq!(writer(&c.join("beside"), &dave).actor, "alice");
}

#[test]
fn what_is_not_committed_yet_is_committed_before_its_writer_is_named() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("file");
    let mut file = fs::File::create(&path).expect("made");
    file.write_all(b"not closed").expect("written");
    let first = writer(&path, &home);
    assert_agrees_with_the_ledger(&dir, &first);
    assert_eq!(writer(&path, &home), first, "nothing was changed since");
    file.write_all(b", and more").expect("written");
    drop(file);
    let second = writer(&path, &home);
    assert!(second.record > first.record, "{first:?} {second:?}");
    assert!(writer(&dir, &home).record <= first.record, "what is written in a file is its own");
    // From the journal of a mount that was killed, in the place of which the next one goes on.
    fs::write(dir.join("left"), b"in the journal").expect("written");
    home.kill_daemon(&dir);
    let dir = home.mount("mnt");
    let left = writer(&dir.join("left"), &home);
    assert!(left.record > second.record, "{left:?}");
    assert_agrees_with_the_ledger(&dir, &left);
    let (path, value) = (c_string(path.as_os_str().as_bytes()), b"mine");
    for name in [WRITER, PROOF] {
        let name = c_string(name.as_bytes());
        let (bytes, len) = (value.as_ptr().cast(), value.len());
        // SAFETY: both strings end in NUL, and the value lives as long as the call.
        let set = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), bytes, len, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        assert_eq!((set, errno), (-1, Some(libc::EPERM)));
    }
    // SAFETY: the path ends in NUL, and nothing is written to a list of length 0.
    let listed = unsafe { libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) };
    assert_eq!(listed, 0, "they are answered, and not listed");
}

#[test]
fn who_changed_a_file_long_ago_is_found_many_records_back() {
    let home = Home::new();
    let dir = home.mount("mnt");
    for name in ["old", "often"] {
        write_through(&dir.join(name), b"first").expect("written");
    }
    let first = writer(&dir.join("old"), &home);
    // Three bundles of 256 records, the last one of them not full.
    for n in 0..550 {
        write_through(&dir.join("often"), n.to_string().as_bytes()).expect("written");
    }
    let last = writer(&dir.join("often"), &home);
    assert!(last.record > first.record + 512, "{first:?} {last:?}");
    assert_eq!(writer(&dir.join("old"), &home), first, "what was found before");
    home.unmount(&dir);
    let dir = home.mount("mnt");
    assert_eq!(writer(&dir.join("old"), &home), first, "looked for anew");
    assert_eq!(writer(&dir.join("often"), &home), last);
    let proof = attribute(&dir.join("old"), PROOF).expect("a proof");
    let text = fs::read(dir.join("ledger/keys/policy.json")).expect("a policy");
    let policy: Value = serde_json::from_slice(&text).expect("JSON");
    assert!(proves(&proof, &record(&dir, first.record), &policy), "{proof}");
}

/// Of the user's commit by hand: what it changes, the facts that it writes.
type ByHand = (WriteSet, Facts);

/// Changes fields of an inode, and says so.
fn merged(ino: Ino, merge: InodeMerge) -> ByHand {
    let (mut writes, mut facts) = (WriteSet::new(), Facts::default());
    writes.merge_inode(ino, merge);
    facts.write(Fact::Attr(ino));
    (writes, facts)
}

fn an_inode() -> MapValue {
    let at = Stamp::default();
    let (kind, home, target) = (FileKind::File, Ino::ROOT, Box::default());
    let (atime, mtime, ctime, btime) = (at, at, at, at);
    let (mode, uid, gid, nlink, size, bytes, rdev) = (0o600, 0, 0, 1, 0, 0, 0);
    let times = Inode {
        kind,
        mode,
        uid,
        gid,
        nlink,
        size,
        bytes,
        atime,
        mtime,
        ctime,
        btime,
        rdev,
        home,
        target,
    };
    MapValue::Inode(times)
}

#[test]
fn neither_void_commits_nor_forged_times_change_who_is_named() {
    let three = Three::start();
    let (alice, bob, carol) = (three.user("alice"), three.user("bob"), three.user("carol"));
    let dir = alice.mount("mnt");
    let (path, quiet) = (dir.join("file"), dir.join("quiet"));
    write_through(&quiet, b"alice's").expect("written");
    write_through(&path, b"alice's").expect("written");
    let (said, of_quiet) = (writer(&path, &alice), writer(&quiet, &alice));
    let quiet_ino = Ino(fs::metadata(&quiet).expect("there").ino());
    let meta = fs::metadata(&path).expect("there");
    let (ino, nanos) = (Ino(meta.ino()), meta.ctime_nsec() as u32);
    let as_it_is = Stamp { secs: meta.ctime(), nanos };
    let set = |ctime| InodeMerge { ctime: Some(ctime), ..InodeMerge::default() };
    // What would leave the file just as it is, in commits that are void each for another reason.
    let forged = forger::commit(&bob, |session| {
        let mut uncovered = merged(ino, set(as_it_is));
        let name = b"user.bob".as_slice().into();
        uncovered.0.put(Key::Xattr { ino: Ino::ROOT, name }, MapValue::Xattr([1].into()));
        let mut foreign = merged(ino, set(as_it_is));
        let of_alice = Ino::of(ino.session().expect("of hers"), u32::MAX);
        foreign.0.put(Key::Inode(of_alice), an_inode());
        let mut begins = (WriteSet::new(), Facts::default());
        begins.0.put(Key::Inode(Ino::of(session, 1)), an_inode());
        let mode = Some(ModeChange::Set(0));
        let mut again = merged(ino, InodeMerge { mode, ..set(as_it_is) });
        again.0.put(Key::Inode(Ino::of(session, 1)), an_inode());
        let mut unseen = merged(quiet_ino, InodeMerge { nlink: 1, ..InodeMerge::default() });
        unseen.1.write(Fact::Links(quiet_ino));
        unseen.0.put(Key::Inode(Ino::of(session, 1)), an_inode());
        vec![uncovered, foreign, begins, again, unseen]
    });
    assert_eq!(writer(&path, &alice), said);
    assert_eq!(writer(&quiet, &alice), of_quiet, "who applied it knows that it is void");
    alice.unmount(&dir);
    fold_into_a_root(&alice, forged.0);
    let fresh = carol.mount("mnt");
    assert_eq!(writer(&fresh.join("file"), &carol), said, "void by the log's own rules");

    let path = fresh.join("file");
    let far = |secs| Stamp { secs, nanos: 0 };
    for ctime in [as_it_is, far(-9_000_000_000), far(90_000_000_000)] {
        let record = forger::commit(&bob, |_| vec![merged(ino, set(ctime))]);
        let said = writer(&path, &carol);
        assert_eq!((said.actor.as_str(), said.record), ("bob", record.0), "at {ctime:?}");
        // What the kernel kept of it goes by itself.
        let shown = || fs::metadata(&path).expect("there").ctime() == ctime.secs;
        wait_until("the file says what was forged", shown);
    }
    fs::write(&path, b"carol's").expect("written");
    assert_eq!(writer(&path, &carol).actor, "carol", "a change after one of far ahead");
}

/// Bytes of base64, by coreutils.
fn base64(text: &str) -> Vec<u8> {
    let mut child = Command::new("base64");
    let child = child.arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut child = child.expect("coreutils");
    let mut stdin = child.stdin.take().expect("it was piped");
    stdin.write_all(text.as_bytes()).expect("written");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{text}");
    output.stdout
}

fn sha256(parts: &[&[u8]]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().to_vec()
}

/// The root that a leaf and its path give, as RFC 9162 §2.1.3.2 says it.
fn root_of(record: &[u8], index: u64, size: u64, path: &[Vec<u8>]) -> Option<Vec<u8>> {
    let (mut fnode, mut snode) = (index, size.checked_sub(1)?);
    let mut hash = sha256(&[&[0], record]);
    for step in path {
        if snode == 0 {
            return None;
        }
        if fnode % 2 == 1 || fnode == snode {
            hash = sha256(&[&[1], step, &hash]);
            while fnode % 2 == 0 && fnode != 0 {
                (fnode, snode) = (fnode >> 1, snode >> 1);
            }
        } else {
            hash = sha256(&[&[1], &hash, step]);
        }
        (fnode, snode) = (fnode >> 1, snode >> 1);
    }
    (snode == 0).then_some(hash)
}

fn signed_by(vkey: &str, message: &[u8], signature: &[u8]) -> bool {
    let key = base64(vkey.splitn(3, '+').nth(2).expect("a key"));
    let key =
        aws_lc_rs::signature::UnparsedPublicKey::new(&aws_lc_rs::signature::ED25519, &key[1..]);
    key.verify(message, signature).is_ok()
}

/// Whether a C2SP proof proves a record, by nothing of the program that made it.
fn proves(proof: &str, record: &[u8], policy: &Value) -> bool {
    let (head, note) = proof.split_once("\n\n").expect("a checkpoint");
    let mut head = head.lines();
    assert_eq!(head.next(), Some("c2sp.org/tlog-proof@v1"));
    let index = head.next().and_then(|line| line.strip_prefix("index ")).expect("an index");
    let path: Vec<Vec<u8>> = head.map(base64).collect();
    let (text, signatures) = note.split_once("\n\n").expect("signatures");
    let text = format!("{text}\n");
    let mut lines = text.lines();
    let origin = lines.next().expect("an origin");
    let size: u64 = lines.next().and_then(|size| size.parse().ok()).expect("a size");
    let root = base64(lines.next().expect("a root"));
    let signature = |vkey: &str| {
        let name = vkey.split('+').next().expect("a name");
        let line = signatures
            .lines()
            .find_map(|line| line.strip_prefix("— ")?.strip_prefix(name)?.strip_prefix(' '));
        line.map(|line| base64(line).split_off(4))
    };
    let log = policy["log"].as_str().expect("a key");
    assert!(log.starts_with(&format!("{origin}+")), "{log}");
    let by_the_log = signature(log).is_some_and(|sig| signed_by(log, text.as_bytes(), &sig));
    let voters = policy["voters"].as_array().expect("keys").iter().filter_map(Value::as_str);
    let cosigned = voters.filter(|voter| {
        signature(voter).is_some_and(|sig| {
            let time = u64::from_be_bytes(sig[..8].try_into().expect("eight bytes"));
            let message = format!("cosignature/v1\ntime {time}\n{text}");
            signed_by(voter, message.as_bytes(), &sig[8..])
        })
    });
    let quorum = policy["quorum"].as_u64().expect("a number");
    assert!(by_the_log && cosigned.count() as u64 >= quorum, "{note}");
    root_of(record, index.parse().expect("a number"), size, &path) == Some(root)
}

#[test]
fn the_proof_of_a_file_s_last_change_stands_without_this_program() {
    let three = Three::start();
    let alice = three.user("alice");
    let embedded = Home::new();
    for home in [&alice, &embedded] {
        let dir = home.mount("mnt");
        for n in 0..9 {
            write_through(&dir.join(n.to_string()), n.to_string().as_bytes()).expect("written");
        }
        for n in [0, 4, 8] {
            let path = dir.join(n.to_string());
            let said = writer(&path, home);
            let proof = attribute(&path, PROOF).expect("a proof");
            // The first answer waited for the network's first checkpoint, where that was late.
            let text = fs::read(dir.join("ledger/keys/policy.json")).expect("a policy");
            let policy: Value = serde_json::from_slice(&text).expect("JSON");
            assert!(proof.lines().any(|line| line == format!("index {}", said.record)), "{proof}");
            assert!(proves(&proof, &record(&dir, said.record), &policy), "{proof}");
            let other = record(&dir, said.record - 1);
            assert!(!proves(&proof, &other, &policy), "of another record it proves nothing");
        }
    }
}
