//! The write-ahead log's files under torn writes, damage and reuse.

use crate::sequencer::raft::wal::{Wal, WalError};
use std::fs;
use std::path::{Path, PathBuf};

const SEGMENT: u64 = 4096;

fn open(dir: &Path) -> Result<(Wal, Vec<Vec<u8>>), WalError> {
    let mut bodies = Vec::new();
    let wal = Wal::open(dir, SEGMENT, |_, body| {
        bodies.push(body.to_vec());
        Ok(())
    })?;
    Ok((wal, bodies))
}

fn append(wal: &mut Wal, body: &[u8]) {
    wal.append(body, true, || b"head".to_vec()).expect("appended");
}

/// The log's segments, oldest first.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).expect("a directory").map(|e| e.expect("an entry").path());
    let mut paths: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "wal")).collect();
    paths.sort();
    paths
}

fn body(n: usize) -> Vec<u8> {
    format!("frame {n} {}", "x".repeat(n % 97)).into_bytes()
}

fn heads_removed(bodies: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    bodies.into_iter().filter(|b| b != b"head").collect()
}

#[test]
fn what_was_appended_is_there_again_in_order_over_many_segments() {
    let dir = tempfile::tempdir().expect("a directory");
    let expected: Vec<_> = (0..300).map(body).collect();
    for part in expected.chunks(70) {
        let (mut wal, before) = open(dir.path()).expect("opened");
        assert!(expected.starts_with(&heads_removed(before)));
        part.iter().for_each(|b| append(&mut wal, b));
    }
    let (_, all) = open(dir.path()).expect("opened");
    assert!(segments(dir.path()).len() > 5);
    assert_eq!(heads_removed(all), expected);
}

#[test]
fn a_frame_larger_than_a_segment_gets_one_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(dir.path()).expect("opened");
    let large = vec![7; 3 * SEGMENT as usize];
    for body in [&b"small"[..], &large, b"small again"] {
        append(&mut wal, body);
    }
    let (_, bodies) = open(dir.path()).expect("opened");
    assert_eq!(heads_removed(bodies), [&b"small"[..], &large, b"small again"]);
}

#[test]
fn a_tail_torn_at_any_byte_loses_only_the_last_frame_and_the_log_goes_on() {
    let whole = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(whole.path()).expect("opened");
    for n in 0..4 {
        append(&mut wal, &body(n));
    }
    let path = segments(whole.path()).remove(0);
    let bytes = fs::read(&path).expect("bytes");
    let end = bytes.iter().rposition(|b| *b != 0).expect("frames") + 1;
    let last = 48 + body(3).len();
    for cut in end - last..end {
        let dir = tempfile::tempdir().expect("a directory");
        fs::copy(whole.path().join("id"), dir.path().join("id")).expect("copied");
        let mut torn = bytes.clone();
        torn[cut..].fill(0);
        fs::write(dir.path().join(path.file_name().expect("a name")), torn).expect("written");
        let (mut wal, bodies) = open(dir.path()).expect("opened");
        assert_eq!(heads_removed(bodies), (0..3).map(body).collect::<Vec<_>>(), "cut at {cut}");
        append(&mut wal, b"after");
        let (_, bodies) = open(dir.path()).expect("opened");
        assert_eq!(heads_removed(bodies).last().map(Vec::as_slice), Some(&b"after"[..]));
    }
}

#[test]
fn a_whole_frame_behind_a_torn_one_never_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(dir.path()).expect("opened");
    append(&mut wal, b"durable");
    // Two frames of one crash: neither was ever reported durable.
    for body in [b"torn....", b"stranded"] {
        wal.append(body, false, || unreachable!("it fits")).expect("appended");
    }
    let path = segments(dir.path()).remove(0);
    let mut bytes = fs::read(&path).expect("bytes");
    let torn = bytes.windows(8).position(|w| w == b"torn....").expect("there");
    bytes[torn] ^= 1;
    fs::write(&path, bytes).expect("written");
    let (mut wal, bodies) = open(dir.path()).expect("opened");
    assert_eq!(heads_removed(bodies), [b"durable"]);
    // As long as the torn one, so the stranded one would be next.
    append(&mut wal, b"replaced");
    let (_, bodies) = open(dir.path()).expect("opened");
    assert_eq!(heads_removed(bodies), [&b"durable"[..], b"replaced"]);
}

#[test]
fn damage_to_a_durable_frame_is_an_error_and_not_a_torn_tail() {
    for victim in 0..5 {
        let dir = tempfile::tempdir().expect("a directory");
        let (mut wal, _) = open(dir.path()).expect("opened");
        for n in 0..7 {
            append(&mut wal, &[&body(n), &[b'-'; 900][..]].concat());
        }
        let find = format!("frame {victim} ").into_bytes();
        let at = |b: &[u8]| b.windows(find.len()).position(|w| w == find);
        let (path, mut bytes, at) = segments(dir.path())
            .into_iter()
            .find_map(|p| {
                let bytes = fs::read(&p).expect("bytes");
                at(&bytes).map(|at| (p, bytes, at))
            })
            .expect("there");
        bytes[at] ^= 0x20;
        fs::write(&path, bytes).expect("written");
        let error = open(dir.path()).err();
        assert!(matches!(error, Some(WalError::Damaged { .. })), "frame {victim}: {error:?}");
    }
}

#[test]
fn released_segments_are_used_again_and_old_frames_stay_dead() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut wal, _) = open(dir.path()).expect("opened");
    for n in 0..400 {
        let place = wal.append(&body(n), true, || b"head".to_vec()).expect("appended");
        wal.release_before(place.segment).expect("released");
    }
    let files = fs::read_dir(dir.path()).expect("listed").count();
    assert!(files <= 4, "one segment, two spares and the id, not {files}");
    drop(wal);
    let (_, bodies) = open(dir.path()).expect("opened");
    let bodies = heads_removed(bodies);
    let first = 400 - bodies.len();
    assert_eq!(bodies, (first..400).map(body).collect::<Vec<_>>());
}
