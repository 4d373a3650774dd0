//! Dirty bytes become chunks, and chunks become extents of the view.
//!
//! Owns: what of a file is taken, how it is cut or packed, and the moment when readers find it in
//! the view instead of in memory.
//! Invariant: between taking and placing, the bytes are in `sealing`; if placing fails they go
//! back to where they were taken from, so a failure loses nothing.

use super::Volume;
use super::copies::Homes;
use super::data::STREAM_BYTES;
use super::file::{OpenFile, Pending, Pieces, What};
use super::journal::{Holds, Journaled};
use super::local::{Tried, Under};
use super::state::Mode;
use crate::chunks::Put;
use crate::chunks::budget::Charge;
use bytes::Bytes;
use mictlan::cluster::place::Copies;
use mictlan::file::{Extent, Pack, Place, split_at_buckets};
use mictlan::id::Epoch;
use mictlan::meta::error::FsError;
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{self, Op};
use mictlan::meta::tree::NodeRef;
use mictlan::seal::{self, Codec, Header, Kind, Sealed};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::sync::OwnedMutexGuard;

/// A piece up to this size shares a chunk with others.
pub(super) const PACKED_BYTES_MAX: usize = 256 << 10;
/// A pack is full at this size.
const PACK_BYTES: usize = 4 << 20;
/// A pack up to this size travels inside the commit, beside its payload.
const INLINE_BYTES_MAX: usize = 12 << 10;

/// What placing has to wait for.
enum Wait {
    Node(NodeRef),
    Replan,
    /// The keys changed since it was sealed.
    Seal,
}

/// What shares one chunk, and where in it.
#[derive(Default)]
struct Packed {
    taken: Vec<(Taken, Vec<(u64, Place)>)>,
    /// The most that any of these files asks for.
    copies: Option<Copies>,
    /// Held from taking to placing.
    orders: Vec<(PutBack, OwnedMutexGuard<()>)>,
}

/// While bytes of the file are taken and its order is held. What has no place yet when this goes
/// waits again: after a failure, and where nobody waits for the sealing any more.
struct PutBack(Arc<OpenFile>);

impl Drop for PutBack {
    fn drop(&mut self) {
        self.0.put_back();
    }
}

/// One file's bytes between `dirty` and the view.
struct Taken {
    file: Arc<OpenFile>,
    pieces: Pieces,
    /// It is the file's tail: one piece, counted from 0.
    appended: bool,
    pending: Pending,
    holds: Holds,
    /// The epoch when it was taken, so of its chunks or the one before.
    epoch: Epoch,
    /// What the bytes are accounted with: until their chunks are durable.
    charges: Arc<Vec<Charge>>,
}

impl Volume {
    /// Seals one file's bytes, each piece as chunks of its own. The caller holds `file.order`.
    pub(super) async fn seal_file(&self, file: &Arc<OpenFile>, what: What) -> Result<(), FsError> {
        let copies = self.copies_for(file.ino).await?;
        let _taken = PutBack(file.clone());
        loop {
            let Some(taken) = self.take(file, what, u64::MAX)? else { return Ok(()) };
            let (extents, puts) = self.seal_taken(&taken, copies)?;
            self.put_into_view(taken, extents, puts).await?;
        }
    }

    fn seal_taken(
        &self,
        taken: &Taken,
        copies: Copies,
    ) -> Result<(Vec<Extent>, Vec<Put>), FsError> {
        let (mut extents, mut puts) = (Vec::new(), Vec::new());
        for (offset, bytes) in taken.pieces.iter() {
            let mut at = *offset;
            let chunks = match &taken.pieces {
                Pieces::Chunk(_) => vec![bytes.clone()],
                Pieces::Runs(_) => self.cut(bytes),
            };
            for piece in chunks {
                let sealed = self.seal_data(&piece, self.codec())?;
                let (len, chunk) = (piece.len() as u32, sealed.address);
                let extent = Extent { offset: at, len, chunk, at: 0, packed: None };
                extents.extend(split_at_buckets(extent));
                puts.push(self.chunks.put(sealed, copies, vec![taken.charges.clone()]));
                at += piece.len() as u64;
            }
        }
        Ok((extents, puts))
    }

    /// Seals the small dirty bytes of many files together.
    pub(super) async fn seal_small(&self, mut due: Vec<Arc<OpenFile>>) -> Result<(), FsError> {
        // One order for all, because two may hold the orders of many files at once.
        due.sort_unstable_by_key(|file| file.ino);
        let mut pack = Pack::new(PACK_BYTES, self.codec());
        let (mut packed, mut homes) = (Packed::default(), Homes::default());
        let mut all = Ok(());
        for file in due {
            match self.seal_or_pack(&file, &mut pack, &mut packed, &mut homes).await {
                // It waits for room in the journal, which the commit of the others gives.
                Err(FsError::NoSpace) => all = Err(FsError::NoSpace),
                sealed => sealed?,
            }
        }
        self.place_pack(pack, packed).await?;
        all
    }

