//! `silicide bench gains`: what kernels that only NVIDIA GPUs have gain over those that all GPUs share.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use silicide::device::Launch;
use silicide::{Device, DeviceKind, Stream};

use super::case::{Call, Case, Setup};
use super::measure::{self, Times};
use super::report::{microseconds, three_digits};
use crate::args::{BenchGainsArgs, DeviceArgs, DeviceChoice};
use crate::engine;

/// Of each folder that has such kernels, the lines of a table.
pub(super) type Tables = BTreeMap<String, Vec<String>>;

/// Runs the subcommand.
pub fn gains(args: &BenchGainsArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let devices = pair(&args.device)?;
    let cases = super::chosen(super::cases(devices[0].kind()), args.filter.as_deref(), None)?;
    let pool = args.pool.unwrap_or_else(|| super::default_pool(&devices[0]));
    let [own, shared] = &devices;
    let setups = &mut [Setup::new(own, pool)?, Setup::new(shared, pool)?];
    let streams = &mut [own.stream(), shared.stream()];
    let mut tables = Tables::new();
    write!(out, "{}", head(own))?;
    for case in &cases {
        let named = || format!("{} {}", case.op, case.shape);
        let (call, _) = case.make(&mut setups[0], 0).with_context(named)?;
        let kernels = own_kernels(&mut streams[0], &call).with_context(named)?;
        let mut folders: Vec<_> = kernels.iter().filter_map(|kernel| kernel.split('/').next()).collect();
        folders.dedup();
        folders.retain(|folder| args.folder.as_deref().is_none_or(|wanted| wanted == *folder));
        if folders.is_empty() {
            continue;
        }
        let times = time(case, setups, streams, pool, args.rounds).with_context(named)?;
        let line = line(case, &kernels, times);
        writeln!(out, "{line}")?;
        out.flush()?;
        for folder in folders {
            tables.entry(folder.to_owned()).or_default().push(line.clone());
        }
    }
    if tables.is_empty() {
        bail!("no kernel of {}'s own runs at these shapes", args.folder.as_deref().unwrap_or("NVIDIA"));
    }
    if let Some(ops) = &args.into {
        write_tables(ops, &head(own), &tables)?;
    }
    Ok(())
}

/// The device with its own kernels, and the one that runs the shared ones alone.
fn pair(options: &DeviceArgs) -> anyhow::Result<[Device; 2]> {
    let own = engine::device(options)?;
    let shared = match own.kind() {
        DeviceKind::Cuda if options.device != DeviceChoice::CudaShared => DeviceChoice::CudaShared,
        DeviceKind::EmulatedCuda => DeviceChoice::EmulatedMetal,
        kind => bail!("{} runs no kernels of its own: wanted --device cuda, or emulated-cuda", kind.name()),
    };
    let shared = engine::device(&DeviceArgs { device: shared, ..options.clone() })?;
    Ok([own, shared])
}

/// The files of a call's kernels that NVIDIA GPUs alone have, in order.
fn own_kernels(stream: &mut Stream, call: &Call) -> silicide::Result<Vec<String>> {
    let (plan, _) = stream.record(|stream| call(stream))?;
    let mut kernels: Vec<_> = plan.launches().iter().filter_map(Launch::source).collect();
    kernels.retain(|kernel| kernel.ends_with(".cu"));
    kernels.sort_unstable();
    kernels.dedup();
    Ok(kernels)
}

fn time(
    case: &Case,
    [own, shared]: &mut [Setup; 2],
    [own_stream, shared_stream]: &mut [Stream; 2],
    pool: usize,
    rounds: usize,
) -> silicide::Result<[Times; 2]> {
    let (own, _) = super::calls(case, own, pool)?;
    let (shared, _) = super::calls(case, shared, pool)?;
    let times = measure::beside([own_stream, shared_stream], [&own, &shared], rounds, Duration::from_millis(400));
    drop((own, shared));
    super::trim(own_stream)?;
    super::trim(shared_stream)?;
    times
}

fn head(device: &Device) -> String {
    format!(
        "# What the kernels of NVIDIA's own gain\n\n\
         Each is to outrun those in Metal's language, which NVIDIA GPUs run as well. Medians, replays of both in turn. Written by\n\
         `silicide bench gains --device cuda --into crates/silicide/src/ops`, silicide {}, on\n\
         {}: {}.\n\n\
         | op | shape | kernels | own | shared | gain |\n|---|---|---|--:|--:|--:|\n",
        env!("CARGO_PKG_VERSION"),
        device.kind().name(),
        device.description(),
    )
}

fn line(case: &Case, kernels: &[String], [own, shared]: [Times; 2]) -> String {
    let names: Vec<_> = kernels.iter().map(|kernel| format!("`{kernel}`")).collect();
    format!(
        "| {} | {} | {} | {} | {} | {} |",
        case.op,
        case.shape,
        names.join(", "),
        microseconds(own.median),
        microseconds(shared.median),
        three_digits(shared.median / own.median),
    )
}

/// A `gains.md` in each folder that has a table, whole or not at all.
pub(super) fn write_tables(ops: &Path, head: &str, tables: &Tables) -> anyhow::Result<()> {
    for (folder, lines) in tables {
        let path = ops.join(folder).join("gains.md");
        let whole = format!("{head}{}\n", lines.join("\n"));
        let write = || {
            let mut file = tempfile::NamedTempFile::new_in(ops.join(folder))?;
            file.write_all(whole.as_bytes())?;
            file.persist(&path).map_err(|e| e.error)
        };
        write().with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}
