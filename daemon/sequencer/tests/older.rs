//! A voter's directory that is an older copy forgets nothing for the others.

use super::world::{SOON, World, accepted};
use crate::sequencer::Sequencer;
use crate::sequencer::follow::Follow;
use mictlan::id::{PeerId, Position};
use std::fs;
use std::path::Path;
use std::time::Duration;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

async fn line(of: &Sequencer, at: u64) -> Option<Vec<u8>> {
    let from = Position(at);
    let wanted = Follow { volume: None, from, max_bytes: 1 << 20, wait: Duration::ZERO };
    let page = of.follow(wanted).await.expect("a page");
    page.records.first().map(|record| record.line.to_vec())
}

async fn caught_up(voter: &Sequencer, size: u64) {
    let mut sizes = voter.applied().size.subscribe();
    let reached = tokio::time::timeout(SOON, sizes.wait_for(|s| *s >= size)).await;
    reached.expect("in time").expect("a sequencer");
}

/// Three voters: who leads, who was away when the last record was ordered, and who acknowledged it
/// and then got back a copy of its directory from before. Neither of the latter runs.
async fn put_back() -> (World, [u64; 3], (u64, Vec<u8>)) {
    let mut world = World::three().await;
    for n in 1..=3 {
        world.crash(n).await;
        copy(world.dir(n), &world.dir(n).with_extension("kept"));
    }
    for n in 1..=3 {
        world.start(n).await;
    }
    let leader = world.leader(&[1, 2, 3]).await;
    let (at, _) = accepted(world.note(&leader, 1).await);
    for n in 1..=3 {
        caught_up(&world.voters[&PeerId(n)], at + 1).await;
    }
    let away = if leader.id() == PeerId(3) { 2 } else { 3 };
    world.crash(away).await;
    let rest: Vec<u64> = (1..=3).filter(|n| *n != away).collect();
    let leader = world.leader(&rest).await;
    let precious = accepted(world.note(&leader, 2).await);
    let leads = leader.id().0;
    let loser = rest[usize::from(rest[0] == leads)];
    drop(leader);
    world.crash(loser).await;
    fs::remove_dir_all(world.dir(loser)).expect("removed");
    copy(&world.dir(loser).with_extension("kept"), world.dir(loser));
    (world, [leads, away, loser], precious)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_elects_nobody_who_lacks_what_it_acknowledged() {
    let (mut world, [leads, away, loser], (at, record)) = put_back().await;
    world.wires.cut(PeerId(leads));
    world.start(loser).await;
    world.start(away).await;
    let both = [away, loser];
    let elected = tokio::time::timeout(Duration::from_secs(5), world.leader(&both)).await;
    assert!(elected.is_err(), "these two are a majority that does not know what was ordered");
    world.wires.heal(PeerId(leads));
    let leader = world.leader(&[1, 2, 3]).await;
    assert_eq!(line(&leader, at).await.as_ref(), Some(&record), "it is there");
    let (last, _) = accepted(world.note(&leader, 3).await);
    caught_up(&world.voters[&PeerId(loser)], last + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_is_brought_up_and_votes_again_while_all_are_there() {
    let (mut world, [leads, away, loser], (at, record)) = put_back().await;
    world.start(away).await;
    world.start(loser).await;
    let leader = world.leader(&[1, 2, 3]).await;
    let (last, _) = accepted(world.note(&leader, 3).await);
    caught_up(&world.voters[&PeerId(loser)], last + 1).await;
    // Its vote counts again.
    world.wires.cut(PeerId(leads));
    let leader = world.leader(&[away, loser]).await;
    assert_eq!(line(&leader, at).await.as_ref(), Some(&record));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_that_lost_nothing_start_by_themselves() {
    let mut world = World::three().await;
    let leader = world.leader(&[1, 2, 3]).await;
    let (at, record) = accepted(world.note(&leader, 1).await);
    for n in 1..=3 {
        caught_up(&world.voters[&PeerId(n)], at + 1).await;
    }
    drop(leader);
    for n in 1..=3 {
        world.crash(n).await;
    }
    world.start(2).await;
    world.start(3).await;
    let leader = world.leader(&[2, 3]).await;
    assert_eq!(line(&leader, at).await.as_ref(), Some(&record));
    accepted(world.note(&leader, 2).await);
}
