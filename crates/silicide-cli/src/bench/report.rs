//! What was timed, as a Markdown table and as JSON.

use std::io::{self, Write};

use serde::Serialize;
use silicide::{Device, DeviceKind};

use super::case::{Case, Moved, activations, keys_and_values};
use super::ceiling::{Bound, Ceilings};
use super::measure::Times;
use crate::report::human_bytes;

/// All of a run.
#[derive(Serialize)]
pub(super) struct Report {
    version: &'static str,
    device: String,
    /// The type of activations, and that of keys and values.
    dtype: String,
    kv_dtype: String,
    pool_bytes: usize,
    /// Shares are of these.
    ceilings: Ceilings,
    /// The same once more: where they differ, something else was running, or the device was too hot.
    pub(super) ceilings_after: Option<Ceilings>,
    pub(super) rows: Vec<Row>,
    #[serde(skip)]
    on_cpu: bool,
}

/// How a case went.
pub(super) enum Outcome {
    Timed(Moved, Times),
    Failed(String),
}

/// A case and its time.
#[derive(Serialize)]
pub(super) struct Row {
    op: &'static str,
    model: &'static str,
    shape: String,
    bytes: u64,
    flops: u64,
    median_seconds: Option<f64>,
    best_seconds: Option<f64>,
    bytes_per_second: Option<f64>,
    flops_per_second: Option<f64>,
    /// What bounds the case, and the share of that rate which the median reaches.
    bound: Option<Bound>,
    share: Option<f64>,
    pub(super) error: Option<String>,
}

impl Report {
    pub(super) fn new(device: &Device, ceilings: Ceilings, pool: usize) -> Report {
        Report {
            version: env!("CARGO_PKG_VERSION"),
            device: format!("{}: {}", device.kind().name(), device.description()),
            dtype: activations(device).to_string(),
            kv_dtype: keys_and_values(device).to_string(),
            pool_bytes: pool,
            ceilings,
            ceilings_after: None,
            rows: Vec::new(),
            on_cpu: device.kind() == DeviceKind::Cpu,
        }
    }

    /// All above the rows.
    pub(super) fn write_head(&self, out: &mut dyn Write) -> io::Result<()> {
        let Report { device, dtype, kv_dtype, pool_bytes, ceilings, .. } = self;
        writeln!(out, "silicide {}, {device}", self.version)?;
        writeln!(out)?;
        writeln!(out, "Measured before: {}.", ceilings.line())?;
        let timed = if self.on_cpu { "Calls are timed one by one" } else { "Calls are timed within replayed plans" };
        let pool = human_bytes(*pool_bytes as u64);
        writeln!(out, "Activations {dtype}, keys and values {kv_dtype}. {timed}; operands go round {pool}.")?;
        writeln!(out)?;
        writeln!(out, "| op | model | shape | median | best | moved | GB/s | TFLOP/s | share | of |")?;
        writeln!(out, "|---|---|---|--:|--:|--:|--:|--:|--:|---|")
    }

    /// All below the rows.
    pub(super) fn write_tail(&self, out: &mut dyn Write) -> io::Result<()> {
        let Some(after) = &self.ceilings_after else { return Ok(()) };
        writeln!(out)?;
        writeln!(out, "Measured after: {}.", after.line())
    }
}

impl Row {
    pub(super) fn new(case: &Case, outcome: Outcome, ceilings: &Ceilings) -> Row {
        let mut row = Row {
            op: case.op,
            model: case.model,
            shape: case.shape.clone(),
            bytes: 0,
            flops: case.flops,
            median_seconds: None,
            best_seconds: None,
            bytes_per_second: None,
            flops_per_second: None,
            bound: None,
            share: None,
            error: None,
        };
        match outcome {
            Outcome::Timed(moved, times) => {
                let (floor, bound) = ceilings.floor(moved, case.arithmetic, case.flops);
                row.bytes = moved.read + moved.written;
                row.median_seconds = Some(times.median);
                row.best_seconds = Some(times.best);
                row.bytes_per_second = Some(row.bytes as f64 / times.median);
                row.flops_per_second = (case.flops > 0).then(|| case.flops as f64 / times.median);
                row.bound = Some(bound);
                row.share = Some(floor / times.median);
            }
            Outcome::Failed(error) => row.error = Some(error),
        }
        row
    }

    /// The line of a table.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let Row { op, model, shape, .. } = self;
        if let Some(error) = &self.error {
            return writeln!(out, "| {op} | {model} | {shape} | failed: {} ||||||||", error.replace(['|', '\n'], " "));
        }
        let time = |seconds: Option<f64>| seconds.map_or_else(String::new, microseconds);
        let rate = |rate: Option<f64>, unit: f64| rate.map_or_else(String::new, |rate| three_digits(rate / unit));
        writeln!(
            out,
            "| {op} | {model} | {shape} | {} | {} | {} | {} | {} | {} | {} |",
            time(self.median_seconds),
            time(self.best_seconds),
            human_bytes(self.bytes),
            rate(self.bytes_per_second, 1e9),
            rate(self.flops_per_second, 1e12),
            self.share.map_or_else(String::new, |share| format!("{:.0} %", 100.0 * share)),
            self.bound.map_or("", Bound::name),
        )
    }
}

pub(super) fn microseconds(seconds: f64) -> String {
    if seconds < 1e-3 {
        format!("{} µs", three_digits(seconds * 1e6))
    } else {
        format!("{} ms", three_digits(seconds * 1e3))
    }
}

pub(super) fn three_digits(x: f64) -> String {
    match x {
        _ if x >= 99.95 => format!("{x:.0}"),
        _ if x >= 9.995 => format!("{x:.1}"),
        _ if x >= 0.9995 => format!("{x:.2}"),
        _ => format!("{x:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (x, text) in
            [(1234.5, "1234"), (99.96, "100"), (45.67, "45.7"), (9.996, "10.0"), (1.234, "1.23"), (0.0123, "0.012")]
        {
            assert_eq!(three_digits(x), text);
        }
        assert_eq!((microseconds(12.34e-6), microseconds(0.0123)), ("12.3 µs".into(), "12.3 ms".into()));
    }
}
