//! Programs that nobody here wrote, on a real mount: they know what a filesystem owes them.
//!
//! Each is installed by `packaging/install-needs --tests`; one that is missing fails its test.

use mictlan_tests::disk::needs_root;
use mictlan_tests::harness::{Home, output, program, wait_until};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

fn sh(dir: &Path, script: &str) -> String {
    let mut command = Command::new("bash");
    let output = command.args(["-ec", script]).current_dir(dir).output().expect("bash is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}\n{said}{errors}");
    said
}

/// Users that Debian always has; the suite changes between them.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.03
allow_remount = REMOUNT
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// `mount -o remount` of any FUSE filesystem would start its mount helper again without `-i`, and
/// is EBUSY while the kernel still waits for the answer to an earlier close.
const REMOUNT: &str = "#!/bin/sh
for try in $(seq 2000); do said=$(/bin/mount -i \"$@\" 2>&1) && exit; done
echo \"$said\" >&2; exit 1
";

#[test]
fn pjdfstest_fails_nothing() {
    needs_root("a suite that changes users (pjdfstest)");
    let home = Home::new();
    let dir = home.mount("mnt");
    let (tools, other) = (home.empty("tools"), home.empty("other"));
    fs::write(tools.join("mount"), REMOUNT).expect("written");
    fs::set_permissions(tools.join("mount"), fs::Permissions::from_mode(0o755)).expect("set");
    // Other users walk to the mount.
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("set");
    let path = std::env::var("PATH").unwrap_or_default();
    let run = |remount: bool, pattern: &str, at_least: usize| {
        let config = home.path().join("pjdfstest.toml");
        let text = PJDFSTEST.replace("REMOUNT", if remount { "true" } else { "false" });
        fs::write(&config, text).expect("written");
        let mut suite = Command::new("pjdfstest");
        suite.arg("-c").arg(config).arg("-p").arg(&dir).arg("-s").arg(&other).arg(pattern);
        suite.env("PATH", format!("{}:{path}", tools.display()));
        let output = suite.output();
        let output = output.expect("missing; run: bash packaging/install-needs --tests");
        let said = String::from_utf8_lossy(&output.stdout);
        let passed = said.lines().filter(|line| line.ends_with(" ok")).count();
        let failed: Vec<&str> = said.lines().filter(|line| line.ends_with("FAILED")).collect();
        assert!(output.status.success() && failed.is_empty(), "{failed:#?}\n{said}");
        assert!(passed >= at_least, "only {passed} ran:\n{said}");
    };
    // Some of its tests leave a file open for writing, after which nothing, tmpfs neither, can be
    // remounted read-only: those that do that run in a process of their own.
    run(false, "", 380);
    run(true, "erofs", 13);
}

fn fsx(home: &Home, dir: &Path, operations: u32) {
    std::thread::scope(|scope| {
        for seed in ["1", "2", "3"] {
            scope.spawn(move || {
                let output = Command::new("fsx")
                    .args(["-N", &operations.to_string(), "-S", seed])
                    .arg(dir.join(seed))
                    .output()
                    .expect("fsx is missing; run: bash packaging/install-needs --tests");
                let said = String::from_utf8_lossy(&output.stderr);
                let far = said.len().saturating_sub(3_000);
                let from = (far..said.len()).find(|at| said.is_char_boundary(*at));
                let last = &said[from.unwrap_or(far)..];
                assert!(output.status.success(), "seed {seed}: {last}{}", home.log());
            });
        }
    });
}

/// 10,000 operations with `MICTLAN_TEST_LONG=1`; without, as many as a debug build does in passing.
#[test]
fn fsx_finds_no_wrong_byte_in_little_memory() {
    let home = Home::new();
    let dir = home.mount_with("mnt", &["-o", "memory=64M"]);
    let long = std::env::var_os("MICTLAN_TEST_LONG").is_some();
    fsx(&home, &dir, if long { 10_000 } else { 1_000 });
}

#[test]
fn fio_reads_what_it_wrote_with_little_memory() {
    let home = Home::new();
    let dir = home.mount_with("mnt", &["-o", "memory=64M"]);
    sh(
        &dir,
        "fio --name=v --rw=randwrite --bs=4k-64k --size=96m --io_size=48m --verify=crc32c \
         --verify_fatal=1 --end_fsync=1 --ioengine=psync --randseed=7 --output=fio.log",
    );
}

#[test]
fn git_and_make_work() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    sh(
        &dir,
        &format!(
            "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
             git init -q one && cp -a {source}/src one/ && cd one && git add . && git commit -qm 1
             cd .. && git clone -q --no-hardlinks one two && cd two && git gc -q && git fsck --full
             test -z \"$(git status --porcelain)\" && diff -r src {source}/src
             mkdir m && cd m && printf 'int main(void){{return 0;}}' > a.c
             printf 'p: a.o\\n\\tgcc -o p a.o\\na.o: a.c\\n\\tgcc -c a.c\\n' > Makefile
             make -s && ./p && make -q"
        ),
    );
}

