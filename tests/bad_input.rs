//! What a person can get wrong: each mistake ends with a sentence that says what to do, and an exit
//! code of its kind, and changes nothing.

use mictlan::id::TimeMs;
use mictlan_daemon::identity::invite::Invite;
use mictlan_tests::disk::{Disk, needs_root};
use mictlan_tests::harness::{DEADLINE, Home, output, program};
use mictlan_tests::three::{addresses, files};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Runs a verb that must fail with `code`, and whose words have each of `words`.
fn refused(home: &Home, arguments: &[&str], code: i32, words: &[&str]) {
    let output = home.run(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "mictlan {}: {said}", arguments.join(" "));
    for word in words {
        assert!(
            said.contains(word),
            "mictlan {} does not say {word:?}: {said}",
            arguments.join(" ")
        );
    }
    assert!(!said.contains("panicked"), "{said}");
}

fn store(home: &Home) -> PathBuf {
    home.path().join("home/data/networks/home/store")
}

/// A home with a network and a volume, and nothing that runs.
fn founded() -> Home {
    let home = Home::new();
    home.ok(&["init"]);
    home
}

#[test]
fn a_directory_that_does_not_exist_is_named() {
    let home = founded();
    let dir = home.path().join("nowhere");
    refused(&home, &["mount", text(&dir)], 6, &["nowhere: no such directory", "mkdir -p"]);
}

#[test]
fn a_directory_that_is_no_directory_is_refused() {
    let home = founded();
    let file = home.path().join("file");
    fs::write(&file, b"").expect("written");
    refused(&home, &["mount", text(&file)], 6, &["is not a directory"]);
}

#[test]
fn a_directory_with_files_in_it_is_refused() {
    let home = founded();
    let dir = home.empty("full");
    fs::write(dir.join("mine"), b"mine").expect("written");
    refused(&home, &["mount", text(&dir)], 6, &["empty"]);
    assert_eq!(fs::read(dir.join("mine")).expect("still there"), b"mine");
}

#[test]
fn a_directory_that_is_mounted_already_is_refused() {
    let home = founded();
    let dir = home.mount("mnt");
    fs::write(dir.join("file"), b"content").expect("written");
    refused(&home, &["mount", text(&dir)], 6, &["works already", "mictlan umount"]);
    assert_eq!(fs::read(dir.join("file")).expect("the first one goes on"), b"content");
}

#[test]
fn an_unknown_option_gets_the_nearest_one() {
    let home = founded();
    let dir = home.empty("mnt");
    refused(&home, &["mount", "-o", "memroy=1G", text(&dir)], 2, &["memroy", "\"memory\""]);
    refused(&home, &["mount", "-o", "deadline=soon", text(&dir)], 2, &["deadline", "seconds"]);
}

#[test]
fn an_unknown_network_or_volume_or_key_is_named() {
    let home = founded();
    let dir = home.empty("mnt");
    refused(&home, &["mount", "office", text(&dir)], 3, &["office", "home"]);
    refused(&home, &["mount", "home:films", text(&dir)], 7, &["films"]);
    refused(&home, &["mount", "-o", "key=bob", text(&dir)], 4, &["bob"]);
    refused(&home, &["mount", "-o", "key=Not a name", text(&dir)], 2, &["key"]);
}

#[test]
fn the_key_of_somebody_else_opens_nothing() {
    let (home, other) = (founded(), founded());
    let key = |home: &Home| home.path().join("home/config/keys/default");
    for end in ["", ".pub"] {
        let from = format!("{}{end}", text(&key(&other)));
        fs::copy(from, format!("{}{end}", text(&key(&home)))).expect("copied");
    }
    let dir = home.empty("mnt");
    let words = ["this key may not do that here", "ask an owner of the network for an invite"];
    refused(&home, &["mount", text(&dir)], 5, &words);
    refused(&home, &["ls", "/"], 5, &words);
    let status = home.run(&["status"]);
    let said = String::from_utf8_lossy(&status.stdout);
    assert_eq!(status.status.code(), Some(5), "{said}");
    for word in ["[key-refused]", "key default", "mictlan join CODE", "mictlan key ls"] {
        assert!(said.contains(word), "no {word:?}: {said}");
    }
    assert!(!said.contains("no-quorum") && !said.contains("peer-silent"), "{said}");
    assert_eq!(fs::read_dir(&dir).expect("no mount").count(), 0);
}

#[test]
fn a_damaged_key_file_is_refused() {
    let home = founded();
    let key = home.path().join("home/config/keys/default");
    let dir = home.empty("mnt");
    let good = fs::read(&key).expect("a key");
    fs::write(&key, &good[..good.len() / 2]).expect("written");
    refused(&home, &["mount", text(&dir)], 4, &["default is not a key file"]);
}

