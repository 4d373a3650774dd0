//! Request bodies: read piece by piece, within a budget, and never waited for without end.
//!
//! Owns: the one place where a sender's bytes become memory of ours.
//! Invariant: what is held for a body was taken from the port's budget before its first byte was
//! read, and is given back when the request ends.

use crate::http::budget::{Budget, Share};
use crate::http::routes::{App, Refusal};
use crate::store::{Arriving, Checked};
use axum::body::{Body, HttpBody};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use mictlan::id::ChunkId;
use mictlan::wire::Failure;
use mictlan::wire::chunks::{BATCH_BYTES_MAX, BATCH_CHUNKS_MAX, CHUNK_BYTES_MAX, Unbatch};
use std::time::Duration;
/// For a whole message: nobody waits longer for its answer.
const MESSAGE_DEADLINE: Duration = crate::link::CHUNKS_DEADLINE;
/// Framing beside a full batch.
const FRAMING_BYTES_MAX: usize = BATCH_CHUNKS_MAX * 4;

/// A message's body, of at most `max` bytes. The share is held as long as anything of it is.
pub async fn whole(
    app: &App,
    budget: &Budget,
    body: Body,
    max: usize,
) -> Result<(Bytes, Share), Refusal> {
    // Who does not say how long it is may send all that may come.
    let length = body.size_hint().exact().map_or(max, |exact| exact as usize);
    let held = share(budget, length, max).await?;
    match tokio::time::timeout(MESSAGE_DEADLINE, small(app, body, max)).await {
        Ok(bytes) => Ok((bytes?, held)),
        Err(_) => Err(Failure::DeadlinePassed.into()),
    }
}

/// The same where nothing may have to wait: what is so small is bounded by the number of
/// connections.
pub async fn small(app: &App, body: Body, max: usize) -> Result<Bytes, Refusal> {
    let mut out = BytesMut::new();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = next(app, &mut pieces).await? {
        if out.len() + piece.len() > max {
            return Err(Failure::Malformed(format!("a body of more than {max} bytes")).into());
        }
        out.extend_from_slice(&piece);
    }
    Ok(out.freeze())
}

pub async fn batch(app: &App, length: usize, body: Body) -> Result<(Vec<Bytes>, Share), Refusal> {
    let held = share(&app.budgets.chunks, length, BATCH_BYTES_MAX + FRAMING_BYTES_MAX).await?;
    let malformed = |why: mictlan::wire::chunks::BatchError| Failure::Malformed(why.to_string());
    let mut unbatch = Unbatch::default();
    let mut pieces = body.into_data_stream();
    while let Some(piece) = next(app, &mut pieces).await? {
        unbatch.push(&piece).map_err(malformed)?;
    }
    Ok((unbatch.finish().map_err(malformed)?, held))
}

pub async fn chunk(
    app: &App,
    chunk: ChunkId,
    length: usize,
    body: Body,
) -> Result<(Checked, Share), Refusal> {
    let held = share(&app.budgets.chunks, length, CHUNK_BYTES_MAX).await?;
    let refused = |why: crate::store::WriteError| crate::peer::write_failure(why);
    let mut arriving = Arriving::new(chunk, length);
    let mut pieces = body.into_data_stream();
    while let Some(piece) = next(app, &mut pieces).await? {
        arriving.take(&piece).map_err(refused)?;
    }
    Ok((arriving.finish().map_err(refused)?, held))
}

async fn share(budget: &Budget, length: usize, max: usize) -> Result<Share, Refusal> {
    if length > max {
        return Err(Failure::Malformed(format!("a body of {length} bytes, above {max}")).into());
    }
    Ok(budget.take(length).await?)
}

/// The next piece; a sender that pauses too long is one that has gone.
async fn next(
    app: &App,
    pieces: &mut (impl Stream<Item = Result<Bytes, axum::Error>> + Unpin),
) -> Result<Option<Bytes>, Refusal> {
    match tokio::time::timeout(app.limits.body_pause, pieces.next()).await {
        Ok(None) => Ok(None),
        Ok(Some(Ok(piece))) => Ok(Some(piece)),
        Ok(Some(Err(why))) => Err(Failure::Malformed(format!("the body broke off: {why}")).into()),
        Err(_) => Err(Failure::DeadlinePassed.into()),
    }
}
