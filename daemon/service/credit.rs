//! Space credit at the leader: what peers say is free, and what sessions may write of it.
//!
//! Owns: asking the peers, and the room that is kept for what no credit is asked for.
//! Never: keeps an account while another voter leads.
//! `cluster::credit` has the rule.

use super::Service;
use super::leases::moment;
use crate::store::Store;
use futures::future::join_all;
use mictlan::cluster::credit::{Credits, HELD_MAX, for_content};
use mictlan::cluster::lease::Moment;
use mictlan::cluster::place::{Copies, durable_need};
use mictlan::id::PeerId;
use mictlan::wire::{Heartbeat, StoreStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How often the other peers are asked for their room.
const EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

/// The leader's account; the lock covers it only.
pub struct Account {
    credits: Mutex<Option<Credits>>,
    store: Arc<Store>,
}

impl Account {
    pub fn new(store: Arc<Store>) -> Self {
        Self { credits: Mutex::new(None), store }
    }

    fn credits(&self) -> MutexGuard<'_, Option<Credits>> {
        self.credits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn ended(&self, session: mictlan::id::SessionId) {
        if let Some(credits) = self.credits().as_mut() {
            credits.ended(moment(), session);
        }
    }

    fn look(&self, credits: &mut Credits, me: PeerId) {
        let asked = moment();
        report(credits, asked, me, &crate::peer::store_status(&self.store));
    }
}

/// A store that takes no writes has no room that anybody could be promised.
fn report(credits: &mut Credits, asked: Moment, peer: PeerId, store: &StoreStatus) {
    if store.out_of_service.is_none() {
        credits.reported(asked, peer, for_content(store.capacity_bytes, store.used_bytes));
    }
}

impl Service {
    /// Keeps the account while this voter leads.
    pub(super) async fn keep_account(self: Arc<Self>) {
        loop {
            tokio::time::sleep(EVERY).await;
            match self.sequencer.leads() {
                true => self.ask_peers().await,
                false => *self.account.credits() = None,
            }
        }
    }

    async fn ask_peers(&self) {
        let peers = self.sequencer.with_state(super::peers).unwrap_or_default();
        let others = peers.iter().filter(|peer| peer.storage && peer.id != self.me);
        let asked = moment();
        let answers = join_all(others.map(|peer| async {
            let link = self.voters.link(peer.id)?;
            let status = timeout(ANSWER_WITHIN, link.status()).await.ok()?.ok()?;
            Some((peer.id, status.store?))
        }))
        .await;
        let mut credits = self.account.credits();
        let credits = credits.get_or_insert_with(Credits::default);
        for (peer, store) in answers.into_iter().flatten() {
            report(credits, asked, peer, &store);
        }
    }

    /// What a heartbeat says of credit, and what is granted: nothing unless it wants the answer at
    /// once, since a grant that is held back with other news would count as spent meanwhile.
    pub(super) async fn credit(&self, beat: &Heartbeat) -> u64 {
        if beat.credit == 0 {
            return 0;
        }
        let wants = beat.wait_ms == 0;
        if wants && self.account.credits().is_none() {
            self.ask_peers().await;
        }
        let copies = self.copies_needed(beat);
        let mut credits = self.account.credits();
        let Some(credits) = credits.as_mut() else { return 0 };
        let now = moment();
        credits.claim(now, beat.session, HELD_MAX.saturating_sub(beat.credit));
        if !wants {
            return 0;
        }
        self.account.look(credits, self.me);
        credits.grant(now, beat.session, beat.credit, copies)
    }

    /// As many copies as `fsync` waits for: with fewer peers than that a write cannot go on, with
    /// fewer than all copies it can.
    fn copies_needed(&self, beat: &Heartbeat) -> u32 {
        let counts = self.sequencer.with_state(|state| {
            let peers = super::peers(state);
            let voters = peers.iter().filter(|peer| peer.voter).count();
            let storage = peers.iter().filter(|peer| peer.storage).count();
            let volume = state.volumes().get(&beat.volume)?;
            let copies = Copies::new(u8::try_from(volume.settings.replicas).unwrap_or(u8::MAX))?;
            Some(durable_need(copies, voters, storage))
        });
        counts.flatten().map_or(1, |need| need.max(1) as u32)
    }
}
