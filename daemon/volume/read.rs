//! Bytes on their way out.
//!
//! Owns: putting together a file's extents, holes and unsealed bytes, and reading ahead.
//! Invariant: all bytes of one answer are of one moment: extents and unsealed bytes are taken
//! under one lock; chunks never change.

use super::Volume;
use super::local::broken;
use super::seal::PACKED_BYTES_MAX;
use crate::chunks::GetError;
use bytes::{Bytes, BytesMut};
use mictlan::cluster::part::{Reading, Want};
use mictlan::file::Extent;
use mictlan::id::Ino;
use mictlan::meta::error::{FsError, ReadError};
use mictlan::meta::namespace::read;
use mictlan::seal::{self, OpenError};
use std::ops::Range;
use std::sync::Arc;

/// A sequential reader's next bytes are fetched this far ahead.
const AHEAD_BYTES: u64 = 8 << 20;
/// Extents of one read of 1 MiB; a file of many tiny extents is read in more steps.
const EXTENTS_MAX: usize = 1 << 12;

/// A reader who goes on so near to where he ended reads onward: requests of the kernel's own
/// read-ahead overtake each other.
const NEAR_BYTES: u64 = 1 << 20;

/// What one read needs, all of one moment.
struct Picture {
    range: Range<u64>,
    extents: Vec<Extent>,
    /// Unsealed bytes over the extents; `None` where there are none, which is the usual case.
    over: Option<Vec<(u64, Bytes)>>,
    sequential: bool,
    reading: Reading,
}

impl Volume {
    pub(super) async fn read_bytes(
        self: &Arc<Self>,
        ino: Ino,
        offset: u64,
        len: u32,
    ) -> Result<Bytes, FsError> {
        let picture = loop {
            match self.picture(ino, offset, len) {
                Ok(picture) => break picture,
                Err(ReadError::Refused(error)) => return Err(error),
                Err(ReadError::Missing(node)) => self.fetch_node(node).await?,
                Err(ReadError::Broken(node)) => return Err(broken(node)),
            }
        };
        if picture.sequential {
            self.read_ahead(ino, picture.range.end);
        }
        self.paint(picture).await
    }

    fn picture(&self, ino: Ino, offset: u64, len: u32) -> Result<Picture, ReadError> {
        let file = self.core().files.get(&ino).cloned();
        let mut data = file.as_ref().map(|file| file.data());
        let core = self.core();
        let mut inode = read::getattr(&core.view, ino)?;
        let size = inode.size;
        if let Some(data) = &data {
            data.show(&mut inode);
        }
        let end = offset.saturating_add(u64::from(len)).min(inode.size);
        let range = offset.min(end)..end;
        let extents = read::extents(&core.view, ino, range.clone(), EXTENTS_MAX)?;
        let range = match extents.len() == EXTENTS_MAX {
            true => range.start..extents.last().map_or(range.end, Extent::end).min(range.end),
            false => range,
        };
        let mut over = None;
        let mut sequential = false;
        let mut near = false;
        if let Some(data) = &mut data {
            near = data.read_end.abs_diff(range.start) <= NEAR_BYTES;
            sequential = data.read_end == range.start && !range.is_empty();
            data.read_end = range.end;
            over = data.unsealed(size, &range);
        }
        let reading = match inode.size {
            size if size <= PACKED_BYTES_MAX as u64 => Reading::Small,
            _ if near => Reading::Onward,
            _ => Reading::Scattered,
        };
        Ok(Picture { range, extents, over, sequential, reading })
    }

    async fn paint(self: &Arc<Self>, picture: Picture) -> Result<Bytes, FsError> {
        let Picture { range, extents, over, reading, .. } = picture;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        if over.is_none()
            && let [extent] = extents.as_slice()
            && extent.offset <= range.start
            && extent.end() >= range.end
        {
            // The usual read: all of it lies in one chunk, which is handed on without a copy.
            return self.extent_bytes(extent, range, reading).await;
        }
        let mut out = BytesMut::zeroed((range.end - range.start) as usize);
        for extent in &extents {
            let part = range.start.max(extent.offset)..range.end.min(extent.end());
            let at = (part.start - range.start) as usize;
            let bytes = self.extent_bytes(extent, part, reading).await?;
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        for (offset, bytes) in over.unwrap_or_default() {
            let at = (offset - range.start) as usize;
            out[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(out.freeze())
    }

    /// The bytes `range` of a file, which lie in `extent`.
    async fn extent_bytes(
        self: &Arc<Self>,
        extent: &Extent,
        range: Range<u64>,
        reading: Reading,
    ) -> Result<Bytes, FsError> {
        let part = extent.part(range.clone());
        let want = Want::of(extent, range, reading);
        let ring = self.ring();
        let read = self.chunks.read(&ring, extent.chunk, &want, self.patience()).await;
        let read = read.map_err(|error| {
            tracing::error!(%error, "data cannot be read now; another copy may come back");
            self.unread(&error)
        })?;
        // The writer named the extent; a hostile one may name bytes that the chunk does not have.
        let bytes = read.ok_or_else(|| outside(extent))?;
        let Some(packed) = part.packed else { return Ok(bytes) };
        let skip = packed.skip as usize;
        let bytes = seal::expand(packed.codec, &bytes, skip..skip + part.len as usize);
        bytes.map(Bytes::from).map_err(|error| {
            tracing::error!(chunk = %extent.chunk, %error, "a packed file does not unpack");
            FsError::Io
        })
    }

    /// Fetches the chunks behind `from` in the background; what fails there fails again, and is
    /// reported, when it is read.
    fn read_ahead(self: &Arc<Self>, ino: Ino, from: u64) {
        let extents = read::extents(&self.core().view, ino, from..from + AHEAD_BYTES, 64);
        let mut last = None;
        for extent in extents.unwrap_or_default() {
            let chunk = extent.chunk;
            if last.replace(chunk) == Some(chunk) || self.chunks.opened_already(chunk).is_some() {
                continue;
            }
            let volume = self.clone();
            tokio::spawn(async move {
                let ring = volume.ring();
                let ahead = volume.chunks.open(&ring, chunk, volume.options.deadline).await;
                if let Err(error) = ahead {
                    tracing::debug!(%error, "reading ahead");
                }
            });
        }
    }
}

/// What a program is told of a chunk that a member could not have.
pub(super) fn not_read(error: &GetError) -> FsError {
    match error {
        GetError::NotInTime { .. } => FsError::TimedOut,
        // The bytes are good, and not for an auditor's key.
        GetError::NotOpened { error, .. } if matches!(**error, OpenError::NoDataSecret { .. }) => {
            FsError::Denied
        }
        GetError::NoGoodCopy { .. } | GetError::NotOpened { .. } => FsError::Io,
    }
}

fn outside(extent: &Extent) -> FsError {
    tracing::error!(chunk = %extent.chunk, at = extent.at, len = extent.len,
        "an extent names bytes that its chunk does not have");
    FsError::Io
}
