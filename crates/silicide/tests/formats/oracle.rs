//! Files that other libraries wrote, against what those libraries read (`oracle/formats.py`).

use std::path::PathBuf;

use serde_json::{Map, Value as Json};
use silicide::formats::gguf::{GgufFile, Value};
use silicide::formats::safetensors::SafetensorsFile;
use silicide::formats::{Checkpoint, Kind, TensorTable};
use silicide::quant::QuantFormat;

pub(crate) fn vectors() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../oracle/vectors/formats"))
}

fn expected(file: &str) -> Json {
    let all: Json = serde_json::from_slice(&std::fs::read(vectors().join("expected.json")).unwrap()).unwrap();
    all[file].clone()
}

/// Our name of a type that mlx or ggml names otherwise.
fn our_name(theirs: &str) -> &str {
    match theirs {
        "float32" | "F32" => "f32",
        "float16" | "F16" => "f16",
        "bfloat16" | "BF16" => "bf16",
        "uint8" | "F8_E8M0" => "u8",
        "int8" | "I8" => "i8",
        "uint16" => "u16",
        "uint32" => "u32",
        "int32" | "I32" => "i32",
        "int64" | "I64" => "i64",
        "bool" | "BOOL" => "bool",
        "int16" => "I16",
        "uint64" => "U64",
        "complex64" => "C64",
        same => same,
    }
}

fn check_tensors(tables: &[&TensorTable], expected: &Json) {
    let expected = expected.as_object().unwrap();
    assert_eq!(tables.iter().map(|t| t.entries().len()).sum::<usize>(), expected.len());
    for (name, wanted) in expected {
        let tensor = tables.iter().find_map(|t| t.get(name)).unwrap_or_else(|| panic!("{name} is missing"));
        let hex: String = tensor.bytes.iter().map(|b| format!("{b:02x}")).collect();
        let got = (tensor.dtype.to_string(), Json::from(tensor.shape.to_vec()), hex.as_str());
        assert_eq!(
            got,
            (our_name(wanted[0].as_str().unwrap()).into(), wanted[1].clone(), wanted[2].as_str().unwrap()),
            "{name}"
        );
    }
}

fn check_safetensors(name: &str) {
    let file = SafetensorsFile::open(&vectors().join(name)).unwrap();
    let expected = expected(name);
    check_tensors(&[&file.tensors], &expected["tensors"]);
    let metadata: Map<_, _> = file.metadata.into_iter().map(|(k, v)| (k, v.into())).collect();
    assert_eq!(Json::Object(metadata), expected["metadata"]);
}

#[test]
fn safetensors_by_mlx() {
    check_safetensors("mlx.safetensors");
}

#[test]
fn safetensors_by_the_safetensors_package() {
    check_safetensors("torch.safetensors");
}

#[test]
fn types_without_arithmetic_are_refused_by_tensor() {
    let file = SafetensorsFile::open(&vectors().join("torch.safetensors")).unwrap();
    assert!(file.tensors.get("t.bfloat16").unwrap().dense().is_ok());
    let error = file.tensors.get("t.float8_e4m3fn").unwrap().dense().unwrap_err().to_string();
    assert!(error.contains("torch.safetensors: t.float8_e4m3fn: is stored as F8_E4M3, wanted one of f32, "), "{error}");
}

#[test]
fn gguf_by_gguf_py() {
    let file = GgufFile::open(&vectors().join("kinds.gguf")).unwrap();
    let expected = expected("kinds.gguf");
    check_tensors(&[&file.tensors], &expected["tensors"]);
    for (key, wanted) in expected["metadata"].as_object().unwrap() {
        let got = file.metadata.value(key).unwrap_or_else(|| panic!("{key} is missing"));
        assert_eq!(&to_json(got), wanted, "{key}");
    }
    let nested = to_json(file.metadata.value("nested").unwrap());
    assert_eq!(nested, serde_json::json!([[1, 2], [3]]));
}

fn to_json(value: Value<'_>) -> Json {
    match value {
        Value::U8(v) => v.into(),
        Value::I8(v) => v.into(),
        Value::U16(v) => v.into(),
        Value::I16(v) => v.into(),
        Value::U32(v) => v.into(),
        Value::I32(v) => v.into(),
        Value::U64(v) => v.into(),
        Value::I64(v) => v.into(),
        Value::F32(v) => f64::from(v).into(),
        Value::F64(v) => v.into(),
        Value::Bool(v) => v.into(),
        Value::String(v) => std::str::from_utf8(v).unwrap().into(),
        Value::Array(array) => array.iter().map(to_json).collect(),
    }
}

