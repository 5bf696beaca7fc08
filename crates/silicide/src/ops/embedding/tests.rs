use super::*;
use crate::testing::{Random, StoredMatrix, assert_close, on_every_device, quantized_formats, values_of};
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
            let MatrixFormat::Quantized(quantized, scales) = format else { unreachable!("all are quantised") };
            let matrix = StoredMatrix::random(format, 1 + i % 3, (1 + i % 2) * quantized.group_size(), random);
            check_rows(stream, &matrix, scales, [1.0, 24.0][i % 2]);
        }
    });
}

#[test]
fn dense_rows_of_any_length() {
    on_every_device(|stream| {
        let random = &mut Random::new(2);
        for (i, dtype) in DType::FLOATS.into_iter().enumerate() {
            for columns in [1, 15, 33, 600] {
                let matrix = StoredMatrix::random(MatrixFormat::Dense(dtype), 4, columns, random);
                check_rows(stream, &matrix, DType::FLOATS[(i + 1) % 3], -0.5);
            }
        }
    });
}