#[test]
fn a_wrong_passphrase_is_said_and_the_right_one_opens() {
    let home = founded();
    let dir = home.empty("mnt");
    // As a person types it: on a terminal of its own, which `script` makes.
    let typed = |arguments: &str, words: &str| {
        let line = format!("{} {arguments}", text(&program()));
        let input = home.path().join("typed");
        fs::write(&input, words).expect("written");
        let mut script = Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("MICTLAN_HOME", home.path().join("home"));
        let done = output(script.stdin(fs::File::open(input).expect("it is there")));
        (done.status.code(), String::from_utf8_lossy(&done.stdout).into_owned())
    };
    let (code, said) = typed("key new careful --passphrase", "right\nright\n");
    assert_eq!(code, Some(0), "{said}");
    let config = home.path().join("home/config/config.toml");
    let before = fs::read_to_string(&config).expect("a configuration");
    let careful = before.replace("key = \"default\"", "key = \"careful\"");
    assert_ne!(before, careful);
    fs::write(&config, careful).expect("written");
    for verb in [format!("mount {}", text(&dir)), "status".to_owned(), "ls /".to_owned()] {
        let (code, said) = typed(&verb, "wrong\n");
        assert_eq!(code, Some(4), "{verb}: {said}");
        assert!(
            said.contains("wrong passphrase for ") && said.contains("careful"),
            "{verb}: {said}"
        );
    }
    // Without a terminal nobody can be asked.
    let mut alone = Command::new("setsid");
    alone.arg("--wait").arg(program()).args(["ls", "/"]);
    let done = output(alone.env("MICTLAN_HOME", home.path().join("home")).stdin(Stdio::null()));
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(4), "{said}");
    assert!(said.contains("careful") && said.contains("typed on a terminal"), "{said}");
    // It opens, and is the key of somebody whom nobody let in.
    let (code, said) = typed("ls /", "right\n");
    assert_eq!(code, Some(5), "{said}");
    assert!(said.contains("this key may not do that here"), "{said}");
    assert_eq!(fs::read_dir(&dir).expect("no mount").count(), 0);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_with_what_to_do() {
    needs_root("a disk that cannot be written");
    let home = Home::new();
    let config = home.path().join("home/config");
    let _disk = Disk::read_only(&config);
    for verb in [&["init"][..], &["key", "new", "bob"], &["ls", "/"]] {
        let output = home.run(verb);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{verb:?}: {said}");
        for word in [text(&config), "this user may not write there", "MICTLAN_HOME=DIR"] {
            assert!(said.contains(word), "{verb:?} does not say {word:?}: {said}");
        }
    }
}

#[test]
fn a_store_of_another_network_is_refused_and_not_changed() {
    let (home, other) = (founded(), founded());
    let id = fs::read(store(&other).join("store.id")).expect("an identity");
    fs::write(store(&home).join("store.id"), &id).expect("written");
    let dir = home.empty("mnt");
    refused(&home, &["mount", text(&dir)], 8, &["network", "name another directory"]);
    assert_eq!(fs::read(store(&home).join("store.id")).expect("there"), id);
}

#[test]
fn a_store_of_a_newer_format_asks_for_a_newer_program() {
    let home = founded();
    fs::write(store(&home).join("store.id"), "mictlan store\nformat 99\nmore\n").expect("written");
    let dir = home.empty("mnt");
    refused(&home, &["mount", text(&dir)], 8, &["99", "newer mictlan"]);
}

#[test]
fn a_port_in_use_is_named() {
    let home = founded();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one").to_string();
    refused(
        &home,
        &["serve", "--listen", &address],
        8,
        &[&address, "another program has this", "--listen"],
    );
}

#[test]
fn a_second_daemon_on_the_same_store_is_refused() {
    let home = founded();
    home.start(&["serve", "--listen", "127.0.0.1:0"], "serving");
    refused(
        &home,
        &["serve", "--listen", "127.0.0.1:0"],
        8,
        &["store is in use by another mictlan (process ", "stop it first"],
    );
}

#[test]
fn an_invite_that_is_no_code_is_refused() {
    let home = Home::new();
    for code in ["", "hello", "mictlan-invite-1-AAAA", "ß"] {
        refused(
            &home,
            &["join", code],
            9,
            &["this is not an invite code; it begins with `mictlan1`"],
        );
    }
}

#[test]
fn an_invite_is_good_once() {
    let home = founded();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one");
    home.start(&["serve", "--listen", &port.to_string()], "serving");
    let code = home.ok(&["invite", "--role", "reader"]);
    let first = Home::new();
    first.ok(&["join", code.trim(), "--name", "bob"]);
    let second = Home::new();
    refused(
        &second,
        &["join", code.trim(), "--name", "eve"],
        9,
        &["the invite was used; ask for another"],
    );
}

