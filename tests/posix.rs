//! What POSIX promises and a write-behind filesystem could break, on a real mount.

use mictlan_mount::session::mounted_type;
use mictlan_tests::disk::{is_root, needs_root};
use mictlan_tests::harness::{DEADLINE, Home};
use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

const NOBODY: u32 = 65_534;

/// A command run by an ordinary user, for root by another; the groups go by themselves.
fn by_nobody(command: &mut Command) -> Output {
    use std::os::unix::process::CommandExt;
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().expect("it starts")
}

/// Waits until what was written is committed, so that what the commit made of it is seen.
fn committed(file: &Path) {
    let done = Command::new("sync").arg(file).status().expect("sync is installed");
    assert!(done.success(), "fsync");
}

#[test]
fn appends_of_many_processes_never_overlap() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let script = "for i in $(seq 400); do echo $0$0$0$0$0$0$0$0 >> log; done";
    let writers: Vec<_> = ["aaaaaaa", "bbbbbbb", "ccccccc"]
        .iter()
        .map(|word| {
            let mut command = Command::new("bash");
            command.args(["-c", script, word]).current_dir(&dir).spawn().expect("bash is there")
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().expect("it was started").success());
    }
    let text = fs::read_to_string(dir.join("log")).expect("readable");
    assert_eq!(text.lines().count(), 1_200);
    assert!(
        text.lines().all(|line| line.len() == 56 && line.bytes().all(|b| b == line.as_bytes()[0]))
    );
}

#[test]
fn opening_and_closing_one_file_at_once_stops_nobody() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("file");
    fs::write(&path, "x").expect("written");
    let (done, ended) = mpsc::channel();
    for _ in 0..8 {
        let (path, done) = (path.clone(), done.clone());
        std::thread::spawn(move || {
            let whole = (0..500).all(|_| fs::read(&path).is_ok_and(|bytes| bytes == b"x"));
            done.send(whole)
        });
    }
    for _ in 0..8 {
        // A mount that stopped is ended with its home, and with it those who wait for it.
        let whole = ended.recv_timeout(DEADLINE).expect("nobody is stopped");
        assert!(whole, "{}", home.log());
    }
}

#[test]
fn a_time_that_was_set_stays_and_ctime_never_goes_back() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("file");
    let before = SystemTime::now() - Duration::from_secs(1);
    let mut file = File::create(&path).expect("made");
    file.write_all(b"hello").expect("written");
    let old = SystemTime::UNIX_EPOCH + Duration::new(2, 7);
    file.set_modified(old).expect("set");
    fs::set_permissions(&path, Permissions::from_mode(0o640)).expect("set");
    let open = file.metadata().expect("stat");
    drop(file);
    let closed = fs::metadata(&path).expect("stat");
    committed(&path);
    home.unmount(&dir);
    let dir = home.mount("mnt");
    let later = fs::metadata(dir.join("file")).expect("stat");
    for (when, meta) in [("open", &open), ("closed", &closed), ("committed", &later)] {
        assert_eq!(meta.modified().expect("a time"), old, "{when}");
        let ctime =
            SystemTime::UNIX_EPOCH + Duration::new(meta.ctime() as u64, meta.ctime_nsec() as u32);
        assert!(ctime > before, "{when}: ctime follows what was done, not what was set");
    }
    let stamp = |meta: &fs::Metadata| (meta.ctime(), meta.ctime_nsec());
    assert!(
        stamp(&open) <= stamp(&closed) && stamp(&closed) <= stamp(&later),
        "{open:?} {later:?}"
    );
}

#[test]
fn a_time_before_1970_is_what_was_set() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("file");
    fs::write(&path, b"old").expect("written");
    let year = 31_536_000;
    for (secs, nanos) in [(-1, 500_000_000), (-1, 1), (-1, 0), (-10 * year, 999_999_999)] {
        set_times(&path, secs, nanos);
        let meta = fs::metadata(&path).expect("stat");
        let both = [(meta.mtime(), meta.mtime_nsec()), (meta.atime(), meta.atime_nsec())];
        assert_eq!(both, [(secs, nanos); 2]);
    }
    let before = fs::metadata(&path).expect("stat");
    home.unmount(&dir);
    let dir = home.mount("mnt");
    let after = fs::metadata(dir.join("file")).expect("stat");
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
}

/// Access and modification, as the system call takes them.
fn set_times(path: &Path, secs: i64, nanos: i64) {
    let path = CString::new(path.as_os_str().as_bytes()).expect("no zero in it");
    let time = libc::timespec { tv_sec: secs, tv_nsec: nanos };
    // SAFETY: a path that ends with zero, and the two times that the call wants.
    let done = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), [time; 2].as_ptr(), 0) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn writing_by_others_clears_setuid_at_once_and_only_once() {
    needs_root("files of somebody else");
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("set");
    let dir = home.mount("mnt");
    assert_eq!(mounted_type(&dir).as_deref(), Some("fuse.mictlan"), "root's mount too");
    let path = dir.join("file");
    fs::write(&path, "x").expect("written");
    chown(&path, Some(NOBODY), Some(NOBODY)).expect("root may");
    let mode = || fs::metadata(&path).expect("stat").mode() & 0o7777;
    fs::set_permissions(&path, Permissions::from_mode(0o6777)).expect("set");
    let wrote = by_nobody(Command::new("sh").args(["-c", "echo y >> \"$0\""]).arg(&path));
    assert!(wrote.status.success());
    assert_eq!(mode(), 0o777);
    // What was written and is still in memory cleared them before they were set again.
    let script = "exec 3>>\"$0\"; echo y >&3; chmod 6777 \"$0\"";
    let wrote = by_nobody(Command::new("sh").args(["-c", script]).arg(&path));
    assert!(wrote.status.success());
    assert_eq!(mode(), 0o6777);
    committed(&path);
    home.unmount(&dir);
    home.mount("mnt");
    assert_eq!(mode(), 0o6777, "what the earlier write cleared was set after it");
}

