//! From a checkpoint's tensors to the parts of a model.

use half::{bf16, f16};
use serde::de::DeserializeOwned;
use serde_json::Value;
use silicide::formats::{Checkpoint, Kind, Mapped, RawTensor, StoredType};
use silicide::ops::{Gate, Precision, RopeFrequencies, Weight};
use silicide::quant::{GgmlFormat, QuantFormat, QuantView};
use silicide::{DType, Device, Matrix, MatrixFormat, Tensor};

use crate::error::{Error, Result};
use crate::gguf;
use crate::nn::{Embedding, Linear, Mlp, RmsNorm, RopeArgs, Scaling};

/// The tensors of a checkpoint, by the names that mlx-lm and transformers give them, and how to bring them to a device.
pub(crate) struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    config: Value,
    device: Device,
    /// The type of activations.
    dtype: DType,
    precision: Precision,
    /// What stands before the names of `model_type`'s tensors: empty, or `language_model.`.
    prefix: &'static str,
}

impl<'a> Weights<'a> {
    pub(crate) fn new(checkpoint: &'a Checkpoint, device: &Device, dtype: DType, precision: Precision) -> Result<Self> {
        let config = match (checkpoint.config(), checkpoint.gguf()) {
            (Some(config), _) => config.clone(),
            (None, Some(metadata)) => gguf::config(checkpoint, metadata)?,
            (None, None) => unreachable!("a checkpoint is a folder or a GGUF file"),
        };
        let prefix = match checkpoint.contains("language_model.model.norm.weight") {
            true => "language_model.",
            false => "",
        };
        Ok(Weights { checkpoint, config, device: device.clone(), dtype, precision, prefix })
    }

