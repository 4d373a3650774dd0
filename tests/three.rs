//! A network of three peers, each a process with a home and a failure domain of its own, and of
//! those that a test adds.
//!
//! Owns: their addresses, and which of them run.
//! Invariant: when `Three::start` returns, all three vote.

use crate::harness::{Home, alive, signal, wait_until};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

pub struct Peer {
    pub home: Home,
    pub listen: String,
    domain: String,
    /// What it says when it has said all to the others, and takes its part.
    ready: &'static str,
    pid: Mutex<Option<i32>>,
}

pub struct Three {
    pub peers: Vec<Peer>,
}

/// Ports that nobody listens on, below those that the kernel gives to outgoing connections: one of
/// these could take a port between this look and the peer's start. Other processes that run these
/// tests begin to look elsewhere; threads of this one take turns.
pub fn addresses(count: usize) -> Vec<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = std::process::id() * 37;
    let address = |_| loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    };
    (0..count).map(address).collect()
}

impl Peer {
    fn new(listen: String, domain: &str) -> Self {
        let (domain, pid) = (domain.to_owned(), Mutex::new(None));
        Self { home: Home::new(), listen, domain, ready: "voting in", pid }
    }

    fn pid(&self) -> std::sync::MutexGuard<'_, Option<i32>> {
        self.pid.lock().expect("no test panics here")
    }

    /// Serves, and waits until its vote counts, or without one until it has followed the ledger.
    pub fn serve(&self) {
        self.serve_until(self.ready);
    }

    /// `serving` is said as soon as its door is open.
    pub fn serve_until(&self, said: &str) {
        let started = self.home.start(&["serve", "--domain", &self.domain], said);
        *self.pid() = Some(started);
    }

    /// Serves again and takes chunks up to so much, such as `1K`, from now on.
    pub fn offer(&self, capacity: &str) {
        let all = ["serve", "--domain", &self.domain, "--capacity", capacity];
        *self.pid() = Some(self.home.start(&all, "serving"));
    }

    /// Its process stands still: connections to it are taken and never answered.
    pub fn hang(&self) {
        signal(self.pid().expect("it runs"), libc::SIGSTOP);
    }

    pub fn go_on(&self) {
        signal(self.pid().expect("it runs"), libc::SIGCONT);
    }

    /// Whether the process that was started still lives.
    pub fn runs(&self) -> bool {
        self.pid().is_some_and(alive)
    }

    /// kill -9.
    pub fn kill(&self) {
        let pid = self.pid().take().expect("it runs");
        self.home.stop(pid, libc::SIGKILL);
    }

    /// Waits until its process ends by itself: the exit code.
    pub fn ended(&self) -> Option<i32> {
        let pid = self.pid().take().expect("it runs");
        wait_until("the peer ends by itself", || !alive(pid));
        self.home.stop(pid, 0)
    }

    /// Starts again, now saying all that it does, and serves its metrics at the address returned.
    pub fn talk(&self) -> String {
        let metrics = addresses(1).remove(0);
        let file = self.home.path().join("home/config/config.toml");
        let config = std::fs::read_to_string(&file).expect("a configuration");
        let changed = config.replace("127.0.0.1:4511", &metrics);
        assert_ne!(config, changed, "where metrics are served stands in it");
        std::fs::write(file, changed).expect("written");
        self.kill();
        self.home.set("MICTLAN_LOG", "debug");
        self.serve();
        metrics
    }

    /// Where this peer keeps chunks and the ledger.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("home/data/networks/net")
    }

    /// How many records its newest published checkpoint covers.
    pub fn published(&self) -> u64 {
        let note = self.data().join("sequencer/ledger/checkpoint");
        let note = std::fs::read_to_string(note).unwrap_or_default();
        note.lines().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
    }

    /// Bytes of the chunks that it stores; its index has room for more than it holds.
    pub fn stored_bytes(&self) -> u64 {
        files(&self.data().join("store/segments")).iter().map(|(_, size)| size).sum()
    }
}

