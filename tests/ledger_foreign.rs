//! The ledger is checked by programs that nobody here wrote: jq, sha256sum, openssl.
//!
//! `tests/foreign/run` does the same with Go's sumdb packages.

use mictlan::ledger::checkpoint::{Note, VerifierKey};
use mictlan_tests::sample_log::{ALICE, Log, public};
use std::path::Path;
use std::process::{Command, Stdio};

/// Runs a line of shell in `dir`; its output, or a panic with what went wrong.
fn shell(dir: &Path, line: &str) -> String {
    let out = Command::new("sh")
        .args(["-euc", line])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{line}\n{error}");
    String::from_utf8(out.stdout).expect("text")
}

/// The sample log as a directory of record files, with its sums.
fn records() -> (Log, tempfile::TempDir) {
    let (log, dir) = (Log::sample(), tempfile::tempdir().expect("a directory"));
    for (n, line) in log.lines.iter().enumerate() {
        std::fs::write(dir.path().join(format!("{n:012}.json")), line).expect("written");
    }
    (log, dir)
}

#[test]
fn sha256sum_and_jq_follow_the_chain() {
    let (log, dir) = records();
    let sums = shell(dir.path(), "sha256sum *.json | head -n 299 | cut -c1-64");
    let prevs = shell(dir.path(), "jq -r 'select(.i > 0).prev' *.json");
    assert_eq!(sums, prevs);
    let network = shell(dir.path(), "jq -cjS .p 000000000000.json | sha256sum | cut -c1-64");
    assert_eq!(network.trim_end(), log.roster().id().to_hex());
}

#[test]
fn jq_prints_the_bytes_that_were_signed() {
    let (log, dir) = records();
    let printed = shell(dir.path(), "jq -cjS .p *.json");
    let signed: Vec<_> = log
        .lines
        .iter()
        .map(|line| mictlan::ledger::record::Line::parse(line).expect("a record").p.bytes)
        .collect();
    assert_eq!(printed.as_bytes(), signed.concat());
    let lines = shell(dir.path(), "cat *.json | jq -cS .");
    assert_eq!(lines.as_bytes(), log.lines.concat(), "the records themselves are canonical");
}

#[test]
fn openssl_verifies_a_record_and_the_checkpoint() {
    let (log, dir) = records();
    let policy = log.roster().policy();
    let alice = VerifierKey { key: public(ALICE), ..policy.log.clone() };
    let note = Note::parse(log.newest().as_bytes()).expect("a note");
    let (time, cosignature) = note.lines[1].signature.split_at(8);
    let time = u64::from_be_bytes(time.try_into().expect("8 bytes"));
    for (name, bytes) in [
        ("alice.pem", alice.pem().as_bytes()),
        ("log.pem", policy.log.pem().as_bytes()),
        ("p1.pem", policy.voters[0].pem().as_bytes()),
        ("checkpoint", log.newest().as_bytes()),
        ("log.sig", &note.lines[0].signature),
        ("p1.sig", cosignature),
    ] {
        std::fs::write(dir.path().join(name), bytes).expect("written");
    }
    let verify = |key: &str, make: &str| {
        let line =
            format!("{make}; openssl pkeyutl -verify -pubin -inkey {key} -rawin -in m -sigfile s");
        let said = shell(dir.path(), &line);
        assert!(said.contains("Signature Verified Successfully"), "{said}");
    };
    verify(
        "alice.pem",
        "N=000000000299; { printf '%s/record/v1\\n' \"$(head -1 checkpoint)\"; jq -cjS .p $N.json; } > m; \
         jq -r .sig $N.json | base64 -d > s",
    );
    verify(
        "alice.pem",
        "N=000000000000; { echo mictlan/genesis/v1; jq -cjS .p $N.json; } > m; \
         jq -r .sig $N.json | base64 -d > s",
    );
    verify("log.pem", "head -3 checkpoint > m; cp log.sig s");
    let cosigned = format!(
        "{{ echo cosignature/v1; echo 'time {time}'; head -3 checkpoint; }} > m; cp p1.sig s"
    );
    verify("p1.pem", &cosigned);
}

/// What `README.txt` tells to type, in a tree as a mount shows it, for several records.
#[test]
fn the_readme_can_be_followed_to_the_letter() {
    let text = include_str!("../src/ledger/files/readme.txt");
    let lines: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    let (head, rest) = lines.split_first().expect("lines for a shell");
    assert!(head.starts_with("N=1;") && rest.len() > 10, "{head}");
    let (log, records) = records();
    let top = tempfile::tempdir().expect("a directory");
    let thousand = top.path().join("records/000/000/000");
    std::fs::create_dir_all(&thousand).expect("made");
    shell(records.path(), &format!("cp *.json {}", thousand.display()));
    shell(&thousand, "sha256sum *.json > SUMS; mv SUMS SHA256SUMS; cat *.json > ../000.ndjson");
    std::fs::write(top.path().join("checkpoint"), log.newest()).expect("written");
    let network = log.roster().id().to_hex();
    let signers: std::collections::BTreeSet<String> = [1, 2, 7, 123, 299]
        .into_iter()
        .map(|n| {
            let script =
                format!("{}\n{}\n", head.replace("N=1;", &format!("N={n};")), rest.join("\n"));
            let said = shell(top.path(), &format!("{script}echo by $ACTOR; rm -r $T"));
            let words: Vec<&str> = said.split_whitespace().collect();
            assert_eq!(words[0], words[2], "the hash of the one before, and what {n} names");
            assert!(said.contains("Signature Verified Successfully"), "record {n}: {said}");
            assert!(said.contains(&network) && said.contains(&network[..16]), "{said}");
            words.last().expect("a name").to_string()
        })
        .collect();
    assert!(signers.contains("alice") && signers.len() > 1, "{signers:?}");
}