    pub(crate) fn model_type(&self) -> Result<&str> {
        self.config
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| Error::Config { field: "model_type".into(), message: "is missing or not a string".into() })
    }

    /// The configuration as the numbers that a model wants.
    pub(crate) fn args<T: DeserializeOwned>(&self) -> Result<T> {
        check_sizes(&self.config)?;
        T::deserialize(&self.config).map_err(|e| {
            let message = e.to_string();
            // The error says what is wrong and not where; the key at fault brings it by itself as well.
            let is_it = |(key, value): &(&String, &Value)| {
                let alone = Value::Object([((*key).clone(), (*value).clone())].into_iter().collect());
                T::deserialize(alone).is_err_and(|e| e.to_string() == message)
            };
            let at_fault = self.config.as_object().and_then(|config| config.iter().find(is_it));
            let field = at_fault.filter(|_| !message.starts_with("missing")).map_or("file", |(key, _)| key);
            Error::Config { field: field.into(), message }
        })
    }

    pub(crate) fn is_gguf(&self) -> bool {
        self.checkpoint.kind() == Kind::Gguf
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Rotary frequencies of the layers of `kind`, where the configuration tells kinds apart.
    pub(crate) fn rope(&self, kind: Option<&str>, default_theta: f64, head_dim: usize) -> Result<RopeFrequencies> {
        let mut args = RopeArgs::from_config(&self.config, kind, default_theta)?;
        // llama.cpp writes Llama 3's scaling as a divisor for every pair.
        if let Some(divisors) = self.checkpoint.find("rope_freqs.weight") {
            args.scaling = Scaling::Divisors(to_f32(&divisors)?.into_iter().map(f64::from).collect());
        }
        check_head_dim(head_dim)?;
        args.frequencies(head_dim)
    }

    /// Rotary frequencies of layers with a sliding window, which are never scaled.
    pub(crate) fn rope_local(&self, default_theta: f64, head_dim: usize) -> Result<RopeFrequencies> {
        check_head_dim(head_dim)?;
        RopeArgs::local(&self.config, default_theta)?.frequencies(head_dim)
    }

    /// The activation that the configuration names under `field`; `default` where it names none.
    pub(crate) fn activation(&self, field: &str, default: Gate) -> Result<Gate> {
        match self.config.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::String(name)) if matches!(&**name, "silu" | "swish") => Ok(Gate::Silu),
            Some(Value::String(name)) if matches!(&**name, "gelu_pytorch_tanh" | "gelu_new") => Ok(Gate::GeluTanh),
            Some(Value::String(name)) if name == "gelu" => Ok(Gate::GeluErf),
            Some(other) => {
                let message = format!("got {other}, wanted silu, gelu or gelu_pytorch_tanh");
                Err(Error::Config { field: field.into(), message })
            }
        }
    }

    /// The projection at a module path such as `model.layers.0.mlp.up_proj`, with its bias if it has one.
    pub(crate) fn linear(&self, path: &str, rows: usize, columns: usize) -> Result<Linear> {
        let matrix = self.matrix(path, Some(rows), columns)?;
        let bias = match self.find(path, "bias") {
            Some(raw) => Some(self.vector(&raw, rows, self.dtype)?),
            None => None,
        };
        Ok(Linear { weight: Weight::new(&matrix)?, bias, precision: self.precision })
    }

    /// The feed-forward network at a module path.
    pub(crate) fn mlp(&self, path: &str, hidden: usize, intermediate: usize, activation: Gate) -> Result<Mlp> {
        Ok(Mlp {
            gate_proj: self.linear(&format!("{path}.gate_proj"), intermediate, hidden)?,
            up_proj: self.linear(&format!("{path}.up_proj"), intermediate, hidden)?,
            down_proj: self.linear(&format!("{path}.down_proj"), hidden, intermediate)?,
            activation,
        })
    }

    /// The token embedding and the output projection, which share one matrix where `tied` or where there is only one.
    pub(crate) fn embedding_and_head(&self, tied: bool, hidden: usize, scale: f32) -> Result<(Embedding, Linear)> {
        const TABLE: &str = "model.embed_tokens";
        const HEAD: &str = "lm_head";
        let table = self.matrix(TABLE, None, hidden)?;
        let head = match self.find(HEAD, "weight") {
            Some(_) if !tied => self.linear(HEAD, table.rows(), hidden)?,
            _ => Linear { weight: Weight::new(&table)?, bias: None, precision: self.precision },
        };
        Ok((Embedding { table, scale, dtype: self.dtype }, head))
    }

    /// The norm at a module path.
    pub(crate) fn rms_norm(&self, path: &str, dim: usize, eps: f32, offset: f32) -> Result<RmsNorm> {
        if !(0.0..f32::INFINITY).contains(&eps) {
            let message = format!("got {eps}, wanted 0 or more");
            return Err(Error::Config { field: "rms_norm_eps".into(), message });
        }
        let weight = self.vector(&self.get(path, "weight")?, dim, DType::F32)?;
        Ok(RmsNorm { weight, offset, eps })
    }

    /// The matrix at a module path; `rows` is None where the tensor itself decides.
    fn matrix(&self, path: &str, rows: Option<usize>, columns: usize) -> Result<Matrix> {
        let weight = self.get(path, "weight")?;
        let got = weight.shape;
        let found_rows = *got.first().unwrap_or(&0);
        if got.rank() != 2 || rows.is_some_and(|rows| rows != found_rows) {
            let wanted = rows.map_or("rows".into(), |r| r.to_string());
            return Err(weight.error(format!("got shape {got}, wanted {wanted} rows of {columns}")).into());
        }
        let (format, scales, biases) = match &weight.dtype {
            StoredType::Ggml(format) => (MatrixFormat::Quantized(QuantFormat::Ggml(*format), DType::F16), None, None),
            _ => match self.checkpoint.quant_format(&self.name(path), columns)? {
                None => match &weight.dtype {
                    StoredType::Dense(dtype) if dtype.is_float() => (MatrixFormat::Dense(*dtype), None, None),
                    StoredType::Dense(dtype) => {
                        let message = format!("got {dtype} and no tensor of scales beside it, wanted floats or both");
                        return Err(weight.error(message).into());
                    }
                    other => {
                        let blocks: &[GgmlFormat] = if self.is_gguf() { GgmlFormat::ALL } else { &[] };
                        let blocks = blocks.iter().map(|format| format.name());
                        let known: Vec<_> = DType::FLOATS.iter().map(|dtype| dtype.name()).chain(blocks).collect();
                        let message = format!("is stored as {other}, wanted {}", known.join(", "));
                        return Err(weight.error(message).into());
                    }
                },
                Some(format) => {
                    let scales = self.get(path, "scales")?;
                    let biases = self.find(path, "biases");
                    let dtype = scales.dense()?;
                    if biases.as_ref().is_some_and(|b| b.dtype != scales.dtype) {
                        return Err(scales.error("scales and biases differ in type").into());
                    }
                    (MatrixFormat::Quantized(format, dtype), Some(scales.bytes), biases.map(|b| b.bytes))
                }
            },
        };
        // MLX packs codes into words, so only there is the stored width another than the logical one.
        let packed = scales.is_some();
        if !packed && got[1] != columns {
            return Err(weight.error(format!("got shape {got}, wanted [{found_rows}, {columns}]")).into());
        }
        if let MatrixFormat::Quantized(format, dtype) = format {
            let [scale_bytes, bias_bytes] = [&scales, &biases].map(|part| part.as_deref().unwrap_or_default());
            let view = QuantView::new(format, found_rows, columns, &weight.bytes, scale_bytes, bias_bytes, dtype)
                .map_err(|e| weight.error(e.to_string()))?;
            if let Some(row) = view.row_of_broken_scale() {
                let named = self.find(path, "scales").unwrap_or(weight);
                let message = format!("row {row}: got a scale or bias that is NaN or infinite; download the file anew");
                return Err(named.error(message).into());
            }
        }
        let matrix =
            Matrix::new(&self.device, format, found_rows, columns, &weight.bytes, scales.as_ref(), biases.as_ref());
        matrix.map_err(|e| weight.error(e.to_string()).into())
    }

    fn vector(&self, raw: &RawTensor, len: usize, dtype: DType) -> Result<Tensor> {
        if raw.shape[..] != [len] {
            return Err(raw.error(format!("got shape {}, wanted [{len}]", raw.shape)).into());
        }
        let values = to_f32(raw)?;
        let tensor = match dtype {
            DType::F16 => self.device.tensor(&values.iter().map(|&v| f16::from_f32(v)).collect::<Vec<_>>(), [len]),
            DType::BF16 => self.device.tensor(&values.iter().map(|&v| bf16::from_f32(v)).collect::<Vec<_>>(), [len]),
            _ => self.device.tensor(&values, [len]),
        };
        Ok(tensor?)
    }

    fn get(&self, path: &str, leaf: &str) -> Result<RawTensor> {
        Ok(self.checkpoint.get(&format!("{}.{leaf}", self.name(path)))?)
    }

    fn find(&self, path: &str, leaf: &str) -> Option<RawTensor> {
        self.checkpoint.find(&format!("{}.{leaf}", self.name(path)))
    }

    /// The name that the checkpoint has for a module.
    fn name(&self, path: &str) -> String {
        if self.is_gguf() {
            return gguf::module_name(path, self.config["model_type"].as_str().unwrap_or_default());
        }
        format!("{}{path}", self.prefix)
    }
}

