//! Tokens drawn on the device: those that the sampler on the host draws, and the same on every device.

use std::path::Path;

use silicide::device::EmulatedOptions;
use silicide::{DType, Device};
use silicide_lm::{GenerateOptions, LoadOptions, Model, Sampler, SamplingOptions};

const PROMPT: [u32; 5] = [3, 5, 7, 5, 11];

fn load(device: &Device) -> Model {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/tiny/llama-mlx-4bit-gs64-bf16");
    Model::load_with(path, device, LoadOptions { dtype: Some(DType::F32) }).unwrap()
}

fn options() -> Vec<SamplingOptions> {
    let plain = SamplingOptions { seed: Some(42), ..SamplingOptions::default() };
    let warm = SamplingOptions { temperature: 1.3, ..plain.clone() };
    let bias = vec![(9, 2.5), (4, f32::NEG_INFINITY)];
    vec![
        plain.clone(),
        SamplingOptions { repetition_penalty: 1.3, ..plain },
        warm.clone(),
        SamplingOptions { top_k: 20, top_p: 0.95, ..warm.clone() },
        SamplingOptions { top_p: 0.6, ..warm.clone() },
        SamplingOptions { min_p: 0.05, top_k: 100, seed: Some(u64::MAX), ..warm.clone() },
        SamplingOptions { repetition_penalty: 1.2, frequency_penalty: 0.3, penalty_context: 8, ..warm.clone() },
        SamplingOptions { presence_penalty: 0.5, penalty_context: usize::MAX, logit_bias: bias, ..warm },
    ]
}

/// The tokens, and the logits of every position where they are asked for.
fn run(model: &Model, sampling: SamplingOptions, keep_logits: bool) -> (Vec<u32>, Vec<f32>) {
    let options = GenerateOptions {
        max_tokens: 32,
        sampling: Some(sampling),
        ignore_eos: true,
        keep_logits,
        ..GenerateOptions::default()
    };
    let mut generator = model.generate(PROMPT.to_vec(), options).unwrap();
    let tokens = generator.by_ref().map(|token| token.unwrap().id).collect();
    (tokens, generator.logits().to_vec())
}

#[test]
fn tokens_are_those_of_the_sampler_on_the_host() {
    let model = load(&Device::cpu());
    for options in options() {
        let (tokens, logits) = run(&model, options.clone(), true);
        let mut sampler = Sampler::new(options.clone()).unwrap();
        let mut history = PROMPT.to_vec();
        for (i, &token) in tokens.iter().enumerate() {
            let at = (PROMPT.len() - 1 + i) * model.vocabulary();
            let mut row = logits[at..][..model.vocabulary()].to_vec();
            assert_eq!(sampler.sample(&mut row, &history).unwrap(), token, "{options:?}: token {i}");
            history.push(token);
        }
        assert_eq!(run(&model, options.clone(), false).0, tokens, "{options:?}: without logits kept");
    }
}

#[test]
fn a_seed_gives_the_same_tokens_on_every_device() {
    let mut devices = Vec::new();
    for (device, must) in [
        (Device::emulated_metal(EmulatedOptions::default()), "SILICIDE_REQUIRE_EMULATED"),
        (Device::cuda(), "SILICIDE_REQUIRE_CUDA"),
    ] {
        match device {
            Ok(device) => devices.push(device),
            Err(e) if std::env::var_os(must).is_some() => panic!("{e}"),
            Err(e) => eprintln!("left out: {e}"),
        }
    }
    let cpu = load(&Device::cpu());
    for device in devices {
        let model = load(&device);
        for options in options() {
            let (tokens, _) = run(&model, options.clone(), false);
            assert_eq!(tokens, run(&cpu, options.clone(), false).0, "{device:?}: {options:?}");
        }
    }
}

/// A session keeps its recorded step where only the seed is another.
#[test]
fn a_session_changes_its_options() {
    let model = load(&Device::cpu());
    let mut session = model.session();
    for options in options().into_iter().chain(options()) {
        for seed in [1, 2, 1] {
            let sampling = SamplingOptions { seed: Some(seed), ..options.clone() };
            let generate = GenerateOptions {
                max_tokens: 32,
                sampling: Some(sampling.clone()),
                ignore_eos: true,
                ..GenerateOptions::default()
            };
            let generator = session.generate(PROMPT.to_vec(), generate).unwrap();
            let tokens: Vec<u32> = generator.map(|token| token.unwrap().id).collect();
            assert_eq!(tokens, run(&model, sampling, false).0);
        }
    }
}
