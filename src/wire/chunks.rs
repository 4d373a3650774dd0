//! Many chunks in one body: each a little-endian u32 length, then that many bytes.
//!
//! Owns: the framing of batch puts, and the limits that keep a body from growing without end.
//! Never: looks into a chunk; the store checks that its bytes hash to its address.
//! Invariant: each byte of a chunk is copied once, into a buffer made for that chunk.

use bytes::{Bytes, BytesMut};

/// A stored chunk: 4 MiB of plaintext with its tags, and a header with its links.
pub const CHUNK_BYTES_MAX: usize = 8 << 20;
/// A batch is one unit of memory on the receiving side, so it is bounded by that, not by disk.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Small chunks have a cost each beside their bytes.
pub const BATCH_CHUNKS_MAX: usize = 256;

const LENGTH_BYTES: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("an empty chunk in a batch")]
    Empty,
    #[error("a chunk of {0} bytes, more than a chunk can have")]
    ChunkTooLarge(u32),
    #[error("a batch of more than {BATCH_BYTES_MAX} bytes")]
    TooLarge,
    #[error("a batch of more than {BATCH_CHUNKS_MAX} chunks")]
    TooMany,
    #[error("a batch that ends within a chunk")]
    Cut,
}

/// The parts of a batch body, in order; the chunks themselves are shared, not copied.
pub fn parts(chunks: &[Bytes]) -> Vec<Bytes> {
    let mut parts = Vec::with_capacity(chunks.len() * 2);
    for chunk in chunks {
        let len = u32::try_from(chunk.len()).expect("a chunk is far below 4 GiB");
        parts.push(Bytes::copy_from_slice(&len.to_le_bytes()));
        parts.push(chunk.clone());
    }
    parts
}

/// The length of the body that `parts` makes.
pub fn body_bytes(chunks: &[Bytes]) -> usize {
    chunks.iter().map(|chunk| LENGTH_BYTES + chunk.len()).sum()
}

/// Splits `chunks` into batches that keep both limits; each is put with one request.
pub fn batches(chunks: Vec<Bytes>) -> Vec<Vec<Bytes>> {
    let mut out: Vec<Vec<Bytes>> = Vec::new();
    let mut room = 0;
    for chunk in chunks {
        let cost = LENGTH_BYTES + chunk.len();
        match out.last_mut() {
            Some(batch) if cost <= room && batch.len() < BATCH_CHUNKS_MAX => batch.push(chunk),
            _ => {
                room = BATCH_BYTES_MAX;
                out.push(vec![chunk]);
            }
        }
        room = room.saturating_sub(cost);
    }
    out
}

/// Takes a batch body apart as its pieces arrive.
#[derive(Default)]
pub struct Unbatch {
    done: Vec<Bytes>,
    length: [u8; LENGTH_BYTES],
    length_filled: usize,
    /// The chunk that is arriving, and how long it will be.
    open: Option<(BytesMut, usize)>,
    seen: usize,
}

impl Unbatch {
    pub fn push(&mut self, mut piece: &[u8]) -> Result<(), BatchError> {
        self.seen += piece.len();
        if self.seen > BATCH_BYTES_MAX + BATCH_CHUNKS_MAX * LENGTH_BYTES {
            return Err(BatchError::TooLarge);
        }
        while !piece.is_empty() {
            piece = match self.open.take() {
                Some((mut chunk, len)) => {
                    let (now, later) = piece.split_at(piece.len().min(len - chunk.len()));
                    chunk.extend_from_slice(now);
                    match chunk.len() == len {
                        true => self.done.push(chunk.freeze()),
                        false => self.open = Some((chunk, len)),
                    }
                    later
                }
                None => self.push_length(piece)?,
            };
        }
        Ok(())
    }

    fn push_length<'a>(&mut self, piece: &'a [u8]) -> Result<&'a [u8], BatchError> {
        let (now, later) = piece.split_at(piece.len().min(LENGTH_BYTES - self.length_filled));
        self.length[self.length_filled..self.length_filled + now.len()].copy_from_slice(now);
        self.length_filled += now.len();
        if self.length_filled == LENGTH_BYTES {
            self.length_filled = 0;
            match u32::from_le_bytes(self.length) {
                0 => return Err(BatchError::Empty),
                len if len as usize > CHUNK_BYTES_MAX => {
                    return Err(BatchError::ChunkTooLarge(len));
                }
                _ if self.done.len() == BATCH_CHUNKS_MAX => return Err(BatchError::TooMany),
                len => self.open = Some((BytesMut::with_capacity(len as usize), len as usize)),
            }
        }
        Ok(later)
    }

    pub fn finish(self) -> Result<Vec<Bytes>, BatchError> {
        match self.open.is_none() && self.length_filled == 0 {
            true => Ok(self.done),
            false => Err(BatchError::Cut),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unbatch(body: &[u8], piece_bytes: usize) -> Result<Vec<Bytes>, BatchError> {
        let mut unbatch = Unbatch::default();
        for piece in body.chunks(piece_bytes) {
            unbatch.push(piece)?;
        }
        unbatch.finish()
    }

    proptest! {
        #[test]
        fn a_batch_arrives_as_it_was_sent_however_it_is_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..9),
            piece_bytes in 1usize..50,
        ) {
            let chunks: Vec<Bytes> = chunks.into_iter().map(Bytes::from).collect();
            let body = parts(&chunks).concat();
            prop_assert_eq!(body.len(), body_bytes(&chunks));
            prop_assert_eq!(unbatch(&body, piece_bytes), Ok(chunks));
        }
    }

    #[test]
    fn a_batch_that_lies_about_its_lengths_is_refused() {
        assert_eq!(unbatch(&[0, 0, 0, 0], 4), Err(BatchError::Empty));
        assert_eq!(unbatch(&[1, 0, 0], 4), Err(BatchError::Cut));
        assert_eq!(unbatch(&[2, 0, 0, 0, 9], 4), Err(BatchError::Cut));
        assert_eq!(unbatch(&[0xff; 4], 4), Err(BatchError::ChunkTooLarge(u32::MAX)));
        let many = [1, 0, 0, 0, 9].repeat(BATCH_CHUNKS_MAX + 1);
        assert_eq!(unbatch(&many, 1000), Err(BatchError::TooMany));
    }

    #[test]
    fn batches_keep_order_and_both_limits() {
        let big = Bytes::from(vec![1; BATCH_BYTES_MAX / 3 - 100]);
        let cut = batches(vec![big.clone(); 4]);
        assert_eq!(cut.iter().map(Vec::len).collect::<Vec<_>>(), [3, 1]);
        let small = vec![Bytes::from_static(b"x"); BATCH_CHUNKS_MAX + 1];
        assert_eq!(batches(small).iter().map(Vec::len).collect::<Vec<_>>(), [BATCH_CHUNKS_MAX, 1]);
        assert!(cut.iter().all(|batch| body_bytes(batch) <= BATCH_BYTES_MAX));
    }
}
