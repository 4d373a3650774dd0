//! Real processes and real mounts for the tests, cleaned up by pid whatever happens.
//!
//! Owns: a directory of its own for each test, the processes started in it, and their mounts.
//! Never: kills by name, waits by sleeping, or reaches beyond this machine.
//! Invariant: when a `Home` is dropped, its mounts are gone and its processes have ended.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Nothing in a test takes longer on the slowest machine; what does, hangs.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// The program under test, as `tests/run` built it.
pub fn program() -> PathBuf {
    let path = std::env::var_os("MICTLAN_BIN").map_or_else(
        || {
            let own = std::env::current_exe().expect("this process has a program");
            let target = own.parent().and_then(Path::parent).expect("target/debug/deps");
            target.join("mictlan")
        },
        PathBuf::from,
    );
    assert!(path.exists(), "{} is not built; run: bash tests/run", path.display());
    path
}

/// One user's configuration, data and mounts, all below a temporary directory.
pub struct Home {
    dir: tempfile::TempDir,
    mounts: Mutex<Vec<PathBuf>>,
    children: Mutex<Vec<Child>>,
    settings: Mutex<Vec<(&'static str, OsString)>>,
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

impl Home {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("mictlan-test-").tempdir().expect("a directory");
        Self {
            dir,
            mounts: Mutex::default(),
            children: Mutex::default(),
            settings: Mutex::default(),
        }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `mictlan` in this home; nothing of the machine's own configuration is seen.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).env("MICTLAN_HOME", self.path().join("home")).stdin(Stdio::null());
        command.envs(self.settings.lock().expect("no test panics here").iter().cloned());
        command
    }

    /// An environment variable of the programs that this home starts from now on.
    pub fn set(&self, name: &'static str, value: impl Into<OsString>) {
        self.settings.lock().expect("no test panics here").push((name, value.into()));
    }

    /// Runs a verb to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        let mut command = self.command(arguments);
        output(&mut command)
    }

    /// Runs a verb that must succeed; its standard output.
    pub fn ok<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        let what: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
        assert!(output.status.success(), "mictlan {}: {said}{}", what.join(" "), self.log());
        self.note(&output.stderr);
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    fn note(&self, said: &[u8]) {
        let log = self.path().join("processes.log");
        let log = std::fs::File::options().create(true).append(true).open(log);
        log.and_then(|mut log| log.write_all(said)).expect("a log");
    }

    /// A new empty directory in this home.
    pub fn empty(&self, name: &str) -> PathBuf {
        let dir = self.path().join(name);
        match std::fs::create_dir_all(&dir) {
            // A dead mount is there already and answers nothing.
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.expect("a new directory"),
        }
        dir
    }

    /// Mounts the default volume on the new directory `name`.
    pub fn mount(&self, name: &str) -> PathBuf {
        self.mount_with(name, &[])
    }

    /// `arguments` come before the directory.
    pub fn mount_with(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let dir = self.empty(name);
        let text = dir.to_str().expect("a plain path").to_owned();
        let mut all = vec!["mount"];
        all.extend(arguments);
        all.push(&text);
        self.mounts.lock().expect("no test panics here").push(dir.clone());
        self.ok(&all);
        dir
    }

    /// A mount that a test made by itself is cleaned up like the others.
    pub fn adopt(&self, dir: PathBuf) -> PathBuf {
        self.mounts.lock().expect("no test panics here").push(dir.clone());
        dir
    }

    /// Takes a dead mount away, so that nothing of it holds the disk below.
    pub fn forget(&self, dir: &Path) {
        let done = Command::new("umount").arg("-l").arg(dir).status().expect("umount is installed");
        assert!(done.success(), "{} cannot be unmounted", dir.display());
    }

    /// The process that serves a mount: the one whose arguments end in its directory.
    pub fn daemon_of(&self, dir: &Path) -> i32 {
        find_daemon(dir).unwrap_or_else(|| panic!("no daemon has {}{}", dir.display(), self.log()))
    }

    /// Whether `status` says that each change of this home's only mount waits for others; so it is
    /// too for a moment after a mount.
    pub fn is_beside_others(&self) -> bool {
        let report = self.run(&["status", "--json"]).stdout;
        let report: serde_json::Value = serde_json::from_slice(&report).expect("one JSON object");
        // While others mount and unmount, the kernel's list of mounts may lack one for a moment.
        report["mounts"][0]["beside_others"].as_bool().unwrap_or(true)
    }

    /// Unmounts and waits until the daemon has ended, so that everything is committed.
    pub fn unmount(&self, dir: &Path) {
        let daemon = self.daemon_of(dir);
        self.ok(&["umount", dir.to_str().expect("a plain path")]);
        wait_until("the daemon ends", || !alive(daemon));
    }

