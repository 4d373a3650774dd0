//! P3: whoever holds an earlier checkpoint detects any rewriting, reordering or truncation.

use mictlan::id::{NetworkId, TimeMs};
use mictlan::ledger::record::{Line, record_message};
use mictlan::ledger::verify::{Fault, Finding, Report, Verifier};
use mictlan_tests::harness::Home;
use mictlan_tests::sample_log::{ALICE, BOB, BOB_LATER, CAROL, Log, START, sign};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

/// Verifies a whole log with everything that is known about it.
fn verify(log: &Log) -> Report {
    verify_lines(log, &log.lines)
}

fn verify_lines(log: &Log, lines: &[Vec<u8>]) -> Report {
    let mut verifier = Verifier::new(Some(log.roster().id()));
    for note in log.notes.values() {
        verifier.expect_note(note.as_bytes()).expect("a note");
    }
    for line in lines {
        if let Some(deferred) = verifier.push(line)
            && let Err(finding) = deferred.check()
        {
            verifier.find(finding);
        }
    }
    verifier.finish()
}

fn first(report: &Report) -> &Finding {
    report.findings.first().expect("something must be found")
}

#[test]
fn an_honest_log_has_no_findings() {
    let log = Log::sample();
    let report = verify(&log);
    assert_eq!(report.findings, []);
    assert_eq!((report.size, report.root), (300, log.root()));
    assert_eq!(report.checkpoints, log.notes.len() as u64);
}

#[test]
fn a_flipped_byte_is_found_where_it_is() {
    let log = Log::sample();
    for (index, at) in [(0, 5), (0, 300), (7, 40), (123, 200), (299, 30)] {
        let mut lines = log.lines.clone();
        lines[index][at] ^= 1;
        let report = verify_lines(&log, &lines);
        assert_eq!(first(&report).index, index as u64, "byte {at}: {}", first(&report));
    }
}

#[test]
fn a_removed_or_moved_record_is_found() {
    let log = Log::sample();
    let mut lines = log.lines.clone();
    lines.remove(100);
    let report = verify_lines(&log, &lines);
    assert_eq!(first(&report).index, 100);
    assert!(report.findings.iter().any(|f| matches!(f.fault, Fault::Truncated(300))));
    let mut lines = log.lines.clone();
    lines.swap(100, 101);
    assert_eq!(first(&verify_lines(&log, &lines)).index, 100);
    let report = verify_lines(&log, &log.lines[..299]);
    let truncated = Finding { index: 299, fault: Fault::Truncated(300) };
    assert_eq!(report.findings, [truncated]);
}

#[test]
fn a_history_rewritten_and_signed_again_is_found_with_an_old_checkpoint() {
    let remembered = Log::sample().checkpoint();
    let mut forged = Log::new();
    while forged.lines.len() < 320 {
        forged.note("alice", ALICE, json!({"n": forged.lines.len()}));
    }
    forged.publish();
    assert_eq!(verify(&forged).findings, [], "it agrees with itself");
    let mut verifier = Verifier::new(None);
    verifier.expect_remembered(&remembered);
    forged.lines.iter().for_each(|line| drop(verifier.push(line)));
    let report = verifier.finish();
    assert!(matches!(first(&report).fault, Fault::Rewritten { size: 300, .. }));
    assert_eq!(report.findings.len(), 1);
}

#[test]
fn another_network_is_found() {
    let log = Log::new();
    let mut verifier = Verifier::new(Some(NetworkId([9; 32])));
    drop(verifier.push(&log.lines[0]));
    assert!(matches!(first(&verifier.finish()).fault, Fault::OtherNetwork { .. }));
    let nothing = Verifier::new(None).finish();
    assert!(matches!(first(&nothing).fault, Fault::Roster(_)), "an empty log is no network");
}

#[test]
fn a_key_counts_only_while_it_is_the_actors() {
    for (actor, seed) in [("bob", BOB), ("bob", ALICE), ("alice", BOB_LATER), ("p1", ALICE)] {
        let mut log = Log::sample();
        log.note(actor, seed, json!(1));
        let report = verify(&log);
        let wrong = Finding { index: 300, fault: Fault::Signature(actor.to_owned()) };
        assert_eq!(report.findings, [wrong]);
    }
    for (actor, seed) in [("carol", CAROL), ("mallory", ALICE)] {
        let mut log = Log::sample();
        log.note(actor, seed, json!(1));
        assert!(matches!(first(&verify(&log)).fault, Fault::Roster(_)), "{actor}");
    }
    let mut log = Log::sample();
    log.note("bob", BOB_LATER, json!(1));
    assert_eq!(verify(&log).findings, []);
}

