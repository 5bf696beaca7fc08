//! What a user or a script reads after a run: timings, tables, sizes.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// The object that `silicide generate --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GenerationReport {
    /// The ids that were fed.
    pub prompt_tokens: Vec<u32>,
    /// The ids that came out.
    pub tokens: Vec<u32>,
    /// Their text.
    pub text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The device it ran on.
    pub device: String,
    /// How long it took.
    pub timings: Timings,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its text, or a stop string came.
    Stop,
    /// `--max-tokens`, or the end of the context.
    Length,
    /// Ctrl-C.
    Interrupted,
}

/// How long a generation took. What cannot be said (a rate of fewer than two tokens) is left open.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Timings {
    /// From the start of the program until the model was ready.
    pub load_seconds: f64,
    /// From the start of the prompt until the first token was there.
    pub time_to_first_token_seconds: Option<f64>,
    /// Prompt tokens over the time to the first token.
    pub prompt_tokens_per_second: Option<f64>,
    /// Tokens after the first over the time since the first.
    pub generation_tokens_per_second: Option<f64>,
    /// The most memory that the process had at any time, mapped files included.
    pub peak_memory_bytes: Option<u64>,
}

impl Timings {
    /// From three durations, the last two counted from the start of the prompt, and two numbers of tokens.
    pub fn new(
        load: Duration,
        first_token: Option<Duration>,
        last_token: Duration,
        prompt_tokens: usize,
        tokens: usize,
    ) -> Self {
        let rate =
            |tokens: usize, time: Duration| (tokens > 0 && !time.is_zero()).then(|| tokens as f64 / time.as_secs_f64());
        let since_first = first_token.map_or(Duration::ZERO, |first| last_token.saturating_sub(first));
        Self {
            load_seconds: load.as_secs_f64(),
            time_to_first_token_seconds: first_token.map(|t| t.as_secs_f64()),
            prompt_tokens_per_second: first_token.and_then(|t| rate(prompt_tokens, t)),
            generation_tokens_per_second: rate(tokens.saturating_sub(1), since_first),
            peak_memory_bytes: peak_memory_bytes(),
        }
    }

    /// One line for people.
    pub fn line(&self, prompt_tokens: usize, tokens: usize) -> String {
        let rate = |rate: Option<f64>| rate.map(|rate| format!(" at {rate:.1} tok/s")).unwrap_or_default();
        let mut parts = vec![
            format!("prompt {prompt_tokens} tokens{}", rate(self.prompt_tokens_per_second)),
            format!("generation {tokens} tokens{}", rate(self.generation_tokens_per_second)),
        ];
        parts.extend(self.time_to_first_token_seconds.map(|t| format!("first token after {}", human_seconds(t))));
        parts.extend(self.peak_memory_bytes.map(|bytes| format!("peak memory {}", human_bytes(bytes))));
        parts.join(", ")
    }
}

/// The most memory that this process had at any time, where the system tells.
pub fn peak_memory_bytes() -> Option<u64> {
    // Not getrusage: its figure survives exec, so it can be that of the program that started us.
    #[cfg(target_os = "linux")]
    {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
    }
    #[cfg(all(unix, not(target_os = "linux")))]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
        // SAFETY: the pointer is to a rusage; a call that succeeds has filled it.
        let usage =
            unsafe { (libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) == 0).then(|| usage.assume_init()) }?;
        let unit = if cfg!(target_vendor = "apple") { 1 } else { 1024 };
        Some(u64::try_from(usage.ru_maxrss).ok()? * unit)
    }
    #[cfg(not(unix))]
    None
}

/// `98.4 MB`; powers of 1000, as disks and model cards count.
pub fn human_bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// `134.5 M`, for parameters and FLOPs.
pub fn human_count(count: u64) -> String {
    scaled(count, &["", "K", "M", "G", "T", "P", "E"])
}

/// `85 ms`, `1.20 s`.
pub fn human_seconds(seconds: f64) -> String {
    if seconds < 0.001 {
        format!("{:.0} µs", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.0} ms", seconds * 1e3)
    } else {
        format!("{seconds:.2} s")
    }
}

