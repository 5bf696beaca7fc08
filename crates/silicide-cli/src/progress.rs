//! Progress on stderr: a bar on a terminal, nothing but a line now and then elsewhere.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where progress is shown.
#[derive(Debug, Clone, Copy)]
pub enum Progress {
    /// Bars on stderr if it is a terminal; notes there in any case.
    Stderr,
    /// Nothing.
    Silent,
}

impl Progress {
    /// A bar that counts bytes.
    pub fn bar(self, bytes: u64) -> ProgressBar {
        let target = match self {
            Self::Stderr if stderr().is_terminal() && bytes > 0 => ProgressDrawTarget::stderr(),
            _ => ProgressDrawTarget::hidden(),
        };
        let style = ProgressStyle::with_template("{bar:24.cyan/dim} {decimal_bytes:>10} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left  {wide_msg:.dim}")
            .expect("the template is well-formed");
        let bar = ProgressBar::with_draw_target(Some(bytes), target).with_style(style.progress_chars("━╸─"));
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// A line on stderr.
    pub fn note(self, line: impl Display) {
        if let Self::Stderr = self {
            // Nobody is left to hear about a closed stderr.
            let _ = writeln!(stderr(), "{line}");
        }
    }
}