#[test]
fn a_record_ordered_twice_or_at_a_false_time_is_found() {
    let mut log = Log::new();
    log.note("alice", ALICE, json!("pay once"));
    let line = log.lines[1].clone();
    let line = Line::parse(&line).expect("a record");
    let push = |log: &mut Log, t| log.push(log.lines.len() as u64, t, line.p.bytes, &line.sig);
    let mut twice = log.clone();
    push(&mut twice, TimeMs(line.t.0 + 599_000));
    assert_eq!(verify(&twice).findings, [Finding { index: 2, fault: Fault::Repeated }]);
    let mut late = log.clone();
    push(&mut late, TimeMs(line.t.0 + 600_000));
    assert!(matches!(first(&verify(&late)).fault, Fault::RequestTime(_)));
    let mut back = log.clone();
    back.note("alice", ALICE, json!(2));
    push(&mut back, START);
    assert!(verify(&back).findings.iter().any(|f| matches!(f.fault, Fault::Time(1_000))));
}

#[test]
fn a_body_that_does_not_fit_its_kind_is_found() {
    let mut log = Log::new();
    let p = br#"{"actor":"alice","body":{},"kind":"fs.commit","req":"01M7ZS7EG00000000000000000"}"#;
    let sig = sign(ALICE, &record_message(&log.roster().origin(), p));
    log.push(1, START, p, &sig);
    assert!(matches!(first(&verify(&log)).fault, Fault::Record(_)));
    let p = br#"{"actor":"alice","body":{},"kind":"vote.open","req":"01M7ZS7EG00000000000000000"}"#;
    let mut log = Log::new();
    let sig = sign(ALICE, &record_message(&log.roster().origin(), p));
    log.push(1, START, p, &sig);
    assert_eq!(verify(&log).findings, [], "a kind of a later program is only not judged");
}

#[test]
fn a_checkpoint_needs_the_log_and_enough_voters() {
    let good = Log::sample();
    let mut few = good.clone();
    few.notes.insert(300, few.signed(1));
    assert!(matches!(first(&verify(&few)).fault, Fault::Checkpoint(_)));
    let mut old_key = good.clone();
    old_key.notes.insert(300, good.newest().replacen("300\n", "299\n", 1));
    assert!(matches!(first(&verify(&old_key)).fault, Fault::Checkpoint(_)));
    let mut forked = good.clone();
    forked.lines.pop();
    forked.note("alice", ALICE, json!("another end"));
    assert!(matches!(first(&verify(&forked)).fault, Fault::Root { size: 300, .. }));
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").args([from, to]).status().expect("cp is installed");
    assert!(done.success(), "{} cannot be copied", from.display());
}

/// The program's word on the whole log, or on a copy.
fn said(home: &Home, from: Option<&Path>, json: bool) -> (Option<i32>, String) {
    let mut arguments = vec!["ledger", "verify"];
    if let Some(from) = from {
        arguments.extend(["--from", from.to_str().expect("a plain path")]);
    }
    arguments.extend(json.then_some("--json"));
    let output = home.run(&arguments);
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).expect("UTF-8"))
}

#[test]
fn an_older_copy_verifies_as_what_it_is_and_a_log_that_lost_its_end_does_not() {
    let home = Home::new();
    let note = ["ledger", "append", "--json", "--topic", "t", "1", "--wait", "published"];
    let published = || -> u64 {
        let said: Value = serde_json::from_str(&home.ok(&note)).expect("one object");
        said["size"].as_u64().expect("a size")
    };
    let older = published();
    let data = home.path().join("home/data");
    let tree = data.join("networks/home/sequencer/ledger");
    let (copied, kept) = (home.path().join("copied"), home.path().join("kept"));
    copy(&tree, &copied);
    copy(&data, &kept);
    let newer = published();

    let (code, text) = said(&home, Some(&copied), false);
    assert_eq!(code, Some(0), "{text}");
    let words = format!("good: a copy of the first {older} records, of {newer} known here");
    assert!(text.contains(&words), "{text}");
    let (_, text) = said(&home, Some(&copied), true);
    let object: Value = serde_json::from_str(&text).expect("one object");
    let found = (&object["verdict"], &object["size"], &object["known"]);
    assert_eq!(found, (&json!("good"), &json!(older), &json!(newer)), "{text}");
    let (code, text) = said(&home, Some(&tree), false);
    assert!(code == Some(0) && text.contains("and continues what was verified"), "{text}");

    // The copy says it itself where a byte of it is not what was signed.
    let bundle = copied.join(format!("tile/entries/000.p/{older}"));
    let mut bytes = std::fs::read(&bundle).expect("it was copied");
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    std::fs::write(&bundle, bytes).expect("written");
    let (code, text) = said(&home, Some(&copied), false);
    assert!(code == Some(1) && text.contains("BAD: "), "{text}");

    // The peer itself has lost its end, and shows what is left as all there is.
    std::fs::remove_dir_all(&data).expect("removed");
    copy(&kept, &data);
    let (code, text) = said(&home, None, false);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("truncated: ") && text.contains("records are missing"), "{text}");
}
