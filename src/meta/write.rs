//! What an operation, a commit or an overlay changes in the map.
//!
//! Owns: puts, deletes, range deletes and merges, and how they compose.
//! Invariant: a key has at most one change; applied as range deletes first, then the changes, it
//! is the same whether two write sets are applied in turn or composed with [`WriteSet::then`].

use crate::meta::inode::InodeMerge;
use crate::meta::key::{Key, KeyBytes, KeyKind, Span};
use crate::meta::value::Value;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Bound::{Excluded, Included, Unbounded};

/// A change of a value that is made to whatever value is there.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Merge {
    /// On an inode that is not there it is nothing.
    Inode(InodeMerge),
    /// Added, wrapping; a counter that is not there is 0.
    Counter(i64),
}

impl Merge {
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Inode(_) => KeyKind::Inode,
            Self::Counter(_) => KeyKind::Counter,
        }
    }

    /// What becomes of `value`.
    pub fn apply(&self, value: Option<Value>) -> Option<Value> {
        match (self, value) {
            (Self::Inode(merge), Some(Value::Inode(mut inode))) => {
                merge.apply(&mut inode);
                Some(Value::Inode(inode))
            }
            (Self::Counter(n), Some(Value::Counter(old))) => {
                Some(Value::Counter(old.wrapping_add(*n)))
            }
            (Self::Counter(n), None) => Some(Value::Counter(*n)),
            (Self::Inode(_), None) => None,
            (merge, Some(value)) => unreachable!("{merge:?} under the key of a {:?}", value.kind()),
        }
    }

    fn then(&mut self, next: &Self) {
        match (self, next) {
            (Self::Inode(a), Self::Inode(b)) => a.then(b),
            (Self::Counter(a), Self::Counter(b)) => *a = a.wrapping_add(*b),
            (a, b) => unreachable!("{a:?} and {b:?} under one key"),
        }
    }
}

/// What happens to one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Change {
    Put(Value),
    Delete,
    Merge(Merge),
}

impl Change {
    /// What becomes of `value`.
    pub fn apply(&self, value: Option<Value>) -> Option<Value> {
        match self {
            Self::Put(value) => Some(value.clone()),
            Self::Delete => None,
            Self::Merge(merge) => merge.apply(value),
        }
    }

    /// Becomes "this, then `next`".
    fn then(&mut self, next: Change) {
        *self = match (std::mem::replace(self, Self::Delete), next) {
            (Self::Merge(mut earlier), Self::Merge(later)) => {
                earlier.then(&later);
                Self::Merge(earlier)
            }
            (Self::Put(value), Self::Merge(later)) => {
                later.apply(Some(value)).map_or(Self::Delete, Self::Put)
            }
            (Self::Delete, Self::Merge(later)) => later.apply(None).map_or(Self::Delete, Self::Put),
            (_, next) => next,
        };
    }

    fn weight(&self) -> usize {
        match self {
            Self::Put(value) => value.weight(),
            Self::Delete => 0,
            Self::Merge(_) => 128,
        }
    }
}

/// About what a key costs in a map, over its bytes.
const ENTRY: usize = 64;

/// Changes of the map, in a form that can be applied, composed, searched and encoded.
///
/// It is built in the order of what it means: each call is done after those before it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WriteSet {
    changes: BTreeMap<KeyBytes, Change>,
    /// Start to end; they do not overlap.
    ranges: BTreeMap<Vec<u8>, Vec<u8>>,
    bytes: usize,
}

