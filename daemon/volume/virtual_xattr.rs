//! `user.mictlan.*`: what the filesystem knows of a file, asked for by name.
//!
//! Owns: the names. They are answered, never listed; only `replicas` can be set.

use super::Volume;
use bytes::Bytes;
use mictlan::id::Ino;
use mictlan::meta::error::FsError;
use mictlan::meta::namespace::read;
use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Virtual {
    /// The position in the ledger up to which this mount has applied the log.
    Version,
    /// The peers where copies of each chunk belong, as many as are asked for now.
    Copies,
    /// How this mount stands to the log: what it applied, what is signed, what is wrong.
    View,
    /// The number of the volume, the same on every mount of it and on no other.
    Volume,
    /// Who changed it last, and in which record.
    Writer,
    /// That record's proof of inclusion.
    Proof,
    /// How many copies what is written gets: a setting of the file, of a directory above it, or of
    /// the volume.
    Replicas,
}

/// `None`: an ordinary attribute.
pub fn named(name: &[u8]) -> Option<Virtual> {
    match name {
        b"user.mictlan.version" => Some(Virtual::Version),
        b"user.mictlan.volume" => Some(Virtual::Volume),
        b"user.mictlan.view" => Some(Virtual::View),
        b"user.mictlan.copies" => Some(Virtual::Copies),
        b"user.mictlan.writer" => Some(Virtual::Writer),
        b"user.mictlan.proof" => Some(Virtual::Proof),
        b"user.mictlan.replicas" => Some(Virtual::Replicas),
        _ => None,
    }
}

/// Extents looked at for the chunks of one file.
const EXTENTS_MAX: usize = 10_000;
/// getxattr(2) gives at most this much.
const VALUE_MAX: usize = 65_536;

impl Volume {
    pub(super) async fn virtual_xattr(
        self: &Arc<Self>,
        ino: Ino,
        which: Virtual,
    ) -> Result<Bytes, FsError> {
        if which == Virtual::Volume {
            return Ok(self.id.to_string().into());
        }
        // The view tells why nothing else is answered, so it is answered always.
        if which != Virtual::View {
            self.fresh().await?;
        }
        let inode = self.inode(ino).await?;
        match which {
            Virtual::View => Ok(self.view_in_words().into()),
            Virtual::Volume => Ok(self.id.to_string().into()),
            Virtual::Version => Ok(self.core().view.position().to_string().into()),
            Virtual::Writer => self.writer(ino).await,
            Virtual::Proof => {
                let proof = self.proof(ino).await?;
                if proof.len() <= VALUE_MAX { Ok(proof) } else { Err(FsError::XattrTooBig) }
            }
            Virtual::Replicas => Ok(self.copies_for(ino).await?.count().to_string().into()),
            Virtual::Copies => {
                let extents = self
                    .ask(|core| {
                        let all = 0..inode.size.max(1);
                        read::extents(&core.view, ino, all, EXTENTS_MAX)
                    })
                    .await?;
                let copies = self.copies_for(ino).await?;
                let chunks: BTreeSet<_> = extents.iter().map(|extent| extent.chunk).collect();
                let mut text = String::new();
                for chunk in chunks {
                    let places = self.chunks.places(chunk, copies);
                    let peers: Vec<String> = places.iter().map(|peer| peer.to_string()).collect();
                    text.push_str(&format!("{chunk} {}\n", peers.join(" ")));
                }
                text.truncate(VALUE_MAX);
                Ok(text.into())
            }
        }
    }
}
