//! The files of a copied ledger that are read by people and by other programs: each must be what
//! the bundles of records give.
//!
//! Owns: the comparison of `records/` and of the tiles with the bundles, and what is said of files
//! that are missing.
//! Never: judges the bundles themselves, or files after the checkpoint's last record.

use mictlan::id::LedgerHash;
use mictlan::ledger::merkle;
use mictlan::ledger::record::record_hash;
use mictlan::ledger::tile::{self, Edge, Row, TileId, WIDTH};
use mictlan::ledger::verify::{Fault, Finding};
use std::io;
use std::path::Path;

const THOUSAND: u64 = 1000;

/// What a copy holds beside its bundles.
#[derive(Default)]
pub struct Looked {
    pub findings: Vec<Finding>,
    /// So many bundles, from the first on, are there and whole.
    pub bundles: u64,
    /// Parts of the tree that are not in the copy at all.
    pub absent: Vec<&'static str>,
}

struct Copy<'a> {
    dir: &'a Path,
    size: u64,
    records: bool,
    hashes: bool,
    looked: Looked,
}

/// Compares everything below `dir` that belongs to the first `size` records.
pub fn look(dir: &Path, size: u64) -> io::Result<Looked> {
    let (records, hashes) = (dir.join("records").is_dir(), dir.join("tile/0").is_dir());
    let mut copy = Copy { dir, size, records, hashes, looked: Looked::default() };
    if !records {
        copy.looked.absent.push("records/");
    }
    if !hashes {
        copy.looked.absent.push("the tiles of hashes");
    }
    copy.all()?;
    Ok(copy.looked)
}

impl Copy<'_> {
    fn all(&mut self) -> io::Result<()> {
        let (mut edge, mut full) = (Edge::new(), Vec::new());
        let mut thousand = Thousand::default();
        for index in 0..self.size.div_ceil(WIDTH) {
            let id = TileId::bundle(index * WIDTH, self.size);
            let Some(bytes) = self.bundle(id)? else { return Ok(()) };
            let records = tile::bundle_records(&bytes, id.width).map_err(io::Error::other)?;
            for (record, at) in records.into_iter().zip(index * WIDTH..) {
                edge.append(merkle::leaf(record), &mut full);
                self.record(at, record)?;
                thousand.add(at, record);
                if thousand.is_full() || at + 1 == self.size {
                    self.thousand(at / THOUSAND, &std::mem::take(&mut thousand))?;
                }
            }
            for (id, bytes) in full.drain(..) {
                self.tile(id, &bytes)?;
            }
            self.looked.bundles += 1;
        }
        for (id, bytes) in edge.partial() {
            self.tile(id, &bytes)?;
        }
        Ok(())
    }

    fn wrong(&mut self, index: u64, says: String) {
        self.looked.findings.push(Finding { index, fault: Fault::Copy(says) });
    }

    /// The bundle, if it is there and whole.
    fn bundle(&mut self, id: TileId) -> io::Result<Option<Vec<u8>>> {
        let full = TileId { width: WIDTH as u16, ..id };
        let (first, path) = (id.index * WIDTH, id.path());
        for path in [&path, &full.path()] {
            let Some(bytes) = read(&self.dir.join(path))? else { continue };
            let whole = tile::bundle_prefix(&bytes, id.width).map(|prefix| prefix.to_vec());
            return Ok(match whole {
                Ok(prefix) => Some(prefix),
                Err(why) => {
                    self.wrong(first, format!("{path} is cut or damaged: {why}"));
                    None
                }
            });
        }
        self.wrong(first, format!("{path} is not in this copy"));
        Ok(None)
    }

    /// A tile as wide as this tree has it, and narrower or wider ones of the same place.
    fn tile(&mut self, id: TileId, bytes: &[u8]) -> io::Result<()> {
        let Row::Level(level) = id.row else { return Ok(()) };
        if !self.hashes {
            return Ok(());
        }
        let full = TileId { width: WIDTH as u16, ..id };
        let mut paths = vec![full.path()];
        let partial = format!("{}.p", full.path());
        if let Ok(names) = std::fs::read_dir(self.dir.join(&partial)) {
            let names = names.flatten().filter_map(|name| name.file_name().into_string().ok());
            paths.extend(names.map(|name| format!("{partial}/{name}")));
        }
        let first = id.index.saturating_mul(WIDTH) << (u32::from(level) * 8).min(63);
        let mut there = false;
        for path in paths {
            let Some(found) = read(&self.dir.join(&path))? else { continue };
            let width = TileId::parse(&path).map_or(0, |id| usize::from(id.width));
            let same = found.len().min(bytes.len());
            if found.len() != width * 32 || found[..same] != bytes[..same] {
                self.wrong(first, format!("{path} is not the hashes of these records"));
            }
            there |= width >= usize::from(id.width);
        }
        if !there {
            self.wrong(first, format!("{} is not in this copy", id.path()));
        }
        Ok(())
    }

    fn record(&mut self, at: u64, record: &[u8]) -> io::Result<()> {
        if !self.records {
            return Ok(());
        }
        let path = format!("{}/{at:012}.json", thousand_path(at / THOUSAND));
        match read(&self.dir.join(&path))? {
            Some(bytes) if bytes == record => {}
            Some(_) => self.wrong(at, format!("{path} is not what tile/entries has")),
            None => self.wrong(at, format!("{path} is not in this copy")),
        }
        Ok(())
    }

    /// The lists of a thousand; of a copy that was made while the log grew they may go on.
    fn thousand(&mut self, number: u64, thousand: &Thousand) -> io::Result<()> {
        if !self.records {
            return Ok(());
        }
        let path = thousand_path(number);
        for (path, text) in [
            (format!("{path}/SHA256SUMS"), thousand.sums.as_bytes()),
            (format!("{path}.ndjson"), &thousand.lines),
        ] {
            match read(&self.dir.join(&path))? {
                Some(bytes) if bytes == text => {}
                Some(bytes) if bytes.starts_with(text) && !thousand.is_full() => {}
                Some(_) => {
                    self.wrong(number * THOUSAND, format!("{path} is not that of these records"));
                }
                None => self.wrong(number * THOUSAND, format!("{path} is not in this copy")),
            }
        }
        Ok(())
    }
}

#[derive(Default)]
struct Thousand {
    count: u64,
    sums: String,
    lines: Vec<u8>,
}

impl Thousand {
    fn add(&mut self, at: u64, record: &[u8]) {
        let hash: LedgerHash = record_hash(record);
        self.sums.push_str(&format!("{hash}  {at:012}.json\n"));
        self.lines.extend_from_slice(record);
        self.count += 1;
    }

    fn is_full(&self) -> bool {
        self.count == THOUSAND
    }
}

fn thousand_path(thousand: u64) -> String {
    let (a, b, c) = (thousand / 1_000_000 % 1000, thousand / 1000 % 1000, thousand % 1000);
    format!("records/{a:03}/{b:03}/{c:03}")
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
    }
}
