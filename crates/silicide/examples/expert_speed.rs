//! How fast the CPU multiplies with routed experts: `cargo run --release -p silicide --example expert_speed [THREADS] [TOKENS]`.
//!
//! The experts are those of a layer of Qwen3.6-35B-A3B: 256 of [512, 2048] in 4 bits, 8 a token. Beside them stands a plain
//! product with as many bytes, or as many operations. Times are the shortest of many runs.

use std::time::{Duration, Instant};

use silicide::device::CpuOptions;
use silicide::formats::Mapped;
use silicide::ops::{self, ExpertWeight, Precision, Router, Weight, WeightedReduce};
use silicide::quant::QuantFormat;
use silicide::{DType, Device, Matrix, MatrixFormat, Result};

const EXPERTS: usize = 256;
const SLOTS: usize = 8;
const ROWS: usize = 512;
const COLUMNS: usize = 2048;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>().expect("a number"));
    let (threads, only) = (args.next().unwrap_or(2), args.next());
    let device = Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() });
    let stream = &mut device.stream();
    println!("{}", device.description());

    let format = QuantFormat::Affine { bits: 4, group_size: 64 };
    let matrix = |rows: usize| {
        // Any bytes do: 0x11 is a small number as a scale.
        let groups = rows * COLUMNS / 64 * 2;
        let bytes = |n: usize| Mapped::copy_from(&vec![0x11; n]).expect("memory");
        let (codes, scales) = (bytes(rows * format.row_bytes(COLUMNS)), bytes(groups));
        let format = MatrixFormat::Quantized(format, DType::BF16);
        Matrix::new(&device, format, rows, COLUMNS, &codes, Some(&scales), Some(&scales))
    };
    let experts = ExpertWeight::stacked(&matrix(EXPERTS * ROWS)?, EXPERTS)?;
    // As many bytes as a token's experts have, over and over.
    let plain: Vec<Weight> =
        (0..EXPERTS / SLOTS).map(|_| Weight::new(&matrix(SLOTS * ROWS)?)).collect::<Result<_>>()?;

    for precision in [Precision::Reduced, Precision::F32] {
        for tokens in [1, 4, 16, 128, 512].into_iter().filter(|&tokens| only.is_none_or(|only| only == tokens)) {
            let x: Vec<f32> = (0..tokens * COLUMNS).map(|i| (i * 7 % 13) as f32 - 6.0).collect();
            let x = device.tensor(&x, [tokens, COLUMNS])?;
            let mut step = 0;
            let routed = shortest(|| {
                // Other experts each time, all of them equally often.
                step += 1;
                let id = |i: usize| ((i * 31 + step * 13) % EXPERTS) as u32;
                let ids: Vec<u32> = (0..tokens * SLOTS).map(id).collect();
                let ids = device.tensor(&ids, [tokens, SLOTS])?;
                let schedule = ops::expert_schedule(stream, &ids, EXPERTS)?;
                ops::expert_matmul(stream, &x, &experts, &schedule, None, precision).map(drop)
            })?;
            // A plain product with as many weights, of as many rows each.
            let used = EXPERTS.min(tokens * SLOTS);
            let rows = x.slice(0, 0..(tokens * SLOTS / used).min(tokens))?;
            let alone = shortest(|| {
                step += 1;
                ops::matmul(stream, &rows, &plain[step % plain.len()], precision).map(drop)
            })?;
            let alone = alone * used as f64 / SLOTS as f64;
            let flops = (2 * tokens * SLOTS * ROWS * COLUMNS) as f64;
            println!(
                "{precision:?} {tokens:4} tokens | {:8.1} us {:6.1} GB/s {:7.1} GFLOP/s | plain {:8.1} us",
                routed * 1e6,
                experts.bytes() as f64 * used as f64 / EXPERTS as f64 / routed / 1e9,
                flops / routed / 1e9,
                alone * 1e6,
            );
        }
    }

    for tokens in [1, 512] {
        let logits: Vec<f32> = (0..tokens * EXPERTS).map(|i| (i * 7919 % 1009) as f32 / 100.0).collect();
        let logits = device.tensor(&logits, [tokens, EXPERTS])?;
        let route = || ops::router(stream, &logits, Router { top_k: SLOTS, ..Router::default() });
        let time = shortest({
            let mut route = route;
            move || route().map(drop)
        })?;
        println!("router {tokens:4} tokens | {:8.2} us", time * 1e6);
        let (_, weights) = ops::router(stream, &logits, Router { top_k: SLOTS, ..Router::default() })?;
        let y = device.zeros(DType::F32, [tokens, SLOTS, COLUMNS])?;
        let time = shortest(|| ops::weighted_reduce(stream, &y, &weights, WeightedReduce::default()).map(drop))?;
        println!(
            "weighted_reduce {tokens:4} tokens | {:8.2} us {:6.1} GB/s",
            time * 1e6,
            (y.elements() * 4) as f64 / time / 1e9
        );
    }
    Ok(())
}

/// Seconds of the shortest run.
fn shortest(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    while start.elapsed() < Duration::from_millis(1500) {
        let begin = Instant::now();
        run()?;
        best = best.min(begin.elapsed().as_secs_f64());
    }
    Ok(best)
}
