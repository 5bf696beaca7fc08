//! `silicide bench ops`: every op at the shapes of real models, against what the device does at best.
//!
//! `silicide bench gains`: what the kernels that NVIDIA GPUs alone have gain.
//!
//! A case is an op at a shape; its operands come from a setup, which counts the bytes that they are. `measure` times it,
//! `ceiling` says what it could take, `report` prints both.

mod case;
mod ceiling;
mod elementwise;
mod gains;
mod measure;
mod models;
mod products;
mod quantized_cache;
mod report;
mod rows;
mod sequence;

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use silicide::{Device, DeviceKind, Stream};

use crate::args::BenchOpsArgs;
use crate::engine;
use case::{Call, Case, Moved, Setup};
use ceiling::Ceilings;
use report::{Outcome, Report, Row};

pub use gains::gains;

/// Runs the subcommand.
pub fn ops(args: &BenchOpsArgs, out: &mut dyn Write, notes: &mut dyn Write) -> anyhow::Result<()> {
    let device = engine::device(&args.device)?;
    let cases = chosen(cases(device.kind()), args.filter.as_deref(), args.model.as_deref())?;
    let pool = args.pool.unwrap_or_else(|| default_pool(&device));
    let setup = &mut Setup::new(&device, pool)?;
    let matrix_flops = args.matrix_tflops.map(|rate| f64::from(rate) * 1e12);
    let ceilings = Ceilings::measure(&device, setup, matrix_flops)?;
    let mut report = Report::new(&device, ceilings, pool);
    if !args.json {
        report.write_head(out)?;
    }
    let stream = &mut device.stream();
    for case in &cases {
        let outcome = match run(case, setup, stream, pool, args) {
            Ok(outcome) => outcome,
            Err(error) => {
                let _ = writeln!(notes, "{} {} {}: {error}", case.op, case.model, case.shape);
                Outcome::Failed(error.to_string())
            }
        };
        let row = Row::new(case, outcome, &ceilings);
        if !args.json {
            row.write(out)?;
            out.flush()?;
        }
        report.rows.push(row);
    }
    report.ceilings_after = Some(Ceilings::measure(&device, setup, matrix_flops)?);
    if args.json {
        serde_json::to_writer(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        report.write_tail(out)?;
    }
    let failed = report.rows.iter().filter(|row| row.error.is_some()).count();
    if failed > 0 {
        bail!("{failed} of {} cases failed", report.rows.len());
    }
    Ok(())
}

/// Every case of a kind of device, those that share a weight one after the other.
fn cases(kind: DeviceKind) -> Vec<Case> {
    let sequence = sequence::cases().into_iter().chain(quantized_cache::cases()).collect();
    [products::cases(kind != DeviceKind::Cpu), rows::cases(), elementwise::cases(), sequence]
        .into_iter()
        .flatten()
        .collect()
}

/// Those that the options name.
fn chosen(cases: Vec<Case>, filter: Option<&str>, model: Option<&str>) -> anyhow::Result<Vec<Case>> {
    let holds =
        |text: &str, part: Option<&str>| part.is_none_or(|part| text.to_lowercase().contains(&part.to_lowercase()));
    let known = |name: fn(&Case) -> &'static str| {
        let mut names: Vec<_> = cases.iter().map(name).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    };
    if !cases.iter().any(|case| holds(&case.name(), filter)) {
        bail!("no op is named {:?}; there are {}", filter.unwrap_or(""), known(|case| case.op));
    }
    if !cases.iter().any(|case| holds(case.model, model)) {
        bail!("no model is named {:?}; there are {}", model.unwrap_or(""), known(|case| case.model));
    }
    let chosen: Vec<_> =
        cases.into_iter().filter(|case| holds(&case.name(), filter) && holds(case.model, model)).collect();
    if chosen.is_empty() {
        bail!("that model has no such op");
    }
    Ok(chosen)
}

fn run(
    case: &Case,
    setup: &mut Setup,
    stream: &mut Stream,
    pool: usize,
    args: &BenchOpsArgs,
) -> silicide::Result<Outcome> {
    let (calls, moved) = calls(case, setup, pool)?;
    let times = measure::time(stream, &calls, args.rounds, Duration::from_millis(200));
    drop(calls);
    trim(stream)?;
    Ok(Outcome::Timed(moved, times?))
}

/// Calls that go once round the pool, and what one of them moves.
fn calls(case: &Case, setup: &mut Setup, pool: usize) -> silicide::Result<(Vec<Call>, Moved)> {
    /// More would be many launches without one of them reading colder memory.
    const MOST_COPIES: usize = 256;
    let (first, moved) = case.make(setup, 0)?;
    let copies = pool.div_ceil((moved.read + moved.written).max(1) as usize).clamp(2, MOST_COPIES);
    let mut calls = vec![first];
    for copy in 1..copies {
        calls.push(case.make(setup, copy)?.0);
    }
    Ok((calls, moved))
}

/// What an op allocated is not the next one's.
fn trim(stream: &mut Stream) -> silicide::Result<()> {
    stream.synchronize()?;
    stream.trim();
    Ok(())
}

/// Bytes that operands go round in: several times the last cache.
fn default_pool(device: &Device) -> usize {
    const GPU: usize = 512 << 20;
    match device.kind() {
        DeviceKind::Cpu => (4 * last_cache().unwrap_or(0)).clamp(256 << 20, 2 << 30),
        DeviceKind::EmulatedMetal | DeviceKind::EmulatedCuda => 1 << 20,
        DeviceKind::Metal | DeviceKind::Cuda => device.free_memory().map_or(GPU, |free| GPU.min(free / 8)),
    }
}

/// Bytes of the last level of cache, where the system tells.
fn last_cache() -> Option<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").ok()?;
    text.trim().strip_suffix('K')?.parse::<usize>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests;
