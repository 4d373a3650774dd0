//! `put`, `get`, `ls` and `rm`: the same volume as a mount has, on a machine without /dev/fuse.

use mictlan_tests::harness::{Home, assert_same_tree};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

#[test]
fn a_tree_put_into_a_volume_comes_back_the_same() {
    let home = Home::new();
    let source = home.empty("source");
    fs::create_dir_all(source.join("dir/empty")).expect("made");
    fs::write(source.join("dir/tool"), b"#!/bin/sh\n").expect("written");
    fs::write(source.join("nothing"), b"").expect("written");
    let mode = fs::Permissions::from_mode(0o750);
    fs::set_permissions(source.join("dir/tool"), mode).expect("a chmod");
    symlink("dir/tool", source.join("link")).expect("a link");
    let large: Vec<u8> =
        (0..20 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(source.join("large"), &large).expect("written");
    home.ok(&["put", text(&source), "/"]);

    let out = home.empty("out");
    home.ok(&["get", "/source", text(&out)]);
    assert_same_tree(&source, &out.join("source"));
    for name in ["dir", "dir/tool", "large"] {
        let stat = |root: &Path| fs::metadata(root.join(name)).expect("there");
        let (a, b) = (stat(&source), stat(&out.join("source")));
        assert_eq!(
            (a.mode(), a.mtime(), a.mtime_nsec()),
            (b.mode(), b.mtime(), b.mtime_nsec()),
            "{name}"
        );
    }

    let listed = home.ok(&["ls", "--json", "/source"]);
    let names: Vec<&str> =
        listed.lines().filter(|line| line.contains("\"name\":\"large\"")).collect();
    assert!(names.len() == 1 && names[0].contains("\"size\":20971520"), "{listed}");
    home.ok(&["rm", "-r", "/source"]);
    assert_eq!(home.ok(&["ls", "/"]), "");
}

#[test]
fn a_file_put_again_is_replaced_and_a_mount_sees_it() {
    let home = Home::new();
    let file = home.path().join("file");
    for content in ["first", "second and longer"] {
        fs::write(&file, content).expect("written");
        let said = home.ok(&["put", "--json", text(&file), "main:/renamed"]);
        assert!(said.contains("\"files\":1"), "{said}");
    }
    let dir = home.mount("mnt");
    assert_eq!(fs::read(dir.join("renamed")).expect("readable"), b"second and longer");
}
