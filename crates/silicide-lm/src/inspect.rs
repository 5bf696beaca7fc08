//! What is in a checkpoint, from its headers alone.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use silicide::DType;
use silicide::formats::{Checkpoint, Kind, StoredType, TensorEntry};
use silicide::quant::QuantFormat;

use crate::error::Result;
use crate::{gguf, models};

/// Facts about a checkpoint. Making it reads no weights, so it takes no longer for a large model.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// `MLX folder`, `Hugging Face folder` or `GGUF file`.
    pub format: String,
    /// The `model_type`, or GGUF's architecture where it has no other name.
    pub architecture: Option<String>,
    /// Whether [`Model`](crate::Model) loads this architecture.
    pub supported: bool,
    /// Logical parameters: quantised weights count by their codes, scales and biases do not.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub weight_bytes: u64,
    /// Transformer blocks.
    pub layers: Option<u64>,
    /// The width of the residual stream.
    pub hidden_size: Option<u64>,
    /// The longest context it was made for, in tokens.
    pub context: Option<u64>,
    /// Keys and values of one token at 16 bits.
    pub cache_bytes_per_token: Option<u64>,
    /// Weights and the cache of 4096 tokens.
    pub memory_bytes: Option<u64>,
    /// What the tokenizer is, and from where.
    pub tokenizer: String,
    /// The number of tokens it knows.
    pub vocabulary: Option<u64>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// The ways in which tensors are stored, the largest first.
    pub formats: Vec<FormatLine>,
    /// Every tensor, by name.
    pub tensors: Vec<TensorLine>,
    /// What looks wrong and may not matter.
    pub warnings: Vec<String>,
}

/// Tensors that are stored alike.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FormatLine {
    /// The format.
    pub format: String,
    /// How many tensors; a quantised weight with its scales and biases is one.
    pub tensors: u64,
    /// Their parameters.
    pub parameters: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Which modules, with `*` for the number of the layer.
    pub places: Vec<String>,
}

/// One tensor of the files.
#[derive(Clone, Debug, Serialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// How it is stored.
    pub format: String,
    /// Its shape as stored: packed words of quantised weights, not elements.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: u64,
}

impl Inspection {
    /// Looks into an MLX or Hugging Face folder, or a GGUF file.
    ///
    /// # Errors
    /// What opening a checkpoint finds wrong, named with file and field.
    pub fn of(path: impl AsRef<Path>) -> Result<Inspection> {
        let path = path.as_ref();
        let checkpoint = Checkpoint::open(path)?;
        let config = match (checkpoint.config(), checkpoint.gguf()) {
            (Some(config), _) => config.clone(),
            // An architecture that is not known is no reason to tell nothing.
            (None, Some(metadata)) => gguf::config(&checkpoint, metadata).unwrap_or_default(),
            (None, None) => Value::Null,
        };
        let text = config.get("text_config").unwrap_or(&config);
        let number = |key: &str| text.get(key).or_else(|| config.get(key)).and_then(Value::as_u64);
        let architecture = match (config.get("model_type").and_then(Value::as_str), checkpoint.gguf()) {
            (Some(name), _) => Some(name.to_owned()),
            (None, Some(metadata)) => metadata.find::<&str>("general.architecture")?.map(str::to_owned),
            (None, None) => None,
        };
        let formats = formats(&checkpoint)?;
        let weight_bytes = checkpoint.entries().map(|t| t.span.len() as u64).sum();
        let heads = number("num_key_value_heads").or_else(|| number("num_attention_heads"));
        let head_dim = number("head_dim")
            .or_else(|| Some(number("hidden_size")? / number("num_attention_heads").filter(|&heads| heads > 0)?));
        let cache = number("num_hidden_layers")
            .zip(heads.zip(head_dim))
            .and_then(|(layers, (heads, dim))| layers.checked_mul(heads)?.checked_mul(dim)?.checked_mul(4));
        let (tokenizer, vocabulary, chat_template) = text_facts(&checkpoint, path)?;
        Ok(Inspection {
            format: match checkpoint.kind() {
                Kind::Mlx => "MLX folder",
                Kind::HuggingFace => "Hugging Face folder",
                Kind::Gguf => "GGUF file",
            }
            .into(),
            supported: architecture.as_deref().is_some_and(models::is_known),
            architecture,
            parameters: formats.iter().map(|line| line.parameters).sum(),
            weight_bytes,
            layers: number("num_hidden_layers"),
            hidden_size: number("hidden_size"),
            context: number("max_position_embeddings"),
            cache_bytes_per_token: cache,
            memory_bytes: cache.and_then(|cache| cache.checked_mul(4096)?.checked_add(weight_bytes)),
            tokenizer,
            vocabulary: vocabulary.or_else(|| number("vocab_size")),
            chat_template,
            formats,
            tensors: checkpoint.entries().map(TensorLine::from).collect(),
            warnings: checkpoint.warnings().to_vec(),
        })
    }
}

