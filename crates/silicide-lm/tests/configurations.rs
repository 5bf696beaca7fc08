//! Configurations as they are found in the wild, and as they must not be: the same model, or an error that names the key.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use silicide::Device;
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

#[test]
fn a_key_may_stand_beside_its_older_name() {
    for (name, edit) in [
        ("llama-hf-f16", (|c| c["rope_scaling"]["type"] = json!("llama3")) as fn(&mut Value)),
        ("gemma3-mlx-5bit-gs32-bf16", |c| c["_sliding_window_pattern"] = c["sliding_window_pattern"].clone()),
    ] {
        assert_eq!(logits(edited(name, edit).path()), logits(&tiny(name)), "{name}");
    }
}