    /// One file of those: large ones get chunks of their own. A full pack is placed.
    async fn seal_or_pack(
        &self,
        file: &Arc<OpenFile>,
        pack: &mut Pack,
        packed: &mut Packed,
        homes: &mut Homes,
    ) -> Result<(), FsError> {
        let order = file.order.clone().lock_owned().await;
        let dirty = file.data().waiting_bytes() as usize;
        if dirty > PACKED_BYTES_MAX {
            return self.seal_file(file, What::Everything).await;
        }
        if dirty == 0 {
            return Ok(());
        }
        let copies = self.copies_among(homes, file.ino).await?;
        if pack.len() + dirty > PACK_BYTES {
            let full = std::mem::replace(pack, Pack::new(PACK_BYTES, self.codec()));
            self.place_pack(full, std::mem::take(packed)).await?;
        }
        packed.copies = packed.copies.max(Some(copies));
        // Until all of it is placed, nobody else may take from this file.
        packed.orders.push((PutBack(file.clone()), order));
        // What was written at its place first, then what was appended behind it. More that is
        // written meanwhile waits for the next time.
        for what in [What::Everything, What::Tail] {
            let room = PACKED_BYTES_MAX.min(PACK_BYTES.saturating_sub(pack.len()));
            let Some(taken) = self.take(file, what, room as u64)? else { break };
            let place = |(offset, bytes): &(u64, Bytes)| {
                (*offset, pack.add(bytes).expect("the pack has room for the whole file"))
            };
            let places = taken.pieces.iter().map(place).collect();
            let appended = taken.appended;
            packed.taken.push((taken, places));
            if appended {
                break;
            }
        }
        Ok(())
    }

    /// Seals a pack and places what is in it. After a failure all that has no place yet is where it
    /// was before.
    async fn place_pack(&self, pack: Pack, packed: Packed) -> Result<(), FsError> {
        let Packed { taken, copies, orders } = packed;
        let Some(copies) = copies.filter(|_| !taken.is_empty()) else { return Ok(()) };
        let placed = self.try_place_pack(pack, copies, taken).await;
        drop(orders);
        placed
    }