    /// kill -9 of a mount's daemon; the dead mount stays.
    pub fn kill_daemon(&self, dir: &Path) {
        let daemon = self.daemon_of(dir);
        signal(daemon, libc::SIGKILL);
        wait_until("the daemon is gone", || !alive(daemon));
    }

    /// Starts a verb that goes on, and waits for the line in which it says that it answers.
    pub fn start(&self, arguments: &[&str], until: &str) -> i32 {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.path().join("processes.log"))
            .expect("a log");
        let mut child = self
            .command(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let out = child.stdout.take().expect("it was piped");
        let pid = child.id() as i32;
        self.children.lock().expect("no test panics here").push(child);
        let mut lines = BufReader::new(out).lines();
        let found = lines.by_ref().map_while(Result::ok).any(|line| line.contains(until));
        assert!(found, "{arguments:?} ended without saying {until:?}{}", self.log());
        pid
    }

    /// Ends a process that `start` began, by `signal`, and waits for it: its exit code.
    pub fn stop(&self, pid: i32, how: i32) -> Option<i32> {
        signal(pid, how);
        let mut children = self.children.lock().expect("no test panics here");
        let at = children.iter().position(|child| child.id() as i32 == pid)?;
        children.remove(at).wait().expect("a child that was started").code()
    }

    /// What the processes of this home said, for a failing test's message.
    pub fn log(&self) -> String {
        let files = ["processes.log", "home/state/mount.log"];
        let texts = files.iter().filter_map(|f| std::fs::read_to_string(self.path().join(f)).ok());
        let all: String = texts.collect();
        let from = all.len().saturating_sub(4_000);
        let from = (from..all.len()).find(|at| all.is_char_boundary(*at)).unwrap_or(all.len());
        format!("\n--- log ---\n{}", &all[from..])
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        for dir in self.mounts.lock().map(|mounts| mounts.clone()).unwrap_or_default() {
            let daemon = find_daemon(&dir);
            let _ = Command::new("umount").arg("-l").arg(&dir).stderr(Stdio::null()).status();
            let _ =
                Command::new("fusermount3").arg("-uzq").arg(&dir).stderr(Stdio::null()).status();
            if let Some(daemon) = daemon {
                signal(daemon, libc::SIGKILL);
            }
        }
        for child in self.children.get_mut().map(std::mem::take).unwrap_or_default().iter_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // What a test did not expect to be started, because it was to be refused.
        let own = format!("MICTLAN_HOME={}", self.path().join("home").display()).into_bytes();
        for pid in processes() {
            let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            if environment.split(|b| *b == 0).any(|setting| setting == own) {
                signal(pid, libc::SIGKILL);
            }
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.path())) {
            let _ = Command::new("umount").arg("-l").arg(point).stderr(Stdio::null()).status();
        }
    }
}

/// What a program says until it ends, which it does before the deadline or is ended.
pub fn output(command: &mut Command) -> Output {
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = piped.spawn().expect("the program starts");
    let pid = child.id() as i32;
    let (ended, when) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let output = child.wait_with_output();
        let _ = ended.send(());
        output
    });
    if when.recv_timeout(DEADLINE).is_err() {
        signal(pid, libc::SIGKILL);
        panic!("{command:?} does not end");
    }
    waiting.join().expect("no panic").expect("a child that was started")
}

/// Polls for a condition that another process brings about.
pub fn wait_until(what: &str, done: impl Fn() -> bool) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "still waiting: {what}");
        std::thread::yield_now();
    }
}

/// Until its last thread has ended: a killed process's first thread may be gone before its files
/// and their locks are. The number of threads is asked for, since a list of them ends early where
/// one goes while it is read.
pub fn alive(pid: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // What stands behind the name in brackets, from the third field on; the threads are the 20th.
    let rest = status.rsplit(')').next().unwrap_or_default();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ended = matches!(fields.first(), None | Some(&"Z" | &"X"));
    !ended || fields.get(17).is_some_and(|threads| *threads != "0" && *threads != "1")
}

pub fn signal(pid: i32, signal: i32) {
    // SAFETY: kill(2) takes plain numbers; a pid that is gone is an error, which is fine here.
    unsafe { libc::kill(pid, signal) };
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

fn find_daemon(dir: &Path) -> Option<i32> {
    let wanted = dir.as_os_str().as_encoded_bytes();
    processes().filter(|pid| alive(*pid)).find(|pid| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut parts = arguments.split(|b| *b == 0).filter(|part| !part.is_empty());
        let is_ours = parts.next().is_some_and(|name| name.ends_with(b"mictlan"));
        is_ours && parts.any(|part| part == wanted)
    })
}

/// Every file below two directories has the same bytes, kind, mode and link target.
pub fn assert_same_tree(a: &Path, b: &Path) {
    let output = Command::new("diff")
        .args(["-r", "--no-dereference"])
        .args([a, b])
        .output()
        .expect("diff is installed");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{} differs from {}:\n{said}", a.display(), b.display());
}
