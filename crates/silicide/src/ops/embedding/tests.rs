use super::*;
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
