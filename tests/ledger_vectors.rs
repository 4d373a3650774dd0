//! The ledger's formats are frozen: the sample log's files, and bytes that must be refused.
//!
//! `MICTLAN_BLESS=1` writes the files anew; a difference in them is a new version of a format.

use mictlan::ledger::checkpoint::{Note, VerifierKey};
use mictlan::ledger::record::text::{base64, from_base64};
use mictlan::ledger::record::{Line, RecordError};
use mictlan_tests::sample_log::{LOG_LATER, Log, public};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/ledger")
}

/// Every golden file below `vectors/ledger` by its path.
fn golden() -> BTreeMap<String, Vec<u8>> {
    let log = Log::sample();
    let policy = log.roster().policy();
    let mut files = BTreeMap::from([
        ("log/checkpoint".to_owned(), log.newest().as_bytes().to_vec()),
        ("log/keys/log.vkey".to_owned(), (policy.log.vkey() + "\n").into_bytes()),
        ("log/keys/log.pem".to_owned(), policy.log.pem().into_bytes()),
        ("log/keys/policy".to_owned(), policy.text().into_bytes()),
        ("log/keys/policy.json".to_owned(), policy.json().into_bytes()),
        ("log/keys/alice.pem".to_owned(), alice_pem(&log).into_bytes()),
        ("bad-records.tsv".to_owned(), bad_records(&log).into_bytes()),
        ("bad-notes.tsv".to_owned(), bad_notes(&log).into_bytes()),
    ]);
    files.extend(
        log.notes
            .iter()
            .map(|(size, note)| (format!("log/checkpoints/{size}.note"), note.as_bytes().to_vec())),
    );
    files.extend(log.tiles().into_iter().map(|(id, b)| (format!("log/{}", id.path()), b)));
    files
}

fn alice_pem(log: &Log) -> String {
    let alice = log.roster().key_of("alice").expect("she made the network");
    VerifierKey { key: alice.0, ..log.roster().policy().log }.pem()
}

/// `why`, tab, base64 of the bytes: one edit of a good record a line.
fn bad_records(log: &Log) -> String {
    let good = String::from_utf8(log.lines[13].clone()).expect("UTF-8");
    let edit = |why: &str, from: &str, to: &str| {
        assert!(good.contains(from), "{why}: {from:?} is not in {good:?}");
        let bad = good.replacen(from, to, 1);
        format!("{why}\t{}\n", base64(bad.as_bytes()))
    };
    [
        edit("no LF", "}\n", "}"),
        edit("CRLF", "\n", "\r\n"),
        edit("two LFs", "\n", "\n\n"),
        edit("a space", ",\"p\"", ", \"p\""),
        edit("version 2", "\"v\":1", "\"v\":2"),
        edit("leading zero", "\"i\":", "\"i\":0"),
        edit("negative index", "\"i\":", "\"i\":-"),
        edit("fraction", "\"attempt\":1", "\"attempt\":1.0"),
        edit("exponent", "\"attempt\":1", "\"attempt\":1e0"),
        edit("above 2^53-1", "\"attempt\":1", "\"attempt\":9007199254740992"),
        edit("minus zero", "\"attempt\":1", "\"attempt\":-0"),
        edit("twofold key", "\"attempt\":1", "\"attempt\":1,\"attempt\":1"),
        edit("unsorted keys", "\"attempt\":1,", "\"zz\":1,\"attempt\":1,"),
        edit("upper-case key", "\"attempt\"", "\"Attempt\""),
        edit("empty key", "\"attempt\"", "\"\""),
        edit("U+007F", "\"bob\"", "\"b\u{7f}b\""),
        edit("needless escape", "\"bob\"", "\"b\\u006fb\""),
        edit("lone surrogate", "\"bob\"", "\"\\ud800\""),
        edit("actor is no name", "\"bob\"", "\"Bob\""),
        edit("unknown field outside", ",\"v\":1", ",\"u\":1,\"v\":1"),
        edit("unknown field in p", ",\"req\"", ",\"qqq\":1,\"req\""),
        edit("upper-case hex", "\"prev\":\"", "\"prev\":\"A"),
        edit("short signature", "==\",\"t\"", "=\",\"t\""),
        edit("time without milliseconds", ".500Z", "Z"),
        edit("lower-case request", "\"req\":\"01", "\"req\":\"o1"),
        edit("body is no object", "\"body\":{", "\"body\":[{"),
    ]
    .concat()
}

fn bad_notes(log: &Log) -> String {
    let good = log.newest();
    let edit = |why: &str, from: &str, to: &str| {
        assert!(good.contains(from), "{why}");
        format!("{why}\t{}\n", base64(good.replacen(from, to, 1).as_bytes()))
    };
    let few: Vec<_> = good.split_inclusive('\n').take(5).collect();
    let size = "\n300\n";
    [
        edit("another size", size, "\n301\n"),
        edit("another origin", "sample/", "semple/"),
        edit("an extension line", size, "\n300\nextension\n"),
        edit("no empty line", "=\n\n", "=\n"),
        edit("a control character", size, "\n300\t\n"),
        edit("a hyphen for the dash", "— ", "- "),
        format!("no quorum\t{}\n", base64(few.concat().as_bytes())),
    ]
    .concat()
}

#[test]
fn the_files_of_the_sample_log_are_frozen() {
    let bless = std::env::var_os("MICTLAN_BLESS").is_some();
    for (name, bytes) in golden() {
        let path = dir().join(&name);
        if bless {
            std::fs::create_dir_all(path.parent().expect("inside the vectors")).expect("made");
            std::fs::write(&path, &bytes).expect("written");
        }
        let frozen = std::fs::read(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(frozen == bytes, "{name} is not what it was frozen as");
    }
}

fn cases(name: &str) -> Vec<(String, Vec<u8>)> {
    let text = std::fs::read_to_string(dir().join(name)).expect("a vector");
    let case = |line: &str| {
        let (why, bytes) = line.split_once('\t').expect("why, tab, base64");
        (why.to_owned(), from_base64(bytes.as_bytes()).expect("base64"))
    };
    text.lines().map(case).collect()
}

#[test]
fn bad_records_are_refused() {
    for (why, bytes) in cases("bad-records.tsv") {
        assert!(Line::parse(&bytes).is_err(), "{why}");
    }
    let long = vec![b'{'; 16_385];
    assert_eq!(Line::parse(&long), Err(RecordError::TooLarge(16_385)));
}

#[test]
fn bad_notes_are_refused() {
    let policy = Log::sample().roster().policy();
    assert_eq!(policy.log.key, public(LOG_LATER));
    for (why, bytes) in cases("bad-notes.tsv") {
        assert!(policy.accept(&bytes).is_err(), "{why}");
    }
    assert!(Note::parse(&[b'a'; 70_000]).is_err());
}
