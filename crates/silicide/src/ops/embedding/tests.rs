use proptest::prelude::*;

use super::*;
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{Golden, Random, StoredMatrix, assert_close, on_every_device, quantized_formats, values_of};
use crate::{DType, MatrixFormat};

fn check_rows(stream: &mut Stream, matrix: &StoredMatrix, dtype: DType, scale: f32) {
    let (device, k) = (&stream.device().clone(), matrix.columns);
    let last = matrix.rows as u32 - 1;
    let ids = [last, 0, matrix.rows as u32, last, u32::MAX];
    let ids_t = device.tensor(&ids, [ids.len()]).unwrap();
    let rows = embedding(stream, &ids_t, &matrix.on(device), scale, dtype).unwrap();
    let elements = matrix.elements();
    let size = matrix.sizes().into_iter().fold(0.0, f32::max) * scale.abs();
    let wanted: Vec<f64> = ids
        .iter()
        .flat_map(|&id| (0..k).map(move |i| (id, i)))
        .map(|(id, i)| elements.get(id as usize * k + i).map_or(0.0, |&w| w as f64 * scale as f64))
        .collect();
    assert_close(dtype, &values_of(stream, &rows), &wanted, 0.1 * size as f64);
}

#[test]
fn rows_of_every_format() {
    on_every_device(|stream| {
        let random = &mut Random::new(1);
        for (i, format) in quantized_formats().into_iter().enumerate() {
            let MatrixFormat::Quantized(quantized, _) = format else { unreachable!("all are quantised") };
            let matrix = StoredMatrix::random(format, 1 + i % 4, (1 + i % 2) * quantized.group_size(), random);
            // By the kernel, of which there is one for a width and a type of scales, so that each is compiled once.
            let dtype = DType::FLOATS[(quantized.bits() + usize::from(i % 3 == 0)) % 3];
            check_rows(stream, &matrix, dtype, [1.0, 24.0][i % 2]);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_ids_of_any_matrix(
        tokens in 0usize..40,
        rows in 1usize..70,
        units in 1usize..5,
        odd in prop_oneof![Just(1usize), Just(31), Just(33), Just(65)],
        kind in 0usize..4,
        signed: bool,
        seed: u64,
    ) {
        let affine = |bits| QuantFormat::Affine { bits, group_size: 32 };
        let (format, columns) = match kind {
            0 => (MatrixFormat::Dense(DType::BF16), odd),
            1 => (MatrixFormat::Dense(DType::F32), odd),
            2 => (MatrixFormat::Quantized(affine(3), DType::F16), 32 * units),
            _ => (MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q5_1), DType::F32), 32 * units),
        };
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let random = &mut Random::new(seed);
            let matrix = StoredMatrix::random(format, rows, columns, random);
            // Some past the last row, and a view that begins inside its buffer.
            let ids: Vec<u32> = (0..tokens + 3).map(|_| random.below(rows + 3) as u32).collect();
            let dtype = if signed { DType::I32 } else { DType::U32 };
            let whole = device.tensor_from_bytes(bytemuck::cast_slice(&ids), dtype, [ids.len()]).unwrap();
            let ids = &ids[3..];
            let got = embedding(stream, &whole.slice(0, 3..3 + tokens).unwrap(), &matrix.on(device), 1.0, DType::F32);
            let elements = matrix.elements();
            let row = |&id: &u32| {
                let at = id as usize * columns;
                elements.get(at..at + columns).map_or(vec![0.0; columns], |row| row.iter().map(|&x| x as f64).collect())
            };
            let want: Vec<f64> = ids.iter().flat_map(row).collect();
            let size = matrix.sizes().into_iter().fold(0.0, f32::max);
            assert_close(DType::F32, &values_of(stream, &got.unwrap()), &want, 0.1 * size as f64);
        });
    }
}

#[test]
fn negative_ids_give_zeros_and_nan_stays_where_it_is() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let elements = [1.0f32, f32::NAN, 3.0, f32::INFINITY, 5.0, 6.0];
        let bytes = crate::formats::Mapped::copy_from(bytemuck::cast_slice(&elements)).unwrap();
        let table = Matrix::new(device, MatrixFormat::Dense(DType::F32), 2, 3, &bytes, None, None).unwrap();
        let ids = device.tensor(&[1i32, -1, 0, i32::MIN], [4]).unwrap();
        let rows = embedding(stream, &ids, &table, 2.0, DType::F16).unwrap();
        let got = values_of(stream, &rows);
        assert!(got[7].is_nan());
        let want = [f32::INFINITY, 10.0, 12.0, 0.0, 0.0, 0.0, 2.0, 0.0, 6.0, 0.0, 0.0, 0.0];
        assert!(got.iter().zip(want).enumerate().all(|(i, (&g, w))| i == 7 || g == w), "{got:?}");
    });
}

#[test]
fn dense_rows_of_any_length() {
    on_every_device(|stream| {
        let random = &mut Random::new(2);
        for (i, dtype) in DType::FLOATS.into_iter().enumerate() {
            for columns in [1, 15, 33, 600] {
                for rows in [3, 4, 5] {
                    let matrix = StoredMatrix::random(MatrixFormat::Dense(dtype), rows, columns, random);
                    check_rows(stream, &matrix, DType::FLOATS[(i + 1) % 3], -0.5);
                }
            }
        }
    });
}

/// What mlx and gguf-py dequantise.
#[test]
fn rows_of_mlx_and_gguf_py() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for file in ["quantized_matmul", "gguf_blocks"] {
            let golden = Golden::read(file);
            for (case, matrix) in golden.matrices() {
                let ids: Vec<u32> = (0..matrix.rows as u32).collect();
                let ids = device.tensor(&ids, [ids.len()]).unwrap();
                let rows = embedding(stream, &ids, &matrix.on(device), 1.0, DType::F32).unwrap();
                let rows = values_of(stream, &rows);
                let wanted: Vec<f64> =
                    golden.values(&format!("{case}.dequantized")).into_iter().map(f64::from).collect();
                // Cases of scales keep one element a row, as the others are the same.
                let width = wanted.len() / matrix.rows;
                let rows: Vec<f32> = rows.chunks(matrix.columns).flat_map(|row| row[..width].iter().copied()).collect();
                assert_close(DType::F32, &rows, &wanted, 0.1);
            }
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = crate::Device::cpu();
    let stream = &mut device.stream();
    let table = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 3, 4, &mut Random::new(3)).on(&device);
    let ids = device.zeros(DType::F32, [2]).unwrap();
    let error = embedding(stream, &ids, &table, 1.0, DType::F32).unwrap_err().to_string();
    assert_eq!(error, "embedding: ids: got f32[2], wanted u32 or i32 [tokens], contiguous");
    let ids = device.zeros(DType::U32, [2]).unwrap();
    let error = embedding(stream, &ids, &table, 1.0, DType::I32).unwrap_err().to_string();
    assert_eq!(error, "embedding: dtype: got i32, wanted f32, f16 or bf16");
}
