//! The mounted ledger: every listed file exists, has its exact size, and holds the log's bytes.

use bytes::Bytes;
use mictlan::ledger::checkpoint::Policy;
use mictlan::ledger::files::{
    FilesError, Need, Node, Published, Source, list, lookup, pin, read, settled, size,
};
use mictlan::ledger::proof::Proof;
use mictlan::ledger::record::record_hash;
use mictlan::ledger::tile::TileId;
use mictlan_tests::sample_log::Log;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};

/// A log in memory that can be told to lack everything until it is asked for.
struct Memory {
    log: Log,
    tiles: BTreeMap<TileId, Vec<u8>>,
    /// What was fetched so far; `None`: everything is at hand.
    fetched: Option<RefCell<HashSet<Need>>>,
}

impl Memory {
    fn new(lazy: bool) -> Self {
        let log = Log::sample();
        Self { tiles: log.tiles(), log, fetched: lazy.then(RefCell::default) }
    }

    fn has(&self, need: Need) -> Result<(), Need> {
        match &self.fetched {
            Some(fetched) if !fetched.borrow().contains(&need) => Err(need),
            _ => Ok(()),
        }
    }

    /// Calls again until nothing is missing any more, as the daemon does.
    fn whole<T>(&self, call: impl Fn() -> Result<T, FilesError>) -> T {
        for _ in 0..10_000 {
            match call() {
                Ok(value) => return value,
                Err(FilesError::Missing(need)) => {
                    let fetched = self.fetched.as_ref().expect("only a lazy source lacks things");
                    assert!(fetched.borrow_mut().insert(need), "{need:?} was asked for twice");
                }
                Err(error) => panic!("{error}"),
            }
        }
        panic!("it never ends")
    }

    fn find(&self, path: &str) -> Option<Node> {
        let names = path.split('/').filter(|name| !name.is_empty());
        names.into_iter().try_fold(Node::ROOT, |dir, name| self.whole(|| lookup(self, dir, name)))
    }

    fn bytes(&self, path: &str) -> Vec<u8> {
        let node = self.find(path).unwrap_or_else(|| panic!("{path} is not there"));
        let len = self.whole(|| size(self, node));
        let all = self.whole(|| read(self, node, 0, usize::MAX));
        assert_eq!(all.len() as u64, len, "the size of {path}");
        all.to_vec()
    }

    /// Every listed path below `dir`; directories end with a slash.
    fn walk(&self, dir: Node, at: &str, paths: &mut Vec<String>) {
        let (mut from, mut names) = (0, 0);
        loop {
            let page = self.whole(|| list(self, dir, from, 7));
            let Some(last) = page.last() else { break };
            from = last.next;
            names += page.len();
            for entry in page {
                let path = format!("{at}{}", entry.name);
                assert_eq!(self.whole(|| lookup(self, dir, &entry.name)), Some(entry.node));
                if entry.node.is_dir() {
                    paths.push(path.clone() + "/");
                    self.walk(entry.node, &(path + "/"), paths);
                } else {
                    paths.push(path);
                }
            }
        }
        assert!(names <= 2_100, "{at} lists {names} names");
    }
}

impl Source for Memory {
    fn newest(&self) -> Option<Published> {
        let (size, note) = self.log.notes.last_key_value()?;
        Some(Published { size: *size, note: note.clone().into() })
    }

    fn published(&self, size: u64) -> Result<Option<Published>, Need> {
        self.has(Need::Note(size))?;
        Ok(self.log.notes.get(&size).map(|note| Published { size, note: note.clone().into() }))
    }

    fn tile(&self, id: TileId) -> Result<Bytes, Need> {
        self.has(Need::Tile(id))?;
        // The widest copy there is, as a daemon would keep it.
        let wide = self.tiles.range(TileId { width: 0, ..id }..).next();
        Ok(wide.expect("a tile of the log").1.clone().into())
    }

    fn offset(&self, record: u64) -> Result<u64, Need> {
        self.has(Need::Offset(record))?;
        Ok(self.log.lines[..record as usize].iter().map(|line| line.len() as u64).sum())
    }

    fn policy(&self, size: u64) -> Result<Policy, Need> {
        self.has(Need::Policy(size))?;
        Ok(self.log.roster().policy())
    }

    fn status(&self) -> Bytes {
        Bytes::from_static(b"{}\n")
    }
}

