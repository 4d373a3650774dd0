//! What a key file keeps: its secret, its mode, and its one meaning.

use super::*;

fn name() -> Label {
    Label::parse("alice").expect("a label")
}

fn nothing() -> Option<Zeroizing<String>> {
    None
}

fn words(text: &str) -> Option<Zeroizing<String>> {
    Some(Zeroizing::new(text.to_owned()))
}

/// Rewrites the key file at `path` as `change` says, keeping its mode.
fn edit(path: &Path, change: impl FnOnce(String) -> String) {
    let text = change(std::fs::read_to_string(path).expect("a readable file"));
    std::fs::write(path, text).expect("a writable file");
}

#[test]
fn a_key_comes_back_and_its_public_half_is_beside_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = generate(dir.path(), &name(), None).expect("a key");
    let loaded = load(dir.path(), &name(), nothing).expect("the same key");
    assert_eq!(made.public(), loaded.public());
    let public = load_public(&dir.path().join("alice.pub")).expect("a public file");
    assert_eq!(public, (name(), made.public()));
    let mode = dir.path().join("alice").metadata().expect("a file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
}

#[test]
fn a_key_is_never_overwritten() {
    let dir = tempfile::tempdir().expect("a directory");
    generate(dir.path(), &name(), None).expect("a key");
    let again = generate(dir.path(), &name(), None).map(|_| ());
    assert!(matches!(again, Err(KeyError::Exists(_))), "{again:?}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    generate(dir.path(), &name(), None).expect("a key");
    let path = dir.path().join("alice");
    for mode in [0o640, 0o604, 0o620] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("a chmod");
        let loaded = load(dir.path(), &name(), nothing).map(|_| ());
        assert!(matches!(loaded, Err(KeyError::Open { .. })), "{mode:o}: {loaded:?}");
    }
}

#[test]
fn a_passphrase_opens_and_a_wrong_one_does_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = generate(dir.path(), &name(), Some("correct horse")).expect("a key");
    let loaded = load(dir.path(), &name(), || words("correct horse")).expect("the same key");
    assert_eq!(made.id(), loaded.id());
    let wrong = load(dir.path(), &name(), || words("battery staple")).map(|_| ());
    assert!(matches!(wrong, Err(KeyError::WrongPassphrase(_))), "{wrong:?}");
    let none = load(dir.path(), &name(), nothing).map(|_| ());
    assert!(matches!(none, Err(KeyError::PassphraseNeeded(_))), "{none:?}");
    let empty = generate(dir.path(), &Label::parse("bob").expect("a label"), Some("")).map(|_| ());
    assert!(matches!(empty, Err(KeyError::EmptyPassphrase)), "{empty:?}");
}

#[test]
fn a_changed_or_cut_key_file_is_no_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let missing = load(dir.path(), &name(), nothing).map(|_| ());
    assert!(matches!(missing, Err(KeyError::Missing(_))), "{missing:?}");
    generate(dir.path(), &name(), None).expect("a key");
    let path = dir.path().join("alice");
    let whole = std::fs::read_to_string(&path).expect("a readable file");
    let changes: [fn(String) -> String; 4] = [
        |text| text.replace("BEGIN", "BEGUN"),
        |text| text.replacen("TUNUSw", "TUNUSx", 1),
        |text| text[..text.len() - 60].to_owned() + "\n" + END,
        |text| text + "more",
    ];
    for change in changes {
        edit(&path, change);
        let loaded = load(dir.path(), &name(), nothing).map(|_| ());
        assert!(matches!(loaded, Err(KeyError::Malformed { .. })), "{loaded:?}");
        edit(&path, |_| whole.clone());
    }
    // Another principal's public key in the head of this secret.
    let mut bytes = unarmour(&whole).expect("good armour").to_vec();
    bytes[10] ^= 1;
    let forged = format!("{BEGIN}\n{}\n{END}\n", STANDARD.encode(&bytes));
    edit(&path, |_| forged);
    let loaded = load(dir.path(), &name(), nothing).map(|_| ());
    let why = Malformed::Changed.to_string();
    assert!(loaded.is_err_and(|error| error.to_string().ends_with(&why)));
}

#[test]
fn the_golden_files_open_as_they_did() {
    let seed = Zeroizing::new([5; 32]);
    let principal = Principal::from_seed(Secret::from_bytes(*seed));
    let bare = include_str!("../../tests/vectors/identity/key-v1-bare.txt");
    assert_eq!(*render(&seed, &principal.id(), None).expect("no passphrase"), bare);
    let public = include_str!("../../tests/vectors/identity/key-v1.pub");
    assert_eq!(render_public(&name(), &principal.public()), public);
    let sealed = include_str!("../../tests/vectors/identity/key-v1-passphrase.txt");
    let opened = open(Path::new("golden"), sealed, || words("correct horse"));
    assert!(opened.is_ok_and(|opened| *opened == *seed));
}
