//! Parts of chunks as a mount reads them: only the frames that are needed, where that is less.
//!
//! Owns: fetching a chunk's header and single frames, and opening these.
//! Never: decides when; `cluster/part` does. What cannot be had in parts is read whole.
//! Invariant: nothing is decrypted before its path to the chunk's address was checked.

use super::{Chunks, GetError, Piece, lock};
use crate::counts::COUNTS;
use bytes::Bytes;
use mictlan::cluster::part::Want;
use mictlan::codec::DecodeError;
use mictlan::id::ChunkId;
use mictlan::seal::{self, FRAME_BYTES, Header, KeyRing, OpenError};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Chunks {
    /// The bytes that `want` names of a chunk's plaintext; `None` if it does not have them.
    pub async fn read(
        self: &Arc<Self>,
        ring: &KeyRing,
        chunk: ChunkId,
        want: &Want,
        deadline: Duration,
    ) -> Result<Option<Bytes>, GetError> {
        let by = Instant::now() + deadline;
        if !want.is_whole()
            && let Some(bytes) = self.read_part(ring, chunk, want, by).await?
        {
            return Ok(Some(bytes));
        }
        let whole = self.open(ring, chunk, left(by)).await?;
        let range = want.range.start as usize..want.range.end as usize;
        Ok((range.end <= whole.len()).then(|| whole.slice(range)))
    }

    /// The same out of single frames; `None` where the chunk is better read whole.
    async fn read_part(
        &self,
        ring: &KeyRing,
        chunk: ChunkId,
        want: &Want,
        by: Instant,
    ) -> Result<Option<Bytes>, GetError> {
        if lock(&self.on_the_way).contains_key(&chunk) || self.opened.has_or_awaits(chunk) {
            return Ok(None);
        }
        let Some(header) = self.header(chunk, by).await? else { return Ok(None) };
        if want.range.end > header.plaintext_len {
            return Ok(None);
        }
        let wanted = want.frames();
        let mut frames: Vec<_> =
            wanted.clone().map(|frame| self.opened.frame(chunk, frame)).collect();
        let first = frames.iter().position(Option::is_none);
        let last = frames.iter().rposition(Option::is_none);
        if let (Some(first), Some(last)) = (first, last) {
            let held = |frame| self.opened.has_frame(chunk, frame);
            if want.is_whole_of(header.frame_count(), held) {
                return Ok(None);
            }
            let missing = wanted.start + first..wanted.start + last + 1;
            let Some(opened) = self.fetch_frames(ring, chunk, &header, missing, by).await? else {
                return Ok(None);
            };
            for (place, frame) in frames[first..].iter_mut().zip(opened) {
                *place = Some(frame);
            }
            COUNTS.chunk_read_in_part();
        } else {
            COUNTS.chunk_read(true);
        }
        let frames: Vec<Bytes> = frames.into_iter().flatten().collect();
        Ok(Some(join(&frames, want)))
    }

    /// A chunk's header, whose bytes are the chunk's; `None` where it cannot be had alone.
    async fn header(&self, chunk: ChunkId, by: Instant) -> Result<Option<Header>, GetError> {
        let fetch = async {
            let bytes = self.piece(chunk, &Piece::Head, by).await?;
            let len = Header::parse(&bytes).map(|header| header.header_len() as usize);
            // Bytes of frames are not kept: they would be a kilobyte for each chunk.
            len.map(|len| Bytes::copy_from_slice(&bytes[..len]))
                .map_err(|why| malformed(chunk, why))
        };
        match self.opened.head_or_fetch(chunk, fetch).await {
            Ok(bytes) => Header::parse(&bytes).map(Some).map_err(|why| malformed(chunk, why)),
            Err(error) => whole_instead(error),
        }
    }

    /// Some frames of a chunk, opened; `None` where they cannot be had alone.
    async fn fetch_frames(
        &self,
        ring: &KeyRing,
        chunk: ChunkId,
        header: &Header,
        frames: Range<usize>,
        by: Instant,
    ) -> Result<Option<Vec<Bytes>>, GetError> {
        let end = (frames.end * FRAME_BYTES).min(header.plaintext_len as usize);
        let range = (frames.start * FRAME_BYTES) as u32..end as u32;
        let piece = Piece::Bytes(seal::frame_range(header, range.clone()));
        let sealed = match self.piece(chunk, &piece, by).await {
            Ok(sealed) => sealed,
            Err(error) => return whole_instead(error),
        };
        let opened = seal::open_frames(ring, chunk, header, range, &sealed)
            .map_err(|error| GetError::NotOpened { chunk, error: Arc::new(error) })?;
        let mut opened_frames = Vec::with_capacity(frames.len());
        for (frame, plaintext) in frames.zip(opened.chunks(FRAME_BYTES)) {
            // Each in memory of its own, which goes when it leaves the cache.
            let plaintext = Bytes::copy_from_slice(plaintext);
            self.opened.keep_frame(chunk, frame, plaintext.clone());
            opened_frames.push(plaintext);
        }
        Ok(Some(opened_frames))
    }

    async fn piece(&self, chunk: ChunkId, piece: &Piece, by: Instant) -> Result<Bytes, GetError> {
        self.get_any_copy(chunk, piece, left(by)).await
    }
}

/// Only what is waited for to the end is an error of its own: all else is told best, or still goes
/// well, when the chunk is read whole.
fn whole_instead<T>(error: GetError) -> Result<Option<T>, GetError> {
    match error {
        GetError::NotInTime { .. } => Err(error),
        GetError::NoGoodCopy { .. } | GetError::NotOpened { .. } => {
            tracing::debug!(%error, "a part of a chunk could not be had alone");
            Ok(None)
        }
    }
}

fn malformed(chunk: ChunkId, why: DecodeError) -> GetError {
    GetError::NotOpened { chunk, error: Arc::new(OpenError::Malformed { chunk, why }) }
}

fn left(by: Instant) -> Duration {
    by.saturating_duration_since(Instant::now())
}

/// What is wanted, out of all frames that hold it.
fn join(frames: &[Bytes], want: &Want) -> Bytes {
    let first = want.frames().start * FRAME_BYTES;
    let range = want.range.start as usize - first..want.range.end as usize - first;
    match frames {
        [one] => one.slice(range),
        many => Bytes::from(many.concat()).slice(range),
    }
}
