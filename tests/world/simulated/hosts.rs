//! The hosts' side of the world: what a mount does by itself, and with the answers that it gets.

use super::{CALM_AFTER, Call, Happens, RETRY_MS, Reply, World, clock, commits, payload};
use crate::actors::{MAIN, tags};
use crate::client::{Fate, Op, Phase};
use mictlan::cluster::lease::{HEARTBEAT_MS, Moment, Term};
use mictlan::cluster::state::{Item, Outcome, Refusal, Submission};
use mictlan::id::{Position, SessionId};
use mictlan::ledger::record::body::Fence;
use mictlan::ledger::record::{Body, Signed};
use std::collections::BTreeMap;

impl World {
    pub(super) fn told(&mut self, number: usize, reply: Reply) {
        let host = &mut self.hosts[number];
        match reply {
            Reply::Granted { ticket, sent, size }
                if host.phase == Phase::Live && host.asked.is_some() =>
            {
                host.asked = None;
                host.seen = host.seen.max(Position(size - 1));
                host.lease = Some(Term::since(Moment(sent)));
                host.granted = ticket;
                host.give_back = None;
            }
            Reply::Beat { sent, holds, give_back, size } if host.phase == Phase::Live => {
                host.seen = host.seen.max(Position(size - 1));
                host.give_back = give_back.or(host.give_back);
                let (term, now) = (Term::since(Moment(sent)), Moment(self.now));
                let longer = |held: &Term| term.left_ms(now) > held.left_ms(now);
                if holds && host.lease.as_ref().is_some_and(longer) {
                    host.lease = Some(term);
                }
            }
            Reply::Done { item, outcome } => self.done(number, item, outcome),
            _ => {}
        }
    }

    fn done(&mut self, number: usize, item: Item, outcome: Outcome) {
        let host = &mut self.hosts[number];
        match (&item, &outcome, host.phase.clone()) {
            (Item::OpenSession { req, .. }, Outcome::Opened { session }, Phase::Opening(mine))
                if *req == mine =>
            {
                host.session = Some(*session);
                // The journal names the session before anything is sent in it.
                let before = host.written_by.replace(*session);
                host.phase = before.map_or(Phase::Live, Phase::Fencing);
            }
            (Item::Record(submission), _, Phase::Fencing(old)) => {
                self.fenced(number, submission, &outcome, old);
            }
            (Item::Record(submission), ..) => host.answered(&submission.p, &outcome),
            _ => {}
        }
    }

    fn fenced(&mut self, number: usize, sent: &Submission, outcome: &Outcome, old: SessionId) {
        let host = &mut self.hosts[number];
        let Ok(Body::Fence(fence)) = Signed::parse(&sent.p).and_then(|signed| signed.body()) else {
            return;
        };
        if fence.session != old || fence.successor != host.session {
            return;
        }
        match outcome {
            Outcome::Refused(Refusal::Fenced { successor: Some(heir), .. })
                if Some(*heir) != host.session =>
            {
                host.phase = Phase::Fencing(*heir);
            }
            Outcome::Refused(Refusal::Fenced { .. })
            | Outcome::Accepted { .. }
            | Outcome::Repeated { .. } => {
                let lines = &self.lines;
                let ordered: BTreeMap<_, _> =
                    commits(lines).map(|(at, commit)| (commit.payload.b3, at)).collect();
                host.settle(|content| ordered.get(&payload(content)).copied());
                host.phase = Phase::Live;
                host.seen = Position(lines.len() as u64 - 1);
            }
            // Nothing that this session could go on from; it begins again.
            Outcome::Refused(_) => host.crash(),
            _ => {}
        }
    }

    /// What a host does by itself, now and then.
    pub(super) fn step(&mut self, number: usize) {
        let wait = if self.calm() { 150 } else { 100 + self.dice.roll(RETRY_MS) };
        self.later(wait, Happens::Step(number));
        let t = clock(self.now);
        // Signing needs the network's name alone, which every state knows.
        let state = &self.founded.state;
        let host = &mut self.hosts[number];
        let call = match host.phase.clone() {
            Phase::Down => {
                host.phase = Phase::Opening(self.reqs.next(t));
                return;
            }
            Phase::Opening(req) => {
                let principal = host.actor.id();
                Call::Propose(Item::OpenSession { volume: MAIN, principal, req })
            }
            Phase::Fencing(session) => {
                let reason = "the host starts again".to_owned();
                let body = Fence { reason, session, successor: host.session, volume: MAIN };
                let req = self.reqs.next(t);
                Call::Propose(Item::Record(host.actor.submit(state, req, Body::Fence(body))))
            }
            Phase::Live => return self.work(number),
        };
        self.carry(number, Happens::ToLeader(number, call));
    }

    /// A live mount: heartbeats, operations, commits, and the lease that it wants or gives back.
    fn work(&mut self, number: usize) {
        let (now, moment) = (self.now, Moment(self.now));
        let host = &mut self.hosts[number];
        let Some(session) = host.session else { return };
        let mut calls = Vec::new();
        if now >= host.beat + HEARTBEAT_MS {
            host.beat = now;
            let claims = host.lease.is_some_and(|term| term.holds_at(moment));
            let claims = claims.then_some(host.granted);
            calls.push(Call::Heartbeat { session, sent: now, claims });
        }
        let busy = now < CALM_AFTER + 60_000;
        let idle = host.first_pending().is_none();
        let wants = self.dice.roll(4);
        let new = match host.may_acknowledge(moment) {
            true => busy && wants < 3,
            false => busy && idle && wants == 0,
        };
        if new {
            self.contents += 1;
            let [read, write, add] = [0; 3].map(|_| self.dice.roll(6) as u8);
            let tags = match self.dice.roll(4) {
                0 => tags(&[read], &[write], &[]),
                1 => tags(&[], &[], &[add]),
                2 => tags(&[read], &[], &[add]),
                _ => tags(&[], &[write], &[]),
            };
            let local = host.may_acknowledge(moment);
            let (content, base, fate) = (self.contents, host.seen, Fate::Pending);
            host.journal.push(Op { content, base, tags, acknowledged: local, local, fate });
        }
        if let Some(granted) = host.give_back.filter(|_| host.first_pending().is_none()) {
            host.give_back = None;
            host.lease = None;
            calls.push(Call::Release { session, granted });
        }
        let waits = host.asked.is_some_and(|sent| now < sent + 5_000);
        if host.lease.is_none_or(|term| !term.holds_at(moment)) && !waits && wants == 1 {
            host.asked = Some(now);
            calls.push(Call::Hold { session, sent: now });
        }
        if let Some(submission) = host.propose(&self.founded.state, &mut self.reqs, now) {
            calls.push(Call::Commit(submission));
        }
        for call in calls {
            self.carry(number, Happens::ToLeader(number, call));
        }
    }
}
