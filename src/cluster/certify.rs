//! Certification: whether a commit could have been made after everything that is already ordered.
//!
//! Owns: the window of a volume's last tags, and the one conflict rule.
//! Never: knows names, keys or what a tag stands for.
//! Invariant: a commit passes exactly when no tag of another lineage after its base conflicts; a
//! base that the window can no longer answer for is refused as stale, never guessed about.

use crate::cluster::refusal::Refusal;
use crate::id::{Position, SessionId};
use crate::meta::tag::{Tag, TagList};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};

/// Tags remembered for a volume. At 4,096 tags a commit that is at least 256 commits, at the usual
/// handful some 200,000: a session further behind certifies its own entries from the log.
pub const WINDOW_TAGS: usize = 1 << 20;

/// How a commit used a fact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Use {
    Read,
    Write,
    Add,
}

impl Use {
    /// Reads do not disturb reads, adds do not disturb adds; everything else conflicts.
    pub fn conflicts(self, other: Use) -> bool {
        self == Use::Write || self != other
    }
}

/// Every use in `list`, in one fixed order.
fn uses(list: &TagList) -> impl Iterator<Item = (Use, Tag)> {
    let reads = list.reads().iter().map(|tag| (Use::Read, *tag));
    let writes = list.writes().iter().map(|tag| (Use::Write, *tag));
    let adds = list.adds().iter().map(|tag| (Use::Add, *tag));
    reads.chain(writes).chain(adds)
}

/// Whether two commits of different lineages conflict, and on which tag.
pub fn conflict(earlier: &TagList, later: &TagList) -> Option<Tag> {
    let list = |by: Use| match by {
        Use::Read => earlier.reads(),
        Use::Write => earlier.writes(),
        Use::Add => earlier.adds(),
    };
    let holds = |by: Use, tag: &Tag| list(by).binary_search(tag).is_ok();
    let clash = |(mine, tag): &(Use, Tag)| {
        [Use::Read, Use::Write, Use::Add].iter().any(|by| mine.conflicts(*by) && holds(*by, tag))
    };
    uses(later).find(clash).map(|(_, tag)| tag)
}

/// What a client whose base has left the window does itself: the same rule over the tag lists
/// that others committed since its base, oldest first. The first conflict, if there is one.
pub fn certify_locally<'a>(
    since_base: impl IntoIterator<Item = (Position, &'a TagList)>,
    mine: &TagList,
) -> Result<(), Refusal> {
    for (position, theirs) in since_base {
        if let Some(tag) = conflict(theirs, mine) {
            return Err(Refusal::Conflict { tag, position });
        }
    }
    Ok(())
}

/// One use of one fact by one commit. `back` leads to the previous mark of the same tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Mark {
    tag: Tag,
    by: Use,
    lineage: SessionId,
    position: Position,
    /// How many marks earlier the same tag was last used; 0 when it was not, within the window.
    back: u32,
}

/// The last tags of one volume, evicted by whole commits, oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Window {
    /// Bases before this are stale: what came after them is no longer all here.
    floor: Position,
    marks: VecDeque<Mark>,
    /// How many marks were ever evicted; mark `i` of `marks` has the number `evicted + i`.
    evicted: u64,
    /// The number of the newest mark of each tag. Only looked up, never walked: its order, which
    /// differs between replicas, decides nothing.
    newest: HashMap<Tag, u64>,
}

impl Window {
    /// Nothing is remembered from before `floor`: the volume, or its key epoch, began there.
    pub fn starting_at(floor: Position) -> Self {
        Self { floor, ..Self::default() }
    }

    pub fn floor(&self) -> Position {
        self.floor
    }