fn scaled(value: u64, units: &[&str]) -> String {
    let (mut x, mut unit) = (value as f64, 0);
    // What would be printed as 1000.0 belongs to the next unit.
    while x >= 999.95 && unit + 1 < units.len() {
        x /= 1000.0;
        unit += 1;
    }
    let number = if unit == 0 { value.to_string() } else { format!("{x:.1}") };
    format!("{number} {}", units[unit]).trim_end().to_owned()
}

/// A column of a [`Table`].
#[derive(Debug, Clone)]
pub struct Column {
    title: &'static str,
    right: bool,
}

impl Column {
    /// Of words.
    pub fn left(title: &'static str) -> Self {
        Self { title, right: false }
    }

    /// Of numbers.
    pub fn right(title: &'static str) -> Self {
        Self { title, right: true }
    }
}

/// Aligned columns of plain text.
///
/// ```
/// use silicide_cli::report::{Column, Table};
/// let mut table = Table::new([Column::left("tensor"), Column::right("bytes")]);
/// table.row(["norm", "1152"]);
/// assert_eq!(table.to_string(), "tensor  bytes\nnorm     1152\n");
/// ```
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(columns: impl IntoIterator<Item = Column>) -> Self {
        Self { columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a row; cells that are missing stay empty.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.to_owned()).collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| lines().filter_map(|line| line.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        for line in lines() {
            let mut text = String::new();
            for ((cell, column), &width) in line.iter().zip(&self.columns).zip(&widths) {
                text += &if column.right { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(human_bytes(0), "0 B");
        assert_eq!(human_bytes(999), "999 B");
        assert_eq!(human_bytes(1000), "1.0 kB");
        assert_eq!(human_bytes(98_362_432), "98.4 MB");
        assert_eq!(human_bytes(999_960_000), "1.0 GB");
        assert_eq!(human_bytes(u64::MAX), "18.4 EB");
        assert_eq!(human_count(134_515_008), "134.5 M");
        assert_eq!(human_count(7), "7");
        assert_eq!(human_seconds(0.085), "85 ms");
        assert_eq!(human_seconds(1.2), "1.20 s");
    }

    #[test]
    fn rates_count_what_they_say() {
        let t =
            Timings::new(Duration::from_secs(1), Some(Duration::from_millis(500)), Duration::from_millis(2500), 10, 21);
        assert_eq!(t.prompt_tokens_per_second, Some(20.0));
        assert_eq!(t.generation_tokens_per_second, Some(10.0));
        let line = t.line(10, 21);
        assert!(
            line.starts_with(
                "prompt 10 tokens at 20.0 tok/s, generation 21 tokens at 10.0 tok/s, first token after 500 ms"
            ),
            "{line}"
        );
    }

    #[test]
    fn rates_of_nothing_are_left_open() {
        for t in [
            Timings::new(Duration::ZERO, None, Duration::ZERO, 3, 0),
            Timings::new(Duration::ZERO, Some(Duration::ZERO), Duration::ZERO, 3, 1),
        ] {
            assert_eq!((t.prompt_tokens_per_second, t.generation_tokens_per_second), (None, None));
        }
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let report = GenerationReport {
            prompt_tokens: vec![1, 2],
            tokens: vec![3],
            text: "é\n".into(),
            finish_reason: FinishReason::Length,
            device: "cpu".into(),
            timings: Timings { peak_memory_bytes: Some(1), ..Timings::new(Duration::ZERO, None, Duration::ZERO, 2, 1) },
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(
            text,
            r#"{"prompt_tokens":[1,2],"tokens":[3],"text":"é\n","finish_reason":"length","device":"cpu","timings":{"load_seconds":0.0,"time_to_first_token_seconds":null,"prompt_tokens_per_second":null,"generation_tokens_per_second":null,"peak_memory_bytes":1}}"#
        );
    }

    #[cfg(unix)]
    #[test]
    fn peak_memory_grows_with_what_is_touched() {
        let before = peak_memory_bytes().unwrap();
        assert!(before > 100_000, "{before} bytes is less than any process has");
        let touched = std::hint::black_box(vec![1u8; 64 << 20]);
        assert!(peak_memory_bytes().unwrap() >= before.max(touched.len() as u64));
    }
}
