//! Loading takes little more anonymous memory than the packed weights: no second copy, however short.
#![cfg(target_os = "linux")]

use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use silicide::Device;
use silicide::device::CudaOptions;
use silicide_lm::Model;

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 8192;
const VOCABULARY: usize = 32768;

/// Anonymous memory of this process, in bytes.
fn anonymous() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A llama of four layers in bf16 whose weights are a hole in the file; gives their size in bytes.
fn write_checkpoint(folder: &Path) -> usize {
    let config = serde_json::json!({
        "model_type": "llama", "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 4, "num_attention_heads": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors =
        vec![("model.embed_tokens".to_string(), vec![VOCABULARY, HIDDEN]), ("model.norm".to_string(), vec![HIDDEN])];
    for layer in 0..4 {
        for (name, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 4, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 4, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}"), shape));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(format!("{name}.weight"), entry);
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut file = std::fs::File::create(folder.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    end
}

#[test]
fn loading_makes_no_second_copy() {
    let folder = tempfile::tempdir().unwrap();
    let weights = write_checkpoint(folder.path());
    assert!(weights > 250 << 20, "a second copy must not pass for the rest, got {weights}");
    let device = Device::cpu();
    let before = anonymous();
    let done = AtomicBool::new(false);
    let peak = std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut peak = 0;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(anonymous());
                std::thread::sleep(Duration::from_millis(1));
            }
            peak
        });
        let model = Model::load(folder.path(), &device);
        done.store(true, Ordering::Relaxed);
        model.unwrap_or_else(|e| panic!("{e}"));
        watch.join().unwrap()
    });
    let taken = peak - before;
    eprintln!("{} MiB of weights took {} MiB", weights >> 20, taken >> 20);
    assert!(taken > weights / 2, "the watch saw nothing: {taken}");
    assert!(taken < weights + (200 << 20), "{weights} bytes of weights took {taken} bytes of memory to load");
}

#[test]
fn a_model_past_the_room_is_refused_before_it_is_read() {
    let options = CudaOptions { memory_limit: Some(1 << 20), ..CudaOptions::default() };
    let device = match Device::cuda_with(options) {
        Ok(device) => device,
        Err(e) if std::env::var_os("SILICIDE_REQUIRE_CUDA").is_some() => panic!("{e}"),
        Err(e) => return eprintln!("left out: {e}"),
    };
    let folder = tempfile::tempdir().unwrap();
    let size = write_checkpoint(folder.path());
    let message = Model::load(folder.path(), &device).err().unwrap().to_string();
    let sum = format!("the weights take {} MiB, and 1 MiB", size.div_ceil(1 << 20));
    assert!(message.contains(&sum), "{message}");
}
