//! Peers that serve a log's static files, honestly or not, and a mount of it.

use crate::flat::Flat;
use bytes::Bytes;
use mictlan::id::{Ino, Name};
use mictlan::ledger::tile::{Row, TileId, bundle_prefix};
use mictlan::meta::error::FsError;
use mictlan_daemon::ledger::fetch::Fetch;
use mictlan_daemon::ledger::{Ledger, LedgerTree};
use mictlan_mount::graft::Graft;
use mictlan_mount::vfs::{Attr, Caller, Found, Listed, OpenHow, Vfs};
use mictlan_tests::sample_log::Log;
use std::sync::{Arc, Mutex};

pub const WHO: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// One peer's copy of the static tree.
#[derive(Clone)]
pub struct Peer {
    pub log: Log,
    /// A path whose bytes it changes.
    pub lies: Option<String>,
}

impl Peer {
    pub fn honest(log: &Log) -> Self {
        Self { log: log.clone(), lies: None }
    }

    fn file(&self, path: &str) -> Option<Bytes> {
        let mut bytes = self.honest_file(path)?;
        if self.lies.as_deref().is_some_and(|lie| path.starts_with(lie)) {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        Some(bytes.into())
    }

    fn honest_file(&self, path: &str) -> Option<Vec<u8>> {
        if path == "checkpoint" {
            return Some(self.log.newest().as_bytes().to_vec());
        }
        if let Some(size) = path.strip_prefix("at/").and_then(|p| p.strip_suffix("/checkpoint")) {
            return self.log.notes.get(&size.parse().ok()?).map(|note| note.clone().into_bytes());
        }
        let id = TileId::parse(path)?;
        let tiles = self.log.tiles();
        let (wide, bytes) = tiles.range(TileId { width: 0, ..id }..).next()?;
        let same = (wide.row, wide.index) == (id.row, id.index) && wide.width >= id.width;
        same.then(|| match id.row {
            Row::Level(_) => bytes[..usize::from(id.width) * 32].to_vec(),
            Row::Entries => bundle_prefix(bytes, id.width).expect("a bundle").to_vec(),
        })
    }
}

pub type Peers = Arc<Mutex<Vec<Peer>>>;

pub fn peers(peers: Vec<Peer>) -> (Peers, Fetch) {
    let peers = Arc::new(Mutex::new(peers));
    let asked = peers.clone();
    let fetch: Fetch = Arc::new(move |turn, path| {
        let peers = asked.lock().expect("no test panics in here");
        let answer = peers.get(turn)?.file(&path);
        Some(Box::pin(async move { Ok(answer) }))
    });
    (peers, fetch)
}

pub struct Mount {
    pub peers: Peers,
    pub ledger: Arc<Ledger>,
    pub graft: Arc<Graft<Flat, LedgerTree>>,
    pub dir: tempfile::TempDir,
}

impl Mount {
    pub fn new(with: Vec<Peer>) -> Self {
        Self::in_dir(with, tempfile::tempdir().expect("a directory"), false)
    }

    pub fn in_dir(with: Vec<Peer>, dir: tempfile::TempDir, hidden: bool) -> Self {
        let network = with[0].log.roster().id();
        let (peers, fetch) = peers(with);
        let ledger = Ledger::open(network, dir.path(), fetch).expect("it opens");
        let tree = Arc::new(LedgerTree(ledger.clone()));
        let flat = Flat::with(&["a", "ledger", "z"]);
        let graft = Arc::new(Graft::new(flat, tree, hidden, (0, 0)));
        Self { peers, ledger, graft, dir }
    }

    /// All peers have this log from now on, and the mount knows.
    pub async fn grow(&self, log: &Log) {
        self.peers.lock().expect("free").iter_mut().for_each(|peer| peer.log = log.clone());
        self.ledger.refresh().await.expect("a newer checkpoint");
    }

    pub async fn lookup(&self, dir: Ino, name: &str) -> Result<Option<Attr>, FsError> {
        let name = Name::parse(name.as_bytes()).expect("a name");
        Ok(match self.graft.clone().lookup(WHO, dir, name).await? {
            Found::Here { attr, .. } => Some(attr),
            Found::Nothing { .. } => None,
        })
    }

    /// As `stat` does: the attributes at a path from the mount's root.
    pub async fn stat(&self, path: &str) -> Result<Attr, FsError> {
        let mut dir = Ino::ROOT;
        let mut attr = None;
        for name in path.split('/') {
            let found = self.lookup(dir, name).await?.ok_or(FsError::NotFound)?;
            dir = found.ino;
            attr = Some(found);
        }
        Ok(attr.expect("a path has names"))
    }

    /// As `cat` does, by odd pieces; the size must have been exact.
    pub async fn cat(&self, path: &str) -> Result<Vec<u8>, FsError> {
        let attr = self.stat(path).await?;
        let how = OpenHow { read: true, ..OpenHow::default() };
        let opened = self.graft.clone().open(WHO, attr.ino, how).await?;
        let bytes = self.rest(attr.ino, opened.handle).await;
        self.graft.clone().release(attr.ino, opened.handle).await?;
        let bytes = bytes?;
        assert_eq!(bytes.len() as u64, attr.inode.size, "the size of {path}");
        assert_eq!(opened.direct, attr.lifetime.is_zero(), "what grows is not cached: {path}");
        Ok(bytes)
    }

    pub async fn rest(&self, ino: Ino, handle: u64) -> Result<Vec<u8>, FsError> {
        let mut bytes = Vec::new();
        loop {
            let read = self.graft.clone().read(ino, handle, bytes.len() as u64, 40_001).await?;
            if read.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(&read);
        }
    }

    /// All lines of a directory, `limit` at a time, without `.` and `..`.
    pub async fn list(&self, dir: Ino, limit: usize, with_attr: bool) -> Vec<Listed> {
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let page = self.graft.clone().list(dir, cookie, limit, with_attr).await;
            let page = page.expect("a listing");
            let Some(last) = page.last() else { break };
            assert!(page.len() <= limit && last.cookie > cookie, "a listing goes on");
            cookie = last.cookie;
            all.extend(page);
        }
        all.retain(|line| !matches!(&*line.name, b"." | b".."));
        all
    }
}

pub fn names(lines: &[Listed]) -> Vec<String> {
    lines.iter().map(|line| String::from_utf8_lossy(&line.name).into_owned()).collect()
}