#[test]
fn rsync_and_tar_bring_everything_over_and_nothing_twice() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../src/");
    let again =
        sh(&dir, &format!("rsync -aHAX {source} r/; rsync -aHAX --itemize-changes {source} r/"));
    assert_eq!(again, "", "the second run moved something");
    sh(
        &dir,
        "mkdir a; echo hi > a/f; ln a/f a/g; ln -s f a/l; mkfifo a/p
         setfattr -n user.x -v y a/f; setfacl -m u:1:r a/f; setfacl -d -m g:2:rwx a
         tar --acls --xattrs --xattrs-include='*' -cf t.tar a
         mkdir b; tar --acls --xattrs --xattrs-include='*' -xpf t.tar -C b; cp -a a c
         for d in a b/a c; do (cd $d; getfacl f g p .; getfattr -d -m - f g . ; stat -c '%n %a %h %F %Y' *) > $(basename $d)$RANDOM.list; done
         cmp $(ls *.list | head -1) $(ls *.list | tail -1); test b/a/f -ef b/a/g
         truncate -s 3T s; printf x | dd of=s bs=1 seek=2T conv=notrunc status=none; cp -a s s2
         test $(stat -c %s s2) = $(stat -c %s s); test $(du -k s2 | cut -f1) -lt 1000",
    );
}

#[test]
fn sqlite_is_whole_after_the_daemon_was_killed() {
    for mode in ["wal", "delete"] {
        let home = Home::new();
        let dir = home.mount("mnt");
        sh(&dir, &format!("sqlite3 d 'pragma journal_mode={mode}; create table t(a);'"));
        let script = "for i in $(seq 1000); do sqlite3 d \"insert into t values($i)\" || exit 0; echo $i; done";
        let mut writer = Command::new("bash")
            .args(["-c", script])
            .current_dir(&dir)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("bash is there");
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(
            writer.stdout.take().expect("it was piped"),
        ));
        for _ in 0..10 {
            lines.next().expect("a row").expect("UTF-8");
        }
        home.kill_daemon(&dir);
        let last = 10 + lines.map_while(Result::ok).count();
        writer.wait().expect("it was started");
        let dir = home.mount("mnt");
        assert_eq!(sh(&dir, "sqlite3 d 'pragma integrity_check'").trim(), "ok", "{mode}");
        let rows: usize = sh(&dir, "sqlite3 d 'select count(*) from t'").trim().parse().expect("n");
        assert!(rows >= last, "{mode}: {rows} of {last} rows that were acknowledged");
    }
}

/// The mount's process under the name that mount(8) calls for a remount, with the options that it
/// copies from the kernel's table.
fn remount(home: &Home, dir: &Path, options: &str) -> std::process::Output {
    let helper = home.path().join("mount.fuse.mictlan");
    let _ = std::os::unix::fs::symlink(program(), &helper);
    let table = "relatime,remount,user_id=0,group_id=0,default_permissions,allow_other";
    let mut command = Command::new(helper);
    command.arg("home:main").arg(dir).args(["-o", &format!("{options},{table}")]);
    command.args(["-t", "fuse.mictlan"]).env("MICTLAN_HOME", home.path().join("home"));
    output(&mut command)
}

#[test]
fn a_remount_changes_what_the_kernel_decides_and_nothing_else() {
    needs_root("changing a mount");
    let home = Home::new();
    let dir = home.mount_with("mnt", &["-o", "memory=128M"]);
    let file = dir.join("file");
    fs::write(&file, b"before").expect("written");
    let succeeds = |options: &str| {
        // The kernel tells of a closed file a moment later.
        wait_until("it is remounted", || remount(&home, &dir, options).status.success());
    };
    succeeds("ro,noexec,memory=128M");
    let refused = fs::write(&file, b"x").expect_err("it is read-only");
    assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
    assert_eq!(fs::read(&file).expect("readable"), b"before");
    for (options, part) in
        [("rw,memory=256M", "memory stays as it was"), ("rw,memroy=1G", "did you mean \"memory\"?")]
    {
        let refused = remount(&home, &dir, options);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(part), "{said}");
    }
    assert!(fs::write(&file, b"x").is_err(), "what was refused changed nothing");
    succeeds("rw,exec");
    fs::write(&file, b"after").expect("written");

    let other = home.mount_with("other", &["-o", "ro"]);
    let refused = remount(&home, &other, "rw");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("ro stays as it was"), "{said}");
}
