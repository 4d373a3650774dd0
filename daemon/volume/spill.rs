//! The part of the overlay that memory has no room for: sorted runs in local files.
//!
//! Owns: those files, their key, and when the view's oldest commits go into one.
//! Never: keeps anything beyond this process: the key is in memory alone, and a file has no name
//! from the moment it is open, so a crash leaves nothing. What is in them is in the log.
//! Invariant: a run that cannot be written stays in memory; then a root is built early, and
//! writers wait for it.

use super::Volume;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use mictlan::id::ChunkId;
use mictlan::meta::error::FsError;
use mictlan::meta::tree::{NewNode, Node, NodeRef};
use mictlan::meta::view::{Run, View};
use mictlan::meta::write::WriteSet;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;
use tokio::time::Instant;

/// After a run could not be written.
const PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Spill {
    dir: PathBuf,
    key: LessSafeKey,
    /// What the address of a node in a run begins with; the number of the run, a place in it and a
    /// length follow. It is random, so that no chunk that others name is taken for one.
    mark: [u8; 8],
    /// From so many bytes on commits go into a run.
    bytes_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next: u32,
    /// Those that the view still has.
    runs: HashMap<u32, Weak<File>>,
    /// No try before then: the disk had no room.
    not_before: Option<Instant>,
}

/// A run that is being written.
pub(super) struct Writing<'a> {
    spill: &'a Spill,
    number: u32,
    file: Arc<File>,
    end: u64,
}

impl Spill {
    pub fn new(dir: PathBuf, bytes_max: usize) -> Result<Self, FsError> {
        let (mut key, mut mark) = ([0; 32], [0; 8]);
        getrandom::fill(&mut key).map_err(|_| FsError::Io)?;
        getrandom::fill(&mut mark).map_err(|_| FsError::Io)?;
        let key = UnboundKey::new(&AES_256_GCM, &key).expect("the key has 32 bytes");
        let key = LessSafeKey::new(key);
        Ok(Self { dir, key, mark, bytes_max, state: Mutex::default() })
    }

    /// How much of what was put away is read back into memory at a time.
    pub(super) fn bytes_max(&self) -> usize {
        self.bytes_max
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while runs are counted")
    }

    pub(super) fn begin(&self) -> io::Result<Writing<'_>> {
        let (number, file) = self.file()?;
        let mut state = self.state();
        state.runs.retain(|_, run| run.strong_count() > 0);
        state.runs.insert(number, Arc::downgrade(&file));
        Ok(Writing { spill: self, number, file, end: 0 })
    }

    /// A file that loses its name at once, and its number, which no other has.
    pub(super) fn file(&self) -> io::Result<(u32, Arc<File>)> {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        drop(state);
        std::fs::create_dir_all(&self.dir)?;
        let path = self.dir.join(format!("{}-{number}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = Arc::new(file.open(&path)?);
        std::fs::remove_file(&path)?;
        Ok((number, file))
    }

    /// Seals `bytes` at a place of a file that nothing was written to before; how long that is.
    pub(super) fn write(
        &self,
        file: &File,
        number: u32,
        at: u64,
        mut bytes: Vec<u8>,
    ) -> io::Result<u32> {
        self.key
            .seal_in_place_append_tag(nonce(number, at), Aad::empty(), &mut bytes)
            .expect("it is far below the cipher's limit");
        file.write_all_at(&bytes, at)?;
        Ok(bytes.len() as u32)
    }

    /// A node of a run. `None` when the run is gone: a snapshot root has it.
    fn read(&self, address: &ChunkId) -> Option<io::Result<Vec<u8>>> {
        let (number, at, len) = self.place(address)?;
        let file = self.state().runs.get(&number).and_then(Weak::upgrade)?;
        Some(self.open(&file, number, at, len))
    }

    /// The number of a run, and where in it the node is.
    fn place(&self, address: &ChunkId) -> Option<(u32, u64, u32)> {
        let rest = address.0.strip_prefix(&self.mark)?;
        let number = u32::from_le_bytes(*rest.first_chunk()?);
        let at = u64::from_le_bytes(*rest[4..].first_chunk()?);
        let len = u32::from_le_bytes(*rest[12..].first_chunk()?);
        Some((number, at, len))
    }

    pub(super) fn open(&self, file: &File, number: u32, at: u64, len: u32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; len as usize];
        file.read_exact_at(&mut bytes, at)?;
        let opened = self.key.open_in_place(nonce(number, at), Aad::empty(), &mut bytes);
        let plain = opened.map_err(|_| io::Error::other("it was changed on the local disk"))?;
        let len = plain.len();
        bytes.truncate(len);
        Ok(bytes)
    }
}

