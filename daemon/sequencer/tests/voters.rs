//! One voter and three: what is ordered stays ordered, on every voter, through crashes and cuts.

use super::world::{SOON, World, accepted, note};
use crate::sequencer::follow::Follow;
use crate::sequencer::{ProposeError, Sequencer};
use mictlan::cluster::state::{Item, Outcome};
use mictlan::id::{PeerId, Position};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

async fn lines(of: &Sequencer) -> Vec<Vec<u8>> {
    let (mut all, mut from) = (Vec::new(), Position(0));
    loop {
        let wanted = Follow { volume: None, from, max_bytes: 1 << 20, wait: Duration::ZERO };
        let page = of.follow(wanted).await.expect("a page");
        if page.next == from {
            return all;
        }
        all.extend(page.records.into_iter().map(|r| r.line.to_vec()));
        from = page.next;
    }
}

async fn caught_up(voter: &Sequencer, size: u64) {
    let mut sizes = voter.applied().size.subscribe();
    let reached = tokio::time::timeout(SOON, sizes.wait_for(|s| *s >= size)).await;
    reached.expect("in time").expect("a sequencer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_voter_orders_publishes_and_remembers() {
    let mut world = World::alone().await;
    let first = world.voters[&PeerId(1)].clone();
    for n in 0..300 {
        let (position, _) = accepted(world.note(&first, n).await);
        assert_eq!(position, n + 1);
    }
    assert_eq!(first.read_position(SOON).await, Ok(Position(301)));
    let published = first.wait_published(Position(300), SOON).await.expect("published");
    let policy = first.with_state(|s| s.roster().policy()).expect("a state");
    assert_eq!(policy.accept(&published.note).expect("a good note").checkpoint.size, 301);
    let before = lines(&first).await;
    assert_eq!(before.len(), 301);
    drop(first);
    world.crash(1).await;
    let again = world.start(1).await;
    caught_up(&again, 301).await;
    assert_eq!(lines(&again).await, before);
    assert_eq!(again.published().expect("kept").note, published.note);
    let more = world.leader(&[1]).await;
    assert_eq!(accepted(world.note(&more, 300).await).0, 301);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_is_ordered_once() {
    let world = World::alone().await;
    let first = world.voters[&PeerId(1)].clone();
    let submission = world.sign(note(7));
    let (position, _) = accepted(first.propose(Item::Record(submission.clone()), SOON).await);
    let again = first.propose(Item::Record(submission), SOON).await;
    assert_eq!(again, Ok(Outcome::Repeated { position: Position(position) }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replay_writes_the_same_bytes_whatever_files_a_crash_left() {
    let mut world = World::new();
    // Snapshots at every few groups, so that replay begins in the middle of a tile.
    world.limits.entries_per_snapshot = 40;
    world.found().await;
    let first = world.voters[&PeerId(1)].clone();
    for n in 0..600 {
        accepted(world.note(&first, n).await);
    }
    first.wait_published(Position(600), SOON).await.expect("published");
    let (before, root) = (lines(&first).await, first.applied().files.root());
    drop(first);
    world.crash(1).await;
    assert!(world.dir(1).join("snapshot").exists(), "one voter alone snapshots too");
    let full = tree(&world.dir(1).join("ledger"));
    let again = world.start(1).await;
    caught_up(&again, 601).await;
    assert_eq!(lines(&again).await, before);
    assert_eq!(again.applied().files.root(), root);
    assert_eq!(tree(&world.dir(1).join("ledger")), full);
}

fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                todo.push(path);
            } else if path.to_string_lossy().contains("/checkpoint") {
                // Cosigned anew while idle: not the records' bytes.
            } else {
                let bytes = fs::read(&path).expect("bytes");
                files.push((path, bytes));
            }
        }
    }
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_voters_hold_the_same_ledger_and_cosign_it() {
    let world = World::three().await;
    let leader = world.leader(&[1, 2, 3]).await;
    for n in 0..40 {
        accepted(world.note(&leader, n).await);
    }
    let size = leader.read_position(SOON).await.expect("confirmed").0;
    let expected = lines(&leader).await;
    for voter in world.voters.values() {
        caught_up(voter, size).await;
        assert_eq!(lines(voter).await, expected);
        let published = voter.wait_published(Position(size - 1), SOON).await.expect("published");
        let policy = voter.with_state(|s| s.roster().policy()).expect("a state");
        let accepted = policy.accept(&published.note).expect("a good note");
        assert!(accepted.cosigned.len() >= 2, "{accepted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_voter_away_work_goes_on_and_with_two_it_fails_clearly_and_loses_nothing() {
    let mut world = World::three().await;
    let leader = world.leader(&[1, 2, 3]).await;
    let (at, _) = accepted(world.note(&leader, 1).await);
    world.wires.cut(PeerId(1));
    let next = world.leader(&[2, 3]).await;
    let (later, _) = accepted(world.note(&next, 2).await);
    assert!(later > at);
    let expected = lines(&next).await;
    let (gone, left) = if next.leader() == Some(PeerId(2)) { (3, 2) } else { (2, 3) };
    world.wires.cut(PeerId(gone));
    let orphan = world.sign(note(3));
    let brief = Duration::from_millis(700);
    let failed = world.voters[&PeerId(left)].propose(Item::Record(orphan.clone()), brief).await;
    let clear = [Err(ProposeError::Late), Err(ProposeError::Unknown { leader: None })];
    assert!(clear.contains(&failed) || matches!(failed, Err(ProposeError::NotLeader { .. })));
    assert_eq!(lines(&world.voters[&PeerId(left)]).await, expected, "reads go on");
    for n in 1..=3 {
        world.crash(n).await;
        world.wires.heal(PeerId(n));
    }
    for n in 1..=3 {
        world.start(n).await;
    }
    let leader = world.leader(&[1, 2, 3]).await;
    let found = leader.propose(Item::Record(orphan), SOON).await.expect("an outcome");
    assert!(found.position().is_some(), "the same request again settles what became of it");
    let all = lines(&leader).await;
    assert!(all.starts_with(&expected), "nothing acknowledged is lost");
    assert_eq!(all.len(), expected.len() + 1, "and nothing is there twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_that_lost_its_log_elects_nobody_who_lacks_what_it_acknowledged() {
    let mut world = World::three().await;
    let leader = world.leader(&[1, 2, 3]).await;
    accepted(world.note(&leader, 1).await);
    let leads = leader.id().0;
    let others: Vec<u64> = (1..=3).filter(|n| *n != leads).collect();
    let [away, loser] = others[..] else { panic!("two others") };
    world.wires.cut(PeerId(away));
    let (at, record) = accepted(world.note(&leader, 2).await);
    world.crash(loser).await;
    fs::remove_dir_all(world.dir(loser)).expect("its disk is new");
    world.start(loser).await;
    world.wires.cut(PeerId(leads));
    world.wires.heal(PeerId(away));
    let both = [away, loser];
    let elected = tokio::time::timeout(Duration::from_secs(5), world.leader(&both)).await;
    assert!(elected.is_err(), "these two are a majority that does not know what was ordered");
    world.wires.heal(PeerId(leads));
    let leader = world.leader(&[1, 2, 3]).await;
    assert_eq!(lines(&leader).await.get(at as usize), Some(&record), "it is there");
    let (last, _) = accepted(world.note(&leader, 3).await);
    caught_up(&world.voters[&PeerId(loser)], last + 1).await;
    // Its vote counts again.
    let third = PeerId(if leader.id().0 == loser { leads } else { leader.id().0 });
    world.wires.cut(third);
    let rest: Vec<u64> = (1..=3).filter(|n| *n != third.0).collect();
    let leader = world.leader(&rest).await;
    assert_eq!(lines(&leader).await.get(at as usize), Some(&record));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_voters_gets_its_log_back_whoever_was_started_last() {
    let mut world = World::new();
    world.found().await;
    let first = world.voters[&PeerId(1)].clone();
    world.start(2).await;
    first.add_voter(PeerId(2), SOON).await.expect("a voter");
    let (at, record) = accepted(world.note(&first, 1).await);
    drop(first);
    for n in [1, 2] {
        world.crash(n).await;
    }
    fs::remove_dir_all(world.dir(2)).expect("its disk is new");
    world.start(2).await;
    world.start(1).await;
    let leader = world.leader(&[1, 2]).await;
    assert_eq!(lines(&leader).await.get(at as usize), Some(&record));
    let (last, _) = accepted(world.note(&leader, 2).await);
    caught_up(&world.voters[&PeerId(2)], last + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_far_behind_gets_a_snapshot_and_verifies_every_record_behind_it() {
    let mut world = World::new();
    world.limits.entries_per_snapshot = 30;
    world.found().await;
    let first = world.voters[&PeerId(1)].clone();
    for n in 0..700 {
        accepted(world.note(&first, n).await);
    }
    let second = world.start(2).await;
    first.add_voter(PeerId(2), SOON).await.expect("a voter");
    caught_up(&second, 701).await;
    assert_eq!(lines(&second).await, lines(&first).await);
    assert_eq!(second.applied().files.root(), first.applied().files.root());
    drop((first, second));
    world.crash(2).await;
    let second = world.start(2).await;
    caught_up(&second, 701).await;
    accepted(world.note(&*world.leader(&[1, 2]).await, 700).await);
    caught_up(&second, 702).await;
}
