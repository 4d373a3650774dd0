//! The leader's lease tables: one a volume, driven by heartbeats, passes and time.
//!
//! Owns: the tables and who waits on them. `cluster::lease` decides.
//! Invariant: an event is fed only after a majority has confirmed, since it arrived, that this
//! voter leads; a voter that leads no more forgets its tables.

use super::{PASS_WITHIN, Service};
use mictlan::cluster::lease::{
    Ask, Denial, Effect, Event, Leases, Mode, Moment, TERM_MS, Ticket, Unit,
};
use mictlan::id::{Position, PrincipalId, SessionId, VolumeId};
use mictlan::wire::{Barrier, Failure, Heartbeat, HeartbeatReply, Lease, LeaseUnit};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, timeout};

/// How often time alone is fed to the tables.
const TICK: Duration = Duration::from_millis(500);

/// What a session is to give back: units, and by which grant it has them.
type Recalls = Vec<(Unit, Ticket)>;

pub struct Desk {
    tables: Mutex<Tables>,
    /// Grows with every change that somebody may wait for.
    news: watch::Sender<u64>,
    /// There is somebody to fence.
    doomed: Notify,
    alone: bool,
}

#[derive(Default)]
struct Tables {
    volumes: HashMap<VolumeId, Table>,
    next_ticket: u64,
    /// Sessions to fence: a table asks for that once.
    fences: BTreeSet<(VolumeId, SessionId)>,
}

struct Table {
    leases: Leases,
    /// Passes that wait to be let through.
    passing: BTreeMap<Ticket, oneshot::Sender<Result<(), Denial>>>,
    /// Units that a session asked to hold and has no answer to.
    asked: BTreeMap<(SessionId, Unit), Ticket>,
    /// The grant by which a session holds a unit: a release names it, so that a late one frees
    /// nothing that was granted again since.
    granted: BTreeMap<(SessionId, Unit), Ticket>,
}

impl Table {
    /// With the sessions that the state has open; `alone` when no lease can be left from before.
    fn of(open: &[SessionId], alone: bool) -> Self {
        let now = moment();
        let mut leases = Leases::new(now, alone);
        for session in open {
            leases.on(now, Event::Opened(*session));
        }
        let (passing, asked, granted) = Default::default();
        Self { leases, passing, asked, granted }
    }
}

impl Desk {
    pub fn new(alone: bool) -> Self {
        // Above every ticket of an earlier leader: they count from their own, earlier time.
        let next_ticket = crate::host::now().0 << 16;
        let tables = Mutex::new(Tables { next_ticket, ..Tables::default() });
        Self { tables, news: watch::Sender::new(0), doomed: Notify::new(), alone }
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        self.news.send_modify(|news| *news += 1);
    }

    pub fn opened(&self, volume: VolumeId, session: SessionId) {
        self.feed(volume, Event::Opened(session));
    }

    pub fn ended(&self, volume: VolumeId, session: SessionId) {
        self.feed(volume, Event::Ended(session));
    }

    pub fn done(&self, volume: VolumeId, ticket: Ticket) {
        self.feed(volume, Event::Done(ticket));
    }

    /// Feeds one event; what has to be ordered is left to `keep_fences`: whoever feeds may be gone
    /// before it is.
    fn feed(&self, volume: VolumeId, event: Event) {
        let mut tables = self.tables();
        let Some(table) = tables.volumes.get_mut(&volume) else { return };
        let effects = table.leases.on(moment(), event);
        let fences = table.take(effects);
        if !fences.is_empty() {
            tables.fences.extend(fences.into_iter().map(|session| (volume, session)));
            self.doomed.notify_one();
        }
        drop(tables);
        self.tell();
    }

    fn ticket(&self) -> Ticket {
        let mut tables = self.tables();
        tables.next_ticket += 1;
        Ticket(tables.next_ticket)
    }
}

impl Table {
    /// Answers whoever an effect is for; the sessions to be fenced are left to the caller.
    fn take(&mut self, effects: Vec<Effect>) -> Vec<SessionId> {
        let mut fences = Vec::new();
        for effect in effects {
            match effect {
                Effect::Granted { ticket } => {
                    let key = self.asked.iter().find(|(_, asked)| **asked == ticket);
                    if let Some(key) = key.map(|(key, _)| *key) {
                        self.asked.remove(&key);
                        self.granted.insert(key, ticket);
                    }
                }
                Effect::Passed { ticket } => {
                    if let Some(waiter) = self.passing.remove(&ticket) {
                        // Whoever gave up meanwhile is withdrawn by itself.
                        let _ = waiter.send(Ok(()));
                    }
                }
                Effect::Denied { ticket, why } => {
                    self.asked.retain(|_, asked| *asked != ticket);
                    if let Some(waiter) = self.passing.remove(&ticket) {
                        let _ = waiter.send(Err(why));
                    }
                }
                // A recall rides on the holder's next heartbeat, which waits for this news.
                Effect::Recall { .. } => {}
                Effect::Fence { session } => fences.push(session),
            }
        }
        fences
    }
}

