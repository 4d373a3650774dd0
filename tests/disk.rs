//! Disks for the tests that can be small or lose their power.
//!
//! Owns: what is mounted at one directory, and its image file.
//! Never: touches a disk that it did not make.
//! Invariant: when a `Disk` is dropped nothing of it is mounted any more.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One disk, mounted.
pub struct Disk {
    dir: PathBuf,
    image: Option<PathBuf>,
}

pub fn is_root() -> bool {
    // SAFETY: geteuid(2) takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A test that an ordinary user cannot make fails, so that nobody takes it for one that passed.
pub fn needs_root(what: &str) {
    assert!(is_root(), "only root can have {what}; run it as root: sudo -E bash tests/run");
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output =
        output.unwrap_or_else(|e| panic!("{program}: {e}; bash packaging/install-needs --tests"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {}: {said}", arguments.join(" "));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

impl Disk {
    /// A disk of `size` at `dir`, made where there is none.
    pub fn small(dir: &Path, size: &str) -> Self {
        std::fs::create_dir_all(dir).expect("a new directory");
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", text(dir)]);
        Self { dir: dir.to_owned(), image: None }
    }

    /// An empty disk at `dir` that nobody can write, root neither.
    pub fn read_only(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a new directory");
        run("mount", &["-t", "tmpfs", "-o", "ro", "tmpfs", text(dir)]);
        Self { dir: dir.to_owned(), image: None }
    }

    /// More of the same disk, while it is in use.
    pub fn resize(&self, size: &str) {
        run("mount", &["-o", &format!("remount,size={size}"), text(&self.dir)]);
    }

    /// A real file system in `image` at `dir`: what was not synced can be lost.
    pub fn with_power(dir: &Path, image: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("a new directory");
        let file = std::fs::File::create(image).expect("a new file");
        file.set_len(1 << 30).expect("a sparse file");
        run("mkfs.ext4", &["-qF", text(image)]);
        run("mount", &["-o", "loop", text(image), text(dir)]);
        Self { dir: dir.to_owned(), image: Some(image.to_owned()) }
    }

    /// The file system forgets what is not on its disk, and answers nothing any more.
    pub fn cut_power(&self) {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.dir)]);
    }

    /// After the processes that used it have ended: it comes back with what it had.
    pub fn power_again(&self) {
        let image = self.image.as_ref().expect("a disk with power");
        // A killed process's last files may be open a moment longer than the process is seen.
        crate::harness::wait_until("the disk can be unmounted", || {
            let done = Command::new("umount").arg(&self.dir).stderr(Stdio::null()).status();
            done.is_ok_and(|status| status.success())
        });
        run("mount", &["-o", "loop", text(image), text(&self.dir)]);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.dir).status();
    }
}
