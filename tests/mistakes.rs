//! What mistakes at the verbs get, and what `status` says of a network: an error that says what happened, why, and what to type; its exit code;
//! and nothing lost.

use mictlan_tests::disk::needs_root;
use mictlan_tests::harness::{Home, alive, output, wait_until};
use mictlan_tests::three::{Three, addresses, files};
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// The verb fails with `code`, and says all of `parts`.
fn refused(home: &Home, arguments: &[&str], code: i32, parts: &[&str]) {
    let output = home.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
    }
}

#[test]
fn unknown_networks_volumes_and_paths_are_said() {
    let home = Home::new();
    refused(&home, &["ls", "other:main:/"], 3, &["no network \"other\"", "there are"]);
    home.ok(&["init"]);
    refused(&home, &["ls", "photos:/"], 7, &["no volume \"photos\"", "there are: main"]);
    let nothing = ["/nothing: no such file or directory", "nothing was changed", "mictlan ls /"];
    refused(&home, &["ls", "/nothing"], 10, &nothing);
    refused(&home, &["get", "main:/a/b", "x"], 10, &["/a/b: no such file", "mictlan ls /a/"]);
    refused(&home, &["ls", "/ledger/x"], 2, &["reserved"]);
    for name in ["ledger", ".at"] {
        let source = home.path().join(name);
        fs::create_dir(&source).expect("made");
        let says = [format!("/{name}: this name is reserved")];
        refused(&home, &["put", text(&source), "/"], 2, &[&says[0]]);
        refused(&home, &["put", text(&source), &format!("/{name}")], 2, &[&says[0]]);
    }
    refused(&home, &["rm", "/"], 2, &["the root of a volume stays"]);
    let file = home.path().join("missing");
    let next =
        format!("nothing was put; what is put is a file or directory of this machine: ls {}", {
            home.path().display()
        });
    refused(&home, &["put", text(&file), "/"], 1, &["missing: No such file", &next]);
    fs::write(&file, b"there now").expect("written");
    refused(&home, &["put", text(&file), "/no/"], 10, &["/no: no such file or directory"]);
    home.ok(&["put", text(&file), "/no"]);
    refused(&home, &["put", text(&file), "/no/"], 10, &["/no: not a directory"]);
    refused(&home, &["init"], 1, &["configured already", "mictlan init NAME"]);
}

#[test]
fn a_network_that_no_configuration_names_is_never_removed() {
    let home = Home::new();
    let file = home.path().join("file");
    fs::write(&file, b"the only copy").expect("written");
    home.ok(&["put", text(&file), "/file"]);
    let config = home.path().join("home/config/config.toml");
    let kept = home.path().join("config.kept");
    fs::copy(&config, &kept).expect("copied");
    fs::remove_file(&config).expect("removed");
    refused(&home, &["init"], 3, &["the only copy", "nothing was changed"]);
    refused(&home, &["ls"], 3, &["the only copy"]);
    fs::copy(&kept, &config).expect("copied back");
    let out = home.path().join("out");
    home.ok(&["get", "/file", text(&out)]);
    assert_eq!(fs::read(&out).expect("readable"), b"the only copy");
}

#[test]
fn slips_at_mount_and_umount_say_what_was_meant() {
    let home = Home::new();
    refused(&home, &["moutn", "x"], 2, &["'mount'"]);
    refused(&home, &["mount", "--foregroud", "x"], 2, &["--foreground"]);
    refused(&home, &["mount", "home:main"], 2, &["mictlan mount home:main DIR"]);
    refused(&home, &["mount", "-o", "remount,ro", "x"], 6, &["is no mount", "mictlan status"]);
    let file = home.path().join("file");
    fs::write(&file, b"x").expect("written");
    refused(&home, &["mount", text(&file)], 6, &["is not a directory"]);
    let missing = home.path().join("missing");
    refused(&home, &["mount", text(&missing)], 6, &["no such directory", "mkdir -p"]);
    refused(&home, &["umount", text(home.path())], 6, &["is no mount", "mictlan status"]);
    let dir = home.mount("mnt");
    let held = fs::File::create(dir.join("held")).expect("a new file");
    refused(&home, &["umount", text(&dir)], 6, &["is in use", "umount --lazy"]);
    drop(held);
    // The kernel tells of a closed file a moment later.
    wait_until("it can be unmounted", || home.run(&["umount", text(&dir)]).status.success());
}

