//! Copies that other peers lack of what was stored here.
//!
//! Owns: which chunks came with a word of how many copies there shall be, also over a restart, and
//! the look, a while after, whether these are there. Whoever put a chunk makes them, as long as he
//! lives: this is for a mount that was killed, or left.
//! Never: holds a put up, or makes a copy that nobody asked for.
//! Invariant: asks before it brings, and asks nobody twice who has it.

use crate::others::Others;
use crate::peer::Sequencing;
use crate::store::Store;
use mictlan::cluster::owed::{OWED_MAX, Owed, Search};
use mictlan::cluster::place::{Copies, place};
use mictlan::id::{ChunkId, PeerId, TimeMs};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// How long whoever put a chunk has for its last copies before anybody else looks after them.
const GRACE_MS: u64 = 15_000;
const EVERY: Duration = Duration::from_secs(1);
/// Chunks in one round, so in one question to a peer: 128 KiB.
const ROUND: usize = 4_096;

pub struct Owing {
    store: Arc<Store>,
    ledger: Arc<dyn Sequencing>,
    others: Arc<Others>,
    state: Mutex<State>,
}

struct State {
    owed: Owed,
    /// There is no other peer to have a copy.
    alone: bool,
    /// That there is no room for more was said.
    full: bool,
    /// Lacking, and another peer's to bring; if that one does not, this one does the next time.
    left: HashSet<ChunkId>,
}

impl Owing {
    pub fn new(store: Arc<Store>, ledger: Arc<dyn Sequencing>, others: Arc<Others>) -> Arc<Self> {
        let (owed, left) = (Owed::after(GRACE_MS), HashSet::new());
        let state = State { owed, alone: false, full: false, left };
        Arc::new(Self { store, ledger, others, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether copies are to be looked after: `None` if there is nothing to look for, or no room.
    pub fn wanted(&self, copies: Copies) -> Option<Copies> {
        let mut state = self.state();
        let full = state.owed.len() >= OWED_MAX;
        if full && !state.full {
            tracing::warn!(
                chunks = OWED_MAX,
                "too many chunks lack copies, or wait for a look at \
                them: of more nobody makes copies but who puts them"
            );
        }
        state.full = full;
        (copies.count() > 1 && !state.alone && !full).then_some(copies)
    }

    /// These were stored here, and there shall be so many copies.
    pub fn note(&self, chunks: impl Iterator<Item = ChunkId>, copies: Copies) {
        let Some(me) = self.ledger.id() else { return };
        let (now, mut state) = (now(), self.state());
        for chunk in chunks {
            // One that came beside others when there was hardly room is known after a restart.
            let _ = state.owed.note(chunk, vec![me], copies.count(), now);
        }
    }

    /// Of how many chunks here it looked for all copies and did not find them.
    pub fn missing(&self) -> u64 {
        self.state().owed.missing() as u64
    }

    /// Until the peer ends. Round after round while copies are found, so that nothing piles up.
    pub async fn work(owing: Weak<Self>) {
        let mut remembered = false;
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(owing) = owing.upgrade() else { return };
            // Before the ledger has told it who it is, it has nothing to note.
            if !remembered && owing.ledger.id().is_some() {
                owing.remember();
                remembered = true;
            }
            while owing.round().await > 0 {}
        }
    }

    /// What it was to look after when it ended.
    fn remember(&self) {
        match self.store.owed(OWED_MAX) {
            Ok(owed) => {
                owed.into_iter().for_each(|(chunk, copies)| self.note([chunk].into_iter(), copies));
            }
            Err(error) => tracing::warn!(%error, "which copies were missing is forgotten"),
        }
    }

    /// How many chunks are whole after it.
    async fn round(&self) -> usize {
        let layout = match self.others.layout(&*self.ledger) {
            Ok(layout) => layout,
            Err(error) => {
                tracing::debug!(%error, "copies are looked after later");
                return 0;
            }
        };
        let due = {
            let mut state = self.state();
            state.alone = layout.placed_peers() <= 1;
            state.owed.due(now(), ROUND)
        };
        let (Some(me), false) = (self.ledger.id(), due.is_empty()) else { return 0 };
        let order = |chunk| place(chunk, &layout).into_iter().map(|place| place.peer).collect();
        let search = |(chunk, debt)| Search::new(chunk, &debt, order(chunk));
        let mut searches: Vec<Search> = due.into_iter().map(search).collect();
        let mut away = HashSet::new();
        self.ask(&mut searches, &mut away).await;
        let mut settled = Vec::new();
        for mut search in searches {
            let gone = !self.is_anothers(&search, me) && !self.bring(&mut search, &mut away).await;
            let mut state = self.state();
            if gone || search.is_over() {
                state.owed.settled(&search.chunk);
                state.left.remove(&search.chunk);
                settled.push(search.chunk);
            } else {
                let stored = search.stored().to_vec();
                state.owed.lacks(search.chunk, stored, now());
            }
        }
        let whole = settled.len();
        if whole > 0
            && let Err(error) = self.store.settled(settled).await
        {
            tracing::debug!(%error, "these are looked after once more when this peer starts again");
        }
        whole
    }

    /// Asks peers for what is due, until so many copies are found or nobody is left who answers.
    async fn ask(&self, searches: &mut [Search], away: &mut HashSet<PeerId>) {
        loop {
            let mut questions: BTreeMap<PeerId, Vec<&mut Search>> = BTreeMap::new();
            for search in searches.iter_mut() {
                // One at a time: its answer says whether there is another to ask.
                if let Some(peer) = search.to_ask(away).first() {
                    questions.entry(*peer).or_default().push(search);
                }
            }
            if questions.is_empty() {
                return;
            }
            for (peer, which) in questions {
                let chunks = which.iter().map(|search| search.chunk).collect();
                let said = match self.others.link(peer) {
                    Some(link) => link.have(chunks).await.ok(),
                    None => None,
                };
                let Some(said) = said.filter(|said| said.len() == which.len()) else {
                    away.insert(peer);
                    continue;
                };
                for (search, receipt) in which.into_iter().zip(said) {
                    // One for something else is no word about what was asked for.
                    let has = receipt.is_some_and(|receipt| receipt.chunk == search.chunk);
                    search.answered(peer, has);
                }
            }
        }
    }

    /// Whether it is left to another peer that has it too, this once.
    fn is_anothers(&self, search: &Search, me: PeerId) -> bool {
        let lacking = search.to_bring(&HashSet::new()).is_some();
        lacking && !search.is_first(me) && self.state().left.insert(search.chunk)
    }

    /// Brings a chunk to those that lack it; `false` when it is not here any more.
    async fn bring(&self, search: &mut Search, away: &mut HashSet<PeerId>) -> bool {
        let mut bytes = None;
        while let Some(peer) = search.to_bring(away) {
            if bytes.is_none() {
                bytes = match self.store.get(search.chunk).await {
                    Ok(Some(bytes)) => Some(bytes),
                    // A damaged copy is of no use to anybody.
                    Ok(None) | Err(_) => return false,
                };
            }
            let brought = match (self.others.link(peer), &bytes) {
                (Some(link), Some(bytes)) => {
                    let receipts = link.put(vec![bytes.clone()]).await.unwrap_or_default();
                    receipts.first().is_some_and(|receipt| receipt.chunk == search.chunk)
                }
                _ => false,
            };
            match brought {
                true => search.brought(peer),
                false => drop(away.insert(peer)),
            }
        }
        true
    }
}

/// Only differences count, and it never goes back.
fn now() -> TimeMs {
    TimeMs(crate::host::since_start().as_millis() as u64)
}
