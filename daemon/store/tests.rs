//! The store's promises on a real file system; power cuts are in `tests/power_cut.sh`.

use super::*;
use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

const NET: NetworkId = NetworkId([9; 32]);
const SMALL: u64 = 64 << 10;

/// A clock that goes one millisecond a look: every stamp is another.
fn clock() -> Clock {
    let now = AtomicU64::new(1_000);
    Arc::new(move || TimeMs(now.fetch_add(1, Ordering::Relaxed)))
}

fn options(dir: &Path, capacity: Option<u64>) -> Options {
    let (network, peer) = (NET, PeerId(1));
    Options { dir: dir.to_owned(), network, peer, capacity, segment_bytes: SMALL, clock: clock() }
}

fn open(dir: &Path) -> Store {
    Store::open(options(dir, None)).expect("opened")
}

/// The `n`th chunk: `len` bytes that no other has.
fn chunk(n: u64, len: usize) -> Checked {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    let bytes = Bytes::from(bytes);
    Checked::new(hash::address(&bytes), bytes).expect("its own address")
}

async fn put(store: &Store, chunks: &[Checked]) -> Vec<TimeMs> {
    let receipts = store.put(chunks.to_vec()).await.expect("stored");
    receipts.iter().map(|receipt| receipt.stamp).collect()
}

/// Each chunk is there, byte for byte.
async fn check(store: &Store, chunks: &[Checked]) {
    for chunk in chunks {
        let read = store.get(chunk.chunk()).await.expect("read").expect("there");
        assert_eq!(&read, chunk.bytes());
    }
}

/// Flips a byte of a stored chunk's body.
fn rot(dir: &Path, chunk: &Checked) {
    for entry in std::fs::read_dir(dir.join("segments")).expect("listed") {
        let path = entry.expect("an entry").path();
        let bytes = std::fs::read(&path).expect("read");
        let at = bytes.windows(chunk.bytes().len()).position(|w| w == chunk.bytes());
        if let Some(at) = at {
            let file = std::fs::File::options().write(true).open(&path).expect("opened");
            file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
            return;
        }
    }
    panic!("the chunk is in no segment");
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let list = std::fs::read_dir(dir.join("segments")).expect("listed");
    let mut paths: Vec<_> = list.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[tokio::test]
async fn what_was_put_is_there_after_a_restart_and_after_the_index_is_lost() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks: Vec<_> = (0..40).map(|n| chunk(n, 3_000 + 97 * n as usize)).collect();
    let store = open(dir.path());
    for some in chunks.chunks(7) {
        put(&store, some).await;
    }
    check(&store, &chunks).await;
    let range = store.get_range(chunks[3].chunk(), 5..50).await.expect("read");
    assert_eq!(range.as_deref(), Some(&chunks[3].bytes()[5..50]));
    assert!(store.get_range(chunks[3].chunk(), 0..1 << 20).await.is_err(), "past the end");
    let before = store.stat();
    assert_eq!((before.chunks, before.damaged), (40, 0));
    assert!(segments(dir.path()).len() > 1, "segments end");
    drop(store);

    let store = open(dir.path());
    check(&store, &chunks).await;
    let closed = store.stat();
    assert_eq!(closed.opened, OpenReport::default(), "a clean end leaves nothing to read in");
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    let store = open(dir.path());
    check(&store, &chunks).await;
    let rebuilt = store.stat();
    assert_eq!((rebuilt.chunks, rebuilt.used), (closed.chunks, closed.used));
    assert_eq!((rebuilt.opened.torn, rebuilt.opened.damage), (0, vec![]));
}

#[tokio::test]
async fn a_part_is_proved_and_a_bad_copy_is_found_by_who_proves_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let one = chunk(7, 150_000);
    put(&store, std::slice::from_ref(&one)).await;
    let range = 0..1_000u64;
    for round in ["from the whole chunk", "from what is around it"] {
        let reply = store.prove(one.chunk(), range.clone()).await.expect("read").expect("here");
        let part = mictlan::seal::check(&one.chunk(), range.clone(), &reply);
        assert_eq!(part.as_deref(), Ok(&one.bytes()[..1_000]), "{round}");
    }
    let beyond = store.prove(one.chunk(), 149_999..150_001).await;
    assert!(matches!(beyond, Err(ReadError::NotProved(_))), "{beyond:?}");
    assert!(store.prove(chunk(8, 100).chunk(), 0..1).await.expect("read").is_none());
    rot(dir.path(), &one);
    let refused = store.prove(one.chunk(), range).await;
    assert!(matches!(refused, Err(ReadError::Damaged { .. })), "{refused:?}");
    assert_eq!(store.stat().damaged, 1, "and is out of service");
}

