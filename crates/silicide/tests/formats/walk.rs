//! Reads all that a file has, as the tests and the fuzz targets do.

use std::path::Path;

use silicide::formats::gguf::{Array, GgufFile, Value};
use silicide::formats::mlx::Quantization;
use silicide::formats::safetensors::SafetensorsFile;
use silicide::formats::{Mapped, StoredType, TensorTable, json};
use silicide::{Error, Result};

/// The formats there are readers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Target {
    Safetensors,
    Gguf,
    Config,
}

impl Target {
    /// Reads `bytes` to the end.
    pub(crate) fn walk(self, bytes: &[u8]) -> Result<()> {
        let path = Path::new("some/file");
        let mapped = || Mapped::copy_from(bytes).map_err(|e| Error::io(path, e));
        let result = match self {
            Target::Safetensors => SafetensorsFile::parse(path, mapped()?).map(|file| walk_tensors(&file.tensors)),
            Target::Gguf => GgufFile::parse(path, mapped()?).map(|file| walk_gguf(&file)),
            Target::Config => json::parse(path, bytes).and_then(|config| walk_config(path, &config)),
        };
        result.inspect_err(check_error)
    }
}

fn check_error(error: &Error) {
    let Error::Format { path, field, message } = error else { panic!("not a format error: {error}") };
    assert!(path == Path::new("some/file") && !field.is_empty() && !message.is_empty(), "{error}");
}

fn walk_tensors(tensors: &TensorTable) {
    let mut total = 0;
    for entry in tensors.entries() {
        let tensor = tensors.get(&entry.name).expect("a tensor is found by its name");
        let wanted = match &tensor.dtype {
            StoredType::Dense(dtype) => tensor.shape.elements() * dtype.size(),
            StoredType::Ggml(format) => tensor.shape.elements() / format.block_elements() * format.block_bytes(),
            StoredType::Other(_) => tensor.bytes.len(),
        };
        assert_eq!((tensor.bytes.len(), tensor.bytes.range()), (wanted, entry.span.clone()));
        total += tensor.bytes.iter().map(|&b| b as usize).sum::<usize>();
    }
    std::hint::black_box(total);
}

fn walk_gguf(file: &GgufFile) {
    for (key, value) in file.metadata.iter() {
        std::hint::black_box(value.to_string());
        if let Value::Array(array) = value {
            assert_eq!(walk_array(array), array.len());
        }
        // Each of these may or may not fit; none may panic.
        let _ = file.metadata.get::<u32>(key).inspect_err(check_error);
        let _ = file.metadata.get::<f32>(key).inspect_err(check_error);
        let _ = file.metadata.get::<&str>(key).inspect_err(check_error);
        let _ = file.metadata.get::<Vec<&str>>(key).inspect_err(check_error);
        let _ = file.metadata.get::<Vec<i32>>(key).inspect_err(check_error);
    }
    walk_tensors(&file.tensors);
}

fn walk_array(array: Array<'_>) -> usize {
    let values = array.iter().inspect(|value| {
        if let Value::Array(inner) = value {
            assert_eq!(walk_array(*inner), inner.len());
        }
    });
    values.count()
}

/// The first error counts, be it of the block or of one of its entries.
fn walk_config(path: &Path, config: &serde_json::Value) -> Result<()> {
    let Some(quantization) = Quantization::from_config(path, config)? else { return Ok(()) };
    let block = ["quantization", "quantization_config"].iter().find_map(|key| config.get(key)?.as_object());
    for (key, value) in block.into_iter().flatten() {
        let _ = quantization.format_for(key, false).inspect_err(check_error);
        let _ = quantization.format_for(&format!("language_model.{key}"), true).inspect_err(check_error);
        if value.is_object() || value.is_boolean() {
            quantization.format_for(key, *value != false)?;
        }
    }
    Ok(())
}
