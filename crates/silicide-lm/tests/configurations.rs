//! Configurations as they are found in the wild, and as they must not be: the same model, or an error that names the key.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use silicide::Device;
use silicide::formats::safetensors::{SafetensorsFile, TensorData, write};
use silicide_lm::{GenerateOptions, LoadOptions, Model};
use tempfile::TempDir;

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/tiny").join(name)
}

/// A copy of a checkpoint of `oracle/tiny` with another configuration.
fn edited(name: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tiny(name)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(path, config.to_string()).unwrap();
    folder
}

fn load(path: &Path) -> silicide_lm::Result<Model> {
    Model::load_with(path, &Device::cpu(), LoadOptions { dtype: Some(silicide::DType::F32) })
}

fn logits(path: &Path) -> Vec<f32> {
    let prompt: Vec<u32> = (3..43).collect();
    let options = GenerateOptions { max_tokens: 1, keep_logits: true, ..GenerateOptions::default() };
    let mut generator = load(path).unwrap().generate(prompt, options).unwrap();
    generator.next().unwrap().unwrap();
    generator.logits().to_vec()
}

fn error(path: &Path) -> String {
    load(path).err().map_or("no error".into(), |e| e.to_string())
}

#[test]
fn a_key_may_stand_beside_its_older_name() {
    for (name, edit) in [
        ("llama-hf-f16", (|c| c["rope_scaling"]["type"] = json!("llama3")) as fn(&mut Value)),
        ("gemma3-mlx-5bit-gs32-bf16", |c| c["_sliding_window_pattern"] = c["sliding_window_pattern"].clone()),
    ] {
        assert_eq!(logits(edited(name, edit).path()), logits(&tiny(name)), "{name}");
    }
}

#[test]
fn the_activation_is_the_one_named() {
    let with = |name: Value| edited("llama-hf-f16", |c| c["hidden_act"] = name);
    let silu = logits(&tiny("llama-hf-f16"));
    assert_eq!(logits(with(json!("swish")).path()), silu);
    assert_eq!(logits(with(Value::Null).path()), silu);
    let gelu = logits(with(json!("gelu")).path());
    assert_ne!(gelu, silu);
    assert_ne!(logits(with(json!("gelu_pytorch_tanh")).path()), gelu);
}

#[test]
fn what_cannot_be_run_names_the_file_and_the_key() {
    let cases: &[(&str, Value)] = &[
        ("num_hidden_layers", json!(0)),
        ("num_hidden_layers", json!(1u64 << 60)),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(0)),
        ("hidden_size", json!(0)),
        ("max_position_embeddings", json!(0)),
        ("head_dim", json!(0)),
        ("head_dim", json!(17)),
        // A table for such a head would take all memory.
        ("head_dim", json!(1u64 << 31)),
        ("head_dim", json!(u64::MAX)),
        ("num_hidden_layers", json!("2")),
        ("tie_word_embeddings", json!("yes")),
        ("rms_norm_eps", json!(null)),
        ("rms_norm_eps", json!(-1.0)),
        ("rms_norm_eps", json!(1e300)),
        ("rope_theta", json!("1e6")),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0})),
        ("rope_scaling", json!({"type": "llama3", "factor": -8})),
        ("hidden_act", json!("relu2")),
        ("hidden_act", json!(["silu"])),
    ];
    for (field, value) in cases {
        let folder = edited("llama-hf-f16", |config| {
            if field.starts_with("rope") || *field == "rms_norm_eps" {
                config.as_object_mut().unwrap().remove("rope_scaling");
            }
            config[*field] = value.clone();
        });
        let message = error(folder.path());
        assert!(message.contains(&format!("config.json: {field}: ")), "{field} {value}: {message}");
    }
    let folder = edited("gemma3-mlx-5bit-gs32-bf16", |c| c["rope_local_base_freq"] = json!("10000"));
    assert!(error(folder.path()).contains("config.json: rope_local_base_freq: "), "{}", error(folder.path()));
}

/// A model that is damaged because part of it was not copied says so, and not only what is wrong in the rest.
#[test]
fn a_missing_shard_is_named() {
    let name = "llama-mlx-4bit-gs64-bf16";
    let folder = edited(name, |_| {});
    let file = SafetensorsFile::open(&tiny(name).join("model.safetensors")).unwrap();
    let kept = file.tensors.entries().iter().filter(|e| e.name != "model.embed_tokens.scales");
    let tensors: Vec<_> = kept.map(|entry| file.tensors.get(&entry.name).unwrap()).collect();
    let data: Vec<_> = tensors
        .iter()
        .map(|t| TensorData { name: &t.name, dtype: t.dense().unwrap(), shape: t.shape, bytes: &t.bytes })
        .collect();
    write(&folder.path().join("model-00001-of-00002.safetensors"), &data, &[]).unwrap();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let message = error(folder.path());
    assert!(message.contains("model.embed_tokens.weight: got u32 and no tensor of scales"), "{message}");
    assert!(message.contains("1 of 2 files are there"), "{message}");
}

#[test]
fn a_type_of_blocks_that_is_not_computed_with_is_named_by_tensor() {
    let mut bytes = std::fs::read(tiny("llama-gguf-q8_0").join("model.gguf")).unwrap();
    let name = b"blk.0.attn_q.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len();
    // Behind the name: the number of axes, two axes, the type. 39 is MXFP4.
    bytes[at + 20..][..4].copy_from_slice(&39u32.to_le_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    let message = error(&path);
    assert!(message.contains("blk.0.attn_q.weight: is stored as MXFP4, wanted f32, f16, bf16, Q4_0"), "{message}");
}

#[test]
fn gguf_errors_name_the_metadata_key() {
    let whole = std::fs::read(tiny("llama-gguf-q8_0").join("model.gguf")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    // Overwrites a u32 value, or the key itself.
    let edit = |key: &str, value: Option<u32>| {
        let mut bytes = whole.clone();
        let at = bytes.windows(key.len()).position(|w| w == key.as_bytes()).unwrap_or_else(|| panic!("no {key}"));
        match value {
            Some(value) => bytes[at + key.len() + 4..][..4].copy_from_slice(&value.to_le_bytes()),
            None => bytes[at] = b'x',
        }
        std::fs::write(&path, bytes).unwrap();
        error(&path)
    };
    for (key, value) in [
        ("llama.block_count", Some(0)),
        ("llama.embedding_length", None),
        ("llama.attention.head_count", Some(0)),
        ("llama.context_length", Some(0)),
        ("llama.rope.dimension_count", Some(4)),
        ("llama.attention.layer_norm_rms_epsilon", Some(u32::MAX)),
    ] {
        let message = edit(key, value);
        assert!(message.contains(&format!("model.gguf: {key}: ")), "{key}: {message}");
    }
}