#[test]
fn a_reader_that_has_enough_is_no_error_of_the_program() {
    let home = Home::new();
    home.ok(&["init"]);
    for arguments in [
        &["status"][..],
        &["status", "--json"],
        &["peer", "ls"],
        &["key", "ls"],
        &["completions", "bash"],
        &["man"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = home.command(arguments);
        let child = command.stdout(writer).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(command); // the last copy of the pipe here
        wait_until("it ends", || !alive(child.id() as i32));
        let ended = child.wait_with_output().expect("a child that was started");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!((ended.status.code(), &*said), (Some(141), ""), "{arguments:?}");
    }
}

#[test]
fn an_answer_that_cannot_be_printed_is_said_and_is_no_panic() {
    let home = Home::new();
    home.ok(&["init", "--listen", &addresses(1)[0]]);
    home.start(&["serve"], "serving");
    for (arguments, says) in [
        (&["status"][..], "it is done, and its answer was not printed: No space left"),
        (&["df", "--json"], "not printed: No space left"),
        (&["completions", "zsh"], "not printed: No space left"),
        (&["man"], "not printed: No space left"),
        (&["invite"], "nobody has it, so nobody can use it"),
        (&["invite", "--json"], "make another: mictlan invite"),
    ] {
        let full = fs::File::options().write(true).open("/dev/full").expect("a device");
        let ended = home.command(arguments).stdout(full).output().expect("it starts");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains(says) && !said.contains("panic"), "{arguments:?}: {said}");
    }
}

#[test]
fn of_two_mounts_on_one_directory_in_one_moment_one_is_refused() {
    let home = Home::new();
    home.ok(&["init"]);
    home.start(&["serve", "--listen", &addresses(1)[0]], "serving");
    let dir = home.adopt(home.empty("mnt"));
    let start = || {
        let mut mount = home.command(&["mount", text(&dir)]);
        mount.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
    };
    let both = [start(), start()].map(|child| child.wait_with_output().expect("it ends"));
    let mut codes = both.each_ref().map(|ended| ended.status.code());
    codes.sort();
    let said: String = both.iter().map(|ended| String::from_utf8_lossy(&ended.stderr)).collect();
    assert_eq!(codes, [Some(0), Some(6)], "{said}");
    assert!(said.contains("has a mount that works already"), "{said}");
    let table = fs::read_to_string("/proc/self/mountinfo").expect("readable");
    let here = table.lines().filter(|line| line.split(' ').nth(4) == Some(text(&dir)));
    assert_eq!(here.count(), 1, "{table}");
    fs::write(dir.join("file"), b"content").expect("the one that is left works");
    home.unmount(&dir);
    assert_eq!(home.ok(&["get", "/file", "-"]), "content");
}

#[test]
fn a_mount_in_the_background_is_found_by_its_name_and_says_nothing_of_a_poll() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let name = fs::read_to_string(format!("/proc/{}/comm", home.daemon_of(&dir)));
    assert_eq!(name.expect("readable"), "mictlan\n");
    let file = fs::File::create(dir.join("file")).expect("created");
    let mut asked = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one place, which lives as long as the call takes.
    let ready = unsafe { libc::poll(&raw mut asked, 1, -1) };
    assert_eq!((ready, asked.revents), (1, libc::POLLOUT));
    let tmpfile = fs::File::options().write(true).custom_flags(libc::O_TMPFILE).open(&dir);
    assert_eq!(tmpfile.expect_err("none").raw_os_error(), Some(libc::EOPNOTSUPP));
    drop(file);
    home.unmount(&dir);
    assert!(!home.log().contains("poll"), "{}", home.log());
}