impl From<&TensorEntry> for TensorLine {
    fn from(entry: &TensorEntry) -> TensorLine {
        TensorLine {
            name: entry.name.clone(),
            format: entry.dtype.to_string(),
            shape: entry.shape.to_vec(),
            bytes: entry.span.len() as u64,
        }
    }
}

/// Groups tensors by how they are stored.
fn formats(checkpoint: &Checkpoint) -> Result<Vec<FormatLine>> {
    let quantization = checkpoint.quantization()?;
    let mut lines: BTreeMap<String, FormatLine> = BTreeMap::new();
    for entry in checkpoint.entries() {
        let (module, leaf) = entry.name.rsplit_once('.').unwrap_or(("", &entry.name));
        let quantized = checkpoint.contains(&format!("{module}.scales"));
        let elements = entry.shape.checked_elements().unwrap_or(usize::MAX) as u64;
        let quant = match &quantization {
            Some(q) if quantized && matches!(leaf, "weight" | "scales" | "biases") => q.format_for(module, true)?,
            _ => None,
        };
        let (format, parameters, whole) = match (quant, leaf) {
            (Some(format), "weight") => (format.to_string(), packed_elements(entry, format), 1),
            (Some(format), _) => (format.to_string(), 0, 0),
            (None, _) => (entry.dtype.to_string(), elements, 1),
        };
        let line = lines.entry(format.clone()).or_insert_with(|| FormatLine { format, ..FormatLine::default() });
        line.tensors += whole;
        line.parameters += parameters;
        line.bytes += entry.span.len() as u64;
        let place = place(module);
        if !line.places.contains(&place) {
            line.places.push(place);
        }
    }
    let mut lines: Vec<_> = lines.into_values().collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    Ok(lines)
}

/// Codes in a packed tensor.
fn packed_elements(entry: &TensorEntry, format: QuantFormat) -> u64 {
    let word_bits = match entry.dtype {
        StoredType::Dense(dtype) => 8 * dtype.size(),
        _ => 8 * DType::U32.size(),
    };
    let words = entry.shape.checked_elements().unwrap_or(0) as u64;
    words * word_bits as u64 / format.bits() as u64
}

/// A module's path with `*` for the number of its layer.
fn place(module: &str) -> String {
    let parts = module.split('.').map(|part| if part.parse::<u32>().is_ok() { "*" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

/// The tokenizer's kind, its size where that is cheap to know, and whether there is a chat template.
fn text_facts(checkpoint: &Checkpoint, path: &Path) -> Result<(String, Option<u64>, bool)> {
    if let Some(metadata) = checkpoint.gguf() {
        let kind = metadata.find::<&str>("tokenizer.ggml.model")?;
        let pre = metadata.find::<&str>("tokenizer.ggml.pre")?;
        let name = match (kind, pre) {
            (Some(kind), Some(pre)) => format!("{kind} ({pre}), in the file"),
            (Some(kind), None) => format!("{kind}, in the file"),
            (None, _) => "none".into(),
        };
        let vocabulary = match metadata.value("tokenizer.ggml.tokens") {
            Some(silicide::formats::gguf::Value::Array(tokens)) => Some(tokens.len() as u64),
            _ => None,
        };
        return Ok((name, vocabulary, metadata.value("tokenizer.chat_template").is_some()));
    }
    let name = if path.join("tokenizer.json").exists() {
        "tokenizer.json"
    } else if path.join("tokenizer.model").exists() {
        "tokenizer.model (SentencePiece), which is not read; tokenizer.json is"
    } else {
        "none"
    };
    let template = path.join("chat_template.jinja").exists()
        || crate::error::read_json(&path.join("tokenizer_config.json"))?
            .is_some_and(|config| config.get("chat_template").is_some_and(|t| !t.is_null()));
    Ok((name.into(), None, template))
}
