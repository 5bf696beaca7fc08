//! The reading of every format against what mlx and gguf-py read.

use std::collections::HashMap;
use std::path::Path;

use serde_json::Value;

use super::{GgmlFormat, QuantFormat, QuantView};
use crate::DType;

/// A file of golden vectors: tensors as (dtype, shape, bytes), and the parameters of each case.
struct Vectors {
    tensors: HashMap<String, (String, Vec<usize>, Vec<u8>)>,
    cases: serde_json::Map<String, Value>,
}

impl Vectors {
    fn load(name: &str) -> Vectors {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../oracle/vectors").join(name);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
        let metadata = header.remove("__metadata__").unwrap();
        let cases = serde_json::from_str(metadata["cases"].as_str().unwrap()).unwrap();
        let list = |v: &Value| -> Vec<usize> { serde_json::from_value(v.clone()).unwrap() };
        let tensors = header.into_iter().map(|(name, t)| {
            let span = list(&t["data_offsets"]);
            (name, (t["dtype"].as_str().unwrap().to_string(), list(&t["shape"]), data[span[0]..span[1]].to_vec()))
        });
        Vectors { tensors: tensors.collect(), cases }
    }

    fn get(&self, case: &str, name: &str) -> Option<&(String, Vec<usize>, Vec<u8>)> {
        self.tensors.get(&format!("{case}.{name}"))
    }

    /// The dequantised weight of a case.
    fn wanted(&self, case: &str) -> (Vec<usize>, Vec<f32>) {
        let (_, shape, bytes) = self.get(case, "dequantized").unwrap();
        (shape.clone(), bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }
}

#[track_caller]
fn assert_rows(case: &str, view: &QuantView<'_>, wanted: &[f32], width: usize) {
    let mut row = vec![0.0; view.columns()];
    for r in 0..view.rows() {
        view.dequantize_row(r, &mut row);
        for (i, (&got, &wanted)) in row[..width].iter().zip(&wanted[r * width..][..width]).enumerate() {
            let same = got == wanted || (got.is_nan() && wanted.is_nan());
            // A bias is added with one rounding here and with two there.
            assert!(
                same || (got - wanted).abs() <= 3e-7 * wanted.abs().max(0.1),
                "{case}: row {r}, element {i}: {got}, wanted {wanted}"
            );
        }
    }
}

#[test]
fn ggml_blocks_read_as_in_gguf_py() {
    let vectors = Vectors::load("gguf_blocks.safetensors");
    for format in GgmlFormat::ALL {
        let case = format.name();
        let id = vectors.cases[case]["type"].as_u64().unwrap() as u32;
        assert_eq!(GgmlFormat::from_id(id), Some(*format));
        let (shape, wanted) = vectors.wanted(case);
        let blocks = &vectors.get(case, "blocks").unwrap().2;
        let view =
            QuantView::new(QuantFormat::Ggml(*format), shape[0], shape[1], blocks, &[], &[], DType::F32).unwrap();
        assert_rows(case, &view, &wanted, shape[1]);
    }
}

#[test]
fn mlx_weights_read_as_in_mlx() {
    let vectors = Vectors::load("quantized_matmul.safetensors");
    let mut read = 0;
    for (case, params) in &vectors.cases {
        let (bits, group_size) = (params["bits"].as_u64().unwrap(), params["group_size"].as_u64().unwrap());
        let format = match params["mode"].as_str().unwrap() {
            "affine" => QuantFormat::Affine { bits: bits as u8, group_size: group_size as u16 },
            "mxfp4" => QuantFormat::Mxfp4,
            "mxfp8" => QuantFormat::Mxfp8,
            "nvfp4" => QuantFormat::Nvfp4,
            other => panic!("mode {other}"),
        };
        let (_, q_shape, q) = vectors.get(case, "q").unwrap();
        let (dtype, _, scales) = vectors.get(case, "scales").unwrap();
        let biases = vectors.get(case, "biases").map_or(&[][..], |b| &b.2);
        let dtype = match dtype.as_str() {
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            _ => DType::F32,
        };
        let k = q_shape.last().unwrap() * 32 / bits as usize;
        let n = q.len() / format.row_bytes(k);
        let (shape, wanted) = vectors.wanted(case);
        let view = QuantView::new(format, n, k, q, scales, biases, dtype).unwrap_or_else(|e| panic!("{case}: {e}"));
        assert_rows(case, &view, &wanted, *shape.last().unwrap());
        read += 1;
    }
    assert!(read > 6 * 3 * 3, "only {read} cases");
}

#[test]
fn wrong_lengths_and_shapes_are_errors() {
    let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
    let new = |format, n, k, codes: usize, scales: usize, biases: usize, dtype| {
        let bytes = [0; 4096];
        QuantView::new(format, n, k, &bytes[..codes], &bytes[..scales], &bytes[..biases], dtype).map(|_| ())
    };
    assert!(new(affine(4, 64), 2, 64, 64, 8, 8, DType::F32).is_ok());
    for result in [
        new(affine(4, 64), 2, 64, 63, 8, 8, DType::F32),
        new(affine(4, 64), 2, 64, 64, 4, 8, DType::F32),
        new(affine(4, 64), 2, 64, 64, 8, 0, DType::F32),
        new(affine(4, 64), 2, 96, 96, 8, 8, DType::F32),
        new(affine(7, 64), 2, 64, 112, 8, 8, DType::F32),
        new(affine(4, 16), 2, 64, 64, 32, 32, DType::F32),
        new(affine(4, 64), 2, 64, 64, 2, 2, DType::U8),
        new(affine(4, 64), usize::MAX, 64, 0, 0, 0, DType::F32),
        new(QuantFormat::Mxfp4, 1, 32, 16, 0, 0, DType::F32),
        new(QuantFormat::Ggml(GgmlFormat::Q4_K), 1, 128, 72, 0, 0, DType::F32),
    ] {
        let message = result.expect_err("the arguments do not fit").to_string();
        assert!(message.starts_with("quantized weight: "), "{message}");
    }
}