/// The body of a page that a peer or a mount serves to its own machine.
pub fn page(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it is served");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("asked");
    let mut all = String::new();
    stream.read_to_string(&mut all).expect("answered");
    let (_, body) = all.split_once("\r\n\r\n").expect("a head");
    body.to_owned()
}

/// What a peer tells of itself to its own machine.
pub fn metrics(address: &str) -> Vec<u8> {
    let all = page(address, "/metrics");
    assert!(all.contains("mictlan_store_chunks"), "no metrics");
    all.into_bytes()
}

/// Every file below a directory with its size; a file that goes meanwhile is left out.
pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => todo.push(entry.path()),
                Ok(meta) => found.push((entry.path(), meta.len())),
                Err(_) => {}
            }
        }
    }
    found
}

impl Default for Three {
    fn default() -> Self {
        Self::start()
    }
}

impl Three {
    pub fn start() -> Self {
        Self::prepared(|_| {})
    }

    /// `prepare` makes each peer's home ready before anything is started in it.
    pub fn prepared(prepare: impl Fn(&Home)) -> Self {
        let names = ["a", "b", "c"];
        let listen = addresses(names.len());
        let peers: Vec<Peer> =
            listen.into_iter().zip(names).map(|(at, name)| Peer::new(at, name)).collect();
        peers.iter().for_each(|peer| prepare(&peer.home));
        let founder = &peers[0];
        founder.home.ok(&["init", "net", "--listen", &founder.listen]);
        founder.serve();
        let three = Self { peers };
        for (peer, name) in three.peers.iter().zip(names).skip(1) {
            let code = three.invite(&["--role", "storage"]);
            peer.home.ok(&["join", &code, "--listen", &peer.listen, "--name", name]);
            peer.serve();
        }
        three
    }

    /// One more peer, which stores and does not vote.
    pub fn add_storage(&mut self, name: &str) {
        let peer = Peer::new(addresses(1).remove(0), name);
        let peer = Peer { ready: "storing for", ..peer };
        let code = self.invite(&["--role", "storage", "--no-vote"]);
        peer.home.ok(&["join", &code, "--listen", &peer.listen, "--name", name]);
        peer.serve();
        self.peers.push(peer);
    }

    /// A code, made while the founder serves.
    pub fn invite(&self, arguments: &[&str]) -> String {
        let mut all = vec!["invite"];
        all.extend(arguments);
        self.peers[0].home.ok(&all).trim().to_owned()
    }

    /// A user on a machine that is no peer: only a key, made by an invite.
    pub fn user(&self, name: &str) -> Home {
        let home = Home::new();
        let code = self.invite(&["--role", "writer"]);
        home.ok(&["join", &code, "--name", name]);
        home
    }

    /// Waits until the peers named have published the same, not less than before.
    pub fn wait_level(&self, which: &[usize]) {
        wait_until("the peers publish the same checkpoint", || {
            let sizes: Vec<u64> = which.iter().map(|at| self.peers[*at].published()).collect();
            sizes[0] > 0 && sizes.iter().all(|size| *size == sizes[0])
        });
    }
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Written and on its peers, or the error that says that it is not.
#[expect(clippy::disallowed_methods, reason = "an application's own fsync is what is tested")]
pub fn write_through(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Flips bits all over the large files of a store, under the running peer.
pub fn damage(store: &Path) {
    let large: Vec<_> = files(store).into_iter().filter(|(_, size)| *size > 1 << 20).collect();
    assert!(!large.is_empty(), "there is a segment in {}", store.display());
    for (path, size) in large {
        let file = File::options().read(true).write(true).open(path).expect("a segment");
        for at in (100_000..size).step_by(100_000) {
            let mut byte = [0];
            if file.read_at(&mut byte, at).expect("readable") == 1 {
                file.write_at(&[byte[0] ^ 0x40], at).expect("writable");
            }
        }
    }
}
