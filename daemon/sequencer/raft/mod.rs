//! Openraft behind one narrow seam: its types, its timing, its storage and its network.
//!
//! Owns: everything that names openraft, so that it can be replaced.
//! Never: looks into an entry; what is ordered are the opaque bytes of a group.

pub mod guard;
mod index;
pub mod log;
pub mod machine;
pub mod network;
pub mod recall;
mod snapshot;
pub mod wal;

pub use snapshot::SnapshotError;

use bytes::Bytes;
use mictlan::cluster::state::Outcome;
use openraft::{Config, EmptyNode, SnapshotPolicy, TokioRuntime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::io::Cursor;
use std::sync::Arc;

openraft::declare_raft_types!(
    /// The types that openraft is used with.
    pub Types:
        D = Group,
        R = Answers,
        NodeId = u64,
        Node = EmptyNode,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
        AsyncRuntime = TokioRuntime,
        Responder = openraft::impls::OneshotResponder<Types>,
);

pub type Raft = openraft::Raft<Types>;
pub type Entry = openraft::Entry<Types>;
pub type LogId = openraft::LogId<u64>;
pub type Vote = openraft::Vote<u64>;
pub type StorageError = openraft::StorageError<u64>;
pub type StoredMembership = openraft::StoredMembership<u64, EmptyNode>;
pub type SnapshotMeta = openraft::SnapshotMeta<u64, EmptyNode>;

/// The bytes of one `cluster::state::Entry`: what waited together. Cloning shares them.
#[derive(Clone, PartialEq, Eq)]
pub struct Group(pub Bytes);

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Group({} bytes)", self.0.len())
    }
}

impl Serialize for Group {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Group {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Group;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the bytes of a group")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Group, E> {
                Ok(Group(Bytes::copy_from_slice(bytes)))
            }
        }
        deserializer.deserialize_bytes(Visitor)
    }
}

/// What applying a group answered, one outcome an item; none for raft's own entries. It goes from
/// the state machine to the proposer in this process and is never written down.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Answers(#[serde(skip)] pub Vec<Outcome>);

/// How often the leader is heard, and for how long it may be silent. Two busy cores delay a task
/// by some hundred milliseconds, and an election costs more than waiting that long.
const HEARTBEAT_MS: u64 = 250;
const ELECTION_MS: (u64, u64) = (800, 1600);
/// Applied entries that stay in the log for voters that are a little behind.
const KEPT_ENTRIES: u64 = 500;

/// Openraft's configuration. `entries_per_snapshot` bounds the log and the replay at start; a voter
/// that may not `elect` waits to be led.
pub fn config(entries_per_snapshot: u64, elect: bool) -> Arc<Config> {
    let config = Config {
        cluster_name: "mictlan".into(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS.0,
        election_timeout_max: ELECTION_MS.1,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(entries_per_snapshot),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES.min(entries_per_snapshot),
        enable_elect: elect,
        // A group is up to a megabyte, so a few are a full message.
        max_payload_entries: 16,
        install_snapshot_timeout: 30_000,
        replication_lag_threshold: 2 * entries_per_snapshot,
        ..Config::default()
    };
    Arc::new(config.validate().expect("the timing constants are in order"))
}
