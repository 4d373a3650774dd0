//! The commits since the view's tree, each as it was applied, in local files.
//!
//! Owns: those files, so that the map at any position since can be made again.
//! Never: outlives this process: the files have no names, and their key is in memory alone.
//! Invariant: from the tree on it has every commit, or it says that it has not; a disk without
//! room costs no more than a check that cannot be made.

use super::spill::Spill;
use mictlan::id::Position;
use mictlan::meta::payload;
use mictlan::meta::write::WriteSet;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// A file ends after so much, so that its room comes back when a tree has all of it.
const FILE_BYTES: u64 = 16 << 20;

#[derive(Default)]
pub(super) struct Trail(Mutex<State>);

#[derive(Default)]
struct State {
    /// Of the view's tree: commits up to it are not kept.
    from: Position,
    files: VecDeque<Part>,
    /// The newest commit that could not be written.
    lost: Option<Position>,
    off: bool,
}

struct Part {
    number: u32,
    file: Arc<File>,
    end: u64,
    /// A write failed: its place is never written again, because it has one nonce.
    torn: bool,
    commits: Vec<Kept>,
}

#[derive(Clone, Copy)]
struct Kept {
    position: Position,
    at: u64,
    len: u32,
}

/// Commits of a span, to be read one after another.
pub(super) struct Steps {
    steps: VecDeque<(Kept, u32, Arc<File>)>,
}

impl Trail {
    /// Nobody will ask for what is applied here.
    pub fn switch_off(&self) {
        self.state().off = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it is locked")
    }

    /// Of the view's tree.
    pub fn from(&self) -> Position {
        self.state().from
    }

    /// The view rests on a tree that has everything up to `position`.
    pub fn rests_on(&self, position: Position) {
        let mut state = self.state();
        state.from = position;
        if state.lost.is_some_and(|lost| lost <= position) {
            state.lost = None;
        }
        let gone = |part: &Part| part.commits.last().is_none_or(|last| last.position <= position);
        while state.files.front().is_some_and(gone) {
            state.files.pop_front();
        }
    }

    pub fn append(&self, spill: &Spill, position: Position, writes: &WriteSet) {
        let mut state = self.state();
        if state.off || writes.is_empty() {
            return;
        }
        if let Err(error) = state.write(spill, position, writes) {
            tracing::debug!(%error, "others' roots are not checked until the next one is made here");
            state.lost = Some(position);
            state.files.clear();
        }
    }

    /// The commits after `after` and up to `until`; `None` when they are not all here.
    pub fn steps(&self, after: Position, until: Position) -> Option<Steps> {
        let state = self.state();
        if state.off || after < state.from || state.lost.is_some_and(|lost| lost > after) {
            return None;
        }
        let of = |part: &Part| {
            let (number, file) = (part.number, part.file.clone());
            let kept = part.commits.iter().copied();
            let inside = kept.filter(|kept| kept.position > after && kept.position <= until);
            inside.map(|kept| (kept, number, file.clone())).collect::<Vec<_>>()
        };
        Some(Steps { steps: state.files.iter().flat_map(of).collect() })
    }
}

impl State {
    fn write(&mut self, spill: &Spill, position: Position, writes: &WriteSet) -> io::Result<()> {
        if self.files.back().is_none_or(|part| part.torn || part.end >= FILE_BYTES) {
            let (number, file) = spill.file()?;
            self.files.push_back(Part { number, file, end: 0, torn: false, commits: vec![] });
        }
        let part = self.files.back_mut().expect("one was just made sure of");
        part.torn = true;
        let bytes = payload::encode(writes);
        let len = spill.write(&part.file, part.number, part.end, bytes)?;
        part.torn = false;
        part.commits.push(Kept { position, at: part.end, len });
        part.end += u64::from(len);
        Ok(())
    }
}

impl Steps {
    /// Their bytes together, about what they take in memory.
    pub fn bytes(&self) -> usize {
        self.steps.iter().map(|(kept, ..)| kept.len as usize).sum()
    }

    /// The next commit: where it stands, and what it changes.
    pub fn next(&mut self, spill: &Spill) -> io::Result<Option<(Position, WriteSet)>> {
        let Some((kept, number, file)) = self.steps.pop_front() else { return Ok(None) };
        let bytes = spill.open(&file, number, kept.at, kept.len)?;
        let writes = payload::decode(&bytes).map_err(io::Error::other)?;
        Ok(Some((kept.position, writes)))
    }

    /// The next commits as one write set, not much more than the overlay may have in memory.
    pub fn batch(&mut self, spill: &Spill) -> io::Result<Option<WriteSet>> {
        let mut all: Option<WriteSet> = None;
        while all.as_ref().is_none_or(|all| all.size_bytes() < spill.bytes_max()) {
            let Some((_, writes)) = self.next(spill)? else { break };
            match &mut all {
                None => all = Some(writes),
                Some(all) => all.then(&writes),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mictlan::id::Ino;
    use mictlan::meta::key::Key;
    use mictlan::meta::value::Value;

    #[test]
    fn what_is_read_back_at_a_time_is_bounded_by_the_memory_of_the_mount() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let spill = Spill::new(temp.path().to_owned(), 100_000).expect("random bytes");
        let (trail, all) = (Trail::default(), 50);
        for n in 1..=all {
            let mut writes = WriteSet::new();
            let key = Key::Xattr { ino: Ino(n), name: b"user.a".as_slice().into() };
            writes.put(key, Value::Xattr(vec![1; 10_000].into()));
            trail.append(&spill, Position(n), &writes);
        }
        let mut steps = trail.steps(Position(0), Position(all)).expect("all of them");
        let mut changes = 0;
        while let Some(part) = steps.batch(&spill).expect("readable") {
            assert!(part.size_bytes() < 120_000, "{} bytes at a time", part.size_bytes());
            changes += part.len() as u64;
        }
        assert_eq!(changes, all);
    }
}
