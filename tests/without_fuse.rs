//! `put`, `get`, `ls` and `rm`: the same volume as a mount has, on a machine without /dev/fuse.

use mictlan_tests::harness::{Home, alive, assert_same_tree, output, program, signal, wait_until};
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

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

/// A member makes a directory of what was a link when it was got for the first time.
#[test]
fn a_get_writes_through_no_link_that_stands_in_its_way() {
    let home = Home::new();
    let (source, outside) = (home.empty("source"), home.empty("outside"));
    symlink(&outside, source.join("name")).expect("a link");
    home.ok(&["put", text(&source), "/"]);
    let got = home.empty("got");
    home.ok(&["get", "/source", text(&got)]);
    home.ok(&["rm", "/source/name"]);
    let name = home.empty("name");
    fs::write(name.join("file"), b"from a member").expect("written");
    home.ok(&["put", text(&name), "/source"]);
    let again = home.run(&["get", "/source", text(&got)]);
    assert_eq!(fs::read_dir(&outside).expect("a directory").count(), 0, "{}", said(&again));
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    let words = ["got/source/name: ", "is not followed", "move it away", "what was got before"];
    assert!(words.iter().all(|word| said(&again).contains(word)), "{}", said(&again));
    // A link that the user names is another matter.
    fs::remove_file(got.join("source/name")).expect("moved away");
    let link = home.path().join("link");
    symlink(&got, &link).expect("a link");
    home.ok(&["get", "/", text(&link)]);
    assert_eq!(fs::read(got.join("source/name/file")).expect("readable"), b"from a member");
}

/// Whose files these are is not kept, so nothing may run as whoever they belong to.
#[test]
fn what_is_got_runs_as_nobody_else_and_is_never_open_to_more_than_its_mode() {
    let home = Home::new();
    let source = home.empty("source");
    fs::write(source.join("tool"), b"#!/bin/sh\n").expect("written");
    fs::create_dir(source.join("dir")).expect("made");
    let mode = |name: &str, mode| {
        fs::set_permissions(source.join(name), fs::Permissions::from_mode(mode)).expect("a chmod");
    };
    mode("tool", 0o6755);
    mode("dir", 0o3770);
    home.ok(&["put", text(&source), "/"]);
    let listed = home.ok(&["ls", "--json", "/source"]);
    assert!(listed.contains("6755") && listed.contains("3770"), "the volume keeps them: {listed}");
    let got = home.empty("got");
    home.ok(&["get", "/source", text(&got)]);
    let mode = |name: &str| fs::metadata(got.join("source").join(name)).expect("there").mode();
    assert_eq!((mode("tool") & 0o7777, mode("dir") & 0o7777), (0o755, 0o770));
}

/// What a terminal shows of a verb that succeeds or fails.
fn on_a_terminal(home: &Home, arguments: &str) -> Vec<u8> {
    let line = format!("{} {arguments}", text(&program()));
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).env("MICTLAN_HOME", home.path().join("home"));
    output(script.stdin(Stdio::null())).stdout
}

#[test]
fn a_terminal_gets_no_controls_out_of_names_and_a_program_gets_them_all() {
    let home = Home::new();
    let source = home.empty("source");
    let names = [&b"esc\x1b[31mred\nline"[..], b"\xff", b"\xfe"];
    for name in names {
        fs::write(source.join(OsStr::from_bytes(name)), b"x").expect("written");
    }
    symlink("to\x1b[2J", source.join("link")).expect("a link");
    home.ok(&["put", text(&source), "/"]);

    for verb in ["ls /source", "ls -l /source"] {
        let shown = on_a_terminal(&home, verb);
        assert!(!shown.contains(&0x1b), "{}", shown.escape_ascii());
        let shown = String::from_utf8(shown).expect("UTF-8");
        assert_eq!(shown.lines().count(), 4, "{shown}");
        for name in [r"'esc'$'\033''[31mred'$'\n''line'", r"''$'\377'", r"''$'\376'"] {
            assert!(shown.contains(name), "{verb}: {shown}");
        }
    }
    let missing = on_a_terminal(&home, "ls \"$(printf '/source/\\033[31m')\"");
    assert!(!missing.contains(&0x1b), "{}", missing.escape_ascii());
    let missing = String::from_utf8_lossy(&missing);
    assert!(missing.contains(r"/source/''$'\033''[31m': no such file"), "{missing}");

    // Nothing changes for who reads the bytes.
    let listed = home.run(&["ls", "/source"]).stdout;
    let long = home.run(&["ls", "-l", "/source"]).stdout;
    for name in names {
        let is_in = |bytes: &[u8]| bytes.windows(name.len()).any(|part| part == name);
        assert!(is_in(&listed) && is_in(&long), "{}", listed.escape_ascii());
    }
    let listed = home.ok(&["ls", "--json", "/source"]);
    let objects = listed.lines().map(|line| serde_json::from_str(line).expect("an object"));
    let mut hex: Vec<String> = objects
        .filter_map(|one: serde_json::Value| one["name_hex"].as_str().map(str::to_owned))
        .collect();
    hex.sort();
    assert_eq!(hex, ["fe", "ff"], "only names that are no text have it: {listed}");
}

