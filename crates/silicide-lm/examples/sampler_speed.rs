//! How long choosing a token takes, by method, at the vocabulary sizes of today's models:
//!
//! ```sh
//! cargo run --release -p silicide-lm --example sampler_speed
//! ```

use std::time::Instant;

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
    for (name, options) in methods {
        print!("| {name} |");
        for vocabulary in [49_152, 151_936, 262_144] {
            let (source, history) = (logits(vocabulary), (0..100).collect::<Vec<u32>>());
            let mut sampler = Sampler::new(options.clone())?;
            let mut times: Vec<f64> = Vec::new();
            for _ in 0..51 {
                // The sampler writes into them.
                let mut logits = source.clone();
                let begun = Instant::now();
                sampler.sample(&mut logits, &history)?;
                times.push(begun.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            print!(" {:.0} |", 1e6 * times[times.len() / 2]);
        }
        println!();
    }
    Ok(())
}
