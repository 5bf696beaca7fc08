//! What GGUF calls things, in the words of transformers' configurations and checkpoints.

use serde_json::{Map, Value, json};
use silicide::formats::Checkpoint;
use silicide::formats::gguf::Metadata;

use crate::error::{Error, Result};
use crate::tokenizer::GgufVocab;

/// Architectures: GGUF's name and the `model_type`.
const ARCHITECTURES: &[(&str, &str)] =
    &[("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma3", "gemma3_text")];

/// Metadata keys that every file has, less the architecture before them, and the configuration keys that mean the same.
const INTEGERS: &[(&str, &str)] = &[
    ("block_count", "num_hidden_layers"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("context_length", "max_position_embeddings"),
    ("attention.head_count", "num_attention_heads"),
];

/// Those that a file may lack.
const OPTIONAL_INTEGERS: &[(&str, &str)] = &[
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
];

const FLOATS: &[(&str, &str)] =
    &[("attention.layer_norm_rms_epsilon", "rms_norm_eps"), ("rope.freq_base", "rope_theta")];

/// Modules: transformers' names and GGUF's.
const MODULES: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// A configuration as transformers would write it for this file.
pub(crate) fn config(checkpoint: &Checkpoint, metadata: &Metadata) -> Result<Value> {
    let architecture: &str = metadata.get("general.architecture")?;
    let Some((_, model_type)) = ARCHITECTURES.iter().find(|(name, _)| *name == architecture) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
        let message = format!("got {architecture:?}, wanted one of {}", known.join(", "));
        return Err(Error::Config { field: "general.architecture".into(), message });
    };
    let mut config = Map::new();
    config.insert("model_type".into(), json!(model_type));
    for (key, name) in INTEGERS {
        config.insert((*name).into(), json!(metadata.get::<u64>(&format!("{architecture}.{key}"))?));
    }
    for (key, name) in OPTIONAL_INTEGERS {
        if let Some(value) = metadata.find::<u64>(&format!("{architecture}.{key}"))? {
            config.insert((*name).into(), json!(value));
        }
    }
    for (key, name) in FLOATS {
        if let Some(value) = metadata.find::<f32>(&format!("{architecture}.{key}"))? {
            // By way of text, so that 1e-5 stays 1e-5.
            let value: f64 = value.to_string().parse().unwrap_or(value.into());
            config.insert((*name).into(), json!(value));
        }
    }
    if let Some(kind) = metadata.find::<&str>(&format!("{architecture}.rope.scaling.type"))?
        && kind != "none"
    {
        let scaling = |key: &str| metadata.find::<f32>(&format!("{architecture}.rope.scaling.{key}"));
        config.insert(
            "rope_scaling".into(),
            json!({
                "rope_type": kind,
                "factor": scaling("factor")?,
                "attention_factor": scaling("attn_factor")?,
                "original_max_position_embeddings": scaling("original_context_length")?,
            }),
        );
    }
    let rope_dim = format!("{architecture}.rope.dimension_count");
    let size = |name: &str| config.get(name).and_then(Value::as_u64);
    let head_dim = size("head_dim").or_else(|| size("hidden_size")?.checked_div(size("num_attention_heads")?));
    if let (Some(got), Some(head_dim)) = (metadata.find::<u64>(&rope_dim)?, head_dim)
        && got != head_dim
    {
        let message = format!("got {got}, wanted the head dimension, {head_dim}: these models turn whole heads");
        return Err(Error::Config { field: rope_dim, message });
    }
    config.insert("tie_word_embeddings".into(), json!(!checkpoint.contains("output.weight")));
    if *model_type == "gemma3_text" {
        // llama.cpp derives these from the model's size; only the 27B differs from its head dimension.
        let head_dim = config.get("head_dim").and_then(Value::as_u64).unwrap_or(256);
        let (hidden, heads) = (config.get("hidden_size"), config.get("num_attention_heads"));
        let is_27b = config.get("num_hidden_layers").and_then(Value::as_u64) == Some(62);
        let scalar = match (is_27b, hidden.and_then(Value::as_u64), heads.and_then(Value::as_u64)) {
            (true, Some(hidden), Some(heads)) if heads > 0 => hidden / heads,
            _ => head_dim,
        };
        config.insert("query_pre_attn_scalar".into(), json!(scalar));
    }
    Ok(Value::Object(config))
}

/// GGUF's name of a configuration key, for messages; the name itself where GGUF has none for it.
pub(crate) fn key(metadata: &Metadata, name: &str) -> String {
    let known = INTEGERS.iter().chain(OPTIONAL_INTEGERS).chain(FLOATS).find(|(_, same)| *same == name);
    match (known, metadata.get::<&str>("general.architecture")) {
        (Some((key, _)), Ok(architecture)) => format!("{architecture}.{key}"),
        _ => name.into(),
    }
}

/// GGUF's name of the module that transformers calls `path`.
pub(crate) fn module_name(path: &str, model_type: &str) -> String {
    match path {
        "model.embed_tokens" => return "token_embd".into(),
        "model.norm" => return "output_norm".into(),
        "lm_head" => return "output".into(),
        _ => {}
    }
    let Some((layer, module)) = path.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return path.into();
    };
    // Gemma has a norm after attention besides the one before the feed-forward network.
    if model_type == "gemma3_text" && module == "post_attention_layernorm" {
        return format!("blk.{layer}.post_attention_norm");
    }
    match MODULES.iter().find(|(name, _)| *name == module) {
        Some((_, name)) => format!("blk.{layer}.{name}"),
        None => path.into(),
    }
}

/// The vocabulary that a GGUF file carries.
pub(crate) fn vocabulary(metadata: &Metadata) -> Result<GgufVocab> {
    let id = |key: &str| metadata.find::<u32>(&format!("tokenizer.ggml.{key}_token_id"));
    let strings = |key: &str| -> Result<Vec<String>> {
        let found = metadata.find::<Vec<&str>>(&format!("tokenizer.ggml.{key}"))?;
        Ok(found.unwrap_or_default().into_iter().map(String::from).collect())
    };
    let text = |key: &str| -> Result<Option<String>> { Ok(metadata.find::<&str>(key)?.map(String::from)) };
    Ok(GgufVocab {
        model: metadata.get::<&str>("tokenizer.ggml.model")?.into(),
        pre: text("tokenizer.ggml.pre")?,
        tokens: strings("tokens")?,
        scores: metadata.find("tokenizer.ggml.scores")?.unwrap_or_default(),
        token_types: metadata.find("tokenizer.ggml.token_type")?.unwrap_or_default(),
        merges: strings("merges")?,
        bos_id: id("bos")?,
        eos_id: id("eos")?,
        eot_id: id("eot")?,
        unk_id: id("unknown")?,
        pad_id: id("padding")?,
        add_bos: metadata.find("tokenizer.ggml.add_bos_token")?,
        add_eos: metadata.find("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: metadata.find("tokenizer.ggml.add_space_prefix")?,
        chat_template: text("tokenizer.chat_template")?,
    })
}