fn noise(bytes: u32) -> Vec<u8> {
    (0..bytes).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn piped(command: &mut Command) -> Child {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the program starts")
}

/// The verb with `content` on its standard input.
fn fed(home: &Home, arguments: &[&str], content: &[u8]) -> Output {
    let file = home.path().join("input");
    fs::write(&file, content).expect("written");
    let mut verb = Command::new("cat").arg(&file).stdout(Stdio::piped()).spawn().expect("cat");
    let pipe = verb.stdout.take().expect("it was piped");
    let said = output(home.command(arguments).stdin(pipe));
    verb.wait().expect("cat ends");
    said
}

/// What a program said that ends by itself.
fn ended(child: Child) -> Output {
    wait_until("it ends", || !alive(child.id() as i32));
    child.wait_with_output().expect("a child that was started")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn what_is_put_from_a_pipe_comes_back_through_one() {
    let home = Home::new();
    for content in [noise(20 << 20), Vec::new()] {
        let put = fed(&home, &["put", "--json", "-", "/stream"], &content);
        assert!(put.status.success() && put.stderr.is_empty(), "{}", said(&put));
        let counted: serde_json::Value = serde_json::from_slice(&put.stdout).expect("one object");
        assert_eq!((&counted["files"], &counted["bytes"]), (&1.into(), &content.len().into()));
        let got = home.run(&["get", "/stream", "-"]);
        assert!(got.status.success() && got.stderr.is_empty(), "{}", said(&got));
        assert!(got.stdout == content, "{} bytes, not {}", got.stdout.len(), content.len());
    }
    assert_eq!(home.ok(&["ls", "/"]), "stream\n");
}

#[test]
fn an_interrupted_put_from_a_pipe_leaves_what_had_the_name() {
    let home = Home::new();
    assert!(fed(&home, &["put", "-", "/name"], b"before").status.success());
    for how in [libc::SIGINT, libc::SIGTERM] {
        let mut put = piped(&mut home.command(&["put", "-", "/name"]));
        // More than all that may wait between the pipe and the volume.
        let mut input = put.stdin.take().expect("it was piped");
        input.write_all(&noise(8 << 20)).expect("it is read");
        signal(put.id() as i32, how);
        let ended = ended(put);
        drop(input); // it ended though more could have come
        assert_eq!(ended.status.code(), Some(130), "{}", said(&ended));
        let words = "interrupted; nothing was put, and what had the name is as it was";
        assert!(said(&ended).contains(words), "{}", said(&ended));
    }
    assert_eq!(home.run(&["get", "/name", "-"]).stdout, b"before");
    assert_eq!(home.ok(&["ls", "/"]), "name\n");
}

#[test]
fn a_reader_that_has_enough_ends_a_get_without_a_word() {
    let home = Home::new();
    assert!(fed(&home, &["put", "-", "/large"], &noise(20 << 20)).status.success());
    let mut get = piped(&mut home.command(&["get", "/large", "-"]));
    let mut first = [0; 10];
    let mut out = get.stdout.take().expect("it was piped");
    out.read_exact(&mut first).expect("the first bytes");
    drop(out);
    let ended = ended(get);
    assert_eq!(ended.status.code(), Some(141), "as of whom SIGPIPE ends: {}", said(&ended));
    assert!(first == noise(10)[..] && ended.stderr.is_empty(), "{}", said(&ended));
}

#[test]
fn a_pipe_in_the_wrong_place_is_refused_before_a_byte_moves() {
    let home = Home::new();
    assert!(fed(&home, &["put", "-", "/name"], b"x").status.success());
    for (arguments, part) in [
        (&["put", "-", "/"][..], "mictlan put - /NAME"),
        (&["put", "-", "-", "/name"], "is put alone"),
        (&["get", "/", "-"], "is a directory"),
        (&["get", "/name", "/name", "-"], "one file"),
        (&["get", "--json", "/name", "-"], "--json has no place"),
    ] {
        let refused = fed(&home, arguments, b"y");
        assert_eq!(refused.status.code(), Some(2), "{arguments:?}: {}", said(&refused));
        assert!(said(&refused).contains(part), "{arguments:?}: {}", said(&refused));
        assert!(refused.stdout.is_empty());
    }
    assert_eq!(home.run(&["get", "/name", "-"]).stdout, b"x");
}

#[test]
fn what_is_no_file_is_written_to_and_never_replaced() {
    let home = Home::new();
    assert!(fed(&home, &["put", "-", "/name"], b"bytes").status.success());
    let at = |name: &str| home.path().join(name).display().to_string();
    fs::create_dir(at("dir")).expect("made");
    let made = Command::new("mkfifo").args([at("pipe"), at("dir/name")]).status();
    assert!(made.is_ok_and(|made| made.success()));
    symlink("/dev/full", at("full")).expect("linked");
    let reader = std::thread::spawn({
        let pipe = at("pipe");
        move || fs::read(pipe)
    });
    let got = home.run(&["get", "/name", &at("pipe")]);
    assert!(got.status.success() && got.stdout.starts_with(b"got 1 file"), "{}", said(&got));
    assert_eq!(reader.join().expect("no panic").expect("read"), b"bytes");
    let got = home.run(&["get", "/name", "/dev/stdout"]);
    assert!(got.status.success() && got.stdout == b"bytes", "{}", said(&got));
    // A link to a device leads to the device, which has no room.
    let full = home.run(&["get", "/name", &at("full")]);
    assert!(said(&full).contains("DEST does not have all of it"), "{}", said(&full));
    let kept = home.run(&["get", "/name", &at("dir")]);
    assert!(said(&kept).contains("stays; move it away"), "{}", said(&kept));
    let kind = |name: &str| fs::symlink_metadata(at(name)).expect("there").file_type();
    assert!(kind("full").is_symlink() && kind("pipe").is_fifo() && kind("dir/name").is_fifo());
    assert_eq!(fs::read_dir(at("dir")).expect("listed").count(), 1, "nothing is left beside it");
}

#[test]
fn holes_are_neither_put_nor_got_as_bytes() {
    let home = Home::new();
    let (from, back) = (home.path().join("from"), home.path().join("back"));
    let (len, at) = (3 << 30, 1_234_567_890);
    let sparse = fs::File::create(&from).expect("made");
    sparse.write_all_at(b"in the middle", at).expect("written");
    sparse.set_len(len).expect("it ends in a hole");
    home.ok(&["put", text(&from), "/sparse"]);
    home.ok(&["get", "/sparse", text(&back)]);
    let got = fs::File::open(&back).expect("there");
    let meta = got.metadata().expect("known");
    assert_eq!(meta.len(), len);
    assert!(meta.blocks() < 1 << 10, "{} blocks of 512 bytes", meta.blocks());
    let mut around = [1; 33];
    got.read_exact_at(&mut around, at - 10).expect("read");
    let middle = [&[0; 10][..], &b"in the middle"[..], &[0; 10][..]].concat();
    assert_eq!(around[..], middle[..]);
    let mut last = [1];
    got.read_exact_at(&mut last, len - 1).expect("read");
    assert_eq!(last, [0]);
}
