//! How long choosing a token takes, by method, at the vocabulary sizes of today's models: from logits on the host, and by
//! `ops::sample` from logits on a device, as generation does.
//!
//! ```sh
//! cargo run --release -p silicide-lm --example sampler_speed [cuda]
//! ```

use std::time::Instant;

use silicide::Device;
use silicide::ops::{self, Sampling};
use silicide_lm::{Sampler, SamplingOptions};

/// Logits shaped like a trained model's: a few tokens far above a wide bell.
fn logits(vocabulary: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let bell = |u: &mut dyn FnMut() -> f32| (0..12).map(|_| u()).sum::<f32>() - 6.0;
    let mut logits: Vec<f32> = (0..vocabulary).map(|_| 2.5 * bell(&mut uniform)).collect();
    for i in 0..20 {
        logits[i * 997 % vocabulary] = 18.0 - 0.4 * i as f32;
    }
    logits
}

/// Draws in a recorded plan.
const REPEATS: usize = 10;

fn main() -> silicide_lm::Result<()> {
    let plain = SamplingOptions { seed: Some(1), ..SamplingOptions::default() };
    let warm = SamplingOptions { temperature: 0.8, ..plain.clone() };
    let methods = [
        ("greedy", plain.clone()),
        ("temperature", warm.clone()),
        ("top-p 0.95", SamplingOptions { top_p: 0.95, ..warm.clone() }),
        ("top-k 40", SamplingOptions { top_k: 40, ..warm.clone() }),
        ("min-p 0.05", SamplingOptions { min_p: 0.05, ..warm.clone() }),
        ("top-k, top-p, min-p", SamplingOptions { top_k: 40, top_p: 0.95, min_p: 0.05, ..warm.clone() }),
        ("penalties", SamplingOptions { repetition_penalty: 1.1, frequency_penalty: 0.1, ..warm }),
    ];
    println!("| method | 49,152 tokens, µs | 151,936 tokens, µs | 262,144 tokens, µs |\n|---|---|---|---|");
    for (name, options) in &methods {
        print!("| {name} |");
        for vocabulary in [49_152, 151_936, 262_144] {
            let (source, history) = (logits(vocabulary), (0..100).collect::<Vec<u32>>());
            let mut sampler = Sampler::new(options.clone())?;
            let time = median(|| {
                // The sampler writes into them.
                let mut logits = source.clone();
                let begun = Instant::now();
                sampler.sample(&mut logits, &history)?;
                Ok(begun.elapsed().as_secs_f64())
            })?;
            print!(" {time:.0} |");
        }
        println!();
    }
    let device = if std::env::args().any(|a| a == "cuda") { Device::cuda()? } else { Device::cpu() };
    let stream = &mut device.stream();
    for (name, options) in &methods[..methods.len() - 1] {
        print!("| {name}, on the device |");
        for vocabulary in [49_152, 151_936, 262_144] {
            let logits = device.tensor(&logits(vocabulary), [1, vocabulary])?;
            let state = ops::sample_state(&device, &[1])?;
            let SamplingOptions { temperature, top_p, min_p, .. } = *options;
            let sampling = match temperature {
                0.0 => Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() },
                _ => Sampling { temperature, top_p, min_p, top_k: options.top_k as u32 },
            };
            // Several in one replay, as a step has other work beside it.
            let (plan, _tokens) = stream.record(|stream| {
                (0..REPEATS).map(|_| ops::sample(stream, &logits, sampling, &state)).collect::<Result<Vec<_>, _>>()
            })?;
            let time = median(|| {
                let begun = Instant::now();
                stream.replay(&plan)?;
                stream.synchronize()?;
                Ok(begun.elapsed().as_secs_f64() / REPEATS as f64)
            })?;
            print!(" {time:.0} |");
        }
        println!();
    }
    Ok(())
}

/// The median of 51 times, in microseconds.
fn median(mut run: impl FnMut() -> silicide_lm::Result<f64>) -> silicide_lm::Result<f64> {
    let mut times = (0..51).map(|_| run()).collect::<Result<Vec<f64>, _>>()?;
    times.sort_by(f64::total_cmp);
    Ok(1e6 * times[times.len() / 2])
}
