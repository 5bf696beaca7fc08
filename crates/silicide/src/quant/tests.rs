//! The reading of every format against what mlx and gguf-py read.

use super::{GgmlFormat, QuantFormat, QuantView};
use crate::testing::{Golden, Random, StoredMatrix, quantized_formats};
use crate::{DType, MatrixFormat};

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
    let golden = Golden::read("gguf_blocks");
    let matrices = golden.matrices();
    let formats: Vec<_> = matrices.iter().map(|(_, matrix)| matrix.format).collect();
    for format in GgmlFormat::ALL {
        assert!(formats.contains(&MatrixFormat::Quantized(QuantFormat::Ggml(*format), DType::F32)), "{format:?}");
    }
    for (case, matrix) in matrices {
        assert_rows(&case, &matrix.view().unwrap(), &golden.values(&format!("{case}.dequantized")), matrix.columns);
    }
}

#[test]
fn mlx_weights_read_as_in_mlx() {
    let golden = Golden::read("quantized_matmul");
    let matrices = golden.matrices();
    assert!(matrices.len() > 6 * 3 * 3, "only {} cases", matrices.len());
    for (case, matrix) in matrices {
        let wanted = golden.values(&format!("{case}.dequantized"));
        assert_rows(&case, &matrix.view().unwrap(), &wanted, wanted.len() / matrix.rows);
    }
}

#[test]
fn broken_scales_are_found_in_every_format() {
    let random = &mut Random::new(1);
    for format in quantized_formats() {
        let MatrixFormat::Quantized(quantized, dtype) = format else { unreachable!("all are quantised") };
        let whole = StoredMatrix::random(format, 3, 2 * quantized.group_size(), random);
        assert_eq!(whole.view().unwrap().row_of_broken_scale(), None, "{format}");
        // Places in the scales (of a GGUF block, in the codes) and bytes that make a NaN or an infinity of them.
        let (at, width, values): (Vec<usize>, usize, &[&[u8]]) = match (quantized, dtype) {
            (QuantFormat::Ggml(f), _) => (f.half_scales().to_vec(), f.block_bytes(), &[&[1, 0x7e], &[0, 0xfc]]),
            (QuantFormat::Mxfp4 | QuantFormat::Mxfp8, _) => (vec![0], 1, &[&[255]]),
            (QuantFormat::Nvfp4, _) => (vec![0], 1, &[&[0x7f], &[0xff]]),
            (_, DType::F16) => (vec![0], 2, &[&[1, 0x7c], &[0, 0xfc]]),
            (_, DType::BF16) => (vec![0], 2, &[&[0xc0, 0x7f], &[0x80, 0xff]]),
            _ => (vec![0], 4, &[&[0, 0, 0xc0, 0x7f], &[0, 0, 0x80, 0xff]]),
        };
        for value in values.iter().copied() {
            for &at in &at {
                // The last group of the second row.
                let mut broken = whole.clone();
                let bytes =
                    if matches!(quantized, QuantFormat::Ggml(_)) { &mut broken.codes } else { &mut broken.scales };
                bytes[3 * width + at..][..value.len()].copy_from_slice(value);
                assert_eq!(broken.view().unwrap().row_of_broken_scale(), Some(1), "{format} {value:x?}");
            }
            if matches!(quantized, QuantFormat::Affine { .. }) {
                let mut broken = whole.clone();
                broken.biases[4 * width..][..value.len()].copy_from_slice(value);
                assert_eq!(broken.view().unwrap().row_of_broken_scale(), Some(2), "{format} {value:x?}");
            }
        }
    }
}

/// D-39: rows and columns are counted in elements, whatever the bytes that hold them.
#[test]
fn d_39_a_quantised_matrix_has_the_shape_of_its_elements() {
    let (device, random) = (&crate::Device::cpu(), &mut Random::new(2));
    for format in quantized_formats() {
        let MatrixFormat::Quantized(quantized, _) = format else { unreachable!("all are quantised") };
        let columns = 3 * quantized.group_size();
        let stored = StoredMatrix::random(format, 5, columns, random);
        let (view, matrix) = (stored.view().unwrap(), stored.on(device));
        assert_eq!((view.rows(), view.columns()), (5, columns), "{format}");
        assert_eq!((matrix.rows(), matrix.columns(), matrix.format()), (5, columns, format));
        assert_eq!(matrix.bytes(), stored.codes.len() + stored.scales.len() + stored.biases.len(), "{format}");
        let groups = if stored.scales.is_empty() { 0 } else { 15 };
        let size =
            if let MatrixFormat::Quantized(QuantFormat::Affine { .. }, dtype) = format { dtype.size() } else { 1 };
        assert_eq!(stored.scales.len(), groups * size, "{format}");
    }
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
