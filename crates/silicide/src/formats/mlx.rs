//! The quantisation block of an MLX `config.json`: which modules are quantised, and how.
//!
//! ```json
//! "quantization": {
//!     "group_size": 64, "bits": 4, "mode": "affine",
//!     "model.layers.0.mlp.gate": {"group_size": 64, "bits": 8},
//!     "lm_head": false
//! }
//! ```
//!
//! The rules are those of mlx-lm's loader. A module that the block names is as the block says; any other is quantised
//! if the checkpoint has `scales` for it, as the block's own numbers say or, where the tensors tell otherwise, as the
//! tensors do ([`infer_format`]). An entry without `mode` is affine, whatever the block's mode.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{RawTensor, StoredType};
use crate::quant::QuantFormat;
use crate::{DType, Error, Result};

/// The quantisation that a `config.json` declares.
#[derive(Clone, Debug)]
pub struct Quantization<'a> {
    path: PathBuf,
    field: String,
    format: QuantFormat,
    block: &'a Map<String, Value>,
}

impl<'a> Quantization<'a> {
    /// Reads the block from a whole configuration; `None` where there is none. `path` is for messages.
    ///
    /// `quantization` counts before `quantization_config`, of which MLX writes a copy. Alone, the latter may also be a
    /// Hugging Face one whose tensors MLX can use as they are: `quant_method` mxfp4, mxfp8, or compressed-tensors in
    /// the formats nvfp4-pack-quantized and mxfp4-pack-quantized.
    ///
    /// # Errors
    /// [`Error::Format`] naming the key for wrong types, for bits and group sizes that the mode does not have, and for
    /// other quantisation methods.
    pub fn from_config(path: &Path, config: &'a Value) -> Result<Option<Quantization<'a>>> {
        const PLACES: [&str; 3] = ["/quantization", "/quantization_config", "/text_config/quantization_config"];
        let found = |place| config.pointer(place).filter(|value| !value.is_null()).map(|value| (place, value));
        let Some((place, value)) = PLACES.into_iter().find_map(found) else { return Ok(None) };
        let field = place[1..].replace('/', ".");
        let Value::Object(block) = value else {
            return Err(Error::format(path, field, format!("is {value}, wanted an object")));
        };
        let format = match block.get("quant_method") {
            Some(method) if place != PLACES[0] => foreign_format(path, &field, method, block)?,
            _ => declared_format(path, &field, block, true)?,
        };
        Ok(Some(Quantization { path: path.into(), field, format, block }))
    }

    /// How the module at `module_path` (`model.layers.0.mlp.down_proj`) is quantised, `None` for not at all.
    /// `has_scales` is whether the checkpoint has a tensor `<module_path>.scales`.
    ///
    /// Paths are compared without their `language_model` parts, which wrappers of vision models add and drop.
    ///
    /// # Errors
    /// [`Error::Format`] where the block's entry for the module is malformed or says the contrary of `has_scales`.
    pub fn format_for(&self, module_path: &str, has_scales: bool) -> Result<Option<QuantFormat>> {
        let Some((key, entry)) = self.entry(module_path) else {
            return Ok(has_scales.then_some(self.format));
        };
        let field = format!("{}.{key}", self.field);
        let format = match entry {
            Value::Bool(false) => None,
            Value::Bool(true) => Some(self.format),
            Value::Object(entry) => Some(declared_format(&self.path, &field, entry, false)?),
            other => {
                return Err(Error::format(&self.path, field, format!("is {other}, wanted an object, true or false")));
            }
        };
        if format.is_some() != has_scales {
            let (says, has) = if has_scales { ("is not", "has") } else { ("is", "lacks") };
            let message = format!("says that the module {says} quantised, but the checkpoint {has} its scales");
            return Err(Error::format(&self.path, field, message));
        }
        Ok(format)
    }

    /// Whether the block has an entry of its own for this module.
    pub fn names(&self, module_path: &str) -> bool {
        self.entry(module_path).is_some()
    }

    /// The format of modules without an entry.
    pub fn format(&self) -> QuantFormat {
        self.format
    }

    fn entry(&self, module_path: &str) -> Option<(&str, &Value)> {
        if let Some((key, value)) = self.block.get_key_value(module_path) {
            return Some((key, value));
        }
        // Backwards, since paths differ towards their ends.
        let same = |key: &str| parts(key).eq(parts(module_path));
        self.block.iter().find(|(key, _)| same(key)).map(|(key, value)| (key.as_str(), value))
    }
}

fn parts(module_path: &str) -> impl Iterator<Item = &str> {
    module_path.rsplit('.').filter(|part| *part != "language_model")
}

/// The format in which a weight was packed, from its tensors alone, given the length of its rows in elements.
///
/// # Errors
/// [`Error::Format`] naming the tensor where the shapes are those of no format.
pub fn infer_format(weight: &RawTensor, scales: &RawTensor, row: usize) -> Result<QuantFormat> {
    let last = |t: &RawTensor| t.shape.last().copied().filter(|&n| n > 0).ok_or_else(|| t.error("is empty"));
    let (words, groups) = (last(weight)?, last(scales)?);
    if weight.dtype != StoredType::Dense(DType::U32) {
        return Err(weight.error(format!("is stored as {}, packed codes are u32", weight.dtype)));
    }
    let same_rows = weight.shape.split_last().map(|(_, rows)| rows) == scales.shape.split_last().map(|(_, rows)| rows);
    let bits = words.checked_mul(32).filter(|n| row > 0 && n.is_multiple_of(row)).map(|n| n / row);
    let group_size = row.is_multiple_of(groups).then_some(row / groups);
    let mode = match (scales.dense()?, bits, group_size) {
        (DType::U8, Some(4), Some(16)) => "nvfp4",
        (DType::U8, Some(4), _) => "mxfp4",
        (DType::U8, ..) => "mxfp8",
        _ => "affine",
    };
    let format = bits.zip(group_size).filter(|_| same_rows).and_then(|(b, g)| format(mode, b as u64, g as u64).ok());
    format.ok_or_else(|| {
        let (weight, kind) = (weight.shape, &scales.dtype);
        scales.error(format!("{kind} {} with codes u32 {weight} is no format for rows of {row}", scales.shape))
    })
}

/// The format that `mode`, `bits` and `group_size` of a block declare. A whole block must have the numbers; an entry of
/// one module falls back on those of its mode.
fn declared_format(path: &Path, field: &str, block: &Map<String, Value>, whole: bool) -> Result<QuantFormat> {
    let error = |key: &str, message: String| Err(Error::format(path, format!("{field}.{key}"), message));
    let mode = match block.get("mode") {
        None => "affine",
        Some(Value::String(mode)) => mode,
        Some(other) => return error("mode", format!("is {other}, wanted a string")),
    };
    let Some(&(_, group_size, bits)) = MODES.iter().find(|(name, ..)| *name == mode) else {
        let known: Vec<_> = MODES.iter().map(|(name, ..)| *name).collect();
        return error("mode", format!("is {mode:?}, wanted one of {}", known.join(", ")));
    };
    let mut numbers = [bits, group_size];
    for (number, key) in numbers.iter_mut().zip(["bits", "group_size"]) {
        *number = match block.get(key) {
            Some(value) => match value.as_u64() {
                Some(v) => v,
                None => return error(key, format!("is {value}, wanted a positive whole number")),
            },
            None if whole => return error(key, "is missing".into()),
            None => *number,
        };
    }
    format(mode, numbers[0], numbers[1]).or_else(|(key, message)| error(key, message))
}

/// Modes, with the group size and the bits that mlx takes where none are given.
const MODES: [(&str, u64, u64); 4] = [("affine", 64, 4), ("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)];

/// The format of these numbers, or the key that is wrong and why.
fn format(mode: &str, bits: u64, group_size: u64) -> Result<QuantFormat, (&'static str, String)> {
    let (all_bits, group_sizes): (&[u64], &[u64]) = match mode {
        "affine" => (&[2, 3, 4, 5, 6, 8], &[32, 64, 128]),
        "mxfp4" => (&[4], &[32]),
        "mxfp8" => (&[8], &[32]),
        _ => (&[4], &[16]),
    };
    if !all_bits.contains(&bits) {
        return Err(("bits", format!("is {bits}, {mode} has {all_bits:?}")));
    }
    if !group_sizes.contains(&group_size) {
        return Err(("group_size", format!("is {group_size}, {mode} has {group_sizes:?}")));
    }
    Ok(match mode {
        "affine" => QuantFormat::Affine { bits: bits as u8, group_size: group_size as u16 },
        "mxfp4" => QuantFormat::Mxfp4,
        "mxfp8" => QuantFormat::Mxfp8,
        _ => QuantFormat::Nvfp4,
    })
}

/// The format of a Hugging Face block, which names a method.
fn foreign_format(path: &Path, field: &str, method: &Value, block: &Map<String, Value>) -> Result<QuantFormat> {
    match (method.as_str(), block.get("format").and_then(Value::as_str)) {
        (Some("mxfp4"), _) | (Some("compressed-tensors"), Some("mxfp4-pack-quantized")) => Ok(QuantFormat::Mxfp4),
        (Some("mxfp8"), _) => Ok(QuantFormat::Mxfp8),
        (Some("compressed-tensors"), Some("nvfp4-pack-quantized")) => Ok(QuantFormat::Nvfp4),
        (_, format) => {
            let format = format.map(|f| format!(" (format {f:?})")).unwrap_or_default();
            let message = format!("is {method}{format}, which is not read; convert the model with mlx_lm.convert");
            Err(Error::format(path, format!("{field}.quant_method"), message))
        }
    }
}
