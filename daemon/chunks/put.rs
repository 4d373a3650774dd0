//! One chunk to its copies: drives `cluster::put`.
//!
//! Owns: what is told to whoever waits for a chunk.
//! Invariants: a put goes on until the chunk is durable; whoever waits has a deadline of his own,
//! and the bytes stay in memory meanwhile. A chunk that is put again gets what copies it lacks, and
//! loses none.

use super::budget::Charge;
use super::{Chunks, lock};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mictlan::cluster::place::{Copies, durable_need, place};
use mictlan::cluster::put::{Effect, Event, Failure, PATIENCE_MS, Plan, PutChunk};
use mictlan::id::{ChunkId, Epoch, PeerId, TimeMs};
use mictlan::seal::{Header, Sealed};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::watch;

/// What a chunk's bytes were accounted with, shared with the other chunks of the same bytes.
pub type Charges = Vec<Arc<Vec<Charge>>>;

/// One try of the machine; then the order of peers is made anew, from the layout of that time.
const TRY_MS: u64 = 30_000;
/// Between two tries, when nobody could be asked.
const PAUSE: Duration = Duration::from_millis(500);

/// A chunk that is being put. Clones wait for the same one.
#[derive(Clone)]
pub struct Put {
    pub chunk: ChunkId,
    /// Under whose keys it is sealed.
    pub epoch: Epoch,
    /// How many copies it gets, or as many as there are peers.
    pub copies: Copies,
    state: watch::Receiver<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    /// When the oldest of the receipts that make it durable was asked for (`asked_now`).
    durable: Option<TimeMs>,
    trouble: Option<Trouble>,
}

/// What stands in the way of a chunk.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Every peer that answered is full.
    pub full: bool,
    what: Arc<str>,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    #[error("chunk {0} was given up: this program is ending")]
    Ending(ChunkId),
}

/// Bytes without a header were sealed by nobody, so under no keys that could be old.
fn epoch(sealed: &Sealed) -> Epoch {
    Header::parse(&sealed.bytes).map_or(Epoch(u32::MAX), |header| header.epoch)
}

impl Put {
    /// Waits until enough peers have it on disk: when the oldest of their receipts was asked for.
    pub async fn durable(&self) -> Result<TimeMs, PutError> {
        let mut state = self.state.clone();
        let done = state.wait_for(|state| state.durable.is_some()).await;
        let done = done.map_err(|_| PutError::Ending(self.chunk))?;
        done.durable.ok_or(PutError::Ending(self.chunk))
    }

    pub fn is_durable(&self) -> bool {
        self.state.borrow().durable.is_some()
    }

    /// What stands in the way, while something does.
    pub fn trouble(&self) -> Option<Trouble> {
        self.state.borrow().trouble.clone()
    }
}

impl Chunks {
    /// Starts putting a chunk. `charge` is kept until it is durable.
    pub fn put(self: &Arc<Self>, sealed: Sealed, copies: Copies, charge: Charges) -> Put {
        let (state, receiver) = watch::channel(State::default());
        let put = Put { chunk: sealed.address, epoch: epoch(&sealed), copies, state: receiver };
        lock(&self.on_the_way).insert(sealed.address, sealed.bytes.clone());
        let chunks = self.clone();
        self.running.send_modify(|running| *running += 1);
        tokio::spawn(async move {
            chunks.clone().put_until_durable(sealed, copies, state, charge).await;
            chunks.running.send_modify(|running| *running -= 1);
        });
        put
    }

    /// A chunk that travels inside a commit: readable from here until `let_go`, durable with it.
    pub fn hold(&self, sealed: Sealed, copies: Copies) -> Put {
        let now = TimeMs(u64::MAX); // the commit itself makes it durable: no receipt is older
        let (_, state) = watch::channel(State { durable: Some(now), trouble: None });
        let put = Put { chunk: sealed.address, epoch: epoch(&sealed), copies, state };
        lock(&self.on_the_way).insert(sealed.address, sealed.bytes);
        put
    }

    /// The commit that carried it is ordered.
    pub fn let_go(&self, chunk: ChunkId) {
        lock(&self.on_the_way).remove(&chunk);
    }

