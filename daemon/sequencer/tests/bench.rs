//! Measurements, run by hand; without `BENCH_DIR` they do nothing:
//! `BENCH_DIR=/dev/shm cargo test --release -p mictlan-daemon --lib -- --nocapture bench`.

use super::world::{World, accepted, note};
use mictlan::cluster::state::Item;
use std::time::{Duration, Instant};

const CLIENTS: usize = 64;
const RECORDS: usize = 20_000;

/// Where the voters keep their files: a tmpfs, a disk.
fn home() -> Option<tempfile::TempDir> {
    let dir = std::env::var_os("BENCH_DIR")?;
    Some(tempfile::tempdir_in(dir).expect("a directory"))
}

async fn measure(world: World, among: &[u64], what: &str) {
    let leader = world.leader(among).await;
    let mut todo: Vec<Vec<_>> = vec![Vec::new(); CLIENTS];
    for n in 0..RECORDS {
        todo[n % CLIENTS].push(world.sign(note(n as u64)));
    }
    let begun = Instant::now();
    let clients: Vec<_> = todo
        .into_iter()
        .map(|mine| {
            let leader = leader.clone();
            tokio::spawn(async move {
                let mut times = Vec::with_capacity(mine.len());
                for submission in mine {
                    let sent = Instant::now();
                    let within = Duration::from_secs(60);
                    accepted(leader.propose(Item::Record(submission), within).await);
                    times.push(sent.elapsed());
                }
                times
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await.expect("a client"));
    }
    let seconds = begun.elapsed().as_secs_f64();
    times.sort();
    let at = |part: f64| times[(times.len() as f64 * part) as usize].as_secs_f64() * 1000.0;
    let rate = RECORDS as f64 / seconds;
    println!("{what}: {rate:.0} records/s, p50 {:.2} ms, p99 {:.2} ms", at(0.5), at(0.99));
    let begun = Instant::now();
    accepted(world.note(&leader, 0).await);
    let one = begun.elapsed();
    let end = leader.read_position(Duration::from_secs(9)).await.expect("confirmed");
    leader
        .wait_published(mictlan::id::Position(end.0 - 1), Duration::from_secs(9))
        .await
        .expect("published");
    let cosigned = begun.elapsed();
    println!("  one record alone {one:?}, cosigned and published after {cosigned:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_one_voter() {
    let Some(home) = home() else { return };
    let mut world = World::in_dir(home);
    world.limits = Default::default();
    world.found().await;
    measure(world, &[1], "one voter").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench_three_voters() {
    let Some(home) = home() else { return };
    measure(World::three_in(home).await, &[1, 2, 3], "three voters").await;
}