#[test]
fn an_orderly_unmount_warns_of_nothing() {
    let home = Home::new();
    let dir = home.mount("mnt");
    home.unmount(&dir);
    assert!(!home.log().contains("umount filesystem"), "{}", home.log());
}

#[test]
fn a_passphrase_without_a_terminal_is_said() {
    let home = Home::new();
    let new = home.command(&["key", "new", "alice", "--passphrase"]);
    // Without a terminal of its own it would ask on the one that the tests run on.
    let arguments: Vec<_> = new.get_args().map(|argument| argument.to_owned()).collect();
    let mut alone = Command::new("setsid");
    alone.arg("--wait").arg(new.get_program()).args(arguments).stdin(Stdio::null());
    alone.envs(new.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = output(&mut alone);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(4), "{said}");
    assert!(said.contains("passphrase, which is typed on a terminal; there is none"), "{said}");
    assert_eq!(home.ok(&["key", "ls"]), "", "no key was made");
}

#[test]
fn a_key_that_is_missing_or_open_to_others_is_said() {
    let home = Home::new();
    home.ok(&["init"]);
    refused(
        &home,
        &["ls", "--key", "nobody"],
        4,
        &["there is no key", "nobody", "mictlan key new"],
    );
    let key = home.path().join("home/config/keys/default");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("a chmod");
    refused(&home, &["ls"], 4, &["can be read by others", "chmod 600"]);
}

#[test]
fn status_says_what_works_and_what_to_type_next() {
    let home = Home::new();
    refused(&home, &["status"], 3, &["mictlan init", "mictlan join CODE"]);
    home.ok(&["init"]);
    let said = home.ok(&["status"]);
    for part in ["home: works", "1 of 1 answer", "[few-peers]", "next: mictlan serve --listen"] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    assert!(home.ok(&["peer", "ls", "--json"]).contains("\"answers\": true"));
    assert!(home.ok(&["df"]).contains("each byte kept 1 times"));
    let dir = home.mount("mnt");
    let said = home.ok(&["status", text(&dir)]);
    for part in ["home: works", "1 of 1 answer", "home:main on "] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
    fs::write(dir.join("file"), b"in the journal").expect("written");
    home.kill_daemon(&dir);
    let output = home.run(&["status"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("[journal-waits]"), "{said}");
    assert_eq!(output.status.code(), Some(12), "{said}");
}

#[test]
fn a_mount_that_nobody_wrote_to_leaves_nothing_that_waits() {
    needs_root("a /dev/fuse that is none");
    let home = Home::new();
    let dir = home.mount("mnt");
    home.kill_daemon(&dir);
    home.forget(&dir);
    let said = home.ok(&["status"]);
    assert!(said.contains("home: works") && !said.contains("journal-waits"), "{said}");
    // The next one takes the place of the first, and the kernel refuses it.
    let mount = home.command(&["mount", text(&dir)]);
    let mut refused = Command::new("unshare");
    let script = "mount --bind /dev/null /dev/fuse && exec \"$@\"";
    refused.args(["--mount", "--propagation", "private", "sh", "-ec", script, "sh"]);
    refused.arg(mount.get_program()).args(mount.get_args()).stdin(Stdio::null());
    refused.envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let ended = output(&mut refused);
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(6), "{said}");
    assert!(said.contains("the kernel refused the mount"), "{said}");
    let left = files(&home.path().join("home/state/journals"));
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(home.run(&["status"]).status.code(), Some(0));
}

