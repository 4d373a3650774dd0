//! How many copies the bytes of a file get.
//!
//! Owns: the question, asked once for each sealing; never for a write.
//! Invariant: the number is that of the file itself, else of the nearest directory above its home
//! that has one, else the volume's; a chunk that several files share has the most that any of them
//! asked for when it was put.

use super::Volume;
use crate::chunks::{Charges, Put};
use mictlan::cluster::place::Copies;
use mictlan::id::{ChunkId, Ino};
use mictlan::meta::error::FsError;
use mictlan::meta::namespace::read::{self, Asked};
use mictlan::seal::Sealed;
use std::collections::HashMap;

/// What was found for directories while one pack is made: its files often share their homes.
#[derive(Default)]
pub(super) struct Homes(HashMap<Ino, Option<u8>>);

impl Volume {
    pub(super) async fn copies_for(&self, ino: Ino) -> Result<Copies, FsError> {
        self.copies_among(&mut Homes::default(), ino).await
    }

    pub(super) async fn copies_among(
        &self,
        homes: &mut Homes,
        ino: Ino,
    ) -> Result<Copies, FsError> {
        let own = self.ask(|core| read::copies_asked(&core.view, ino)).await?;
        let wanted = match own {
            Asked::Copies(copies) => Some(copies),
            Asked::Nowhere => None,
            Asked::Above(home) => match homes.0.get(&home) {
                Some(known) => *known,
                None => {
                    let found = self.ask(|core| read::copies_wanted(&core.view, home)).await?;
                    homes.0.insert(home, found);
                    found
                }
            },
        };
        Ok(wanted.and_then(Copies::new).unwrap_or_else(|| self.chunks.copies()))
    }

    /// Whether `to` may share chunks with `from`: they may have fewer copies than `to` asks for.
    pub(super) async fn may_share(&self, from: Ino, to: Ino) -> Result<bool, FsError> {
        let mut homes = Homes::default();
        let has = self.copies_among(&mut homes, from).await?;
        Ok(from == to || has >= self.copies_among(&mut homes, to).await?)
    }

    /// A chunk that was put before, with new receipts.
    pub(super) async fn put_again(&self, chunk: ChunkId, copies: Copies) -> Result<Put, FsError> {
        let bytes = self.chunks.get(chunk, self.options.deadline).await;
        let bytes = bytes.map_err(|error| {
            tracing::error!(%error, "a chunk that is to be put again cannot be read");
            FsError::Io
        })?;
        Ok(self.chunks.put(Sealed { address: chunk, bytes }, copies, Charges::new()))
    }
}
