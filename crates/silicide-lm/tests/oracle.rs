//! Models against mlx-lm and transformers: every family and format of `oracle/tiny`, on every device.
//!
//! `oracle/.large`, which a script makes, is read as well where it is there.

use std::path::{Path, PathBuf};

use silicide::device::EmulatedOptions;
use silicide::formats::safetensors::SafetensorsFile;
use silicide::{DType, Device};
use silicide_lm::{GenerateOptions, LoadOptions, Model, SamplingOptions};

/// What the oracle says of one prompt.
struct Case {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    /// Logits of the prompt's last positions.
    logits: Vec<f32>,
    /// How far transformers' own bf16 run is from its f32 run, at most and by root mean square.
    bf16: Option<(f64, f64)>,
}

fn checkpoints() -> Vec<PathBuf> {
    let oracle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle");
    let folders = ["tiny", ".large"].into_iter().filter_map(|set| std::fs::read_dir(oracle.join(set)).ok());
    let mut found: Vec<_> = folders
        .flat_map(|set| set.map(|entry| entry.unwrap().path()))
        .filter(|path| path.join("expected.safetensors").exists())
        .collect();
    found.sort();
    assert!(found.len() >= 20, "oracle/tiny has {} checkpoints", found.len());
    found
}

/// The checkpoint itself: the folder, or the GGUF file in it.
fn model_path(folder: &Path) -> PathBuf {
    let gguf = folder.join("model.gguf");
    if gguf.exists() { gguf } else { folder.to_owned() }
}

fn cases(folder: &Path) -> Vec<Case> {
    let file = SafetensorsFile::open(&folder.join("expected.safetensors")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&file.metadata["expected"]).unwrap();
    let words = |name: String| -> Vec<u32> {
        let raw = file.tensors.get(&name).unwrap_or_else(|| panic!("{}: no {name}", folder.display()));
        raw.bytes.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let case = |n: u32| Case {
        prompt: words(format!("prompt_{n}")),
        greedy: words(format!("greedy_{n}")),
        logits: words(format!("logits_{n}")).into_iter().map(f32::from_bits).collect(),
        bf16: expected["bf16"].get(n.to_string()).map(|b| (b["max"].as_f64().unwrap(), b["rms"].as_f64().unwrap())),
    };
    [12, 100].map(case).into()
}

/// The logits of the prompt's last `rows` positions, and the tokens that follow it.
fn run(model: &Model, prompt: &[u32], rows: usize, tokens: usize, chunk: usize) -> (Vec<f32>, Vec<u32>) {
    let options = GenerateOptions {
        max_tokens: tokens,
        sampling: Some(SamplingOptions::default()),
        ignore_eos: true,
        keep_logits: true,
        prefill_chunk: chunk,
        ..GenerateOptions::default()
    };
    let mut generator = model.generate(prompt.to_vec(), options).unwrap();
    let generated: Vec<u32> = generator.by_ref().map(|token| token.unwrap().id).collect();
    let vocabulary = model.vocabulary();
    let logits = generator.logits();
    assert_eq!(logits.len(), (prompt.len() + generated.len()) * vocabulary);
    let end = prompt.len() * vocabulary;
    (logits[end - rows * vocabulary..end].to_vec(), generated)
}

fn load(path: &Path, device: &Device, dtype: Option<DType>) -> Model {
    Model::load_with(model_path(path), device, LoadOptions { dtype }).unwrap_or_else(|e| panic!("{e}"))
}

/// The greatest difference, and the root of the mean square.
fn distance(a: &[f32], b: &[f32]) -> (f64, f64) {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| (*a as f64 - *b as f64).abs());
    let (max, squares) = differences.fold((0f64, 0f64), |(max, sum), d| (max.max(d), sum + d * d));
    assert!(!squares.is_nan(), "a logit is NaN");
    (max, (squares / a.len() as f64).sqrt())
}