#[test]
fn what_is_said_of_a_network_inside_a_mount_makes_it_one_that_others_can_join() {
    let home = Home::new();
    let dir = home.mount("mnt");
    fs::write(dir.join("kept"), b"kept").expect("written");
    let address = addresses(1).remove(0);
    let (before, after) =
        (format!("mictlan umount {}", text(&dir)), format!("mictlan mount {}", text(&dir)));
    let parts = [&before, "mictlan serve --listen ADDRESS:4510 &", &after];
    refused(&home, &["invite"], 2, &parts);
    refused(&home, &["serve", "--listen", &address], 8, &parts);
    let said = home.ok(&["status"]);
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    // As it says.
    home.unmount(&dir);
    home.start(&["serve", "--listen", &address], "serving");
    home.mount("mnt");
    assert_eq!(fs::read(dir.join("kept")).expect("readable"), b"kept");
    let said = home.ok(&["status"]);
    let next = "next: mictlan invite, and on another machine: mictlan join CODE --listen";
    assert!(said.contains(next), "{said}");
    let (code, second, listen) = (home.ok(&["invite"]), Home::new(), addresses(1).remove(0));
    second.ok(&["join", code.trim(), "--listen", &listen, "--name", "second"]);
    second.start(&["serve"], "voting in");
}

#[test]
fn a_machine_that_is_only_a_peer_says_so_and_checks_the_ledger() {
    let three = Three::start();
    let peer = &three.peers[1].home;
    let file = peer.path().join("file");
    fs::write(&file, b"x").expect("written");
    for arguments in [
        &["ls", "/"][..],
        &["put", text(&file), "/"],
        &["ledger", "append", "--topic", "t", "1"],
        &["verify", "--replay"],
        &["member", "ls"],
        &["invite"],
    ] {
        let words = ["is a peer of net", "the only key here is the peer's", "join CODE --name"];
        refused(peer, arguments, 4, &words);
    }
    assert!(peer.ok(&["ledger", "verify"]).starts_with("good: "));
    assert!(peer.ok(&["verify"]).starts_with("good: "));
    let list = peer.run(&["peer", "ls", "--json"]).stdout;
    let list: serde_json::Value = serde_json::from_slice(&list).expect("JSON");
    assert_eq!(list.as_array().map(Vec::len), Some(3), "{list}");
    // What it says to type.
    let code = three.invite(&["--role", "writer"]);
    peer.ok(&["join", &code, "--name", "eve"]);
    peer.ok(&["put", text(&file), "/"]);
    assert_eq!(peer.ok(&["ls", "/"]), "file\n");
}

#[test]
fn status_lists_the_mounts_of_this_network_and_of_no_other_of_its_name() {
    let (home, other) = (Home::new(), Home::new());
    let (ours, theirs) = (home.mount("with space"), other.mount("mnt"));
    let said = home.ok(&["status"]);
    assert!(said.contains(text(&ours)) && !said.contains(text(&theirs)), "{said}");
    let said = other.ok(&["status"]);
    assert!(said.contains(text(&theirs)) && !said.contains(text(&ours)), "{said}");
    other.kill_daemon(&theirs);
    let said = String::from_utf8(other.run(&["status"]).stdout).expect("UTF-8");
    assert!(said.contains(text(&theirs)), "a dead mount is one still: {said}");
}

