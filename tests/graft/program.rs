//! `mictlan ledger verify` and `append` as a script sees them.

use crate::world::{Mount, Peer, peers};
use mictlan::cluster::state::{Outcome, Submission};
use mictlan::id::{Label, Position, TimeMs};
use mictlan::ledger::checkpoint::Checkpoint;
use mictlan::ledger::record::body::{Body, Principal as Registered, PublicKeys, principal_message};
use mictlan::ledger::record::{Line, Signed};
use mictlan::seal::{Principal, Secret};
use mictlan_daemon::cli::ledger::{AppendArgs, LedgerCliError, VerifyArgs, Wait, append, verify};
use mictlan_tests::sample_log::{ALICE, Log, START};
use serde_json::{Value, json};

/// What it printed, and whether it said that all is well.
async fn verified(with: Vec<Peer>, remembered: Option<Checkpoint>) -> (Value, bool) {
    let network = Log::sample().roster().id();
    let args = VerifyArgs { json: true, from: None };
    let mut out = Vec::new();
    let (_, fetch) = peers(with);
    let code = verify(&args, network, fetch, remembered.map(Into::into), &mut out)
        .await
        .expect("a verdict");
    let all: Value = serde_json::from_slice(&out).expect("one JSON object");
    let good = format!("{code:?}") == format!("{:?}", std::process::ExitCode::SUCCESS);
    assert_eq!(all["verdict"] == json!("good"), good, "verdict and exit code agree");
    (all, good)
}

#[tokio::test]
async fn an_honest_log_verifies() {
    let log = Log::sample();
    let mut smaller = Log::new();
    smaller.publish();
    let (all, good) = verified(vec![Peer::honest(&log)], Some(smaller.checkpoint())).await;
    assert!(good, "{all}");
    assert_eq!((&all["size"], &all["checkpoints"]), (&json!(300), &json!(2)));
    assert_eq!(all["root"], json!(log.root().to_hex()));
}

#[tokio::test]
async fn every_fault_has_its_code_and_place() {
    let mut bad = Log::sample();
    bad.note("alice", 9, json!("not alice's key"));
    bad.publish();
    let (all, good) = verified(vec![Peer::honest(&bad)], None).await;
    assert!(!good);
    assert_eq!(all["findings"][0]["code"], json!("signature"));
    assert_eq!(all["findings"][0]["record"], json!(300));
    let (one, other) = crate::fork();
    let remembered = one.checkpoint();
    let mut other = other;
    other.publish();
    let (all, _) = verified(vec![Peer::honest(&other)], Some(remembered.clone())).await;
    assert_eq!(all["findings"][0]["code"], json!("rewritten"));
    let (all, _) = verified(vec![Peer::honest(&Log::sample())], Some(remembered)).await;
    assert_eq!(all["findings"][0]["code"], json!("truncated"));
}

#[tokio::test]
async fn a_copy_on_disk_verifies_without_a_peer() {
    let (log, dir) = (Log::sample(), tempfile::tempdir().expect("a directory"));
    let put = |path: &str, bytes: &[u8]| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        std::fs::write(path, bytes).expect("written");
    };
    put("checkpoint", log.newest().as_bytes());
    log.tiles().iter().for_each(|(id, bytes)| put(&id.path(), bytes));
    let args = VerifyArgs { json: false, from: Some(dir.path().to_owned()) };
    let (_, nobody) = peers(vec![]);
    let mut out = Vec::new();
    let network = log.roster().id();
    verify(&args, network, nobody.clone(), None, &mut out).await.expect("a verdict");
    let said = String::from_utf8(out).expect("text");
    assert_eq!(said, format!("good: 300 records, root {}\n", log.root()));
    let unread = verify(&VerifyArgs::default(), network, nobody, None, &mut Vec::new()).await;
    assert!(matches!(unread.err(), Some(LedgerCliError::Unreadable { .. })));
}

/// The sample with one more actor, who has a key file's kind of key.
fn with_dora() -> (Log, Principal) {
    let mut log = Log::sample();
    let dora = Principal::from_seed(Secret::from_bytes([0xd0; 32]));
    let name = Label::parse("dora").expect("a name");
    let keys = PublicKeys { agreement: dora.public().agreement, signing: dora.id() };
    let proof = dora.sign(&principal_message(&log.roster().origin(), &name, &keys));
    let body = Body::Principal(Registered { invite: None, keys, name, proof });
    log.append("alice", ALICE, body);
    log.publish();
    (log, dora)
}

fn arguments(topic: &str, data: &str, wait: Option<Wait>) -> AppendArgs {
    AppendArgs { topic: topic.to_owned(), data: data.to_owned(), wait, json: true }
}

#[tokio::test]
async fn a_note_is_signed_ordered_and_waited_for() {
    let (log, dora) = with_dora();
    let now = TimeMs(START.0 + 301 * 500);
    let mount = Mount::new(vec![Peer::honest(&log)]);
    let all = mount.peers.clone();
    let submit = |submission: Submission| async move {
        let mut all = all.lock().expect("free");
        let log = &mut all[0].log;
        let Submission { p, sig, .. } = submission;
        assert_eq!(Signed::parse(&p).expect("a proposal").actor, "dora");
        log.push(301, now, &p, &sig);
        log.publish();
        let record = log.lines[301].clone();
        Ok::<_, String>(Outcome::Accepted { position: Position(301), record })
    };
    let args = arguments("builds", r#"{"n":7}"#, Some(Wait::Published));
    let mut out = Vec::new();
    let at = append(&args, &mount.ledger, &dora, now, submit, &mut out).await.expect("ordered");
    assert_eq!(at, Position(301));
    let said: Value = serde_json::from_slice(&out).expect("JSON");
    assert_eq!((&said["record"], &said["size"]), (&json!(301), &json!(302)));
    let line = mount.cat("ledger/records/000/000/000/000000000301.json").await.expect("it reads");
    assert_eq!(Line::parse(&line).expect("a record").p.kind, "note");
    let grown = mount.peers.lock().expect("free").clone();
    assert!(verified(grown, None).await.1, "the signature is right");
}

#[tokio::test]
async fn what_cannot_be_a_note_is_refused_before_anything_is_sent() {
    let (log, dora) = with_dora();
    let mount = Mount::new(vec![Peer::honest(&log)]);
    let stranger = Principal::from_seed(Secret::from_bytes([0xee; 32]));
    for (topic, data, who, what) in [
        ("No Topic", "1", &dora, "is not a topic"),
        ("x", "{", &dora, "is not JSON"),
        ("x", r#"[{"a":1,"a":2}]"#, &dora, r#"the key "a" stands twice at line 1 column"#),
        ("x", "1.5", &dora, "nothing was written"),
        ("x", "1", &stranger, "no actor"),
    ] {
        let submit = |_| async { panic!("nothing must be sent") as Result<Outcome, String> };
        let args = arguments(topic, data, None);
        let refused = append(&args, &mount.ledger, who, START, submit, &mut Vec::new()).await;
        let text = refused.expect_err("it must be refused").to_string();
        assert!(text.contains(what), "{text}");
    }
}