    pub fn len(&self) -> usize {
        self.marks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Whether a commit of `lineage` that has seen everything up to `base` conflicts with nothing
    /// that came after it.
    pub fn certify(
        &self,
        lineage: SessionId,
        base: Position,
        list: &TagList,
    ) -> Result<(), Refusal> {
        if base < self.floor {
            return Err(Refusal::StaleBase { base, floor: self.floor });
        }
        let conflicts = |(by, tag)| self.latest_against(by, tag, lineage, base);
        match uses(list).find_map(conflicts) {
            Some((tag, position)) => Err(Refusal::Conflict { tag, position }),
            None => Ok(()),
        }
    }

    /// Walks the marks of one tag backwards. The chains of a commit's tags are disjoint, so that
    /// even a hostile commit costs at most one pass over the window.
    fn latest_against(
        &self,
        by: Use,
        tag: Tag,
        lineage: SessionId,
        base: Position,
    ) -> Option<(Tag, Position)> {
        let mut number = *self.newest.get(&tag)?;
        loop {
            let mark = self.marks.get(number.checked_sub(self.evicted)? as usize)?;
            if mark.position <= base {
                return None;
            }
            if mark.lineage != lineage && by.conflicts(mark.by) {
                return Some((tag, mark.position));
            }
            if mark.back == 0 {
                return None;
            }
            number -= u64::from(mark.back);
        }
    }

    /// Remembers a commit that passed.
    pub fn record(&mut self, lineage: SessionId, position: Position, list: &TagList) {
        for (by, tag) in uses(list) {
            self.push(tag, by, lineage, position);
        }
        self.evict_down_to(WINDOW_TAGS);
    }

    fn plain(&self) -> impl Iterator<Item = (Tag, Use, SessionId, Position)> {
        self.marks.iter().map(|mark| (mark.tag, mark.by, mark.lineage, mark.position))
    }

    fn push(&mut self, tag: Tag, by: Use, lineage: SessionId, position: Position) {
        let number = self.evicted + self.marks.len() as u64;
        let previous = self.newest.insert(tag, number);
        let back = previous.map_or(0, |earlier| (number - earlier) as u32);
        self.marks.push_back(Mark { tag, by, lineage, position, back });
    }

    fn evict_down_to(&mut self, limit: usize) {
        if self.marks.len() <= limit {
            return;
        }
        let surplus = self.marks.len() - limit;
        // Half a commit would make its base look answerable; the whole of it goes.
        self.floor = self.marks[surplus - 1].position;
        while let Some(mark) = self.marks.front()
            && mark.position <= self.floor
        {
            if self.newest.get(&mark.tag) == Some(&self.evicted) {
                self.newest.remove(&mark.tag);
            }
            self.marks.pop_front();
            self.evicted += 1;
        }
    }
}

/// Two windows are the same when they answer the same: not by how the index came about.
impl PartialEq for Window {
    fn eq(&self, other: &Self) -> bool {
        self.floor == other.floor && self.plain().eq(other.plain())
    }
}

impl Eq for Window {}

/// A window as a snapshot carries it: the marks alone; the index is made again from them.
#[derive(Serialize, Deserialize)]
struct Stored {
    floor: Position,
    marks: Vec<(Tag, Use, SessionId, Position)>,
}

impl From<Window> for Stored {
    fn from(window: Window) -> Self {
        Self { floor: window.floor, marks: window.plain().collect() }
    }
}

impl From<Stored> for Window {
    fn from(stored: Stored) -> Self {
        let mut window = Window::starting_at(stored.floor);
        for (tag, by, lineage, position) in stored.marks {
            window.push(tag, by, lineage, position);
        }
        window
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[derive(Debug, Clone)]
    struct Step {
        lineage: SessionId,
        /// How far the base lags behind the newest position.
        lag: u64,
        tags: TagList,
    }

    fn step() -> impl Strategy<Value = Step> {
        let tags = || prop::collection::btree_set((0..5u8).prop_map(|n| Tag([n; 8])), 0..3);
        (1..4u32, 0..12u64, tags(), tags(), tags()).prop_map(|(lineage, lag, r, w, a)| {
            let tags = TagList::of(r, w, a).expect("few");
            Step { lineage: SessionId(lineage), lag, tags }
        })
    }

    /// The rule in the words of the design: read/read and add/add go together, all else conflicts.
    fn serial_conflict(earlier: &TagList, later: &TagList) -> bool {
        let set = |tags: &[Tag]| tags.iter().copied().collect::<BTreeSet<_>>();
        let meets = |a: &[Tag], b: &[Tag]| !set(a).is_disjoint(&set(b));
        meets(earlier.writes(), later.writes())
            || meets(earlier.writes(), later.reads())
            || meets(earlier.writes(), later.adds())
            || meets(earlier.reads(), later.writes())
            || meets(earlier.adds(), later.writes())
            || meets(earlier.reads(), later.adds())
            || meets(earlier.adds(), later.reads())
    }

    proptest! {
        #[test]
        fn a_commit_passes_exactly_when_the_serial_history_has_no_conflict(
            steps in prop::collection::vec(step(), 1..80), limit in 3..40usize,
        ) {
            let mut window = Window::default();
            let mut history: Vec<(Position, SessionId, TagList)> = Vec::new();
            for (at, Step { lineage, lag, tags }) in (1u64..).zip(steps) {
                let base = Position((at - 1).saturating_sub(lag));
                let answer = window.certify(lineage, base, &tags);
                let others = history.iter().filter(|(p, l, _)| *p > base && *l != lineage);
                let clash = others.clone().any(|(_, _, theirs)| serial_conflict(theirs, &tags));
                if base < window.floor() {
                    let stale = matches!(answer, Err(Refusal::StaleBase { .. }));
                    prop_assert!(stale);
                } else {
                    prop_assert_eq!(answer.is_err(), clash, "{:?}", answer);
                }
                let since = others.map(|(p, _, theirs)| (*p, theirs));
                prop_assert_eq!(certify_locally(since, &tags).is_err(), clash);
                if !clash {
                    window.record(lineage, Position(at), &tags);
                    window.evict_down_to(limit);
                    history.push((Position(at), lineage, tags));
                }
                prop_assert!(window.len() <= limit);
                let bytes = postcard::to_allocvec(&window).expect("it is plain data");
                let again: Window = postcard::from_bytes(&bytes).expect("its own bytes");
                prop_assert_eq!(&again, &window);
                window = again;
            }
        }
    }
}
