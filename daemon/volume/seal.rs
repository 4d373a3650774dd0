//! Dirty bytes become chunks, and chunks become extents of the view.
//!
//! Owns: what of a file is taken, how it is cut or packed, and the moment when readers find it in
//! the view instead of in memory.
//! Invariant: between taking and placing, the bytes are in `sealing`; if placing fails they go
//! back into `dirty`, so a failure loses nothing.

use super::Volume;
use super::file::{OpenFile, Pending};
use super::journal::Seq;
use super::local::{Tried, Under};
use super::state::Mode;
use crate::chunks::Put;
use crate::chunks::budget::Charge;
use bytes::Bytes;
use mictlan::file::{Extent, Pack, Place, split_at_buckets};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{self, Op};
use mictlan::seal::{self, Codec, Kind, Sealed};
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// What of a file's dirty bytes is sealed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// What the cutter finds whole: the file is still being written.
    WholeChunks,
    Everything,
}

/// A piece up to this size shares a chunk with others.
const PACKED_BYTES_MAX: usize = 256 << 10;
/// A pack is full at this size.
const PACK_BYTES: usize = 4 << 20;
/// A pack up to this size travels inside the commit, beside its payload.
const INLINE_BYTES_MAX: usize = 12 << 10;

/// One file's bytes between `dirty` and the view.
struct Taken {
    file: Arc<OpenFile>,
    pieces: Vec<(u64, Bytes)>,
    pending: Pending,
    covers: Option<Seq>,
    /// What the bytes are accounted with: until their chunks are durable.
    charges: Arc<Vec<Charge>>,
    /// Held from taking to placing, where the caller does not hold it itself.
    order: Option<OwnedMutexGuard<()>>,
}

impl Volume {
    /// Seals one file's bytes, each piece as chunks of its own. The caller holds `file.order`.
    pub(super) async fn seal_file(&self, file: &Arc<OpenFile>, what: What) -> Result<(), FsError> {
        loop {
            let Some(taken) = self.take(file, what)? else { return Ok(()) };
            let mut extents = Vec::new();
            let mut puts = Vec::new();
            for (offset, bytes) in &taken.pieces {
                let mut at = *offset;
                for piece in self.cut(bytes) {
                    let sealed = self.seal_data(&piece, Codec::Zstd)?;
                    let extent = Extent {
                        offset: at,
                        len: piece.len() as u32,
                        chunk: sealed.address,
                        at: 0,
                        packed: None,
                    };
                    extents.extend(split_at_buckets(extent));
                    puts.push(self.chunks.put(sealed, vec![taken.charges.clone()]));
                    at += piece.len() as u64;
                }
            }
            self.put_into_view(taken, extents, puts).await?;
        }
    }

    /// Seals the small dirty bytes of many files together.
    pub(super) async fn seal_small(&self, due: Vec<Arc<OpenFile>>) -> Result<(), FsError> {
        let mut pack = Pack::new(PACK_BYTES, Codec::Zstd);
        let mut packed: Vec<(Taken, Vec<(u64, Place)>)> = Vec::new();
        for file in due {
            let order = file.order.clone().lock_owned().await;
            let dirty = file.data().dirty.bytes() as usize;
            if dirty > PACKED_BYTES_MAX {
                self.seal_file(&file, What::Everything).await?;
                continue;
            }
            if pack.len() + dirty > PACK_BYTES {
                let full = std::mem::replace(&mut pack, Pack::new(PACK_BYTES, Codec::Zstd));
                self.place_pack(full, std::mem::take(&mut packed)).await?;
            }
            let Some(mut taken) = self.take(&file, What::Everything)? else { continue };
            // Until it is placed, nobody else may take from this file.
            taken.order = Some(order);
            let place = |(offset, bytes): &(u64, Bytes)| {
                (*offset, pack.add(bytes).expect("the pack has room for the whole file"))
            };
            let places = taken.pieces.iter().map(place).collect();
            packed.push((taken, places));
        }
        self.place_pack(pack, packed).await
    }

    async fn place_pack(
        &self,
        pack: Pack,
        packed: Vec<(Taken, Vec<(u64, Place)>)>,
    ) -> Result<(), FsError> {
        if packed.is_empty() {
            return Ok(());
        }
        let sealed = self.seal_data(&pack.finish(), Codec::Stored)?;
        let chunk = sealed.address;
        let inline = sealed.bytes.len() <= INLINE_BYTES_MAX;
        let put = match inline && self.claim_inline(&sealed) {
            true => self.chunks.hold(sealed),
            false => {
                let charges = packed.iter().map(|(taken, _)| taken.charges.clone()).collect();
                self.chunks.put(sealed, charges)
            }
        };
        for (taken, places) in packed {
            let extents = places
                .iter()
                .flat_map(|(offset, place)| split_at_buckets(place.extent(*offset, chunk)));
            let extents = extents.collect();
            self.put_into_view(taken, extents, vec![put.clone()]).await?;
        }
        Ok(())
    }

