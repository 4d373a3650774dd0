//! `mictlan ledger verify` and `append` as a script sees them.

use crate::world::{Mount, Peer, peers};
use mictlan::cluster::state::{Outcome, Submission};
use mictlan::id::{Label, PeerId, Position, TimeMs};
use mictlan::ledger::checkpoint::Checkpoint;
use mictlan::ledger::record::body::{Body, Principal as Registered, PublicKeys, principal_message};
use mictlan::ledger::record::{Line, Signed, record_hash};
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
    let code = verify(&args, network, fetch, &[], remembered.map(Into::into), &mut out)
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

/// The static tree of the sample in a directory, as `cp -a` of `at/300` gives it.
struct Copied(tempfile::TempDir, Log);

impl Copied {
    fn new(with_records: bool) -> Self {
        let copied = Self(tempfile::tempdir().expect("a directory"), Log::sample());
        copied.put("checkpoint", copied.1.newest().as_bytes());
        copied.1.tiles().iter().for_each(|(id, bytes)| copied.put(&id.path(), bytes));
        if with_records {
            let (mut sums, top) = (String::new(), "records/000/000/000");
            for (at, line) in copied.1.lines.iter().enumerate() {
                copied.put(&format!("{top}/{at:012}.json"), line);
                sums += &format!("{}  {at:012}.json\n", record_hash(line));
            }
            copied.put(&format!("{top}/SHA256SUMS"), sums.as_bytes());
            copied.put(&format!("{top}.ndjson"), &copied.1.lines.concat());
        }
        copied
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().expect("below the directory")).expect("made");
        std::fs::write(path, bytes).expect("written");
    }

    /// What is said of it, and whether that is good.
    async fn verified(&self) -> (String, bool) {
        let args = VerifyArgs { json: false, from: Some(self.0.path().to_owned()) };
        let (_, nobody) = peers(vec![]);
        let (mut out, network) = (Vec::new(), self.1.roster().id());
        let code = verify(&args, network, nobody, &[], None, &mut out).await.expect("a verdict");
        let good = format!("{code:?}") == format!("{:?}", std::process::ExitCode::SUCCESS);
        (String::from_utf8(out).expect("text"), good)
    }
}

#[tokio::test]
async fn a_copy_on_disk_verifies_without_a_peer() {
    let good = format!("good: 300 records, root {}\n", Log::sample().root());
    assert_eq!(Copied::new(true).verified().await, (good.clone(), true));
    let bare = Copied::new(false).verified().await;
    let without = "not checked: records/, which this copy does not have\n";
    assert_eq!(bare, (good + without, true));
    let (_, nobody) = peers(vec![]);
    let network = Log::sample().roster().id();
    let unread = verify(&VerifyArgs::default(), network, nobody, &[], None, &mut Vec::new()).await;
    assert!(matches!(unread.err(), Some(LedgerCliError::Unreadable { .. })));
}

#[tokio::test]
async fn what_was_changed_in_a_copy_or_cut_out_of_it_is_found_by_its_name() {
    let thousand = "records/000/000/000";
    let record = format!("{thousand}/000000000123.json");
    let (sums, lines) = (format!("{thousand}/SHA256SUMS"), format!("{thousand}.ndjson"));
    let paths = [&record, &sums, &lines, "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1"];
    let bundles = ["tile/entries/000", "tile/entries/001.p/44"];
    for path in paths.into_iter().chain(bundles) {
        for change in ["flipped", "cut", "missing"] {
            let copied = Copied::new(true);
            let file = copied.0.path().join(path);
            let mut bytes = std::fs::read(&file).expect("it is there");
            let (middle, last) = (bytes.len() / 2, bytes.len() - 1);
            match change {
                "flipped" => bytes[middle] ^= 1,
                _ => bytes.truncate(last),
            }
            std::fs::write(&file, bytes).expect("written");
            if change == "missing" {
                std::fs::remove_file(&file).expect("it was there");
            }
            let (said, good) = copied.verified().await;
            assert!(!good && said.contains("BAD: "), "{path} {change}: {said}");
            // A bundle that can be taken apart is judged record by record.
            let by_name = said.contains(path) && said.contains("copy: record ");
            assert!(by_name || path.contains("entries"), "{path} {change}: {said}");
            assert!(by_name || change == "flipped", "{path} {change}: {said}");
        }
    }
}

#[tokio::test]
async fn whose_bytes_are_damaged_is_said_by_name() {
    let log = Log::sample();
    let bad = || Peer { lies: Some("tile/entries/001".to_owned()), ..Peer::honest(&log) };
    let one = |id, with| (PeerId(id), peers(vec![with]).1);
    let each = [one(1, Peer::honest(&log)), one(2, bad()), one(3, Peer::honest(&log))];
    let (_, fetch) = peers(vec![bad()]);
    let (network, mut out) = (log.roster().id(), Vec::new());
    let remembered = Some(log.checkpoint().into());
    let args = VerifyArgs::default();
    verify(&args, network, fetch, &each, remembered, &mut out).await.expect("a verdict");
    let said = String::from_utf8(out).expect("text");
    for part in [
        "BAD: ",
        "peer 1: gives a good ledger of 300 records",
        "peer 2: gives a BAD one: ",
        "peer 3: gives a good ledger of 300 records",
        "what peer 1, 3 gives is whole, and it continues what was verified before; what peer 2 \
         gives is damaged or forged",
    ] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
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
