//! Drives a store for `tests/store/faults.sh`: puts chunks and says which are acknowledged, checks
//! that they are there, cuts the power of a file system, measures.
//!
//! Never: judges; it prints what happened, and exits with 1 when a promise is broken.

use mictlan::hash;
use mictlan::id::{ChunkId, NetworkId, PeerId, TimeMs};
use mictlan_daemon::store::{Checked, Options, SEGMENT_BYTES, Store, WriteError};
use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// `EXT4_IOC_SHUTDOWN`: the file system forgets what is not on its disk, its journal included.
const SHUTDOWN: libc::c_ulong = 0x8004_587D;
const WITHOUT_LOG_FLUSH: u32 = 2;
/// Puts under way at once, so that groups form.
const AT_ONCE: u64 = 8;

fn open(dir: &Path) -> Result<Store, String> {
    let now = || {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        TimeMs(since.expect("the clock is after 1970").as_millis() as u64)
    };
    let (network, peer) = (NetworkId([3; 32]), PeerId(1));
    let (capacity, segment_bytes, clock) = (None, SEGMENT_BYTES, Arc::new(now));
    let dir = dir.to_owned();
    let options = Options { dir, network, peer, capacity, segment_bytes, clock };
    Store::open(options).map_err(|e| e.to_string())
}

fn chunk(n: u64, len: usize) -> Checked {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&n.to_le_bytes()).finalize_xof().fill(&mut bytes);
    let bytes = bytes::Bytes::from(bytes);
    Checked::new(hash::address(&bytes), bytes).expect("its own address")
}

/// Puts chunks `from..to` of `len` bytes; a line with the address of each that is acknowledged.
async fn put(store: Arc<Store>, from: u64, to: u64, len: usize) -> Result<(), WriteError> {
    let tasks: Vec<_> = (0..AT_ONCE)
        .map(|k| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in (from + k..to).step_by(AT_ONCE as usize) {
                    let receipts = store.put(vec![chunk(n, len)]).await?;
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "{}", receipts[0].chunk).expect("stdout takes a line");
                    out.flush().expect("stdout takes a line");
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a put does not panic")?;
    }
    Ok(())
}

/// Every address on stdin is there and whole.
async fn check(store: &Store) -> Result<u64, String> {
    let mut count = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| e.to_string())?;
        // The last line may be cut: the driver was killed while it wrote it.
        let Some(chunk) = ChunkId::from_hex(&line) else { continue };
        match store.get(chunk).await {
            Ok(Some(_)) => count += 1,
            Ok(None) => return Err(format!("chunk {chunk} was acknowledged and is gone")),
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(count)
}

/// Bytes that were made before the clock starts: what is measured is hashing and the disk.
async fn speed(store: Arc<Store>, mib: u64, len: usize) -> Result<f64, WriteError> {
    let count = (mib << 20) / len as u64;
    let bodies: Vec<_> = (0..count).map(|n| chunk(n, len)).collect();
    let start = Instant::now();
    let mut tasks = Vec::new();
    for some in bodies.chunks(bodies.len().div_ceil(AT_ONCE as usize)) {
        let (store, some) = (store.clone(), some.to_vec());
        tasks.push(tokio::spawn(async move {
            for body in some {
                let again = Checked::new(body.chunk(), body.bytes().clone())?;
                store.put(vec![again]).await?;
            }
            Ok(())
        }));
    }
    for task in tasks {
        task.await.expect("a put does not panic")?;
    }
    Ok((count * len as u64) as f64 / 1e6 / start.elapsed().as_secs_f64())
}

fn cut(dir: &Path) -> Result<(), String> {
    use std::os::fd::AsRawFd;
    let dir = std::fs::File::open(dir).map_err(|e| e.to_string())?;
    // SAFETY: the ioctl reads one u32, which outlives the call.
    let done = unsafe { libc::ioctl(dir.as_raw_fd(), SHUTDOWN, &WITHOUT_LOG_FLUSH) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().to_string()) }
}

async fn run(args: &[String]) -> Result<(), String> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    match words[..] {
        ["put", dir, from, to, len] => {
            let store = Arc::new(open(Path::new(dir))?);
            let (from, to, len) = (number(from)?, number(to)?, number(len)? as usize);
            let failed = put(store.clone(), from, to, len).await;
            let stat = store.stat();
            if let Some(failure) = stat.out_of_service {
                eprintln!("status: {failure}");
            }
            failed.map_err(|e| e.to_string())
        }
        ["check", dir] => {
            let store = open(Path::new(dir))?;
            let opened = store.stat().opened;
            if !opened.damage.is_empty() {
                return Err(format!("damage after a crash: {:?}", opened.damage));
            }
            let count = check(&store).await?;
            let (frames, torn) = (opened.frames, opened.torn);
            println!("{count} chunks whole; {frames} frames read in, {torn} bytes torn");
            Ok(())
        }
        ["speed", dir, mib, len] => {
            let store = Arc::new(open(Path::new(dir))?);
            let speed = speed(store, number(mib)?, number(len)? as usize).await;
            println!("{:.0} MB/s", speed.map_err(|e| e.to_string())?);
            Ok(())
        }
        ["cut", dir] => cut(Path::new(dir)),
        _ => Err("put DIR FROM TO LEN | check DIR | speed DIR MIB LEN | cut DIR".to_owned()),
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
