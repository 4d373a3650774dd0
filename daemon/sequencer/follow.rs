//! Applied records for mounts and readers: from memory while they are close, else from the files.
//!
//! Owns: which records a volume's follower needs, and the long poll.
//! Never: shows a record before it counts as applied.
//! Invariant: pages join without a gap: `next` of one is `from` of the following.

use super::files::ReadError;
use super::raft::machine::Applied;
use super::recent::Kept;
use bytes::Bytes;
use mictlan::cluster::state::{Head, INSIDE_MAX};
use mictlan::id::{ChunkId, Position, VolumeId};
use mictlan::ledger::record::Line;
use mictlan::ledger::record::body::{Body, ChunkRef};
use std::time::Duration;

/// A page ends after about so much, whatever was asked for.
const PAGE_BYTES_MAX: usize = 4 << 20;

/// What a follower asks for.
#[derive(Clone, Copy, Debug)]
pub struct Follow {
    /// Only what concerns this volume, or everyone; `None`: every record.
    pub volume: Option<VolumeId>,
    pub from: Position,
    pub max_bytes: usize,
    /// How long to wait for the first record.
    pub wait: Duration,
}

#[derive(Clone, Debug)]
pub struct Page {
    pub records: Vec<Kept>,
    /// Where the next page begins: past everything that the filter left out.
    pub next: Position,
    /// None before record 0.
    pub head: Option<Head>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("position {from} is beyond the {size} records that this voter has applied")]
    Ahead { from: Position, size: u64 },
}

pub async fn follow(applied: &Applied, wanted: Follow) -> Result<Page, FollowError> {
    let mut size = applied.size.subscribe();
    // A wait that runs out, like a sender that is gone, just gives an empty page.
    let _ = tokio::time::timeout(wanted.wait, size.wait_for(|s| *s > wanted.from.0)).await;
    let have = applied.files.size();
    if wanted.from.0 > have {
        return Err(FollowError::Ahead { from: wanted.from, size: have });
    }
    let max_bytes = wanted.max_bytes.min(PAGE_BYTES_MAX);
    let found = match applied.recent.page(wanted.from, max_bytes) {
        Some(records) => records,
        None => old(applied, wanted.from, max_bytes).await?,
    };
    let next = found.last().map_or(wanted.from, |k| Position(k.position.0 + 1));
    let concerns = |kept: &Kept| wanted.volume.is_none_or(|v| concerns(&kept.line, v));
    let records = found.into_iter().filter(concerns).collect();
    let head = applied.state().as_ref().map(|s| s.head());
    Ok(Page { records, next, head })
}

/// Records of one bundle, with the small chunks of theirs that this voter still has; as many as it
/// takes to have `max_bytes`.
async fn old(
    applied: &Applied,
    from: Position,
    max_bytes: usize,
) -> Result<Vec<Kept>, FollowError> {
    let mut page = Vec::new();
    let mut room = max_bytes;
    for (i, (line, tags)) in applied.files.page(from)?.into_iter().enumerate() {
        let position = Position(from.0 + i as u64);
        let (payload, inline) = inside(applied, &line).await;
        let tags = (!tags.is_empty()).then(|| Bytes::from(tags));
        let kept = Kept { position, line: Bytes::from(line), tags, payload, inline };
        room = room.saturating_sub(kept.size_bytes());
        page.push(kept);
        if room == 0 {
            break;
        }
    }
    Ok(page)
}

/// What travelled inside the entry of a commit, by the rule that let it.
async fn inside(applied: &Applied, line: &[u8]) -> (Option<Bytes>, Option<Bytes>) {
    let commit = match Line::parse(line).map(|l| l.p.body()) {
        Ok(Ok(Body::Commit(commit))) => commit,
        _ => return (None, None),
    };
    let size = |c: &ChunkRef| c.size as usize;
    let together = size(&commit.payload) + commit.inline.as_ref().map_or(0, size);
    if together > INSIDE_MAX {
        return (None, None);
    }
    let payload = applied.chunks.get(chunk(&commit.payload)).await;
    let inline = match &commit.inline {
        Some(inline) => applied.chunks.get(chunk(inline)).await,
        None => None,
    };
    (payload, inline)
}

fn chunk(of: &ChunkRef) -> ChunkId {
    of.b3
}

/// Whether a follower of `volume` needs the record: its own changes, and the network's.
fn concerns(line: &[u8], volume: VolumeId) -> bool {
    let Ok(line) = Line::parse(line) else { return true };
    match line.p.body() {
        Ok(Body::Commit(body)) => body.volume == volume,
        Ok(Body::Root(body)) => body.volume == volume,
        Ok(Body::Volume(body)) => body.volume == volume,
        Ok(Body::Fence(body)) => body.volume == volume,
        Ok(Body::Note(_)) => false,
        // Kinds that this program does not know could matter to a newer follower.
        _ => true,
    }
}
