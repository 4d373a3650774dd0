//! What an administrator types: `mount -t mictlan`, a line of fstab, `mount -a`, by the machine's own
//! mount(8), with the helpers where `packaging/install` puts them.

use mictlan_tests::disk::needs_root;
use mictlan_tests::harness::{Home, output, program};
use std::path::Path;
use std::process::Command;

/// In a mount namespace of its own, so that nothing of it is on the machine: its directories of
/// programs are covered by what was installed below `$stage`.
const INSTALLED: &str = r#"
DESTDIR=$stage bash packaging/install "$program" >&2
mount --bind "$stage/sbin" "$(readlink -f /sbin)"
mount --bind "$stage/usr/local/bin" /usr/local/bin
trap 'umount -l "$dir" 2>/dev/null || true' EXIT
is_mounted() { [ "$(findmnt -no FSTYPE,SOURCE "$dir")" = "fuse.mictlan home:main" ]; }
fails() { if "$@"; then echo "it should fail: $*" >&2; exit 1; fi; }
"#;

/// Runs `script` where mictlan is installed; `$dir` is empty, `$fstab` has its line.
fn administrator(script: &str) {
    needs_root("a mount namespace of its own");
    let home = Home::new();
    home.ok(&["ls", "/"]);
    let dir = home.empty("mnt");
    let fstab = home.path().join("fstab");
    let line = format!("home:main {} mictlan _netdev,noauto 0 0\n", dir.display());
    std::fs::write(&fstab, line).expect("written");
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "--propagation", "private", "bash", "-euc"]);
    shell.arg(format!("{INSTALLED}{script}"));
    shell.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    shell.env("MICTLAN_HOME", home.path().join("home")).env("program", program());
    shell.env("stage", home.empty("stage")).env("dir", &dir).env("fstab", fstab);
    let done = output(&mut shell);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}{}", home.log());
}

#[test]
fn mount_by_type_and_umount_keep_what_was_written() {
    administrator(
        r#"
mount -t mictlan home:main "$dir"
is_mounted
echo written > "$dir/file"
umount "$dir"
fails is_mounted
mount -t mictlan -o ro,noatime home:main "$dir"
[ "$(cat "$dir/file")" = written ]
fails touch "$dir/file" 2>&1
umount "$dir"
"#,
    );
}

#[test]
fn a_line_of_fstab_is_mounted_by_its_directory_and_by_all() {
    administrator(
        r#"
mount -T "$fstab" "$dir"
is_mounted
echo written > "$dir/file"
umount "$dir"
sed -i s/,noauto// "$fstab"
mount -a -T "$fstab"
is_mounted
[ "$(cat "$dir/file")" = written ]
mount -a -T "$fstab" # once is enough
[ "$(findmnt -n "$dir" | wc -l)" = 1 ]
mount -o remount,ro "$dir"
fails touch "$dir/file" 2>&1
umount "$dir"
"#,
    );
}

#[test]
fn a_slip_in_a_line_of_fstab_is_said_by_mount() {
    administrator(
        r#"
said=$(mount -t mictlan -o memry=1G home:main "$dir" 2>&1) && exit 1
case $said in *"memory"*) ;; *) echo "$said" >&2; exit 1 ;; esac
said=$(mount -t mictlan nowhere:main "$dir" 2>&1) && exit 1
case $said in *nowhere*"there are: home"*) ;; *) echo "$said" >&2; exit 1 ;; esac
fails is_mounted
"#,
    );
}
