//! `silicide explain`: what a decode step and a prompt cost, launch by launch.

use std::io::Write;

use serde::Serialize;
use silicide::device::{Launch, Plan};

use crate::args::ExplainArgs;
use crate::engine;
use crate::model::Library;
use crate::rates::{self, Rates};
use crate::report::{Column, Table, human_bytes, human_count, human_seconds};

/// Tokens of the prompt that is shown.
const PROMPT: usize = 512;

#[derive(Serialize)]
struct Report {
    device: String,
    /// Bytes a second that the device copies, reads and writes together; absent where measuring would say nothing.
    measured_bytes_per_second: Option<f64>,
    /// Floating-point operations a second of a large product of bf16 weights.
    measured_flops_per_second: Option<f64>,
    decode: PlanReport,
    prefill: PlanReport,
}

#[derive(Serialize)]
struct PlanReport {
    tokens: usize,
    launches: usize,
    barriers: usize,
    bytes_read: u64,
    bytes_written: u64,
    flops: u64,
    /// The least time the plan can take by the measured rates.
    floor_seconds: Option<f64>,
    steps: Vec<Step>,
}

/// Launches of one op and kernel with the same cost.
#[derive(Serialize)]
struct Step {
    op: &'static str,
    kernel: String,
    why: String,
    launches: usize,
    bytes: u64,
    flops: u64,
    /// Of the plan's least time, by bytes alone where no rates were measured.
    share: f64,
}

/// Runs the subcommand.
pub fn explain(
    args: &ExplainArgs,
    library: &Library,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> anyhow::Result<()> {
    let path = library.locate(&args.model)?;
    let (model, _) = engine::load(&path, &args.hardware, notes)?;
    let device = model.device();
    let rates = if device.kind().is_emulated() { None } else { Some(rates::measure(device)?) };
    let prompt = PROMPT.min(model.max_positions());
    let report = Report {
        device: format!("{}: {}", device.kind().name(), device.description()),
        measured_bytes_per_second: rates.map(|r| r.bytes_per_second),
        measured_flops_per_second: rates.map(|r| r.flops_per_second),
        decode: plan_report(1, &model.plan(1)?, rates, args.all),
        prefill: plan_report(prompt, &model.plan(prompt)?, rates, args.all),
    };
    if args.json {
        serde_json::to_writer(&mut *out, &report)?;
        return Ok(writeln!(out)?);
    }
    writeln!(out, "{}", report.device)?;
    if let Some(rates) = rates {
        let (bytes, flops) = (rates.bytes_per_second as u64, rates.flops_per_second as u64);
        writeln!(out, "measured: copies {}/s, multiplies at {}FLOP/s", human_bytes(bytes), human_count(flops))?;
    }
    for (name, plan) in [("decode step", &report.decode), ("prefill", &report.prefill)] {
        let floor = plan.floor_seconds.map(|s| format!(", at least {}", human_seconds(s))).unwrap_or_default();
        writeln!(
            out,
            "\n{name}, {} token{}: {} launches, {} barriers, {} read, {} written, {}FLOP{floor}",
            plan.tokens,
            if plan.tokens == 1 { "" } else { "s" },
            plan.launches,
            plan.barriers,
            human_bytes(plan.bytes_read),
            human_bytes(plan.bytes_written),
            human_count(plan.flops),
        )?;
        let mut table = Table::new([
            Column::left("op"),
            Column::right("launches"),
            Column::right("bytes"),
            Column::right("FLOP"),
            Column::right("share"),
            Column::left("kernel"),
            Column::left("why"),
        ]);
        for step in &plan.steps {
            table.row([
                step.op.to_owned(),
                step.launches.to_string(),
                human_bytes(step.bytes),
                human_count(step.flops),
                format!("{:.1} %", 100.0 * step.share),
                step.kernel.clone(),
                step.why.clone(),
            ]);
        }
        write!(out, "{table}")?;
    }
    Ok(())
}

/// Launches of one cost and kernel as one step, or `all` of them in order.
fn plan_report(tokens: usize, plan: &Plan, rates: Option<Rates>, all: bool) -> PlanReport {
    let floor = |launch: &Launch| {
        let cost = launch.cost();
        let bytes = (cost.read + cost.written) as f64;
        rates.map_or(bytes, |r| (bytes / r.bytes_per_second).max(cost.flops as f64 / r.flops_per_second))
    };
    let total: f64 = plan.launches().iter().map(floor).sum();
    let mut steps: Vec<Step> = Vec::new();
    for launch in plan.launches() {
        let (cost, chosen) = (launch.cost(), launch.chosen());
        let (bytes, share) = (cost.read + cost.written, floor(launch) / total.max(f64::MIN_POSITIVE));
        let same =
            |s: &&mut Step| s.op == launch.op() && s.kernel == chosen.kernel && s.bytes / s.launches as u64 == bytes;
        match steps.iter_mut().find(|step| !all && same(step)) {
            Some(step) => {
                step.launches += 1;
                step.bytes += bytes;
                step.flops += cost.flops;
                step.share += share;
            }
            None => steps.push(Step {
                op: launch.op(),
                kernel: chosen.kernel.to_string(),
                why: if chosen.why.is_empty() { "the only one" } else { &chosen.why }.into(),
                launches: 1,
                bytes,
                flops: cost.flops,
                share,
            }),
        }
    }
    let cost = plan.cost();
    PlanReport {
        tokens,
        launches: plan.launches().len(),
        barriers: plan.barriers(),
        bytes_read: cost.read,
        bytes_written: cost.written,
        flops: cost.flops,
        floor_seconds: rates.map(|_| total),
        steps,
    }
}
