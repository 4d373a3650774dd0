//! Who may do what, one promise a test.

use crate::actors::{Actor, Founded, MAIN, Say, commit, founded, label, tags, volume};
use mictlan::cluster::state::{Item, Outcome, RECEIPT_MAX_AGE_MS, Refusal};
use mictlan::id::{ChunkId, Epoch, Position, SessionId, TimeMs};
use mictlan::ledger::record::body::{
    Body, Disable, Fence, Grant, Invite, Layout, LayoutPeer, Note, Revoke, Role, Root,
};
use mictlan::ledger::record::time;

fn note() -> Body {
    Body::Note(Note { data: serde_json::json!({"text": "hello"}), topic: label("talk") })
}

fn grant(member: &str, role: Role, network: bool) -> Body {
    let volume = (!network).then_some(MAIN);
    Body::Grant(Grant { member: label(member), role, until: None, volume })
}

/// The network with `bob`, a writer whose secrets are wrapped.
fn with_bob() -> Founded {
    let mut net = founded();
    let bob = Actor::new("bob");
    let body = bob.principal(&net.state, None);
    net.ok("alice", body);
    net.ok("alice", grant("bob", Role::Writer, false));
    net.ok("alice", bob.wrap(1));
    net
}

fn invite(until: TimeMs, role: Role, voter: bool) -> Invite {
    let volume = (role != Role::Storage).then_some(MAIN);
    Invite { role, until: time::format(until), volume, voter }
}

fn say(session: SessionId, n: u64, base: Position) -> Say {
    Say { session, attempt: 1, n, base, epoch: 1, tags: tags(&[], &[n as u8], &[]), content: n }
}

fn send(net: &mut Founded, actor: &str, say: &Say) -> Outcome {
    let req = net.reqs.next(net.now);
    let submission = commit(&Actor::new(actor), &net.state, req, say);
    net.apply(Item::Record(submission))
}

#[track_caller]
fn not_allowed(refusal: Refusal) {
    assert!(matches!(refusal, Refusal::NotAllowed { .. }), "{refusal}");
}

#[track_caller]
fn unfit(refusal: Refusal, word: &str) {
    assert!(matches!(&refusal, Refusal::Unfit(why) if why.contains(word)), "{refusal}");
}

#[test]
fn an_invite_brings_in_one_who_was_not_there() {
    let mut net = founded();
    let (code, carol, dave) = (Actor::new("invite-1"), Actor::new("carol"), Actor::new("dave"));
    let end = TimeMs(net.now.0 + 1_000);
    let made = code.principal(&net.state, Some(invite(end, Role::Writer, false)));
    net.ok("alice", made);
    not_allowed(net.refused("invite-1", note()));
    let carol_joins = carol.principal(&net.state, None);
    net.ok("invite-1", carol_joins);
    assert_eq!(net.state.people().role_in(&carol.name, MAIN, net.now), Some(Role::Writer));
    let dave_joins = dave.principal(&net.state, None);
    not_allowed(net.refused("invite-1", dave_joins));
    net.ok("alice", carol.wrap(1));
    net.open("carol");
}

#[test]
fn an_expired_invite_brings_in_nobody() {
    let mut net = founded();
    let end = TimeMs(net.now.0 + 1_000);
    let made = Actor::new("invite-1").principal(&net.state, Some(invite(end, Role::Reader, false)));
    net.ok("alice", made);
    net.now = TimeMs(end.0 + 1);
    let joins = Actor::new("carol").principal(&net.state, None);
    not_allowed(net.refused("invite-1", joins));
}

#[test]
fn who_holds_an_invite_cannot_register_anothers_key_or_take_a_name() {
    let mut net = with_bob();
    let end = TimeMs(net.now.0 + 1_000);
    let made = Actor::new("invite-1").principal(&net.state, Some(invite(end, Role::Reader, false)));
    net.ok("alice", made);
    let Body::Principal(mut stolen) = Actor::new("carol").principal(&net.state, None) else {
        unreachable!("it is one")
    };
    stolen.keys = Actor::new("eve").keys();
    unfit(net.refused("invite-1", Body::Principal(stolen)), "did not sign");
    let taken = Actor::new("bob").principal(&net.state, None);
    unfit(net.refused("invite-1", taken), "taken");
}