    async fn try_place_pack(
        &self,
        pack: Pack,
        copies: Copies,
        packed: Vec<(Taken, Vec<(u64, Place)>)>,
    ) -> Result<(), FsError> {
        let sealed = self.seal_data(&pack.finish(), Codec::Stored)?;
        let chunk = sealed.address;
        let small = sealed.bytes.len() <= INLINE_BYTES_MAX;
        let inline = small && self.chunks.voters_are_enough(copies);
        let put = match inline && self.claim_inline(&sealed, copies) {
            true => self.chunks.hold(sealed, copies),
            false => {
                let charges = packed.iter().map(|(taken, _)| taken.charges.clone()).collect();
                self.chunks.put(sealed, copies, charges)
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

    /// Takes dirty bytes of `file` into `sealing`, or, when there are none, what was appended behind
    /// them. `None` when there is nothing to take, or more than `at_most`.
    fn take(
        &self,
        file: &Arc<OpenFile>,
        what: What,
        at_most: u64,
    ) -> Result<Option<Taken>, FsError> {
        let mut data = file.data();
        if data.waiting_bytes() > at_most {
            return Ok(None);
        }
        // Without the data secret nothing is ever written.
        let Some(cutter) = self.cutter() else { return Ok(None) };
        if data.is_to_be_journaled(what, at_most < u64::MAX) {
            let begun = data.floor().is_some();
            self.journal_rest(file.ino, &mut data, begun)?;
        }
        let long = data.tail.waiting() >= STREAM_BYTES;
        let next = self.journal.as_ref().map(|journal| journal.next());
        let held = |place: Option<Journaled>| Holds {
            covers: place.and(next),
            origin: place.and_then(|place| place.origin),
        };
        let mut holds = held(data.journaled);
        let mut pieces = match what {
            // What is before a long tail has to go first.
            What::WholeChunks if long => data.take_pieces(What::Everything, &cutter),
            _ => data.take_pieces(what, &cutter),
        };
        let appended =
            data.dirty.is_empty() && pieces.is_empty() && (long || what != What::WholeChunks);
        if appended {
            holds = held(data.tail.place());
            pieces = Pieces::Runs(data.tail.take().map(|bytes| (0, bytes)).into_iter().collect());
        }
        let Some(mut pending) = data.pending else {
            assert!(pieces.is_empty(), "whoever writes says when");
            return Ok(None);
        };
        if pieces.is_empty() {
            return Ok(None);
        }
        let bytes = pieces.iter().map(|(_, piece): &(u64, Bytes)| piece.len()).sum();
        let charges = Arc::new(data.take_charges(bytes));
        if !appended {
            assert!(data.sealing.is_empty(), "the file's order is held: one sealing at a time");
            data.journaled_sealing = data.journaled.take();
            data.sealing = pieces.to_vec();
            if data.dirty.is_empty() {
                data.unjournaled.clear();
            } else {
                // The size grows to what is sealed; the rest of the stream follows with its bytes.
                pending.end = pieces.iter().map(|(at, b)| at + b.len() as u64).max().unwrap_or(0);
            }
        }
        if data.waiting_bytes() == 0 {
            data.since = None;
        }
        let epoch = self.ring().current().epoch();
        Ok(Some(Taken { file: file.clone(), pieces, appended, pending, holds, epoch, charges }))
    }

    /// The extents take the place of the bytes, for readers and for the next commit.
    async fn put_into_view(
        &self,
        taken: Taken,
        extents: Vec<Extent>,
        puts: Vec<Put>,
    ) -> Result<(), FsError> {
        let Taken { file, appended, pending, holds, epoch, .. } = taken;
        let (ino, mtime, kill_priv) = (file.ino, pending.mtime, pending.kill_priv);
        let mut op = match appended {
            true => Op::Append(namespace::Append { ino, extents, mtime, kill_priv }),
            false => {
                Op::Write(namespace::Write { ino, extents, end: pending.end, mtime, kill_priv })
            }
        };
        loop {
            let tried = self.try_put_into_view(&file, &op, pending.ctime, holds, &puts, epoch);
            let wait = match tried {
                Ok(None) => return Ok(()),
                Ok(Some(Wait::Node(node))) => self.fetch_node(node).await,
                Ok(Some(Wait::Replan)) => self.replanned().await,
                Ok(Some(Wait::Seal)) => {
                    // It waits again like what was just written; who wants it out takes it again.
                    file.put_back();
                    return Ok(());
                }
                Err(FsError::Stale) => {
                    match self.gone_before(&file, op, pending.ctime, holds).await? {
                        Some(elsewhere) => op = elsewhere,
                        None => return Ok(()),
                    }
                    Ok(())
                }
                Err(error) => Err(error),
            };
            wait?;
        }
    }

    fn try_put_into_view(
        &self,
        file: &OpenFile,
        op: &Op,
        now: Stamp,
        holds: Holds,
        puts: &[Put],
        epoch: Epoch,
    ) -> Result<Option<Wait>, FsError> {
        let mut data = file.data();
        let mut core = self.core();
        if epoch < core.session.epoch {
            return Ok(Some(Wait::Seal));
        }
        match self.try_place(&mut core, op, now, holds, Under::Certification)? {
            Tried::Missing(node) => return Ok(Some(Wait::Node(node))),
            Tried::Replanning => return Ok(Some(Wait::Replan)),
            Tried::LeaseGone => unreachable!("no lease was relied on"),
            Tried::Done(..) => {}
        }
        let first = match op {
            Op::Append(_) => data.tail.placed(),
            _ => {
                data.sealing.clear();
                data.journaled_sealing.take().map(|place| place.first)
            }
        };
        if let Some(batch) = core.queue.back_mut() {
            batch.puts.extend_from_slice(puts);
            batch.floor = batch.floor.min(first.unwrap_or(batch.floor));
            batch.leased |= data.leased;
        }
        data.puts.extend_from_slice(puts);
        if data.dirty.is_empty() {
            data.dirty_placed();
        }
        Ok(None)
    }

    /// Content-defined pieces of at most 4 MiB.
    fn cut(&self, bytes: &Bytes) -> Vec<Bytes> {
        match self.cutter() {
            Some(cutter) => cutter.pieces(bytes.clone()),
            None => unreachable!("without the data secret nothing is written"),
        }
    }

    /// How new data is stored, as the volume's record says.
    pub(super) fn codec(&self) -> Codec {
        match self.compress.load(Ordering::Relaxed) {
            true => Codec::Zstd,
            false => Codec::Stored,
        }
    }

    pub(super) fn seal_data(&self, plaintext: &[u8], codec: Codec) -> Result<Sealed, FsError> {
        seal::seal(self.ring().current(), Kind::Data, codec, &[], plaintext).map_err(|error| {
            tracing::error!(%error, "sealing failed; the bytes stay in memory");
            FsError::Io
        })
    }

    /// Makes `sealed` the inline chunk of the open batch, if that has none yet.
    fn claim_inline(&self, sealed: &Sealed, copies: Copies) -> bool {
        let mut core = self.core();
        let old = |header: Header| header.epoch < core.session.epoch;
        if core.session.mode == Mode::Lost || Header::parse(&sealed.bytes).is_ok_and(old) {
            return false;
        }
        let facts = Default::default();
        let Some(journal) = &self.journal else { return false };
        let batch = core.batch(&facts, journal.next());
        let free = batch.inline.is_none();
        if free {
            batch.inline = Some((sealed.clone(), copies));
        }
        free
    }
}
