//! What a process says to whoever reads its standard output and standard error.
//!
//! Owns: the log's lines and which of the libraries' are none, and what becomes of an answer that
//! nobody can be given.
//! Invariant: a full or closed output ends no daemon, and no verb by a panic.

use std::fmt::Debug;
use std::io::Write;
use tracing::Event;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// As shells say it of whom SIGPIPE ended.
pub const PIPE_CLOSED: u8 = 141;

/// `println!` takes it for an error of this program when its line cannot be written. Verbs print
/// when what they did is done: a reader that has enough, such as `head`, ends them as SIGPIPE would,
/// and of a full disk it is said.
pub fn end_where_nothing_can_be_printed() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let said = panic.payload().downcast_ref::<String>();
        match said.and_then(|said| said.strip_prefix("failed printing to stdout: ")) {
            Some(why) if why.contains("os error 32") => std::process::exit(PIPE_CLOSED.into()),
            Some(why) => {
                complain(&format!("mictlan: it is done, and its answer was not printed: {why}"));
                std::process::exit(1);
            }
            None => usual(panic),
        }
    }));
}

/// Says a line on standard error. What that is may be full or closed: then nobody can be told, and
/// nothing else changes.
pub fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Where the log goes: standard error, whose end is not this program's end. A mount's is a file on
/// a disk that can be full just when there is something to say, a peer's may be a closed pipe.
struct LogLines;

impl Write for LogLines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = std::io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Lines for whoever runs it: on standard error, by MICTLAN_LOG (default: warnings). The ordering
/// engine calls its own orderly end an error, and a peer that is away a dozen things a second; fuser
/// warns of a mount that somebody else has ended.
pub fn log(default: &str) {
    use std::io::IsTerminal;
    let filter = tracing_subscriber::EnvFilter::try_from_env("MICTLAN_LOG").unwrap_or_else(|_| {
        let others = "openraft=off,fuser::mnt=error,fuser::session=error";
        tracing_subscriber::EnvFilter::new(format!("{default},{others}"))
    });
    // A second start in one process (tests) keeps the first one's.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| LogLines)
        // Told by `eprintln!`, which panics where nothing can be written.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .finish()
        .with(Unasked)
        .try_init();
}

/// Takes away the error that the FUSE library makes of an answer which the kernel has no question
/// for any more, since whoever asked was interrupted.
struct Unasked;

impl<S: tracing::Subscriber> Layer<S> for Unasked {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let mut is_one = IsUnasked(false);
        event.record(&mut is_one);
        !is_one.0
    }
}

struct IsUnasked(bool);

impl Visit for IsUnasked {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let said = format!("{value:?}");
            self.0 = said == "Failed to send FUSE reply: No such file or directory (os error 2)";
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Counts what came through.
    #[derive(Clone, Default)]
    struct Through(Arc<Mutex<Vec<u8>>>);

    impl Write for Through {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_that_nobody_waits_for_is_no_line_of_the_log() {
        let through = Through::default();
        let writer = through.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(lines.with(Unasked), || {
            let gone = std::io::Error::from_raw_os_error(libc::ENOENT);
            tracing::error!("Failed to send FUSE reply: {gone}");
            let wrong = std::io::Error::from_raw_os_error(libc::EINVAL);
            tracing::error!("Failed to send FUSE reply: {wrong}");
        });
        let said = String::from_utf8(through.0.lock().expect("no panic").clone()).expect("UTF-8");
        assert!(said.contains("Invalid argument") && !said.contains("No such file"), "{said}");
    }
}