#[test]
fn an_invited_peer_registers_itself_and_no_more_than_it_was_invited_for() {
    let mut net = founded();
    let end = TimeMs(net.now.0 + 1_000);
    for (code, peer, voter) in [("invite-2", "peer-2", true), ("invite-3", "peer-3", false)] {
        let terms = invite(end, Role::Storage, voter);
        let made = Actor::new(code).principal(&net.state, Some(terms));
        net.ok("alice", made);
        let joins = Actor::new(peer).principal(&net.state, None);
        net.ok(code, joins);
    }
    unfit(net.refused("peer-2", Body::Peer(Actor::new("peer-2").peer(5, true, true))), "next peer");
    net.ok("peer-2", Body::Peer(Actor::new("peer-2").peer(2, true, true)));
    not_allowed(net.refused("peer-3", Body::Peer(Actor::new("peer-3").peer(3, true, true))));
    net.ok("peer-3", Body::Peer(Actor::new("peer-3").peer(3, true, false)));
    assert_eq!(net.state.network().voters().count(), 2);
    assert_eq!(net.state.roster().policy().voters.len(), 2, "as every reader of the log sees it");
    let place = |peer| LayoutPeer { domain: "rack".to_owned(), peer, weight: 10 };
    let set = net.state.network().peers().map(|p| place(p.peer)).collect();
    let layout = Layout { faults: None, remove: vec![], set, version: 1 };
    not_allowed(net.refused("peer-2", Body::Layout(layout.clone())));
    net.ok("alice", Body::Layout(layout));
    assert_eq!(net.state.network().layout().placed_peers(), 3);
}

#[test]
fn a_removed_member_is_out_of_the_epoch_that_begins() {
    let mut net = with_bob();
    let (alice, bob) = (Actor::new("alice"), Actor::new("bob"));
    let session = net.open("bob");
    let revoke = Body::Revoke(Revoke {
        key_epoch: Some(Epoch(2)),
        member: bob.name.clone(),
        reason: "left".to_owned(),
        volume: Some(MAIN),
    });
    unfit(net.refused("alice", revoke.clone()), "not wrapped for alice");
    net.ok("alice", alice.wrap(2));
    let began = net.ok("alice", revoke);
    let base = Position(began.0 - 1);
    let answer = send(&mut net, "bob", &say(session, 1, base));
    assert!(matches!(answer, Outcome::Refused(Refusal::NotAllowed { .. })), "{answer:?}");
    let mine = net.open("alice");
    let old = say(mine, 1, began);
    assert_eq!(
        send(&mut net, "alice", &old),
        Outcome::Refused(Refusal::WrongEpoch { epoch: Epoch(1), current: Epoch(2) })
    );
    let stale = Say { attempt: 2, epoch: 2, base, ..old.clone() };
    assert_eq!(
        send(&mut net, "alice", &stale),
        Outcome::Refused(Refusal::StaleBase { base, floor: began })
    );
    let good = Say { attempt: 3, epoch: 2, base: began, ..old };
    assert!(send(&mut net, "alice", &good).position().is_some());
}

fn root(address: u8, position: Position, confirms: Option<Position>) -> Body {
    let (address, identity) = (ChunkId([address; 32]), [address; 32]);
    Body::Root(Root { address, confirms, identity, key_epoch: Epoch(1), position, volume: MAIN })
}

/// The addresses of the roots that count, and whether they are confirmed.
fn roots(net: &Founded) -> Vec<(u8, bool)> {
    let roots = net.state.volumes()[&MAIN].roots();
    roots.map(|mark| (mark.address.0[0], mark.confirmed)).collect()
}