/// Refuses sizes that no model has, before anything is reckoned from them: products of two that pass fit 64 bits.
fn check_sizes(config: &Value) -> Result<()> {
    const MOST: u64 = 1 << 31;
    let sizes = ["hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"];
    for field in sizes.into_iter().chain(["num_hidden_layers", "max_position_embeddings"]) {
        let most = if field == "max_position_embeddings" { u64::MAX } else { MOST };
        match config.get(field).and_then(Value::as_u64) {
            Some(n) if n == 0 || n > most => {
                let message =
                    format!("got {n}, wanted {}", if n == 0 { "more".into() } else { format!("at most {most}") });
                return Err(Error::Config { field: field.into(), message });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses heads that attention does not take, before tables are made for them.
fn check_head_dim(head_dim: usize) -> Result<()> {
    const MOST: usize = 512;
    if head_dim.is_multiple_of(2) && (2..=MOST).contains(&head_dim) {
        return Ok(());
    }
    let message = format!("got {head_dim}, wanted an even number from 2 to {MOST}");
    Err(Error::Config { field: "head_dim".into(), message })
}

/// A small tensor's elements.
fn to_f32(raw: &RawTensor) -> Result<Vec<f32>> {
    let bytes: &Mapped = &raw.bytes;
    Ok(match raw.dense()? {
        DType::F32 => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
        DType::F16 => bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<f16>(b).to_f32()).collect(),
        DType::BF16 => bytes.chunks_exact(2).map(|b| bytemuck::pod_read_unaligned::<bf16>(b).to_f32()).collect(),
        other => return Err(raw.error(format!("got {other}, wanted f32, f16 or bf16")).into()),
    })
}

/// The type in which a checkpoint holds what is not quantised.
pub(crate) fn stored_dtype(checkpoint: &Checkpoint) -> DType {
    let norm = ["model.norm.weight", "language_model.model.norm.weight", "output_norm.weight"];
    let found = norm.into_iter().find_map(|name| checkpoint.find(name)?.dense().ok());
    found.filter(|dtype| dtype.is_float()).unwrap_or(DType::F32)
}