impl WriteSet {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.ranges.is_empty()
    }

    /// How many keys and ranges are changed.
    pub fn len(&self) -> usize {
        self.changes.len() + self.ranges.len()
    }

    /// About what it takes in memory, and at least what it takes as a payload.
    pub fn size_bytes(&self) -> usize {
        self.bytes
    }

    pub fn put(&mut self, key: Key, value: Value) {
        assert!(value.fits(&key), "a {:?} does not fit under {key:?}", value.kind());
        self.change(key.encode(), Change::Put(value));
    }

    pub fn delete(&mut self, key: Key) {
        self.change(key.encode(), Change::Delete);
    }

    pub fn merge(&mut self, key: Key, merge: Merge) {
        assert!(merge.kind() == key.kind(), "{merge:?} does not fit under {key:?}");
        if merge != Merge::Inode(InodeMerge::default()) {
            self.change(key.encode(), Change::Merge(merge));
        }
    }

    /// A change of some fields of an inode.
    pub fn merge_inode(&mut self, ino: crate::id::Ino, merge: InodeMerge) {
        self.merge(Key::Inode(ino), Merge::Inode(merge));
    }

    /// Every key of `span` goes. For a payload to be valid it is [`Span::extents`],
    /// [`Span::extents_from`] or [`Span::xattrs`].
    pub fn delete_span(&mut self, span: Span) {
        if !span.is_empty() {
            let gone: Vec<KeyBytes> = self
                .changes
                .range::<[u8], _>((Included(span.from()), Excluded(span.to())))
                .map(|(key, _)| key.clone())
                .collect();
            for key in gone {
                self.forget(&key);
            }
            self.add_range(span);
        }
    }

    /// Becomes "this, then `next`".
    pub fn then(&mut self, next: &Self) {
        for (from, to) in &next.ranges {
            self.delete_span(Span { from: from.clone(), to: to.clone() });
        }
        for (key, change) in &next.changes {
            self.change(key.clone(), change.clone());
        }
    }

    /// What this says of `key`, apart from ranges.
    pub fn get(&self, key: &[u8]) -> Option<&Change> {
        self.changes.get(key)
    }

    /// Whether a range delete covers `key`.
    pub fn is_in_range(&self, key: &[u8]) -> bool {
        self.range_over(key).is_some()
    }

    /// The end of the range delete that covers `key`.
    pub(crate) fn range_over(&self, key: &[u8]) -> Option<&[u8]> {
        let (_, to) = self.ranges.range::<[u8], _>((Unbounded, Included(key))).next_back()?;
        (key < to.as_slice()).then_some(to.as_slice())
    }

    /// The changes, sorted by key.
    pub fn changes(&self) -> impl DoubleEndedIterator<Item = (&KeyBytes, &Change)> {
        self.changes.iter()
    }

    /// The changes in `[from, to)`.
    pub fn changes_in(
        &self,
        from: &[u8],
        to: &[u8],
    ) -> impl DoubleEndedIterator<Item = (&KeyBytes, &Change)> {
        let to = to.max(from);
        self.changes.range::<[u8], _>((Included(from), Excluded(to)))
    }

    pub fn puts(&self) -> impl Iterator<Item = (Key, &Value)> {
        self.changes.iter().filter_map(|(key, change)| match change {
            Change::Put(value) => Some((key.key(), value)),
            _ => None,
        })
    }

    pub fn deletes(&self) -> impl Iterator<Item = Key> {
        self.changes.iter().filter(|(_, c)| **c == Change::Delete).map(|(key, _)| key.key())
    }

    pub fn merges(&self) -> impl Iterator<Item = (Key, &Merge)> {
        self.changes.iter().filter_map(|(key, change)| match change {
            Change::Merge(merge) => Some((key.key(), merge)),
            _ => None,
        })
    }

    /// The range deletes: sorted, not overlapping.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> {
        self.ranges.iter().map(|(from, to)| (from.as_slice(), to.as_slice()))
    }

    /// Where range deletes begin, from `from` on.
    pub(crate) fn ranges_from(&self, from: &[u8]) -> impl Iterator<Item = &[u8]> {
        let rest = self.ranges.range::<[u8], _>((Included(from), Unbounded));
        rest.map(|(from, _)| from.as_slice())
    }

    /// What this makes of `value`, which is what was under `key`.
    pub fn apply(&self, key: &[u8], value: Option<Value>) -> Option<Value> {
        match self.changes.get(key) {
            Some(Change::Put(value)) => Some(value.clone()),
            Some(Change::Delete) => None,
            change => {
                let value = value.filter(|_| !self.is_in_range(key));
                change.map_or(value.clone(), |change| change.apply(value))
            }
        }
    }

    pub(crate) fn change(&mut self, key: KeyBytes, change: Change) {
        let covered = self.is_in_range(&key);
        let entry = ENTRY + key.len();
        match self.changes.entry(key) {
            Entry::Vacant(slot) => {
                let change = match change {
                    // The range says it already.
                    Change::Delete if covered => return,
                    Change::Merge(merge) if covered => match merge.apply(None) {
                        Some(value) => Change::Put(value),
                        None => return,
                    },
                    change => change,
                };
                self.bytes += entry + change.weight();
                slot.insert(change);
            }
            Entry::Occupied(slot) if covered && change == Change::Delete => {
                self.bytes -= entry + slot.remove().weight();
            }
            Entry::Occupied(mut slot) => {
                self.bytes -= slot.get().weight();
                slot.get_mut().then(change);
                self.bytes += slot.get().weight();
            }
        }
    }

    fn forget(&mut self, key: &KeyBytes) {
        if let Some(old) = self.changes.remove(key) {
            self.bytes -= ENTRY + key.len() + old.weight();
        }
    }

    fn add_range(&mut self, span: Span) {
        let Span { mut from, mut to } = span;
        // Ranges that only touch stay apart: each must lie within what its own tags cover.
        while let Some((start, end)) = self.overlapping(&from, &to) {
            self.ranges.remove(&start);
            self.bytes -= ENTRY + start.len() + end.len();
            from = from.min(start);
            to = to.max(end);
        }
        self.bytes += ENTRY + from.len() + to.len();
        self.ranges.insert(from, to);
    }

    fn overlapping(&self, from: &[u8], to: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let (start, end) = self.ranges.range::<[u8], _>((Unbounded, Excluded(to))).next_back()?;
        (end.as_slice() > from).then(|| (start.clone(), end.clone()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::id::Ino;
    use crate::meta::inode::tests::merges;
    use crate::meta::value::tests::entries;
    use proptest::prelude::*;

    /// The map that all of this is about, at its plainest.
    pub(crate) type Model = BTreeMap<Vec<u8>, Value>;

    pub(crate) fn apply(model: &mut Model, writes: &WriteSet) {
        for (from, to) in writes.ranges() {
            model.retain(|key, _| !(from <= key.as_slice() && key.as_slice() < to));
        }
        for (key, change) in writes.changes() {
            let value = model.remove(&key.to_vec());
            if let Some(value) = change.apply(value) {
                model.insert(key.to_vec(), value);
            }
        }
    }

    #[derive(Debug, Clone)]
    pub(crate) enum Step {
        Put(Key, Value),
        Delete(Key),
        Merge(Key, Merge),
        DeleteSpan(Span),
    }

    pub(crate) fn steps() -> impl Strategy<Value = Step> {
        let ino = (0..3u64).prop_map(|n| if n == 0 { Ino(1) } else { Ino(1 << 32 | n) });
        prop_oneof![
            4 => entries().prop_map(|(key, value)| Step::Put(key, value)),
            2 => entries().prop_map(|(key, _)| Step::Delete(key)),
            2 => (ino.clone(), merges())
                .prop_map(|(ino, merge)| Step::Merge(Key::Inode(ino), Merge::Inode(merge))),
            1 => (0..3u8, -2..3i64)
                .prop_map(|(n, by)| Step::Merge(Key::Counter(n), Merge::Counter(by))),
            2 => (ino, 0..3u8, 0..5u64, 0..5u64).prop_map(|(ino, what, from, len)| {
                Step::DeleteSpan(match what {
                    0 => Span::xattrs(ino),
                    1 => Span::extents_from(ino, from * 300_000),
                    _ => Span::extents(ino, from * 300_000, (from + len) * 300_000),
                })
            }),
        ]
    }

    pub(crate) fn built(steps: &[Step]) -> WriteSet {
        let mut writes = WriteSet::new();
        for step in steps {
            match step.clone() {
                Step::Put(key, value) => writes.put(key, value),
                Step::Delete(key) => writes.delete(key),
                Step::Merge(key, merge) => writes.merge(key, merge),
                Step::DeleteSpan(span) => writes.delete_span(span),
            }
        }
        writes
    }

    pub(crate) fn write_sets() -> impl Strategy<Value = WriteSet> {
        prop::collection::vec(steps(), 0..12).prop_map(|steps| built(&steps))
    }

    proptest! {
        #[test]
        fn a_write_set_means_its_steps_in_turn(
            before in write_sets(), steps in prop::collection::vec(steps(), 0..12),
        ) {
            let (mut apart, mut together) = (Model::new(), Model::new());
            apply(&mut apart, &before);
            apply(&mut together, &before);
            steps.iter().for_each(|step| apply(&mut apart, &built(std::slice::from_ref(step))));
            apply(&mut together, &built(&steps));
            prop_assert_eq!(apart, together);
        }

        #[test]
        fn write_sets_compose(base in write_sets(), a in write_sets(), b in write_sets()) {
            let (mut apart, mut together) = (Model::new(), Model::new());
            apply(&mut apart, &base);
            apply(&mut together, &base);
            apply(&mut apart, &a);
            apply(&mut apart, &b);
            let mut both = a.clone();
            both.then(&b);
            apply(&mut together, &both);
            for (key, _) in base.changes().chain(a.changes()).chain(b.changes()) {
                let mut model = Model::new();
                apply(&mut model, &base);
                let value = both.apply(key, model.remove(&key.to_vec()));
                prop_assert_eq!(together.get(&key.to_vec()), value.as_ref());
            }
            prop_assert_eq!(apart, together);
        }

        #[test]
        fn the_size_is_kept_through_every_change(a in write_sets(), b in write_sets()) {
            let mut both = a;
            both.then(&b);
            let entry = |(key, change): (&KeyBytes, &Change)| ENTRY + key.len() + change.weight();
            let ranges = both.ranges().map(|(from, to)| ENTRY + from.len() + to.len());
            let sum = both.changes().map(entry).sum::<usize>() + ranges.sum::<usize>();
            prop_assert_eq!(both.size_bytes(), sum);
        }
    }
}