impl Writing<'_> {
    /// What was written so far, for whoever keeps it, and how many bytes that are.
    pub(super) fn kept(&self) -> (Arc<File>, u64) {
        (self.file.clone(), self.end)
    }

    pub(super) fn keep(&mut self, new: &NewNode) -> io::Result<ChunkId> {
        let bytes = new.node.bytes().to_vec();
        let len = self.spill.write(&self.file, self.number, self.end, bytes)?;
        let mut address = [0; 32];
        address[..8].copy_from_slice(&self.spill.mark);
        address[8..12].copy_from_slice(&self.number.to_le_bytes());
        address[12..20].copy_from_slice(&self.end.to_le_bytes());
        address[20..24].copy_from_slice(&len.to_le_bytes());
        self.end += u64::from(len);
        Ok(ChunkId(address))
    }
}

/// No place of a run is written twice, and no number is given twice.
fn nonce(number: u32, at: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..4].copy_from_slice(&number.to_le_bytes());
    nonce[4..].copy_from_slice(&at.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

impl Volume {
    /// Keeps the overlay within its memory. Whoever applies commits waits for it, so that they
    /// come no faster than they are put away.
    pub(super) fn spill_what_is_too_much(&self) {
        while self.core().view.spillable_bytes() >= self.spill.bytes_max {
            let not_before = self.spill.state().not_before;
            if not_before.is_some_and(|at| Instant::now() < at) {
                return;
            }
            match self.spill_once() {
                Ok(true) => self.spill.state().not_before = None,
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, dir = %self.spill.dir.display(),
                        "no room on the local disk for what was committed lately: it stays in \
                         memory, and a snapshot root is built early; nothing is lost");
                    self.spill.state().not_before = Some(Instant::now() + PAUSE);
                    self.snapshot_wanted.notify_one();
                    return;
                }
            }
        }
    }

    /// Whether there was something to put away. The view is locked before and after, not meanwhile.
    fn spill_once(&self) -> io::Result<bool> {
        let Some(set) = self.core().view.spillable() else { return Ok(false) };
        let run = self.run_of(&set)?;
        self.core().view.spilled(&set, run);
        Ok(true)
    }

    /// The same of a view that nobody else sees yet.
    pub(super) fn spill_of(&self, view: &mut View) -> io::Result<()> {
        while view.spillable_bytes() >= self.spill.bytes_max
            && let Some(set) = view.spillable()
        {
            view.spilled(&set, self.run_of(&set)?);
        }
        Ok(())
    }

    fn run_of(&self, set: &WriteSet) -> io::Result<Run> {
        let mut writing = self.spill.begin()?;
        let (keys, nodes, file) = (&self.tree_keys, self.nodes.clone(), writing.file.clone());
        Run::write(set, keys, nodes, file, &mut |new| writing.keep(&new))
    }

    /// Whether more of the overlay is in memory than should be, so that writers have to wait.
    pub(super) fn overlay_is_full(&self) -> bool {
        self.spill.state().not_before.is_some()
            && self.core().view.overlay_bytes() >= 4 * self.spill.bytes_max
    }

    /// Brings a node of a run into the cache. `None`: it is a chunk.
    pub(super) fn spilled_node(&self, node: NodeRef) -> Option<Result<(), FsError>> {
        self.spill.place(&node.address)?;
        let failed = |why: &dyn std::fmt::Display| {
            tracing::error!(%why, "what was put away on the local disk cannot be read back; \
                unmount and mount again: it is in the log");
            Err(FsError::Io)
        };
        Some(match self.spill.read(&node.address) {
            // The view has another layer by now; the question is asked again.
            None => Ok(()),
            Some(Err(error)) => failed(&error),
            Some(Ok(bytes)) => match Node::open(&node, &self.tree_keys, bytes) {
                Ok(opened) => {
                    self.nodes.insert(node, opened);
                    Ok(())
                }
                Err(error) => failed(&error),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::nodes::empty_tree;
    use mictlan::id::Ino;
    use mictlan::meta::key::Key;
    use mictlan::meta::tree::{NodeCache, NodeError, Read, TreeKeys};
    use mictlan::meta::value::Value;

    struct World {
        spill: Spill,
        keys: TreeKeys,
        nodes: Arc<NodeCache>,
        view: View,
    }

    impl World {
        fn new(dir: PathBuf) -> Self {
            let keys = TreeKeys::new(&[1; 32], &[2; 32]);
            // Far too small for what is put away, so that it is read back.
            let nodes = Arc::new(NodeCache::new(0));
            let tree = empty_tree(&keys, &nodes);
            let spill = Spill::new(dir, 1 << 20).expect("random bytes");
            Self { spill, keys, view: View::new(tree, mictlan::id::Position(0)), nodes }
        }

        fn spill(&mut self) -> io::Result<()> {
            let Some(set) = self.view.spillable() else { return Ok(()) };
            let mut writing = self.spill.begin()?;
            let (nodes, file) = (self.nodes.clone(), writing.file.clone());
            let run = Run::write(&set, &self.keys, nodes, file, &mut |new| writing.keep(&new))?;
            self.view.spilled(&set, run);
            Ok(())
        }

        fn get(&self, key: &Key) -> Option<Value> {
            loop {
                match self.view.get(key) {
                    Ok(value) => return value,
                    Err(NodeError::Missing(node)) => {
                        // The tree's own only node is made again when the cache let go of it.
                        let Some(bytes) = self.spill.read(&node.address) else {
                            assert_eq!(empty_tree(&self.keys, &self.nodes).root(), node);
                            continue;
                        };
                        let bytes = bytes.expect("readable");
                        let opened = Node::open(&node, &self.keys, bytes).expect("as it was");
                        self.nodes.insert(node, opened);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    fn key(n: u64) -> Key {
        Key::Xattr { ino: Ino(n + 1), name: b"user.a".as_slice().into() }
    }

    fn value(n: u64) -> Value {
        Value::Xattr(vec![n as u8; 2_000].into())
    }

    #[test]
    fn what_was_put_away_is_read_back_and_its_file_has_no_name() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let mut world = World::new(temp.path().join("overlay"));
        for n in 0..10_000 {
            let mut writes = WriteSet::new();
            writes.put(key(n), value(n));
            world.view.apply(mictlan::id::Position(n + 1), &writes);
            if world.view.spillable_bytes() >= world.spill.bytes_max {
                world.spill().expect("there is room");
            }
            assert!(world.view.overlay_bytes() < 2 << 20, "memory is bounded");
        }
        let names = std::fs::read_dir(temp.path().join("overlay")).expect("a directory");
        assert_eq!(names.count(), 0, "a crash leaves nothing");
        assert!(world.spill.state().runs.len() > 10);
        for n in 0..10_000 {
            assert_eq!(world.get(&key(n)), Some(value(n)));
        }
        assert_eq!(world.get(&key(10_000)), None);
    }

    #[test]
    fn a_run_that_cannot_be_written_stays_in_memory() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(temp.path().join("overlay"), b"no directory").expect("written");
        let mut world = World::new(temp.path().join("overlay"));
        let mut writes = WriteSet::new();
        writes.put(key(1), value(1));
        world.view.apply(mictlan::id::Position(1), &writes);
        world.spill().expect_err("there is no room");
        assert_eq!(world.get(&key(1)), Some(value(1)));
        std::fs::remove_file(temp.path().join("overlay")).expect("removed");
        world.spill().expect("there is room");
        assert_eq!((world.view.spillable_bytes(), world.get(&key(1))), (0, Some(value(1))));
    }

    #[test]
    fn no_byte_of_it_is_readable_on_the_disk_and_a_changed_one_is_an_error() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let mut world = World::new(temp.path().join("overlay"));
        let mut writes = WriteSet::new();
        writes.put(key(1), value(7));
        world.view.apply(mictlan::id::Position(1), &writes);
        world.spill().expect("there is room");
        let Err(NodeError::Missing(node)) = world.view.get(&key(1)) else {
            panic!("it is not in memory");
        };
        let file = world.spill.state().runs[&0].upgrade().expect("it lives");
        let mut bytes = vec![0; file.metadata().expect("a file").len() as usize];
        file.read_exact_at(&mut bytes, 0).expect("readable");
        assert!(!bytes.windows(4).any(|w| w == [7; 4]));
        file.write_all_at(&[bytes[50] ^ 1], 50).expect("written");
        world.spill.read(&node.address).expect("it lives").expect_err("it was changed");
        drop(file);
        let (root, at) = (world.view.tree().root(), world.view.freeze().position);
        world.view.rebase(root, at);
        assert!(world.spill.read(&node.address).is_none(), "a root has it: its space is free");
    }
}