#[test]
fn status_of_a_network_whose_peers_are_silent_says_so_soon() {
    let home = Home::new();
    home.ok(&["init", "--listen", "127.0.0.1:1"]);
    let output = home.run(&["status"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{said}");
    for part in ["[no-quorum]", "nothing acknowledged is lost", "[peer-silent]", "mictlan serve"] {
        assert!(said.contains(part), "no {part:?}: {said}");
    }
}

#[test]
fn volumes_keys_and_members_are_made_and_listed() {
    let home = Home::new();
    home.ok(&["init"]);
    home.ok(&["volume", "make", "photos", "--replicas", "1"]);
    refused(&home, &["volume", "make", "photos"], 2, &["already", "nothing was made"]);
    assert!(home.ok(&["volume", "ls"]).contains("photos"));
    refused(&home, &["volume", "set", "photos"], 2, &["--replicas or --compress"]);
    refused(
        &home,
        &["volume", "set", "films", "--replicas", "2"],
        2,
        &["no volume films", "photos"],
    );
    refused(&home, &["volume", "set", "photos", "--replicas", "17"], 2, &["1 to 16"]);
    home.ok(&["volume", "set", "photos", "--compress", "off"]);
    assert!(home.ok(&["volume", "ls"]).contains("1 copies, not compressed"));
    let file = home.path().join("file");
    fs::write(&file, b"x").expect("written");
    home.ok(&["put", text(&file), "photos:/"]);
    assert_eq!(home.ok(&["ls", "photos:/"]), "file\n");
    home.ok(&["key", "new", "alice"]);
    refused(&home, &["key", "new", "alice"], 4, &["never overwritten"]);
    assert!(home.ok(&["key", "ls"]).contains("alice"));
    assert!(home.ok(&["member", "ls", "--volume", "photos"]).contains("default"));
    refused(&home, &["member", "add", "bob"], 2, &["bob", "nothing was changed", "mictlan invite"]);
}

/// The secret of an invite in an argument is seen by every user of the machine.
#[test]
fn a_code_that_is_no_argument_is_read_from_standard_input() {
    let (home, address) = (Home::new(), addresses(1).remove(0));
    home.ok(&["init", "--listen", &address]);
    home.start(&["serve"], "voting in");
    let said = home.path().join("code");
    for (name, arguments) in [("bob", &["join"][..]), ("carol", &["join", "-"])] {
        let user = Home::new();
        let join = || user.command(&[arguments, &["--name", name]].concat());
        fs::write(&said, "\n").expect("written");
        let empty = output(join().stdin(File::open(&said).expect("it is there")));
        let why = String::from_utf8_lossy(&empty.stderr);
        assert_eq!(empty.status.code(), Some(2), "{why}");
        assert!(why.contains("no code of an invite could be read: the line is empty"), "{why}");
        fs::write(&said, home.ok(&["invite", "--role", "writer"])).expect("written");
        let joined = output(join().stdin(File::open(&said).expect("it is there")));
        assert!(joined.status.success(), "{joined:?}");
        assert_eq!(user.ok(&["ls", "/"]), "");
    }
}

#[test]
fn a_peer_inside_a_mount_listens_where_an_invite_says_so() {
    let home = Home::new();
    let bob = Home::new();
    let dir = home.mount("mnt");
    let daemon = home.daemon_of(&dir);
    fs::write(dir.join("kept"), b"kept").expect("written");
    refused(&home, &["invite", "--listen", "0.0.0.0:4510"], 2, &["nothing was changed"]);
    refused(&home, &["invite", "--listen", "192.0.2.1:4510"], 8, &["192.0.2.1:4510"]);
    refused(&home, &["invite"], 2, &["mictlan invite --listen ADDRESS:4510", "mictlan serve"]);
    let address = addresses(1).remove(0);
    let code = home.ok(&["invite", "--role", "writer", "--listen", &address]);
    bob.ok(&["join", code.trim(), "--name", "bob"]);
    let there = bob.mount("mnt");
    assert_eq!(fs::read(there.join("kept")).expect("readable"), b"kept");
    fs::write(there.join("from-bob"), b"hello").expect("written");
    assert_eq!(fs::read(dir.join("from-bob")).expect("readable"), b"hello");
    assert_eq!(home.daemon_of(&dir), daemon, "it is the mount that was there before");
    bob.unmount(&there);
    home.unmount(&dir);
    // It is remembered.
    let dir = home.mount("mnt");
    let code = home.ok(&["invite", "--role", "reader"]);
    let carol = Home::new();
    carol.ok(&["join", code.trim(), "--name", "carol"]);
    assert_eq!(carol.ok(&["get", "/from-bob", "-"]), "hello");
    let parts =
        ["mictlan serve --listen ADDRESS:4510 &", &format!("mictlan umount {}", text(&dir))];
    refused(&home, &["serve", "--listen", &address], 8, &parts);
}

#[test]
fn what_begins_and_ends_says_so_in_json_too() {
    let json = |said: &str| -> serde_json::Value {
        assert_eq!(said.lines().count(), 1, "one line: {said}");
        serde_json::from_str(said).unwrap_or_else(|why| panic!("{why}: {said}"))
    };
    let home = Home::new();
    let made = json(&home.ok(&["init", "--json"]));
    assert_eq!((&made["network"], &made["key"]), (&"home".into(), &"default".into()));
    let address = addresses(1).remove(0);
    let line = format!("{{\"address\":\"{address}\",\"does\":\"serves\",\"id\":{}", made["id"]);
    home.start(&["serve", "--json", "--listen", &address], &line);
    let invited = json(&home.ok(&["invite", "--role", "writer", "--json"]));
    let bob = Home::new();
    let code = invited["code"].as_str().expect("a code");
    let joined = json(&bob.ok(&["join", code, "--name", "bob", "--json"]));
    assert_eq!((&joined["id"], &joined["role"]), (&made["id"], &"writer".into()));
    let dir = home.adopt(home.empty("mnt"));
    let mounted = json(&home.ok(&["mount", "--json", text(&dir)]));
    assert_eq!((&mounted["network"], &mounted["volume"]), (&"home".into(), &"main".into()));
    assert_eq!(mounted["dir"], text(&dir));
    assert_eq!(mounted["pid"], home.daemon_of(&dir));
    assert_eq!(json(&home.ok(&["umount", "--json", text(&dir)]))["dir"], text(&dir));
}

#[test]
fn a_join_that_is_refused_leaves_nothing_and_says_what_to_type() {
    let home = Home::new();
    home.ok(&["init"]);
    home.start(&["serve", "--listen", &addresses(1)[0]], "serving");
    let (first, second) = (Home::new(), Home::new());
    let keys = |home: &Home| {
        let there = fs::read_dir(home.path().join("home/config/keys"));
        there.into_iter().flatten().count()
    };
    let code = home.ok(&["invite"]).trim().to_owned();
    refused(&first, &["join", &code], 2, &["nothing was sent", "--listen ADDRESS:4510"]);
    assert_eq!(keys(&first), 0);
    // Two machines of one name.
    first.ok(&["join", &code, "--listen", "127.0.0.1:4510"]);
    let code = home.ok(&["invite"]).trim().to_owned();
    let join = ["join", &code, "--listen", "127.0.0.1:4511"];
    refused(&second, &join, 9, &["is taken", "the code is still good", "--name NAME"]);
    assert_eq!(keys(&second), 0, "no key of that name stays");
    second.ok(&[&join[..], &["--name", "second"]].concat());
    assert_eq!(keys(&second), 2);
    // A person with a key of his own.
    let (bob, code) = (Home::new(), home.ok(&["invite", "--role", "writer"]));
    refused(&bob, &["join", code.trim(), "--key", "mine"], 4, &["there is no key", "mine"]);
    bob.ok(&["key", "new", "mine"]);
    bob.ok(&["key", "new", "other"]);
    let said = bob.ok(&["join", code.trim(), "--name", "bob", "--key", "mine"]);
    assert!(said.contains("mictlan mount"), "{said}");
    assert_eq!(keys(&bob), 4, "no key was made");
    assert_eq!(bob.ok(&["ls", "--key", "mine", "/"]), "");
}

#[test]
fn the_manual_page_is_the_one_of_these_verbs() {
    let home = Home::new();
    let packaged = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/mictlan.1"));
    let packaged = fs::read_to_string(packaged).expect("the page");
    let advice = "it is old; run: mictlan man > packaging/mictlan.1";
    assert!(home.ok(&["man"]) == packaged, "{advice}");
    assert!(packaged.contains(".SH EXIT STATUS"));
}