#[test]
fn f32_logits_and_greedy_tokens_are_the_oracles() {
    for folder in checkpoints() {
        let model = load(&folder, &Device::cpu(), Some(DType::F32));
        for case in cases(&folder) {
            let rows = case.logits.len() / model.vocabulary();
            let (logits, tokens) = run(&model, &case.prompt, rows, case.greedy.len(), 512);
            let (max, _) = distance(&logits, &case.logits);
            let name = folder.display();
            assert!(max < 1e-3, "{name}, {} tokens: logits differ by {max}", case.prompt.len());
            assert_eq!(tokens, case.greedy, "{name}, {} tokens", case.prompt.len());
        }
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_same_logits() {
    for folder in checkpoints() {
        let model = load(&folder, &Device::cpu(), Some(DType::F32));
        let case = &cases(&folder)[1];
        let (whole, _) = run(&model, &case.prompt, 100, 1, 512);
        for chunk in [1, 7, 64] {
            let (parts, _) = run(&model, &case.prompt, 100, 1, chunk);
            let (max, _) = distance(&whole, &parts);
            assert!(max <= 1e-5, "{}: chunks of {chunk} differ by {max}", folder.display());
        }
    }
}

#[test]
fn the_default_type_is_nearer_to_f32_than_bf16_is() {
    is_near_to_f32(&Device::cpu(), 1.0);
}

/// The default type is no further from f32 than transformers' own bf16 run: by root mean square `rms_bound` times, at most
/// 1.5 times.
fn is_near_to_f32(device: &Device, rms_bound: f64) {
    let mut far = Vec::new();
    for folder in checkpoints() {
        let model = load(&folder, device, None);
        for case in cases(&folder) {
            let Some((bf16_max, bf16_rms)) = case.bf16 else { continue };
            let rows = case.logits.len() / model.vocabulary();
            // Whole, as a prompt is computed, and token by token, as an answer is.
            for chunk in [512, 1] {
                let (logits, _) = run(&model, &case.prompt, rows, 1, chunk);
                let (max, rms) = distance(&logits, &case.logits);
                if rms > rms_bound * bf16_rms || max > 1.5 * bf16_max {
                    let (name, n) = (folder.display(), case.prompt.len());
                    far.push(format!(
                        "{name}, {n} tokens by {chunk}: {max}, rms {rms}; bf16 has {bf16_max}, {bf16_rms}"
                    ));
                }
            }
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}

/// An emulated device, which `SILICIDE_REQUIRE_EMULATED` says must be there.
fn emulated(open: fn(EmulatedOptions) -> silicide::Result<Device>) -> Option<Device> {
    match open(EmulatedOptions::default()) {
        Ok(device) => Some(device),
        Err(e) if std::env::var_os("SILICIDE_REQUIRE_EMULATED").is_some() => panic!("{e}"),
        Err(e) => {
            eprintln!("left out: {e}");
            None
        }
    }
}

#[test]
fn the_emulated_metal_device_gives_the_same() {
    emulated(Device::emulated_metal).iter().for_each(gives_the_same);
}

/// There activations have 16 bits, as tensor cores take them.
#[test]
fn the_default_type_on_the_emulated_cuda_device_is_as_near_to_f32_as_bf16_is() {
    emulated(Device::emulated_cuda).iter().for_each(|device| is_near_to_f32(device, 1.25));
}

/// The NVIDIA GPU, which `SILICIDE_REQUIRE_CUDA` says must be there.
fn cuda() -> Option<Device> {
    match Device::cuda() {
        Ok(device) => Some(device),
        Err(e) if std::env::var_os("SILICIDE_REQUIRE_CUDA").is_some() => panic!("{e}"),
        Err(e) => {
            eprintln!("left out: {e}");
            None
        }
    }
}

#[test]
fn the_cuda_device_gives_the_same() {
    cuda().iter().for_each(gives_the_same);
}

/// Activations are stored in 16 bits there, as in the run that is the measure.
#[test]
fn the_default_type_on_cuda_is_as_near_to_f32_as_bf16_is() {
    cuda().iter().for_each(|device| is_near_to_f32(device, 1.25));
}

#[cfg(target_os = "macos")]
#[test]
fn the_metal_device_gives_the_same() {
    gives_the_same(&Device::metal().expect("a Mac has a Metal device"));
}

fn gives_the_same(device: &Device) {
    for folder in checkpoints().iter().filter(|folder| folder.parent().unwrap().ends_with("tiny")) {
        let model = load(folder, device, Some(DType::F32));
        let case = &cases(folder)[0];
        let rows = case.logits.len() / model.vocabulary();
        let (logits, tokens) = run(&model, &case.prompt, rows, case.greedy.len(), 512);
        let (max, _) = distance(&logits, &case.logits);
        assert!(max < 1e-3, "{}: logits differ by {max}", folder.display());
        assert_eq!(tokens, case.greedy, "{}", folder.display());
    }
}