#[test]
fn bytes_that_were_cut_off_do_not_come_back_after_a_crash() {
    let home = Home::new();
    let dir = home.mount("mnt");
    for i in 0..50 {
        let path = dir.join(format!("file{i}"));
        fs::write(&path, vec![b'l'; 3_000]).expect("written");
        fs::write(&path, "short").expect("written");
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(i);
        OpenOptions::new().write(true).open(&path).and_then(|f| f.set_modified(old)).expect("set");
    }
    home.kill_daemon(&dir);
    let dir = home.mount("mnt");
    for i in 0..50 {
        let path = dir.join(format!("file{i}"));
        assert_eq!(fs::read_to_string(&path).expect("readable"), "short", "{i}");
        let mtime = fs::metadata(&path).and_then(|meta| meta.modified()).expect("a time");
        assert_eq!(mtime, SystemTime::UNIX_EPOCH + Duration::from_secs(i), "{i}");
    }
}

#[test]
fn truncation_by_open_needs_no_writing_descriptor() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("file");
    fs::write(&path, "content").expect("written");
    let flags = libc::O_TRUNC;
    OpenOptions::new().read(true).custom_flags(flags).open(&path).expect("Linux truncates");
    home.unmount(&dir);
    home.mount("mnt");
    assert_eq!(fs::read(&path).expect("readable"), b"");
}

#[test]
fn trusted_attributes_are_not_even_listed_to_others() {
    needs_root("trusted attributes");
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("set");
    let dir = home.mount("mnt");
    let path = dir.join("file");
    fs::write(&path, "x").expect("written");
    for name in ["trusted.a", "user.b"] {
        let set = Command::new("setfattr").args(["-n", name, "-v", "v"]).arg(&path).status();
        assert!(set.expect("setfattr is installed").success());
    }
    let mut list = Command::new("getfattr");
    list.args(["--absolute-names", "-m", "-"]).arg(&path);
    let all = String::from_utf8(list.output().expect("getfattr is installed").stdout);
    assert!(all.expect("UTF-8").contains("trusted.a"));
    let some = String::from_utf8(by_nobody(&mut list).stdout).expect("UTF-8");
    assert!(some.contains("user.b") && !some.contains("trusted"), "{some}");
}

#[test]
fn an_ordinary_user_founds_mounts_writes_and_comes_back() {
    let home = Home::new();
    fs::set_permissions(home.path(), Permissions::from_mode(0o755)).expect("set");
    for dir in ["home", "mnt"].map(|name| home.empty(name)) {
        if is_root() {
            chown(dir, Some(NOBODY), Some(NOBODY)).expect("root may");
        }
    }
    let dir = home.adopt(home.path().join("mnt"));
    let text = dir.to_str().expect("a plain path");
    let run = |verb: &str| {
        let done = by_nobody(&mut home.command(&[verb, text]));
        assert!(done.status.success(), "{verb}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let shell = |script: &str| {
        let done = by_nobody(Command::new("sh").args(["-ec", script]).current_dir("/").arg(&dir));
        assert!(done.status.success(), "{script}: {done:?}{}", home.log());
    };
    run("mount");
    assert_eq!(mounted_type(&dir).as_deref(), Some("fuse.mictlan"));
    shell("echo content > \"$0/file\"; test $(stat -c %u \"$0\") = $(id -u)");
    home.kill_daemon(&dir);
    run("mount");
    shell("test $(cat \"$0/file\") = content");
    run("umount");
    shell("test ! -e \"$0/file\"");
}

#[test]
fn a_time_that_nobody_can_take_in_stops_no_mount() {
    let home = Home::new();
    let dir = home.mount("mnt");
    let path = dir.join("file");
    fs::write(&path, b"before").expect("written");
    let (done, ended) = mpsc::channel();
    let name = CString::new(path.as_os_str().as_bytes()).expect("no zero in it");
    std::thread::spawn(move || {
        // More often than there are threads: the library panics at each of these.
        for _ in 0..12 {
            let time = libc::timespec { tv_sec: i64::MIN, tv_nsec: 999_999_999 };
            // SAFETY: a path that ends with zero, and two times. It may work or not.
            unsafe { libc::utimensat(libc::AT_FDCWD, name.as_ptr(), [time; 2].as_ptr(), 0) };
        }
        done.send(())
    });
    ended.recv_timeout(DEADLINE).expect("nobody is stopped");
    assert!(mounted_type(&dir).is_some(), "{}", home.log());
    for n in 0..20 {
        let other = dir.join(n.to_string());
        fs::write(&other, b"after").expect("written");
        assert_eq!(fs::read(&other).expect("readable"), b"after");
    }
    assert_eq!(fs::read(&path).expect("readable"), b"before");
    home.unmount(&dir);
}
