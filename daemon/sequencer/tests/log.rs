//! The log store against openraft's own suite, and against a model, with restarts.

use super::{MemoryChunks, fixed_clock};
use crate::sequencer::raft::log::LogStore;
use crate::sequencer::raft::machine::{Applied, Machine};
use crate::sequencer::raft::{Entry, Group, LogId, StorageError, Types, Vote};
use bytes::Bytes;
use mictlan::id::{NetworkId, PeerId};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{EntryPayload, RaftLogId, RaftLogReader};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;

const SEGMENT: u64 = 8192;

struct Builder;

impl StoreBuilder<Types, LogStore, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().expect("a directory");
        let log = LogStore::open(&dir.path().join("wal"), SEGMENT).expect("opened");
        let (network, me) = (NetworkId([1; 32]), PeerId(1));
        let chunks = Arc::new(MemoryChunks::default());
        let _ = fixed_clock();
        let applied = Applied::open(dir.path().to_owned(), network, me, chunks).expect("opened");
        Ok((dir, log, Machine { applied: Arc::new(applied) }))
    }
}

#[test]
fn log_and_state_machine_pass_openrafts_suite() {
    Suite::test_all(Builder).expect("the suite passes");
}

#[derive(Clone, Debug)]
enum Step {
    Append { count: u8, bytes: u16 },
    Vote(u8),
    Committed,
    TruncateLast(u8),
    PurgeFirst(u8),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..5u8, 0..3000u16).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        1 => any::<u8>().prop_map(Step::Vote),
        1 => Just(Step::Committed),
        1 => (1..4u8).prop_map(Step::TruncateLast),
        2 => (1..6u8).prop_map(Step::PurgeFirst),
        2 => Just(Step::Restart),
    ]
}

#[derive(Default)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|e| *e.get_log_id()).or(self.purged)
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(openraft::CommittedLeaderId::new(term, 1), index)
}

async fn run(dir: &TempDir, steps: Vec<Step>) {
    let open = || LogStore::open(dir.path(), SEGMENT).expect("opened");
    let (mut log, mut model) = (open(), Model::default());
    for step in steps {
        match step {
            Step::Append { count, bytes } => {
                let next = model.last().map_or(0, |l| l.index + 1);
                let entries: Vec<Entry> = (next..next + u64::from(count))
                    .map(|index| {
                        let group = Group(Bytes::from(vec![index as u8; bytes.into()]));
                        let payload = EntryPayload::Normal(group);
                        Entry { log_id: id(model.term, index), payload }
                    })
                    .collect();
                log.blocking_append(entries.clone()).await.expect("appended");
                model.entries.extend(entries.into_iter().map(|e| (e.log_id.index, e)));
            }
            Step::Vote(term) => {
                let vote = Vote::new(term.into(), 1);
                log.save_vote(&vote).await.expect("saved");
                model.vote = Some(vote);
            }
            Step::Committed => {
                log.save_committed(model.last()).await.expect("saved");
                model.committed = model.last();
            }
            Step::TruncateLast(count) => {
                let keep = model.entries.len().saturating_sub(count.into());
                let Some(since) = model.entries.values().nth(keep).map(|e| e.log_id) else {
                    continue;
                };
                if model.committed.is_some_and(|c| c.index >= since.index) {
                    continue; // raft never takes back what is committed
                }
                log.truncate(since).await.expect("truncated");
                model.entries.split_off(&since.index);
                model.term += 1;
            }
            Step::PurgeFirst(count) => {
                let Some(upto) = model.entries.values().nth(usize::from(count) - 1) else {
                    continue;
                };
                let upto = upto.log_id;
                log.purge(upto).await.expect("purged");
                model.entries = model.entries.split_off(&(upto.index + 1));
                model.purged = Some(upto);
            }
            Step::Restart => log = open(),
        }
        compare(&mut log, &model).await;
    }
    compare(&mut open(), &model).await;
}

async fn compare(log: &mut LogStore, model: &Model) {
    let state = log.get_log_state().await.expect("a state");
    assert_eq!((state.last_purged_log_id, state.last_log_id), (model.purged, model.last()));
    assert_eq!(log.read_vote().await.expect("a vote"), model.vote);
    assert_eq!(log.read_committed().await.expect("an id"), model.committed);
    let all: Vec<Entry> = model.entries.values().cloned().collect();
    assert_eq!(log.try_get_log_entries(..).await.expect("entries"), all);
    let (from, to) = (all.len() as u64 / 3, all.len() as u64);
    let first = all.first().map_or(0, |e| e.log_id.index);
    let some = log.try_get_log_entries(first + from..first + to + 9).await.expect("entries");
    assert_eq!(some, all[from as usize..]);
    let some = log.try_get_log_entries(first + from..first + to.max(from + 1) - 1).await;
    let upto = (to.max(from + 1) - 1) as usize;
    assert_eq!(some.expect("entries"), all[from as usize..upto.min(all.len())]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_log_behaves_like_a_map_also_over_restarts(steps in prop::collection::vec(step(), 1..60)) {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(run(&dir, steps));
    }
}