#[test]
fn gguf_getters_convert_or_say_why_not() {
    let file = GgufFile::open(&vectors().join("kinds.gguf")).unwrap();
    let metadata = &file.metadata;
    assert_eq!(metadata.get::<u32>("uint8.high").unwrap(), 255);
    assert_eq!(metadata.get::<i64>("int16.low").unwrap(), -32768);
    assert_eq!(metadata.get::<usize>("uint64.high").unwrap(), usize::MAX);
    assert_eq!(metadata.get::<f32>("float64").unwrap(), 0.1);
    assert_eq!(metadata.get::<&str>("string").unwrap(), "grüß 你好 😀");
    assert_eq!(metadata.get::<Vec<&str>>("strings").unwrap()[..3], ["a", "", "Ġthe"]);
    assert_eq!(metadata.get::<Vec<f32>>("floats").unwrap(), [0.5, -1.5, 3.0e38]);
    assert_eq!(metadata.get::<Vec<i32>>("int8.array").unwrap(), [-128, 1, 127]);
    assert_eq!(metadata.get::<Vec<Vec<u8>>>("nested").unwrap(), [vec![1, 2], vec![3]]);
    assert_eq!(metadata.find::<u32>("no.such").unwrap(), None);

    let message = |result: silicide::Result<u32>| result.unwrap_err().to_string();
    let error = message(metadata.get("no.such"));
    assert!(error.ends_with("kinds.gguf: no.such: is missing from the metadata"), "{error}");
    let error = message(metadata.get("int8.low"));
    assert!(error.ends_with("kinds.gguf: int8.low: is -128, wanted an integer that fits u32"), "{error}");
    let error = message(metadata.get("strings"));
    assert!(error.ends_with("strings: is an array of 4 strings, wanted an integer that fits u32"), "{error}");
    let error = metadata.get::<Vec<u16>>("int32.array").unwrap_err().to_string();
    assert!(error.ends_with("int32.array: element 0 is -2147483648, wanted an integer that fits u16"), "{error}");
}

#[test]
fn split_gguf_opens_by_any_part() {
    let expected = expected("split");
    for file in expected["files"].as_array().unwrap() {
        let checkpoint = Checkpoint::open(&vectors().join(file.as_str().unwrap())).unwrap();
        check_tensors(&checkpoint.files().iter().collect::<Vec<_>>(), &expected["tensors"]);
        assert_eq!(checkpoint.gguf().unwrap().get::<u32>("tiny.block_count").unwrap(), 5);
        assert_eq!(checkpoint.get("blk.4.weight").unwrap().bytes[..4], 4f32.to_le_bytes());
    }
}

#[test]
fn big_endian_gguf_is_refused() {
    let error = Checkpoint::open(&vectors().join("big-endian.gguf")).unwrap_err().to_string();
    assert!(error.contains("big-endian.gguf: version: the file is big-endian"), "{error}");
}

#[test]
fn mlx_folder_by_mlx_lm() {
    let checkpoint = Checkpoint::open(&vectors().join("mlx-folder")).unwrap();
    assert_eq!((checkpoint.kind(), checkpoint.warnings()), (Kind::Mlx, &[][..]));
    let quantization = checkpoint.quantization().unwrap().unwrap();
    for (module, wanted) in expected("mlx-folder")["formats"].as_object().unwrap() {
        let wanted = wanted.as_array().map(|format| {
            let number = |i: usize| format[i].as_u64().unwrap();
            match format[0].as_str().unwrap() {
                "affine" => QuantFormat::Affine { bits: number(1) as u8, group_size: number(2) as u16 },
                "mxfp4" => QuantFormat::Mxfp4,
                other => panic!("{other}"),
            }
        });
        let has_scales = checkpoint.contains(&format!("{module}.scales"));
        assert_eq!(quantization.format_for(module, has_scales).unwrap(), wanted, "{module}");
        assert_eq!(checkpoint.quant_format(module, 128).unwrap(), wanted, "{module}");
    }
}