impl Service {
    /// Feeds time, and forgets the tables when another voter leads.
    pub(super) async fn keep_time(self: Arc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            if !self.sequencer.leads() {
                let mut tables = self.desk.tables();
                tables.volumes.clear();
                tables.fences.clear();
                continue;
            }
            let volumes: Vec<VolumeId> = self.desk.tables().volumes.keys().copied().collect();
            if volumes.is_empty() || self.confirmed().await.is_err() {
                continue;
            }
            for volume in volumes {
                self.desk.feed(volume, Event::Tick);
            }
        }
    }

    /// Orders the fences that the tables ask for, each until it is there: others wait for it, and
    /// nobody asks for it again.
    pub(super) async fn keep_fences(self: Arc<Self>) {
        loop {
            // Those that could not be ordered are tried again without a word from anybody.
            let _ = timeout(TICK, self.desk.doomed.notified()).await;
            let due: Vec<_> = self.desk.tables().fences.iter().copied().collect();
            for (volume, session) in due {
                if self.fence(volume, session).await {
                    self.desk.tables().fences.remove(&(volume, session));
                }
            }
        }
    }

    /// The table of a volume, made with the sessions that the state has open.
    pub(super) fn with_table<T>(
        &self,
        volume: VolumeId,
        work: impl FnOnce(&Leases) -> T,
    ) -> Result<T, Failure> {
        let mut tables = self.desk.tables();
        let table = tables.volumes.entry(volume);
        let table =
            table.or_insert_with(|| Table::of(&self.open_sessions(volume), self.desk.alone));
        Ok(work(&table.leases))
    }

    /// Makes the table of a volume before a session is opened. Without a session nobody can hold a
    /// lease from before, so that nobody's claim is waited for. The state must be up to date.
    pub(super) fn prepare(&self, volume: VolumeId) {
        let open = self.open_sessions(volume);
        let alone = self.desk.alone || open.is_empty();
        let mut tables = self.desk.tables();
        tables.volumes.entry(volume).or_insert_with(|| Table::of(&open, alone));
    }

    fn open_sessions(&self, volume: VolumeId) -> Vec<SessionId> {
        let open = self.sequencer.with_state(|state| {
            let here = state.open_sessions().filter(|(_, session)| session.volume == volume);
            here.map(|(id, _)| id).collect()
        });
        open.unwrap_or_default()
    }

    /// Waits until nothing of others is in the way of `session` on these units.
    pub(super) async fn pass(
        &self,
        volume: VolumeId,
        session: SessionId,
        units: Vec<LeaseUnit>,
        mode: Mode,
    ) -> Result<Ticket, Failure> {
        self.with_table(volume, |_| ())?;
        let ticket = self.desk.ticket();
        let (sender, passed) = oneshot::channel();
        if let Some(table) = self.desk.tables().volumes.get_mut(&volume) {
            table.passing.insert(ticket, sender);
        }
        let ask = Ask::Pass(units, mode);
        self.desk.feed(volume, Event::Asked { ticket, session, ask });
        match timeout(PASS_WITHIN, passed).await {
            Ok(Ok(Ok(()))) => Ok(ticket),
            Ok(Ok(Err(denial))) => Err(Failure::Busy(denial.to_string())),
            Ok(Err(_)) => Err(Failure::NotLeader { leader: self.sequencer.leader() }),
            Err(_) => {
                self.desk.feed(volume, Event::Withdrawn(ticket));
                Err(Failure::Busy("another mount does not give its lease back".to_owned()))
            }
        }
    }

    /// A confirmed position, after what others hold back under leases on the named units.
    /// In another's name nothing is taken back from anybody.
    pub(super) async fn barrier(
        &self,
        principal: PrincipalId,
        barrier: Barrier,
    ) -> Result<Position, Failure> {
        let position = self.confirmed().await?;
        let Some(session) = barrier.session.filter(|_| !barrier.pass.is_empty()) else {
            return Ok(position);
        };
        self.check_owner(&principal, session)?;
        let volume = self
            .sequencer
            .with_state(|state| state.session(session).map(|session| session.volume))
            .ok_or_else(super::no_ledger)?
            .map_err(Failure::Refused)?;
        let units = barrier.pass;
        let mine = self.with_table(volume, |leases| {
            units.iter().all(|unit| leases.holds(session, *unit, Mode::Read))
        })?;
        if mine {
            return Ok(position);
        }
        let ticket = self.pass(volume, session, units, Mode::Read).await?;
        self.desk.done(volume, ticket);
        self.confirmed().await
    }

    pub(super) async fn beat(
        &self,
        principal: PrincipalId,
        beat: Heartbeat,
    ) -> Result<HeartbeatReply, Failure> {
        self.confirmed().await?;
        self.check_owner(&principal, beat.session)?;
        self.with_table(beat.volume, |_| ())?;
        let mut news = self.desk.news.subscribe();
        self.hear(&beat);
        let credit = self.credit(&beat).await;
        let started = Instant::now();
        let wait = Duration::from_millis(beat.wait_ms.into());
        loop {
            news.mark_unchanged();
            let (held, recall) = self.news_for(&beat)?;
            let same = held.iter().all(|lease| beat.held.contains(lease));
            let left = wait.saturating_sub(started.elapsed());
            // A grant, a loss or a recall is news; otherwise the answer may wait.
            let is_news = !same || held.len() != beat.held.len() || !recall.is_empty();
            if is_news || left.is_zero() || timeout(left, news.changed()).await.is_err() {
                return self.reply(&beat, held, recall, credit).await;
            }
        }
    }

    /// What the session holds of what it names, and what it is to give back.
    fn news_for(&self, beat: &Heartbeat) -> Result<(Vec<Lease>, Recalls), Failure> {
        self.with_table(beat.volume, |_| ())?;
        let tables = self.desk.tables();
        let table = tables.volumes.get(&beat.volume).ok_or_else(super::no_ledger)?;
        let mut held: Vec<Lease> = Vec::new();
        for lease in beat.want.iter().chain(&beat.held) {
            let known = held.iter().any(|known| known.unit == lease.unit);
            if !known && table.leases.holds(beat.session, unit(lease), mode(lease)) {
                let granted = table.granted.get(&(beat.session, unit(lease)));
                let granted = granted.copied().unwrap_or(lease.granted);
                held.push(Lease { granted, ..*lease });
            }
        }
        Ok((held, table.leases.recalled(beat.session)))
    }

    async fn reply(
        &self,
        beat: &Heartbeat,
        held: Vec<Lease>,
        recall: Recalls,
        credit: u64,
    ) -> Result<HeartbeatReply, Failure> {
        let read = self.confirmed().await?;
        let epoch = self
            .sequencer
            .with_state(|state| state.volumes().get(&beat.volume).map(|volume| volume.epoch()))
            .flatten()
            .ok_or_else(super::no_ledger)?;
        Ok(HeartbeatReply {
            term_ms: TERM_MS as u32,
            held,
            recall,
            open_elsewhere: Vec::new(),
            credit,
            read,
            epoch,
            now: self.now(),
        })
    }

    /// Feeds all that one heartbeat says.
    fn hear(&self, beat: &Heartbeat) {
        let session = beat.session;
        let mut events = vec![Event::Heartbeat(session)];
        let released = |(unit, granted): &(Unit, Ticket)| Event::Released {
            session,
            unit: *unit,
            granted: *granted,
        };
        events.extend(beat.release.iter().map(released));
        let known = |lease: &Lease| {
            self.with_table(beat.volume, |leases| leases.holds(session, unit(lease), mode(lease)))
                .unwrap_or(false)
        };
        for lease in beat.held.iter().filter(|lease| !known(lease)) {
            let granted = lease.granted;
            events.push(Event::Claimed { session, unit: unit(lease), mode: mode(lease), granted });
            if let Some(table) = self.desk.tables().volumes.get_mut(&beat.volume) {
                table.granted.insert((session, unit(lease)), granted);
            }
        }
        for event in events {
            self.desk.feed(beat.volume, event);
        }
        for lease in beat.want.iter().filter(|lease| !known(lease)) {
            let key = (session, unit(lease));
            let pending = self
                .desk
                .tables()
                .volumes
                .get(&beat.volume)
                .is_some_and(|table| table.asked.contains_key(&key));
            if pending {
                continue;
            }
            let ticket = self.desk.ticket();
            if let Some(table) = self.desk.tables().volumes.get_mut(&beat.volume) {
                table.asked.insert(key, ticket);
            }
            let ask = Ask::Hold(unit(lease), mode(lease));
            self.desk.feed(beat.volume, Event::Asked { ticket, session, ask });
        }
    }

    /// A session belongs to the principal that opened it.
    fn check_owner(&self, principal: &PrincipalId, session: SessionId) -> Result<(), Failure> {
        let owner = self.sequencer.with_state(|state| {
            let actor = &state.session(session)?.actor;
            Ok(state.people().name_of(principal) == Some(actor))
        });
        match owner.ok_or_else(super::no_ledger)? {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::NotAllowed),
            Err(refusal) => Err(Failure::Refused(refusal)),
        }
    }
}

fn unit(lease: &Lease) -> Unit {
    lease.unit
}

fn mode(lease: &Lease) -> Mode {
    lease.mode
}

/// A clock that goes on while the machine sleeps.
pub(super) fn moment() -> Moment {
    Moment(crate::host::since_start().as_millis() as u64)
}