    /// Takes dirty bytes of `file` into `sealing`. `None` when there is nothing to take.
    fn take(&self, file: &Arc<OpenFile>, what: What) -> Result<Option<Taken>, FsError> {
        let mut data = file.data();
        assert!(data.sealing.is_empty(), "the file's order is held: one sealing at a time");
        let pieces = match what {
            What::WholeChunks => {
                let cutter = self.cutter.as_ref().ok_or(FsError::ReadOnly)?;
                data.dirty.take_chunk(cutter).into_iter().collect()
            }
            What::Everything => data.dirty.take_all(),
        };
        let Some(mut pending) = data.pending else {
            assert!(pieces.is_empty(), "whoever writes says when");
            return Ok(None);
        };
        if pieces.is_empty() {
            return Ok(None);
        }
        let covers = data.journaled.and(self.journal.as_ref().map(|journal| journal.next()));
        data.journaled_sealing = data.floor();
        data.journaled = None;
        let bytes = pieces.iter().map(|(_, piece): &(u64, Bytes)| piece.len()).sum();
        let charges = Arc::new(data.take_charges(bytes));
        if data.dirty.is_empty() {
            data.since = None;
            data.unjournaled.clear();
        } else {
            // The size grows to what is sealed; the rest of the stream follows with its bytes.
            pending.end = pieces.iter().map(|(at, b)| at + b.len() as u64).max().unwrap_or(0);
        }
        data.sealing = pieces.clone();
        Ok(Some(Taken { file: file.clone(), pieces, pending, covers, charges, order: None }))
    }

    /// The extents take the place of the bytes, for readers and for the next commit.
    async fn put_into_view(
        &self,
        taken: Taken,
        extents: Vec<Extent>,
        puts: Vec<Put>,
    ) -> Result<(), FsError> {
        let Taken { file, pending, covers, order: _order, .. } = taken;
        let op = Op::Write(namespace::Write {
            ino: file.ino,
            extents,
            end: pending.end,
            mtime: pending.mtime,
            kill_priv: pending.kill_priv,
        });
        loop {
            let tried = self.try_put_into_view(&file, &op, pending.ctime, covers, &puts);
            match tried {
                Ok(None) => return Ok(()),
                Ok(Some(node)) => {
                    if let Err(error) = self.fetch_node(node).await {
                        self.put_back(&file);
                        return Err(error);
                    }
                }
                // Unlinked, and nobody has it open any more: the bytes have nowhere to go.
                Err(FsError::Stale) => {
                    let mut data = file.data();
                    data.sealing.clear();
                    data.journaled_sealing = None;
                    data.pending = None;
                    return Ok(());
                }
                Err(error) => {
                    self.put_back(&file);
                    return Err(error);
                }
            }
        }
    }

    fn try_put_into_view(
        &self,
        file: &OpenFile,
        op: &Op,
        now: Stamp,
        covers: Option<Seq>,
        puts: &[Put],
    ) -> Result<Option<mictlan::meta::tree::NodeRef>, FsError> {
        let mut data = file.data();
        let mut core = self.core();
        let node = match self.try_place(&mut core, op, now, covers, Under::Certification)? {
            Tried::Missing(node) => Some(node),
            Tried::Done(..) => {
                if let Some(batch) = core.queue.back_mut() {
                    batch.puts.extend_from_slice(puts);
                    batch.floor = batch.floor.min(data.journaled_sealing.unwrap_or(batch.floor));
                }
                data.sealing.clear();
                data.journaled_sealing = None;
                data.puts.extend_from_slice(puts);
                if data.dirty.is_empty() {
                    data.pending = None;
                    data.charges.clear();
                }
                None
            }
            Tried::LeaseGone => unreachable!("no lease was relied on"),
        };
        Ok(node)
    }

    /// After a failure: what was taken is dirty again, under what was written since.
    fn put_back(&self, file: &OpenFile) {
        let mut data = file.data();
        for (offset, bytes) in std::mem::take(&mut data.sealing) {
            let end = offset + bytes.len() as u64;
            for gap in data.dirty.gaps(offset..end) {
                let (from, to) = ((gap.start - offset) as usize, (gap.end - offset) as usize);
                data.dirty.write(gap.start, &bytes[from..to]);
                data.unjournaled.push(gap);
            }
        }
        data.journaled = data.floor();
        data.journaled_sealing = None;
        data.since.get_or_insert_with(tokio::time::Instant::now);
    }

    /// Content-defined pieces of at most 4 MiB.
    fn cut(&self, bytes: &Bytes) -> Vec<Bytes> {
        match &self.cutter {
            Some(cutter) => cutter.pieces(bytes.clone()),
            None => unreachable!("without the data secret nothing is written"),
        }
    }

    fn seal_data(&self, plaintext: &[u8], codec: Codec) -> Result<Sealed, FsError> {
        seal::seal(self.ring().current(), Kind::Data, codec, &[], plaintext).map_err(|error| {
            tracing::error!(%error, "sealing failed; the bytes stay in memory");
            FsError::Io
        })
    }

    /// Makes `sealed` the inline chunk of the open batch, if that has none yet.
    fn claim_inline(&self, sealed: &Sealed) -> bool {
        let mut core = self.core();
        if core.session.mode == Mode::Lost {
            return false;
        }
        let facts = Default::default();
        let Some(journal) = &self.journal else { return false };
        let batch = core.batch(&facts, journal.next());
        let free = batch.inline.is_none();
        if free {
            batch.inline = Some(sealed.clone());
        }
        free
    }
}