#[test]
fn a_root_is_confirmed_by_one_that_is_the_same_and_by_no_other() {
    let mut net = with_bob();
    let at = net.ok("bob", note());
    let named = net.ok("alice", root(1, at, None));
    unfit(net.refused("bob", root(2, at, Some(named))), "not the root that record");
    unfit(net.refused("bob", root(1, Position(at.0 - 1), Some(named))), "not the root");
    unfit(net.refused("bob", root(1, at, Some(at))), "not one of the last roots");
    assert_eq!(roots(&net), [(1, false)]);
    net.ok("bob", root(1, at, Some(named)));
    assert_eq!(roots(&net), [(1, true), (1, false)]);
}

#[test]
fn the_roots_of_a_removed_member_count_no_more() {
    let mut net = with_bob();
    let at = net.ok("bob", note());
    let named = net.ok("bob", root(1, at, None));
    net.ok("alice", root(1, at, Some(named)));
    net.ok("bob", root(2, at, None));
    net.ok("alice", Actor::new("alice").wrap(2));
    net.ok(
        "alice",
        Body::Revoke(Revoke {
            key_epoch: Some(Epoch(2)),
            member: label("bob"),
            reason: "named a tree that nobody committed".to_owned(),
            volume: Some(MAIN),
        }),
    );
    assert_eq!(roots(&net), [(1, false)], "what was confirmed is the other's as well");
}

#[test]
fn the_last_owner_cannot_lock_everybody_out() {
    let mut net = with_bob();
    let alice = || label("alice");
    let disable = Body::Disable(Disable { name: alice(), reason: String::new() });
    unfit(net.refused("alice", disable.clone()), "last owner");
    let (key_epoch, reason) = (None, String::new());
    let revoke = Revoke { key_epoch, member: alice(), reason, volume: None };
    unfit(net.refused("alice", Body::Revoke(revoke)), "last owner");
    net.ok("alice", grant("bob", Role::Owner, true));
    net.ok("alice", disable);
    not_allowed(net.refused("alice", note()));
}

#[test]
fn writers_write_and_nobody_else() {
    let mut net = with_bob();
    not_allowed(net.refused("bob", grant("bob", Role::Owner, true)));
    not_allowed(net.refused("bob", volume(1)));
    not_allowed(net.refused("peer-1", grant("bob", Role::Reader, false)));
    assert!(matches!(net.refused("eve", note()), Refusal::UnknownActor { .. }));
    net.ok("bob", note());
    let req = net.reqs.next(net.now);
    let mut forged = net.alice.submit(&net.state, req, note());
    forged.sig[0] ^= 1;
    let refused = net.apply(Item::Record(forged));
    assert!(matches!(refused, Outcome::Refused(Refusal::BadSignature { .. })));
}

#[test]
fn a_request_is_applied_once_and_forgotten_only_when_too_old() {
    let mut net = founded();
    let req = net.reqs.next(net.now);
    let first = net.alice.submit(&net.state, req, note());
    let other = Body::Note(Note { data: serde_json::json!(1), topic: label("talk") });
    let other = net.alice.submit(&net.state, req, other);
    let position = net.apply(Item::Record(first.clone())).position().expect("accepted");
    let start = net.now;
    for minutes in [0, 10, 15, 20] {
        net.now = TimeMs(start.0 + minutes * 60_000);
        net.ok("alice", note());
        assert_eq!(net.apply(Item::Record(first.clone())), Outcome::Repeated { position });
        let reused = net.apply(Item::Record(other.clone()));
        assert_eq!(reused, Outcome::Refused(Refusal::ReqReused { position }));
    }
    net.now = TimeMs(start.0 + 20 * 60_000 + 1);
    net.ok("alice", note());
    let late = net.apply(Item::Record(first));
    assert!(matches!(late, Outcome::Refused(Refusal::ReqTooOld { .. })), "{late:?}");
}