#[test]
fn the_tree_lists_exactly_these_names() {
    let memory = Memory::new(false);
    let mut paths = Vec::new();
    memory.walk(Node::ROOT, "", &mut paths);
    let records: Vec<_> = paths.iter().filter(|p| p.ends_with(".json")).cloned().collect();
    assert_eq!(records.iter().filter(|p| p.starts_with("records/000/000/000/0")).count(), 300);
    paths.retain(|p| !p.starts_with("records/000/000/000/0") && !p.starts_with("at/300/records"));
    let top = "README.txt at/ at/300/ at/300/checkpoint at/300/keys/ at/300/keys/log.pem \
        at/300/keys/log.vkey at/300/keys/policy at/300/keys/policy.json at/300/tile/ \
        at/300/tile/entries/ at/300/tile/entries/000 at/300/tile/entries/001.p/ \
        at/300/tile/entries/001.p/44 at/300/tile/0/ at/300/tile/0/000 at/300/tile/0/001.p/ \
        at/300/tile/0/001.p/44 at/300/tile/1/ at/300/tile/1/000.p/ at/300/tile/1/000.p/1 \
        checkpoint keys/ keys/log.pem keys/log.vkey keys/policy keys/policy.json records/ \
        records/000/ records/000/000/ records/000/000/000/ records/000/000/000/SHA256SUMS \
        records/000/000/000.ndjson status.json tile/ tile/entries/ tile/entries/000 \
        tile/entries/001.p/ tile/entries/001.p/44 tile/0/ tile/0/000 tile/0/001.p/ \
        tile/0/001.p/44 tile/1/ tile/1/000.p/ tile/1/000.p/1";
    assert_eq!(paths.join(" "), top);
}

#[test]
fn files_hold_the_bytes_of_the_log() {
    for lazy in [false, true] {
        let memory = Memory::new(lazy);
        let lines = &memory.log.lines;
        assert_eq!(memory.bytes("checkpoint"), memory.log.newest().as_bytes());
        assert_eq!(memory.bytes("records/000/000/000.ndjson"), lines.concat());
        assert_eq!(memory.bytes("at/256/records/000/000/000.ndjson"), lines[..256].concat());
        assert_eq!(memory.bytes("records/000/000/000/000000000257.json"), lines[257]);
        for (id, bytes) in &memory.tiles {
            assert_eq!(memory.bytes(&id.path()), *bytes, "{}", id.path());
        }
        let sum = |(n, line): (usize, &Vec<u8>)| format!("{}  {n:012}.json\n", record_hash(line));
        let sums: String = lines.iter().enumerate().map(sum).collect();
        assert_eq!(memory.bytes("records/000/000/000/SHA256SUMS"), sums.as_bytes());
        let proof = memory.bytes("records/000/000/000/000000000123.tlog-proof");
        let proof = Proof::parse(&proof).expect("a proof");
        assert_eq!(proof.check(&lines[123], &memory.log.roster().policy()), Ok(()));
        assert!(proof.check(&lines[124], &memory.log.roster().policy()).is_err());
        let narrow = memory.bytes("tile/entries/000.p/2");
        assert_eq!(narrow[..], memory.tiles[&TileId::bundle(0, 300)][..narrow.len()]);
    }
}

#[test]
fn a_range_of_a_file_is_that_range() {
    let memory = Memory::new(false);
    for path in ["records/000/000/000.ndjson", "records/000/000/000/SHA256SUMS", "tile/0/000"] {
        let (all, node) = (memory.bytes(path), memory.find(path).expect("it is there"));
        let end = all.len();
        for (from, len) in [(0, 1), (83, 2), (84, 84), (1_000, 4_096), (end - 5, 50), (end, 9)] {
            let part = memory.whole(|| read(&memory, node, from as u64, len));
            assert_eq!(part[..], all[from..end.min(from + len)], "{path} {from}+{len}");
        }
        assert_eq!(memory.whole(|| read(&memory, node, u64::MAX, 10)).len(), 0);
    }
}

#[test]
fn other_names_are_not_there() {
    let memory = Memory::new(false);
    for path in [
        "at/7",
        "at/0300",
        "at/300/at",
        "at/300/status.json",
        "tile/2",
        "tile/00",
        "tile/0/002",
        "tile/0/001",
        "tile/0/001.p/45",
        "tile/0/001.p/0",
        "tile/0/000.p/256",
        "tile/0/x000",
        "tile/0/x001",
        "tile/0/0",
        "records/000/000/000/000000000300.json",
        "records/000/000/000/000000001000.json",
        "records/000/000/000/000000000300.tlog-proof",
        "records/000/000/001",
        "records/000/000/001.ndjson",
        "records/000/000.ndjson",
        "records/0",
        "records/001",
        "records/000/000/000/0.json",
        "keys/x",
        "README",
    ] {
        assert_eq!(memory.find(path), None, "{path}");
    }
}

#[test]
fn an_open_file_goes_on_showing_what_it_showed() {
    let memory = Memory::new(false);
    let node = memory.find("records/000/000/000.ndjson").expect("it is there");
    assert!(!memory.whole(|| settled(&memory, node)));
    let pinned = pin(&memory, node);
    assert!(memory.whole(|| settled(&memory, pinned)));
    let before = memory.whole(|| size(&memory, pinned));
    let mut grown = Memory::new(false);
    grown.log.note("alice", mictlan_tests::sample_log::ALICE, serde_json::json!("more"));
    grown.log.publish();
    grown.tiles = grown.log.tiles();
    assert_eq!(grown.whole(|| size(&grown, pinned)), before);
    assert!(grown.whole(|| size(&grown, node)) > before);
    let frozen = grown.whole(|| read(&grown, pinned, 0, usize::MAX));
    assert_eq!(frozen[..], memory.log.lines.concat());
}
