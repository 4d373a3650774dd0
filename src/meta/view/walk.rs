//! A walk over a span of the map through all layers at once.
//!
//! Owns: merging the layers in key order, newest first.
//! Invariant: what a range delete hides is skipped, not read: a walk costs what it finds.

use crate::meta::key::{Key, KeyBytes};
use crate::meta::tree::{Entries, NodeError, decoded};
use crate::meta::value::Value;
use crate::meta::view::run::entry;
use crate::meta::view::{Layer, View};
use crate::meta::write::{Change, WriteSet};

enum Source<'a> {
    Set { set: &'a WriteSet, from: Vec<u8> },
    Run(Entries<'a>),
    Tree(Entries<'a>),
}

struct Cursor<'a> {
    source: Source<'a>,
    /// What it deletes of all that is beneath.
    ranges: Option<&'a WriteSet>,
    /// The next entry, already taken from the source.
    head: Option<(KeyBytes, Change)>,
}

/// From newest to oldest.
pub(super) struct Walk<'a> {
    cursors: Vec<Cursor<'a>>,
    to: Vec<u8>,
}

impl<'a> Walk<'a> {
    pub fn new(view: &'a View, from: &[u8], to: &[u8]) -> Result<Self, NodeError> {
        let mut walk = Self { cursors: vec![], to: to.to_vec() };
        for set in [&view.local, &view.committed] {
            walk.begin(Source::Set { set, from: from.to_vec() }, Some(set))?;
        }
        for (layer, _) in view.layers.iter().rev() {
            let source = match layer {
                Layer::Set(set) => Source::Set { set, from: from.to_vec() },
                Layer::Run(run) => Source::Run(run.entries(from, to)),
            };
            walk.begin(source, Some(layer.ranges()))?;
        }
        walk.begin(Source::Tree(view.tree.entries(from, to)), None)?;
        Ok(walk)
    }

    /// The next entry that is there when all layers are taken together.
    pub fn next(&mut self) -> Result<Option<(Key, Value)>, NodeError> {
        loop {
            let heads = self.cursors.iter().filter_map(|cursor| cursor.head.as_ref());
            let Some(key) = heads.map(|(key, _)| key).min().cloned() else { return Ok(None) };
            // The newest layer that deletes a range here hides every layer beneath it.
            let hidden = self.cursors.iter().enumerate().find_map(|(i, cursor)| {
                let end = cursor.ranges?.range_over(&key)?;
                Some((i, end.to_vec()))
            });
            if let Some((above, end)) = hidden {
                for cursor in &mut self.cursors[above + 1..] {
                    cursor.seek(&end, &self.to)?;
                }
            }
            let mut changes = vec![];
            for cursor in &mut self.cursors {
                if cursor.head.as_ref().is_some_and(|(head, _)| *head == key) {
                    changes.extend(cursor.head.take().map(|(_, change)| change));
                    cursor.advance(&self.to)?;
                }
            }
            let settled = changes.iter().position(|change| !matches!(change, Change::Merge(_)));
            changes.truncate(settled.map_or(changes.len(), |i| i + 1));
            let value = match changes.pop() {
                Some(Change::Put(value)) => Some(value),
                Some(other) => other.apply(None),
                None => None,
            };
            let value = changes.iter().rev().fold(value, |value, change| change.apply(value));
            if let Some(value) = value {
                return Ok(Some((key.key(), value)));
            }
        }
    }

    fn begin(&mut self, source: Source<'a>, ranges: Option<&'a WriteSet>) -> Result<(), NodeError> {
        let mut cursor = Cursor { source, ranges, head: None };
        cursor.advance(&self.to)?;
        self.cursors.push(cursor);
        Ok(())
    }
}

impl Cursor<'_> {
    fn advance(&mut self, to: &[u8]) -> Result<(), NodeError> {
        self.head = match &mut self.source {
            Source::Set { set, from } => {
                let next = set.changes_in(from, to).next();
                if let Some((key, _)) = next {
                    from.clear();
                    from.extend_from_slice(key);
                    from.push(0);
                }
                next.map(|(key, change)| (key.clone(), change.clone()))
            }
            Source::Run(entries) => entries.next(entry)?,
            Source::Tree(entries) => entries.next(|key, value| {
                let bytes = KeyBytes::parse(key).expect("checked at decoding");
                let value = decoded(&bytes.key(), value);
                (bytes, Change::Put(value))
            })?,
        };
        Ok(())
    }

    /// Goes on at `end`, if it is not beyond it already.
    fn seek(&mut self, end: &[u8], to: &[u8]) -> Result<(), NodeError> {
        if self.head.as_ref().is_none_or(|(key, _)| key.as_bytes() >= end) {
            return Ok(());
        }
        match &mut self.source {
            Source::Set { from, .. } => *from = end.to_vec(),
            Source::Run(entries) | Source::Tree(entries) => entries.seek(end),
        }
        self.advance(to)
    }
}