#[test]
fn a_commit_with_stale_receipts_may_come_again_under_its_own_turn() {
    let mut net = founded();
    let session = net.open("alice");
    let req = net.reqs.next(net.now);
    let say = say(session, 1, Position(2));
    let mut submission = commit(&net.alice, &net.state, req, &say);
    let stamp = TimeMs(net.now.0 - RECEIPT_MAX_AGE_MS - 1);
    submission.commit.as_mut().expect("a commit").oldest_receipt = Some(stamp);
    let refused = net.apply(Item::Record(submission.clone()));
    assert_eq!(refused, Outcome::Refused(Refusal::StaleReceipt { stamp }));
    submission.commit.as_mut().expect("a commit").oldest_receipt = Some(net.now);
    assert!(net.apply(Item::Record(submission)).position().is_some(), "the same signature");
}

#[test]
fn a_fence_names_one_successor_which_goes_on_where_the_other_stopped() {
    let mut net = with_bob();
    let (old, foreign) = (net.open("alice"), net.open("bob"));
    let accepted = send(&mut net, "alice", &say(old, 1, Position(2))).position();
    let fence = |session, successor| {
        Body::Fence(Fence { reason: "crash".to_owned(), session, successor, volume: MAIN })
    };
    let (heir, second) = (net.open("alice"), net.open("alice"));
    not_allowed(net.refused("bob", fence(old, Some(foreign))));
    assert!(matches!(
        net.refused("alice", fence(old, Some(foreign))),
        Refusal::UnfitSuccessor { .. }
    ));
    let broken = net.ok("peer-1", fence(old, None));
    let late = send(&mut net, "alice", &say(old, 2, Position(2)));
    let fenced = Refusal::Fenced { at: broken, successor: None };
    assert_eq!(late, Outcome::Refused(fenced));
    net.ok("alice", fence(old, Some(heir)));
    assert!(matches!(
        net.refused("alice", fence(old, Some(second))),
        Refusal::Fenced { successor: Some(s), .. } if s == heir
    ));
    let twice = net.refused("alice", fence(second, Some(heir)));
    assert!(matches!(twice, Refusal::UnfitSuccessor { .. }), "one predecessor: {twice}");
    let dead = net.state.session(old).expect("remembered");
    assert_eq!(dead.last.map(|(_, position)| position), accepted);
    // The same tag as the old session's commit, with the base from before it: of one lineage.
    let again = Say { session: heir, content: 9, ..say(old, 1, Position(2)) };
    assert!(send(&mut net, "alice", &again).position().is_some());
    let other = Say { session: second, ..again };
    let conflict = send(&mut net, "alice", &other);
    assert!(matches!(conflict, Outcome::Refused(Refusal::Conflict { .. })), "{conflict:?}");
}

#[test]
fn a_refusal_ends_the_attempt_and_is_repeated() {
    let mut net = founded();
    let session = net.open("alice");
    let ahead = say(session, 1, Position(99));
    let refused = send(&mut net, "alice", &ahead);
    assert!(matches!(refused, Outcome::Refused(Refusal::BaseAhead { .. })));
    assert_eq!(send(&mut net, "alice", &ahead), refused, "its first answer");
    let next = say(session, 2, Position(2));
    let old = send(&mut net, "alice", &next);
    assert!(matches!(old, Outcome::Refused(Refusal::OldAttempt { .. })));
    let early = Say { attempt: 2, ..next.clone() };
    let early = send(&mut net, "alice", &early);
    assert!(matches!(early, Outcome::Refused(Refusal::OutOfOrder { .. })));
    let good = Say { attempt: 2, n: 1, ..next };
    let position = send(&mut net, "alice", &good).position();
    assert!(position.is_some());
    assert_eq!(send(&mut net, "alice", &good).position(), position, "signed again, said once");
    let other = Say { content: 77, ..good };
    let reused = send(&mut net, "alice", &other);
    assert!(matches!(reused, Outcome::Refused(Refusal::TurnReused { .. })), "{reused:?}");
}

#[test]
fn the_ledgers_time_never_goes_back() {
    let mut net = founded();
    net.now = TimeMs(net.now.0 + 60_000);
    net.ok("alice", note());
    let ahead = net.state.head().t;
    assert_eq!(ahead, net.now);
    net.now = TimeMs(ahead.0 - 30_000);
    net.ok("alice", note());
    assert_eq!(net.state.head().t, ahead, "a leader whose clock is behind");
}