#[tokio::test]
async fn a_chunk_that_is_here_is_only_stamped() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let (one, absent) = (chunk(1, 10_000), chunk(2, 10));
    let first = put(&store, &[one.clone(), one.clone()]).await;
    assert_eq!(first[0], first[1], "twice in one request is one chunk");
    let used = store.stat().used;
    let again = put(&store, std::slice::from_ref(&one)).await;
    assert!(again[0] > first[0]);
    assert!(store.stat().used - used < 200, "a stamp, not the bytes");
    let have = store.have(vec![one.chunk(), absent.chunk()]).await.expect("asked");
    let stamp = have[0].expect("here").stamp;
    assert!(stamp > again[0] && have[1].is_none());
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    let held = open(dir.path()).held(one.chunk()).expect("known").expect("here");
    assert_eq!(held.stamp, stamp, "stamps are as durable as bytes");
}

#[tokio::test]
async fn bytes_under_another_address_are_refused() {
    let good = chunk(1, 100);
    let wrong = Checked::new(good.chunk(), Bytes::from_static(b"other"));
    assert!(matches!(wrong, Err(WriteError::WrongAddress { .. })));
    let mut arriving = Arriving::new(good.chunk(), 100);
    for piece in good.bytes().chunks(33) {
        arriving.take(piece).expect("room");
    }
    assert_eq!(arriving.finish().expect("whole").bytes(), good.bytes());
    let mut cut = Arriving::new(good.chunk(), 100);
    cut.take(&good.bytes()[..99]).expect("room");
    assert!(matches!(cut.finish(), Err(WriteError::WrongAddress { .. })));
    let mut endless = Arriving::new(good.chunk(), usize::MAX);
    let piece = vec![0; CHUNK_BYTES_MAX];
    endless.take(&piece).expect("room");
    assert!(matches!(endless.take(&[0]), Err(WriteError::TooLarge { .. })));
}

#[tokio::test]
async fn a_damaged_chunk_is_never_returned_and_is_replaced_by_the_next_put() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let (bad, good) = (chunk(1, 20_000), chunk(2, 20_000));
    put(&store, &[bad.clone(), good.clone()]).await;
    rot(dir.path(), &bad);
    for _ in 0..2 {
        let read = store.get(bad.chunk()).await;
        assert!(matches!(read, Err(ReadError::Damaged { .. })), "{read:?}");
    }
    assert_eq!(store.damaged(None, 9).expect("listed"), [bad.chunk()]);
    assert_eq!(store.have(vec![bad.chunk()]).await.expect("asked"), [None], "not stamped either");
    check(&store, std::slice::from_ref(&good)).await;
    put(&store, std::slice::from_ref(&bad)).await;
    check(&store, &[bad.clone(), good.clone()]).await;
    assert_eq!(store.stat().damaged, 0);
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    check(&open(dir.path()), &[bad, good]).await;
}

#[tokio::test]
async fn removing_gives_space_back_unless_the_chunk_was_stamped_since() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let chunks: Vec<_> = (0..4).map(|n| chunk(n, 30_000)).collect();
    let stamps = put(&store, &chunks).await;
    let before = TimeMs(stamps[0].0 + 1);
    put(&store, &chunks[3..]).await;
    let used = store.stat().used;
    let all = chunks.iter().map(Checked::chunk).collect();
    assert_eq!(store.remove(all, before).await.expect("removed"), 3);
    assert!(store.stat().used < used - 3 * 24_000);
    assert_eq!(store.get(chunks[0].chunk()).await.expect("asked"), None);
    check(&store, &chunks[3..]).await;
    put(&store, &chunks[..1]).await;
    let left = store.stat();
    drop(store);
    std::fs::remove_dir_all(dir.path().join("index")).expect("removed");
    let store = open(dir.path());
    check(&store, &[chunks[0].clone(), chunks[3].clone()]).await;
    assert_eq!(store.get(chunks[1].chunk()).await.expect("asked"), None);
    assert_eq!(store.stat().chunks, left.chunks);
}

#[tokio::test]
async fn a_full_store_says_so_keeps_its_reserve_and_removes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(options(dir.path(), Some(1 << 20))).expect("opened");
    let mut stored = Vec::new();
    let full = loop {
        let next = chunk(stored.len() as u64, 50_000);
        match store.put(vec![next.clone()]).await {
            Ok(_) => stored.push(next),
            Err(full) => break full,
        }
    };
    let stat = store.stat();
    assert!(matches!(full, WriteError::Full { .. }), "{full}");
    assert!(stat.used <= stat.space - stat.reserve && stat.space == 1 << 20);
    assert!(stat.out_of_service.is_none(), "full is not failed");
    put(&store, &stored[..1]).await;
    let some = stored[1..5].iter().map(Checked::chunk).collect();
    assert_eq!(store.remove(some, TimeMs(u64::MAX)).await.expect("removed"), 4);
    put(&store, &[chunk(99, 50_000)]).await;
    check(&store, &stored[5..]).await;
}

