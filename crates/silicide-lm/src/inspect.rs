//! What is in a checkpoint, from its headers alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use silicide::DType;
use silicide::formats::gguf::{Metadata, Value as GgufValue};
use silicide::formats::{Checkpoint, Kind, StoredType, TensorEntry};
use silicide::quant::QuantFormat;

use crate::error::Result;
use crate::template::ChatTemplate;
use crate::tokenizer::TokenizerConfig;
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
    /// The token that begins a text, as it is written.
    pub begins_with: Option<String>,
    /// The token that ends a text, as it is written; `generation_config.json` may name more.
    pub ends_with: Option<String>,
    /// Whether there is a chat template.
    pub chat_template: bool,
    /// What the template can be given beside messages, `tools` for example.
    pub template_variables: Vec<String>,
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
    /// Which modules: with `*` for the number of the layer, or with the layers where others are stored differently.
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
        let text_facts = TextFacts::of(&checkpoint, path)?;
        let mut warnings = checkpoint.warnings().to_vec();
        let template = text_facts.template.as_deref().map(ChatTemplate::new);
        if let Some(Err(error)) = &template {
            warnings.push(error.to_string());
        }
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
            tokenizer: text_facts.tokenizer,
            vocabulary: text_facts.vocabulary.or_else(|| number("vocab_size")),
            begins_with: text_facts.begins_with,
            ends_with: text_facts.ends_with,
            chat_template: template.is_some(),
            template_variables: template.and_then(Result::ok).map(|t| t.variables()).unwrap_or_default(),
            formats,
            tensors: checkpoint.entries().map(TensorLine::from).collect(),
            warnings,
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
    let mut lines: BTreeMap<String, (FormatLine, BTreeMap<String, BTreeSet<u32>>)> = BTreeMap::new();
    let mut everywhere: BTreeMap<String, BTreeSet<u32>> = BTreeMap::new();
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
        let (line, places) = lines.entry(format.clone()).or_default();
        line.format = format;
        line.tensors += whole;
        line.parameters += parameters;
        line.bytes += entry.span.len() as u64;
        // A bias is stored apart from its weight.
        let (place, layer) = place(if leaf == "bias" { &entry.name } else { module });
        places.entry(place.clone()).or_default().extend(layer);
        everywhere.entry(place).or_default().extend(layer);
    }
    let named = |(place, layers): (String, BTreeSet<u32>)| match layers == everywhere[&place] {
        true => place,
        false => place.replacen('*', &ranges(&layers), 1),
    };
    let line = |(line, places): (FormatLine, BTreeMap<_, _>)| FormatLine {
        places: places.into_iter().map(named).collect(),
        ..line
    };
    let mut lines: Vec<_> = lines.into_values().map(line).collect();
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

/// A module's path with `*` for the number of its layer, and that number.
fn place(module: &str) -> (String, Option<u32>) {
    let mut layer = None;
    let parts = module.split('.').map(|part| match part.parse() {
        Ok(number) if layer.is_none() => {
            layer = Some(number);
            "*"
        }
        _ => part,
    });
    (parts.collect::<Vec<_>>().join("."), layer)
}

/// `0-3,7`.
fn ranges(numbers: &BTreeSet<u32>) -> String {
    let numbers: Vec<u32> = numbers.iter().copied().collect();
    let runs = numbers.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [one] => one.to_string(),
        run => format!("{}-{}", run[0], run[run.len() - 1]),
    });
    runs.collect::<Vec<_>>().join(",")
}

/// What is cheap to know of tokenizer and template.
struct TextFacts {
    /// Its kind and where it is.
    tokenizer: String,
    vocabulary: Option<u64>,
    begins_with: Option<String>,
    ends_with: Option<String>,
    /// The template's source.
    template: Option<String>,
}

impl TextFacts {
    fn of(checkpoint: &Checkpoint, path: &Path) -> Result<TextFacts> {
        match checkpoint.gguf() {
            Some(metadata) => TextFacts::of_gguf(metadata),
            None => TextFacts::of_folder(path),
        }
    }

    fn of_gguf(metadata: &Metadata) -> Result<TextFacts> {
        let pre = metadata.find::<&str>("tokenizer.ggml.pre")?;
        let tokens = match metadata.value("tokenizer.ggml.tokens") {
            Some(GgufValue::Array(tokens)) => Some(tokens),
            _ => None,
        };
        let token = |key: &str| -> Result<Option<String>> {
            let Some(id) = metadata.find::<u32>(key)? else { return Ok(None) };
            Ok(match tokens.as_ref().and_then(|tokens| tokens.iter().nth(id as usize)) {
                Some(GgufValue::String(token)) => Some(String::from_utf8_lossy(token).into_owned()),
                _ => None,
            })
        };
        Ok(TextFacts {
            tokenizer: match (metadata.find::<&str>("tokenizer.ggml.model")?, pre) {
                (Some(kind), Some(pre)) => format!("{kind} ({pre}), in the file"),
                (Some(kind), None) => format!("{kind}, in the file"),
                (None, _) => "none".into(),
            },
            vocabulary: tokens.as_ref().map(|tokens| tokens.len() as u64),
            begins_with: token("tokenizer.ggml.bos_token_id")?,
            ends_with: token("tokenizer.ggml.eos_token_id")?,
            template: metadata.find::<&str>("tokenizer.chat_template")?.map(str::to_owned),
        })
    }

    fn of_folder(path: &Path) -> Result<TextFacts> {
        let mut config = TokenizerConfig::read(path)?;
        Ok(TextFacts {
            tokenizer: if path.join("tokenizer.json").exists() {
                "tokenizer.json"
            } else if path.join("tokenizer.model").exists() {
                "tokenizer.model (SentencePiece), which is not read; tokenizer.json is"
            } else {
                "none"
            }
            .into(),
            vocabulary: None,
            begins_with: config.special_tokens.remove("bos_token"),
            ends_with: config.special_tokens.remove("eos_token"),
            template: config.chat_templates.remove("default"),
        })
    }
}
