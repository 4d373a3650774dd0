//! The rules of leases, and that nothing held ever excludes itself.

use super::*;
use proptest::prelude::*;

const A: SessionId = SessionId(1);
const B: SessionId = SessionId(2);
const WHOLE: Ask = Ask::Hold(Unit::Volume, Mode::Write);

fn asked(ticket: u64, session: SessionId, ask: Ask) -> Event {
    Event::Asked { ticket: Ticket(ticket), session, ask }
}

fn write() -> Ask {
    Ask::Pass(vec![Unit::Volume], Mode::Write)
}

/// A table in which A is alone and holds the volume.
fn held_by_a() -> Leases {
    let mut leases = Leases::new(Moment(0), true);
    assert_eq!(leases.on(Moment(0), Event::Opened(A)), []);
    let granted = Effect::Granted { ticket: Ticket(1) };
    assert_eq!(leases.on(Moment(0), asked(1, A, WHOLE)), [granted]);
    leases
}

#[test]
fn a_second_session_makes_the_first_give_way() {
    let mut leases = held_by_a();
    let recall = Effect::Recall { session: A, unit: Unit::Volume, granted: Ticket(1) };
    assert_eq!(leases.on(Moment(5), Event::Opened(B)), [recall]);
    assert_eq!(leases.on(Moment(6), asked(2, B, write())), [], "it waits for the release");
    let released = |ticket| {
        let (unit, granted) = (Unit::Volume, Ticket(ticket));
        Event::Released { session: A, unit, granted }
    };
    assert_eq!(leases.on(Moment(6), released(0)), [], "a late one, of an earlier lease");
    let passed = Effect::Passed { ticket: Ticket(2) };
    assert_eq!(leases.on(Moment(7), released(1)), [passed]);
    let why = Denial::NotAlone;
    let denied = Effect::Denied { ticket: Ticket(3), why };
    assert_eq!(leases.on(Moment(8), asked(3, A, WHOLE)), [denied]);
    leases.on(Moment(9), Event::Done(Ticket(2)));
    leases.on(Moment(9), Event::Ended(B));
    let granted = Effect::Granted { ticket: Ticket(4) };
    assert_eq!(leases.on(Moment(10), asked(4, A, WHOLE)), [granted], "alone again");
}

#[test]
fn a_holder_commits_past_those_who_wait_for_it() {
    let mut leases = held_by_a();
    leases.on(Moment(5), Event::Opened(B));
    assert_eq!(leases.on(Moment(6), asked(2, B, write())), []);
    let passed = Effect::Passed { ticket: Ticket(3) };
    assert_eq!(leases.on(Moment(7), asked(3, A, write())), [passed]);
}

#[test]
fn a_dead_holder_is_fenced_before_anybody_passes() {
    let mut leases = held_by_a();
    let late = Moment(TERM_MS + 1);
    let fence = Effect::Fence { session: A };
    assert_eq!(leases.on(late, Event::Opened(B)), [fence]);
    assert_eq!(leases.on(late, asked(2, B, write())), []);
    let passed = Effect::Passed { ticket: Ticket(2) };
    assert_eq!(leases.on(late, Event::Ended(A)), [passed]);
}

#[test]
fn a_holder_that_never_gives_way_is_fenced_in_time() {
    let mut leases = held_by_a();
    leases.on(Moment(0), Event::Opened(B));
    for second in 1..RECALL_MAX_MS / 1_000 {
        let now = Moment(second * 1_000);
        assert_eq!(leases.on(now, Event::Heartbeat(A)), []);
        assert_eq!(leases.recalled(A), [(Unit::Volume, Ticket(1))], "told with every heartbeat");
    }
    leases.on(Moment(RECALL_MAX_MS - 1), Event::Heartbeat(B));
    let tick = leases.next_tick().expect("a recall is under way");
    assert_eq!(leases.on(tick, Event::Tick), [Effect::Fence { session: A }]);
}

#[test]
fn a_new_leader_waits_a_term_and_takes_claims() {
    let mut leases = Leases::new(Moment(0), false);
    leases.on(Moment(0), Event::Opened(A));
    leases.on(Moment(0), Event::Opened(B));
    assert_eq!(leases.on(Moment(1), asked(1, B, write())), [], "old terms still run");
    let granted = Ticket(7);
    let (unit, mode) = (Unit::Volume, Mode::Write);
    let claim = Event::Claimed { session: A, unit, mode, granted };
    assert!(matches!(leases.on(Moment(2), claim.clone())[..], [Effect::Recall { .. }]));
    assert!(leases.holds(A, Unit::Volume, Mode::Write));
    leases.on(Moment(TERM_MS - 1), Event::Heartbeat(A));
    leases.on(Moment(TERM_MS), Event::Released { session: A, unit, granted });
    leases.on(Moment(TERM_MS), claim);
    assert!(!leases.holds(A, Unit::Volume, Mode::Write), "too late for a claim");
}

#[test]
fn the_holder_stops_before_the_leader_breaks_its_lease() {
    let term = Term::since(Moment(1_000));
    assert!(term.holds_at(Moment(9_999)) && !term.holds_at(Moment(10_000)));
}

fn event() -> impl Strategy<Value = Event> {
    let session = (1..4u32).prop_map(SessionId);
    let unit = prop_oneof![
        Just(Unit::Volume),
        (0..2u8).prop_map(|n| Unit::Part([n; 8])),
        Just(Unit::Snapshot),
    ];
    let mode = prop_oneof![Just(Mode::Read), Just(Mode::Write)];
    (session, unit, mode, 0..9u8, any::<u64>()).prop_map(|(session, unit, mode, kind, t)| {
        let ticket = Ticket(t);
        match kind {
            0 => Event::Opened(session),
            1 => Event::Ended(session),
            2 => Event::Heartbeat(session),
            3 | 4 => Event::Asked { ticket, session, ask: Ask::Hold(unit, mode) },
            5 => Event::Asked { ticket, session, ask: Ask::Pass(vec![unit], mode) },
            6 => Event::Claimed { session, unit, mode, granted: ticket },
            7 => Event::Released { session, unit, granted: Ticket(0) },
            _ => Event::Tick,
        }
    })
}

proptest! {
    #[test]
    fn no_two_sessions_ever_hold_what_excludes_each_other(
        events in prop::collection::vec((0..9_000u64, event()), 1..60), first: bool,
    ) {
        let mut leases = Leases::new(Moment(0), first);
        let mut now = Moment(0);
        for (wait, event) in events {
            now = now.after_ms(wait);
            leases.on(now, event);
            let held: Vec<_> = leases.live.iter().flat_map(|(id, live)| {
                live.holds.iter().map(move |(unit, (mode, _))| (*id, *unit, *mode))
            }).collect();
            for (a, ours, mine) in &held {
                for (b, theirs, other) in &held {
                    let clash = ours.overlaps(*theirs) && (*mine).max(*other) == Mode::Write;
                    prop_assert!(a == b || !clash, "{held:?}");
                }
            }
            prop_assert!(leases.waiting.len() <= WAITING_MAX);
        }
    }
}