#[tokio::test]
async fn a_store_whose_directory_goes_gives_no_receipt_any_more() {
    for lose in ["", "segments"] {
        let dir = tempfile::tempdir().expect("a directory");
        let at = dir.path().join("store");
        let store = open(&at);
        assert!(store.stat().opened.made);
        put(&store, &[chunk(1, 5_000)]).await;
        // Unmounted, or taken away; with another in its place, or none.
        durable::rename(&at.join(lose), &dir.path().join("taken")).expect("renamed");
        if lose.is_empty() {
            assert!(store.stat().out_of_service.is_some(), "also when nobody writes");
            drop(open(&at));
        }
        let refused = store.put(vec![chunk(2, 5_000)]).await;
        assert!(matches!(refused, Err(WriteError::OutOfService { .. })), "{refused:?}");
        assert!(store.stat().out_of_service.is_some());
    }
}

#[tokio::test]
async fn a_crash_between_sync_and_index_heals() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks: Vec<_> = (0..6).map(|n| chunk(n, 9_000)).collect();
    let store = open(dir.path());
    put(&store, &chunks[..3]).await;
    drop(store);
    let (old, copy) = (dir.path().join("index"), dir.path().join("index.old"));
    copy_tree(&old, &copy);
    let store = open(dir.path());
    put(&store, &chunks[3..]).await;
    drop(store);
    std::fs::remove_dir_all(&old).expect("removed");
    copy_tree(&copy, &old);
    let store = open(dir.path());
    assert!(store.stat().opened.frames >= 3, "the tail was read in");
    check(&store, &chunks).await;
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_what_was_acknowledged_stays() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks: Vec<_> = (0..3).map(|n| chunk(n, 5_000)).collect();
    let store = open(dir.path());
    put(&store, &chunks).await;
    drop(store);
    let last = segments(dir.path()).pop().expect("a segment");
    let len = std::fs::metadata(&last).expect("there").len();
    let file = std::fs::File::options().write(true).open(&last).expect("opened");
    file.write_all_at(b"MCTFhalf a frame that a crash left", len).expect("written");
    let store = open(dir.path());
    assert_eq!(store.stat().opened.torn, 34);
    check(&store, &chunks).await;
    put(&store, &[chunk(7, 800)]).await;
    drop(store);
    std::fs::write(dir.path().join("segments/0000000000000002.seg"), b"").expect("written");
    let store = open(dir.path());
    put(&store, &[chunk(8, 70_000)]).await;
    put(&store, &[chunk(9, 800)]).await;
    check(&store, &[chunk(7, 800), chunk(8, 70_000), chunk(9, 800)]).await;
    assert_eq!(store.stat().opened.damage, [], "a segment that was being made is no damage");
}

#[tokio::test]
async fn a_lost_segment_is_told_and_its_chunks_are_not_claimed() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks: Vec<_> = (0..6).map(|n| chunk(n, 50_000)).collect();
    let store = open(dir.path());
    for one in &chunks {
        put(&store, std::slice::from_ref(one)).await;
    }
    drop(store);
    std::fs::remove_file(&segments(dir.path())[0]).expect("removed");
    let store = open(dir.path());
    let stat = store.stat();
    assert_eq!((stat.opened.damage.len(), stat.damaged), (1, 2));
    assert_eq!(store.have(vec![chunks[0].chunk()]).await.expect("asked"), [None]);
    check(&store, &chunks[2..]).await;
    put(&store, &chunks).await;
    check(&store, &chunks).await;
    assert_eq!(store.stat().damaged, 0);
}

#[tokio::test]
async fn many_callers_share_a_sync_and_each_gets_its_own_answer() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Arc::new(open(dir.path()));
    let tasks: Vec<_> = (0..200)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move {
                let mine = chunk(n % 150, 400 + n as usize % 150);
                let receipts = store.put(vec![mine.clone()]).await.expect("stored");
                assert_eq!(receipts[0].chunk, mine.chunk());
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("stored");
    }
    assert_eq!(store.stat().chunks, 150);
    assert_eq!(store.after(None, 1000).expect("listed").len(), 150);
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("made");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let to = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy_tree(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).expect("copied")),
        }
    }
}

#[tokio::test]
async fn what_others_are_owed_is_known_until_it_is_settled() {
    let dir = tempfile::tempdir().expect("a directory");
    let chunks = [chunk(1, 1_000), chunk(2, 1_000), chunk(3, 1_000)];
    let owed = |store: &Store| {
        let owed = store.owed(9).expect("readable").into_iter();
        owed.map(|(chunk, copies)| (chunk, copies.count())).collect::<HashMap<_, _>>()
    };
    {
        let store = open(dir.path());
        for (chunk, copies) in [(0, 3), (1, 2), (2, 3), (2, 2)] {
            let put = store.put_of(vec![chunks[chunk].clone()], Copies::new(copies));
            put.await.expect("stored");
        }
        put(&store, &chunks[..1]).await;
        store.settled(vec![chunks[1].chunk()]).await.expect("noted");
    }
    let store = open(dir.path());
    let most = HashMap::from([(chunks[0].chunk(), 3), (chunks[2].chunk(), 3)]);
    assert_eq!(owed(&store), most, "the most that was asked for, also after a restart");
    store.settled(chunks.iter().map(Checked::chunk).collect()).await.expect("noted");
    assert!(owed(&store).is_empty());
    check(&store, &chunks).await;
}
