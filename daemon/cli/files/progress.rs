//! How far a copy is, for a person who looks at it.
//!
//! Never: writes anything where standard error is not a terminal.

use indicatif::{ProgressBar, ProgressStyle};

const LINE: &str = "{bytes:>11}/{total_bytes} {wide_bar} {bytes_per_sec:>12} {eta:>4} {msg}";

/// Of what ends nobody knows where.
const ENDLESS: &str = "{bytes:>11} {bytes_per_sec:>12} {msg}";

pub struct Progress(ProgressBar);

impl Progress {
    /// `quiet` where the output is for a program.
    pub fn new(bytes: u64, quiet: bool) -> Self {
        // indicatif draws on standard error, and nowhere if that is no terminal.
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::new(bytes) };
        Self::styled(bar, LINE)
    }

    /// Of a stream, whose length shows at its end.
    pub fn endless(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
        Self::styled(bar, ENDLESS)
    }

    fn styled(bar: ProgressBar, line: &str) -> Self {
        let style = ProgressStyle::with_template(line).expect("the template is a constant");
        bar.set_style(style);
        Self(bar)
    }

    /// More was found to be done.
    pub fn more(&self, bytes: u64) {
        self.0.inc_length(bytes);
    }

    pub fn now_at(&self, path: &str) {
        let name = path.rsplit('/').next().unwrap_or(path);
        self.0.set_message(name.to_owned());
    }

    pub fn moved(&self, bytes: usize) {
        self.0.inc(bytes as u64);
    }

    /// The bytes are all on their way; their copies and commits are waited for.
    pub fn committing(&self) {
        self.0.set_message("committing");
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