#[test]
fn strangers_that_say_nothing_or_rubbish_keep_no_member_out_and_are_cut_off() {
    let home = founded();
    let address = addresses(1).remove(0);
    home.start(&["serve", "--listen", &address], "serving");
    let code = home.ok(&["invite", "--role", "reader"]);
    let bob = Home::new();
    bob.ok(&["join", code.trim(), "--name", "bob"]);
    // More than may wait at a time; some begin a handshake and stop, some never begin.
    let mut crowd: Vec<TcpStream> =
        (0..200).map(|_| TcpStream::connect(&address).expect("it listens")).collect();
    for stream in crowd.iter_mut().step_by(2) {
        // The first bytes of a TLS record, and of nothing more.
        let _ = stream.write_all(&[22, 3, 1, 2, 0, 1]);
    }
    let mut plain = TcpStream::connect(&address).expect("it listens");
    plain.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").expect("sent");
    assert_eq!(bob.ok(&["ls", "/"]), "");
    let mut answers = vec![cut_off(&mut plain)];
    answers.extend(crowd.iter_mut().map(cut_off));
    // An alert at most, which says nothing of who answers.
    assert!(answers.iter().all(|answer| answer.len() <= 7), "{answers:?}");
    assert_eq!(bob.ok(&["ls", "/"]), "");
}

/// What comes from a peer until it ends the connection, which it does by itself.
fn cut_off(stream: &mut TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(DEADLINE)).expect("a time");
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("it is held open for ever"),
        // A reset is an end too.
        _ => said,
    }
}

#[test]
fn an_invite_that_has_expired_is_refused() {
    let home = founded();
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one");
    home.start(&["serve", "--listen", &port.to_string()], "serving");
    let code = home.ok(&["invite", "--role", "reader"]);
    let mut invite = Invite::parse(code.trim()).expect("a code");
    invite.expires = TimeMs(1_000);
    refused(
        &Home::new(),
        &["join", &invite.code(), "--name", "bob"],
        9,
        &["the invite has expired; ask for another"],
    );
}

#[test]
fn an_invite_is_good_for_an_hour_to_ten_years() {
    let home = founded();
    for hours in ["0", "87601", "99999999", "18446744073709551615", "-1", "soon"] {
        refused(&home, &["invite", &format!("--hours={hours}")], 2, &["--hours", hours]);
    }
}

#[test]
fn few_file_descriptors_are_enough() {
    let home = founded();
    let dir = home.empty("mnt");
    // SAFETY: setrlimit(2) in the new process before it runs the program; no memory is shared.
    let limit = || match unsafe {
        libc::setrlimit(libc::RLIMIT_NOFILE, &libc::rlimit { rlim_cur: 64, rlim_max: 64 })
    } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    let mut command = home.command(&["mount", text(&dir)]);
    // SAFETY: `limit` only makes a system call, which is allowed between fork and exec.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut command, limit) };
    let output = output(&mut command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let dir = home.adopt(dir);
    for n in 0..200 {
        fs::write(dir.join(n.to_string()), vec![n as u8; 10_000]).expect("written");
    }
    for n in 0..200 {
        assert!(fs::read(dir.join(n.to_string())).expect("readable") == vec![n as u8; 10_000]);
    }
    home.unmount(&dir);
}

#[test]
fn a_record_of_16_kib_is_taken_and_one_byte_more_is_refused() {
    const MOST: usize = 16_384;
    let home = founded();
    home.start(&["serve", "--listen", "127.0.0.1:0"], "serving");
    let append = |length: usize| {
        let note = format!("\"{}\"", "x".repeat(length));
        home.run(&["ledger", "append", "--topic", "size", &note, "--wait", "published"])
    };
    let words = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    // The number of bytes that a refusal names, for a note of this length.
    let bytes = |length: usize, code: i32| -> usize {
        let output = append(length);
        let said = words(&output);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains("bytes; at most 16,384 are allowed"), "{said}");
        let number = said.split("a record of ").nth(1).and_then(|rest| rest.split(' ').next());
        number.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{said}"))
    };
    // Records from the tenth to the hundredth have numbers of one length.
    while !String::from_utf8_lossy(&append(1).stdout).starts_with("record 1") {}
    // What is signed is looked at before it is sent, and the whole record where it is ordered.
    let signed = MOST + 20_000 - bytes(20_000, 2);
    let most = signed + MOST - bytes(signed, 5);
    assert_eq!(bytes(most + 1, 5), MOST + 1);
    let taken = append(most);
    assert!(taken.status.success(), "{}", words(&taken));
    let entries = home.path().join("home/data/networks/home/sequencer/ledger/tile/entries");
    let largest = files(&entries).into_iter().map(|(_, size)| size).max();
    assert!(largest > Some(MOST as u64), "{largest:?}");
    let said = home.ok(&["ledger", "verify"]);
    assert!(said.contains("good"), "{said}");
}
