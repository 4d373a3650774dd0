//! The signals that end a mount or a peer.
//!
//! Owns: which of them do, and in order; which do nothing.
//! Invariant: once `Ends` is made, no signal that can be caught ends the process by itself.

use super::error::CliError;
use std::future::poll_fn;
use std::task::{Context, Poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Who asked for the end.
pub struct Ends {
    /// One of these says it again, and means at once.
    insistent: Vec<Signal>,
    /// A terminal that closes may say it twice.
    hangup: Option<Signal>,
    _ignored: Vec<Signal>,
}

/// What becomes of a hangup.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Hangup {
    /// The terminal is gone, and with it who started this.
    Ends,
    /// Nobody's terminal is meant; some send it to have a configuration read again.
    Ignored,
}

impl Ends {
    pub fn new(hangup: Hangup) -> Result<Self, CliError> {
        let caught = |kind| signal(kind).map_err(CliError::Runtime);
        let mut insistent =
            vec![caught(SignalKind::terminate())?, caught(SignalKind::interrupt())?];
        if !starts_ignored(SignalKind::quit()) {
            insistent.push(caught(SignalKind::quit())?);
        }
        let mut ignored =
            vec![caught(SignalKind::user_defined1())?, caught(SignalKind::user_defined2())?];
        // Who was started with `nohup` was told what to do with it.
        let hangs_up = hangup == Hangup::Ends && !starts_ignored(SignalKind::hangup());
        let hangup = match caught(SignalKind::hangup()) {
            Ok(signal) if hangs_up => Some(signal),
            Ok(signal) => {
                ignored.push(signal);
                None
            }
            Err(error) => return Err(error),
        };
        Ok(Self { insistent, hangup, _ignored: ignored })
    }

    /// Waits until somebody asks.
    pub async fn asked(&mut self) {
        poll_fn(|cx| match self.hangup.as_mut().map(|signal| signal.poll_recv(cx)) {
            Some(Poll::Ready(_)) => Poll::Ready(()),
            _ => one_of(&mut self.insistent, cx),
        })
        .await;
    }

    /// Waits until somebody asks who will not wait for an end in order.
    pub async fn insisted(&mut self) {
        poll_fn(|cx| one_of(&mut self.insistent, cx)).await;
    }
}

fn one_of(signals: &mut [Signal], cx: &mut Context) -> Poll<()> {
    match signals.iter_mut().any(|signal| signal.poll_recv(cx).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }
}

/// Whether whoever started this process had it ignore the signal. To be asked before it is caught.
fn starts_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_in_mask(&status, kind.as_raw_value())
}

fn is_in_mask(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::is_in_mask;

    #[test]
    fn what_the_kernel_says_is_ignored_is_read() {
        let status = "SigBlk:\tffffffffffffffff\nSigIgn:\t0000000000001001\nSigCgt:\t0\n";
        assert!(is_in_mask(status, libc::SIGHUP) && is_in_mask(status, libc::SIGPIPE));
        assert!(!is_in_mask(status, libc::SIGQUIT) && !is_in_mask("", libc::SIGHUP));
    }
}
