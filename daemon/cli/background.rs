//! Going to the background once there is something to come back for.
//!
//! Owns: the second process of `mictlan mount`, and what the first one waits for and says.
//! Invariant: the first process ends with success only after the mount answers; otherwise with the
//! second one's exit code, whose words went to the same terminal.

use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

/// Tells the second process that somebody waits for its word on standard output.
const WAITED_FOR: &str = "MICTLAN_WAITED_FOR";
const READY: &[u8] = b"ready\n";

/// Starts this program again with the same arguments, in a session of its own, and waits for its
/// word; what it says before it is passed on. The arguments stay as they are, so that the mount's directory is seen in the process list.
pub fn start_again() -> std::io::Result<ExitCode> {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| "mictlan".into());
    let mut child = Command::new("/proc/self/exe")
        .arg0(name)
        .args(arguments)
        .env(WAITED_FOR, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(out) = &mut child.stdout {
        out.read_to_end(&mut said)?;
    }
    if let Some(said) = said.strip_suffix(READY) {
        // Whoever reads it may be gone; the mount is there all the same.
        let _ = std::io::stdout().write_all(said);
        return Ok(ExitCode::SUCCESS);
    }
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(match code {
        Some(code) if code != 0 => ExitCode::from(code),
        _ => {
            super::complain("mictlan: the background process ended without a mount");
            ExitCode::FAILURE
        }
    })
}

/// Whether this is the second process.
pub fn is_waited_for() -> bool {
    std::env::var_os(WAITED_FOR).is_some()
}

/// In the second process, by its first thread: the name by which `ps`, `pgrep` and `killall` find a
/// mount. It was started by another one, `/proc/self/exe`.
pub fn take_name() {
    // Where the kernel does not take it, nothing else changes.
    let _ = rustix::thread::set_name(c"mictlan");
}

/// In the second process: a session of its own, so that the terminal's signals do not reach it.
pub fn detach() -> std::io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// In the second process: the mount answers, and `said` is passed on. What it says from now on goes
/// to `log`.
pub fn ready(log: &Path, said: &str) -> std::io::Result<()> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut out = std::io::stdout();
    out.write_all(said.as_bytes())?;
    out.write_all(READY)?;
    out.flush()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stderr(&log)?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?; // the last: this ends the first process's wait
    std::env::set_current_dir("/")
}
