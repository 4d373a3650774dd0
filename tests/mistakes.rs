//! What bad input gets: an error that says what happened, why, and what to type; its exit code;
//! and nothing lost.

use mictlan_tests::harness::Home;
use std::fs;
use std::path::Path;

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
fn a_directory_that_cannot_be_mounted_on_is_said() {
    let home = Home::new();
    let missing = home.path().join("missing");
    refused(&home, &["mount", text(&missing)], 6, &["no such directory", "mkdir -p"]);
    let full = home.empty("full");
    fs::write(full.join("file"), b"x").expect("written");
    refused(&home, &["mount", text(&full)], 6, &["is not empty", "choose an empty directory"]);
    assert_eq!(fs::read(full.join("file")).expect("still there"), b"x");
    let dir = home.mount("mnt");
    refused(&home, &["mount", text(&dir)], 6, &["mount that works already", "mictlan umount"]);
}

#[test]
fn an_unknown_option_gets_the_nearest_right_one() {
    let home = Home::new();
    let dir = home.empty("mnt");
    let arguments = ["mount", "-o", "memroy=1G", text(&dir)];
    refused(&home, &arguments, 2, &["memroy", "did you mean \"memory\"?"]);
}

#[test]
fn unknown_networks_volumes_and_paths_are_said() {
    let home = Home::new();
    refused(&home, &["ls", "other:main:/"], 3, &["no network \"other\"", "there are"]);
    home.ok(&["init"]);
    refused(&home, &["ls", "photos:/"], 7, &["no volume \"photos\"", "there are: main"]);
    refused(&home, &["ls", "/nothing"], 10, &["/nothing: no such file or directory"]);
    refused(&home, &["ls", "/ledger/x"], 2, &["reserved"]);
    refused(&home, &["rm", "/"], 2, &["the root of a volume stays"]);
    let file = home.path().join("missing");
    refused(&home, &["put", text(&file), "/"], 1, &["missing", "No such file"]);
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
fn a_key_that_is_missing_unreadable_or_anothers_is_said() {
    let home = Home::new();
    home.ok(&["init"]);
    refused(&home, &["ls", "--key", "nobody"], 4, &["there is no key", "nobody"]);
    let key = home.path().join("home/config/keys/default");
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("a chmod");
    refused(&home, &["ls"], 4, &["can be read by others", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("a chmod");
    let whole = fs::read_to_string(&key).expect("readable");
    fs::write(&key, &whole[..whole.len() / 2]).expect("written");
    refused(&home, &["ls"], 4, &["is not a key file"]);
}

#[test]
fn a_garbled_invite_is_said() {
    let home = Home::new();
    refused(&home, &["join", "hello"], 9, &["not an invite code"]);
}
