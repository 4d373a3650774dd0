//! Listings stay right while a directory changes under them.

use super::world::{DIRENT_KEY, Map, founded, run};
use mictlan::id::{Ino, Name, SessionId};
use mictlan::meta::inode::FileKind;
use mictlan::meta::key::{Key, dirent_hash};
use mictlan::meta::namespace::*;
use mictlan::meta::value::Value;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn name(n: u32) -> Name {
    Name::parse(format!("file {n}").as_bytes()).expect("a name")
}

fn place(n: u32) -> Place {
    Place { dir: Ino::ROOT, name: name(n) }
}

fn make(map: &mut Map, n: u32) {
    let make = Make {
        at: place(n),
        ino: Ino::of(SessionId(1), n + 1),
        kind: FileKind::File,
        mode: 0o644,
        umask: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        target: [].into(),
    };
    run(map, 1, &Op::Make(make));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// The kernel takes as many lines of a page as fit and goes on after the last of them.
    #[test]
    fn a_listing_is_complete_and_without_doubles_under_change(
        count in 0..120u32,
        takes in prop::collection::vec(1..40usize, 1..20),
        changes in prop::collection::vec((0..160u32, any::<bool>()), 0..60),
    ) {
        let mut map = founded();
        (0..count).for_each(|n| make(&mut map, n));
        let stays = |n: &u32| *n < count && !changes.iter().any(|(changed, _)| changed == n);
        let mut seen = BTreeMap::new();
        let (mut cookie, mut turn) = (0, 0);
        let mut changes = changes.iter();
        loop {
            let page = read::readdir(&map, Ino::ROOT, cookie, 1).expect("the root");
            if page.is_empty() {
                break;
            }
            for entry in page.into_iter().take(takes[turn % takes.len()]) {
                cookie = entry.cookie;
                *seen.entry(entry.name.to_vec()).or_insert(0) += 1;
            }
            turn += 1;
            for (n, create) in changes.by_ref().take(5) {
                let there = read::lookup(&map, &DIRENT_KEY, Ino::ROOT, &name(*n)).is_ok();
                match create {
                    true if !there => make(&mut map, *n),
                    false if there => drop(run(&mut map, 2, &Op::Unlink(place(*n)))),
                    _ => {}
                }
            }
        }
        prop_assert_eq!(seen.get(b".".as_slice()), Some(&1));
        prop_assert_eq!(seen.get(b"..".as_slice()), Some(&1));
        for n in (0..count).filter(stays) {
            prop_assert_eq!(seen.get(name(n).as_bytes()), Some(&1), "file {}", n);
        }
    }
}

#[test]
fn names_that_collide_get_cookies_of_their_own() {
    let mut map = founded();
    let own = dirent_hash(&DIRENT_KEY, Ino::ROOT, &name(1));
    // Another name already stands where this one belongs, as a collision of hashes leaves it.
    let key = |hash| Key::Dirent { dir: Ino::ROOT, hash, name: name(2) };
    let other = Value::Dirent { ino: Ino::ROOT, kind: FileKind::Dir };
    map.insert(key(own), other.clone());
    make(&mut map, 1);
    let found = read::lookup(&map, &DIRENT_KEY, Ino::ROOT, &name(1)).expect("probed");
    assert_eq!(found.0, Ino::of(SessionId(1), 2));
    let cookies = |map: &Map| {
        let page = read::readdir(map, Ino::ROOT, 2, 10).expect("the root");
        page.into_iter().map(|entry| entry.cookie).collect::<Vec<_>>()
    };
    let all = cookies(&map);
    assert!(all.len() == 2 && all[0] < all[1] && all.contains(&own));

    // Two sessions at once did not see each other: one hash for both. It repeats, never skips.
    let taken = all[usize::from(all[0] == own)];
    map.remove(&key(own));
    map.insert(key(taken), other);
    assert_eq!(cookies(&map), [taken - 1, taken]);
    run(&mut map, 3, &Op::Unlink(place(1)));
    assert_eq!(cookies(&map), [taken]);
}