    async fn put_until_durable(
        self: Arc<Self>,
        sealed: Sealed,
        copies: Copies,
        state: watch::Sender<State>,
        charge: Charges,
    ) {
        let mut charge = charge;
        loop {
            match self.try_put(&sealed, copies, &state, &mut charge).await {
                Ok(()) => return,
                Err(trouble) => {
                    tracing::warn!(chunk = %sealed.address, %trouble,
                        "not durable yet; the data stays here and is put again");
                    state.send_modify(|state| state.trouble = Some(trouble));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// One run of the machine: done when every copy is placed or noted as owed.
    async fn try_put(
        self: &Arc<Self>,
        sealed: &Sealed,
        copies: Copies,
        state: &watch::Sender<State>,
        charge: &mut Charges,
    ) -> Result<(), Trouble> {
        let Some(plan) = self.plan(sealed.address, copies) else {
            return Err(Trouble { full: false, what: "no peer is in the layout".into() });
        };
        let (asked, copies, now) = (copies, plan.copies, self.now());
        let (mut machine, mut effects) = PutChunk::start(plan, now);
        let (mut trailing, mut let_go) = (None, None);
        let mut sends = FuturesUnordered::new();
        loop {
            for effect in effects {
                match effect {
                    Effect::Send(peer) => sends.push(self.send(peer, sealed.clone(), asked)),
                    Effect::Durable { oldest } => {
                        lock(&self.on_the_way).remove(&sealed.address);
                        // The writer goes on, unless copies that are slower than he is fill the
                        // memory behind him: then he waits for them, but not for a silent peer.
                        trailing = self.trailing.try_charge(sealed.bytes.len());
                        match trailing {
                            Some(_) => charge.clear(),
                            None if self.all_silent(&machine) => let_go = Some(self.now()),
                            None => let_go = Some(TimeMs(self.now().0 + PATIENCE_MS)),
                        }
                        self.full.store(false, Ordering::Relaxed);
                        state.send_modify(|state| {
                            *state = State { durable: Some(oldest), trouble: None };
                        });
                    }
                    Effect::Done { stored } => {
                        drop(trailing);
                        if stored.len() < copies {
                            lock(&self.owed).note(sealed.address, stored, copies, self.now());
                        }
                        return Ok(());
                    }
                    Effect::GaveUp { stored, need, failed } => {
                        let full = failed.iter().any(|(_, why)| *why == Failure::Full);
                        self.full.store(full, Ordering::Relaxed);
                        let what = gave_up(&stored, need, &failed).into();
                        return Err(Trouble { full, what });
                    }
                }
            }
            let tick = machine.next_tick().into_iter().chain(let_go).min();
            let tick = tick.map(|time| self.at(time));
            let event = tokio::select! {
                Some((peer, answer)) = sends.next(), if !sends.is_empty() => match answer {
                    Ok(asked) => {
                        lock(&self.silent).remove(&peer);
                        Event::Stored { peer, asked }
                    }
                    Err(why) => {
                        if why == Failure::Lied {
                            self.reader.liars().report(peer, sealed.address);
                        }
                        Event::Failed { peer, why }
                    }
                },
                () = until(tick) => Event::Tick,
            };
            let now = self.now();
            effects = machine.on(now, event);
            if let_go.is_some_and(|at| now >= at) {
                let_go = None;
                lock(&self.silent).extend(machine.unanswered());
                effects.extend(machine.let_go());
            }
        }
    }

    /// Those that are still to answer were waited for before, in vain.
    fn all_silent(&self, machine: &PutChunk) -> bool {
        let silent = lock(&self.silent);
        machine.unanswered().all(|peer| silent.contains(&peer))
    }

    async fn send(
        &self,
        peer: PeerId,
        sealed: Sealed,
        copies: Copies,
    ) -> (PeerId, Result<TimeMs, Failure>) {
        let asked = asked_now();
        let Sealed { address, bytes } = sealed;
        match self.sender(peer) {
            Some(sender) => {
                let len = bytes.len() as u64;
                let sent = sender.send(address, bytes, Some(copies)).await;
                if sent.is_ok() {
                    lock(&self.rooms).stored(peer, len);
                }
                (peer, sent.map(|()| asked))
            }
            None => (peer, Err(Failure::Unreachable)),
        }
    }

    /// How many peers have to have a chunk before it counts as durable.
    pub fn need(&self, copies: Copies) -> usize {
        let placement = self.placement();
        durable_need(copies, placement.voters, placement.layout.placed_peers()).max(1)
    }

    /// `None` while the layout is empty.
    fn plan(&self, chunk: ChunkId, copies: Copies) -> Option<Plan> {
        let placement = self.placement();
        let order = place(chunk, &placement.layout);
        let storage = order.len();
        if storage == 0 {
            return None;
        }
        let need = self.need(copies);
        let copies = copies.count().min(storage);
        let give_up_at = TimeMs(self.now().0 + TRY_MS);
        Some(Plan { order, own: placement.own.clone(), copies, need, give_up_at })
    }
}

/// When something is asked for, in milliseconds of `since_start`. Stamps are by the stores' clocks,
/// which may be wrong: a receipt is as old as the question, so never taken for younger than it is.
pub fn asked_now() -> TimeMs {
    TimeMs(crate::host::since_start().as_millis() as u64)
}

fn gave_up(stored: &[PeerId], need: usize, failed: &[(PeerId, Failure)]) -> String {
    let failed: Vec<String> =
        failed.iter().map(|(peer, why)| format!("peer {peer} {why}")).collect();
    format!("{} of {need} copies are on disk; {}", stored.len(), failed.join(", "))
}

/// Waits for a moment, or for ever.
pub async fn until(time: Option<tokio::time::Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}
