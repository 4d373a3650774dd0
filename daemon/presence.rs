//! Which peers are away, and since when.
//!
//! Owns: what was last heard of each, and the two lines of the log: away, and back.
//! Invariant: a line for each change, however often a peer is asked meanwhile.

use crate::host;
use mictlan::id::{PeerId, TimeMs};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Default)]
pub struct Presence {
    /// A silence that is shorter is none.
    patience: Duration,
    /// Covers who has not answered, and nothing else.
    silent: Mutex<BTreeMap<PeerId, Silence>>,
}

struct Silence {
    began: Instant,
    since: TimeMs,
    told: bool,
}

impl Presence {
    pub fn new(patience: Duration) -> Self {
        Self { patience, silent: Mutex::default() }
    }

    /// It answered.
    pub fn heard(&self, peer: PeerId) {
        let silence = self.locked().remove(&peer);
        if let Some(silence) = silence.filter(|silence| silence.told) {
            tracing::warn!(%peer, away_s = silence.began.elapsed().as_secs(), "a peer is back");
        }
    }

    /// It was asked and did not answer.
    pub fn missed(&self, peer: PeerId, why: impl Display) {
        let new = || Silence { began: Instant::now(), since: host::now(), told: false };
        let mut silent = self.locked();
        let silence = silent.entry(peer).or_insert_with(new);
        if !silence.told && silence.began.elapsed() >= self.patience {
            silence.told = true;
            drop(silent);
            tracing::warn!(%peer, %why, "a peer is away");
        }
    }

    /// Those that are not among `peers` any more are nobody's business.
    pub fn only(&self, peers: impl Fn(PeerId) -> bool) {
        self.locked().retain(|peer, _| peers(*peer));
    }

    pub fn away(&self) -> Vec<(PeerId, TimeMs)> {
        let silent = self.locked();
        let told = silent.iter().filter(|(_, silence)| silence.told);
        told.map(|(peer, silence)| (*peer, silence.since)).collect()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<PeerId, Silence>> {
        self.silent.lock().expect("nothing panics while it is locked")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Arc;
    use tracing_subscriber::fmt::MakeWriter;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no panic").extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Lines {
        type Writer = Self;
        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_change_is_told_once_and_the_time_is_that_of_the_first_silence() {
        let lines = Lines::default();
        let log = tracing_subscriber::fmt().with_writer(lines.clone()).with_ansi(false).finish();
        let presence = Presence::default();
        tracing::subscriber::with_default(log, || {
            presence.heard(PeerId(1));
            presence.missed(PeerId(2), "no answer");
            let first = presence.away();
            for _ in 0..5 {
                presence.missed(PeerId(2), "no answer");
            }
            assert_eq!((first.len(), presence.away()), (1, first));
            presence.heard(PeerId(2));
            presence.heard(PeerId(2));
            let patient = Presence::new(Duration::from_secs(3600));
            patient.missed(PeerId(3), "no answer yet");
            assert_eq!(patient.away(), []);
            patient.heard(PeerId(3));
        });
        assert_eq!(presence.away(), []);
        let text = String::from_utf8(lines.0.lock().expect("no panic").clone()).expect("text");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("a peer is away") && text.contains("a peer is back"), "{text}");
    }
}
