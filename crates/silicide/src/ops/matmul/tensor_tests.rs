//! Products with activations of 16 bits, which go many ways on NVIDIA's tensor cores, on every device.

use super::tests::{PRECISIONS, assert_products, check_products, check_products_with, reference};
use super::*;
use crate::DeviceKind;
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{Random, StoredMatrix, on_every_device, quantized_formats, rounded, values_of};

/// Codes that are exact in 16 bits: stages of columns that are full and not, simdgroups with no stage, with one and with several,
/// odd tiles, and rows of scales that lie anywhere.
#[test]
fn few_rows_of_16_bits() {
    on_every_device(|stream| {
        let random = &mut Random::new(14);
        let mut next = 0;
        for bits in [4, 8] {
            for group_size in [32, 64, 128] {
                for dtype in [DType::F16, DType::BF16] {
                    let format = MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, dtype);
                    let group = usize::from(group_size);
                    for (n, k) in
                        [(1, group), (35, 5 * group), (17, 768), (48, 2304), (20, 4096 + 256), (33, 4096 + group)]
                    {
                        let matrix = StoredMatrix::random(format, n, k, random);
                        next += 1;
                        let ms = [&[1, 16], &[8, 9], &[2, 13], &[7, 11], &[1, 3]][next % 5];
                        check_products(stream, &matrix, dtype, ms, random);
                    }
                }
            }
        }
    });
}

/// More tiles than run at once, so that one follows another, behind a last stage with an odd number of groups.
#[test]
fn few_rows_of_16_bits_and_many_tiles() {
    on_every_device(|stream| {
        let random = &mut Random::new(17);
        let n = 16 * 4 * stream.device().processors().unwrap_or(2) as usize + 35;
        let affine = |bits, group_size, dtype| MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, dtype);
        let (f16, bf16) = (DType::F16, DType::BF16);
        for (format, dtype, k) in [
            (affine(4, 32, bf16), bf16, 352),
            (affine(4, 64, f16), f16, 576),
            (affine(4, 128, bf16), bf16, 384),
            (affine(8, 32, f16), f16, 288),
            (affine(8, 64, bf16), bf16, 192),
            (affine(8, 128, f16), f16, 640),
            (MatrixFormat::Quantized(QuantFormat::Mxfp4, f16), f16, 512),
            (MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q6_K), DType::F32), bf16, 256),
            (MatrixFormat::Dense(bf16), bf16, 384),
        ] {
            let matrix = StoredMatrix::random(format, n, k, random);
            check_products(stream, &matrix, dtype, &[1, 3, 11], random);
        }
    });
}

/// Units of every format, from rows that begin anywhere.
fn few_rows_of(formats: impl IntoIterator<Item = MatrixFormat>) {
    let formats: Vec<_> = formats.into_iter().collect();
    on_every_device(|stream| {
        let random = &mut Random::new(15);
        for (i, &format) in formats.iter().enumerate() {
            let dtype = match format {
                MatrixFormat::Dense(dtype) => dtype,
                _ => [DType::F16, DType::BF16][i % 2],
            };
            let (n, k) = [(1, 2304), (33, 512), (35, 256), (16, 2560)][i % 4];
            let matrix = StoredMatrix::random(format, n, k, random);
            check_products(stream, &matrix, dtype, [&[1, 2, 16], &[1, 4, 9], &[1, 5, 8], &[1, 3, 13]][i % 4], random);
            // Rows that end within a stage.
            let group = match format {
                MatrixFormat::Dense(_) => 32,
                MatrixFormat::Quantized(format, _) => format.group_size().max(32),
            };
            let matrix = StoredMatrix::random(format, 17, 256 + group, random);
            check_products(stream, &matrix, dtype, &[1, 2 + i % 12], random);
        }
    });
}

fn is_affine(format: &MatrixFormat) -> bool {
    matches!(format, MatrixFormat::Quantized(QuantFormat::Affine { .. }, _))
}

#[test]
fn few_rows_of_16_bits_of_every_affine_format() {
    few_rows_of(quantized_formats().into_iter().filter(is_affine));
}

#[test]
fn few_rows_of_16_bits_of_every_other_format() {
    let dense = [DType::F16, DType::BF16].map(MatrixFormat::Dense);
    few_rows_of(quantized_formats().into_iter().filter(|format| !is_affine(format)).chain(dense));
}

/// Activations that are all small or all large, or that differ from one part of a row to the next and are zero in some.
#[test]
fn rows_of_any_magnitude() {
    on_every_device(|stream| {
        let random = &mut Random::new(21);
        let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
        for (format, scales) in [
            (affine(4, 32), DType::BF16),
            (affine(4, 64), DType::F16),
            (affine(8, 128), DType::BF16),
            (QuantFormat::Mxfp4, DType::F32),
            (QuantFormat::Ggml(GgmlFormat::Q8_0), DType::F32),
            (QuantFormat::Ggml(GgmlFormat::Q4_K), DType::F32),
        ] {
            let format = MatrixFormat::Quantized(format, scales);
            for (dtype, exponents) in [(DType::F16, [-14, -9, 4]), (DType::BF16, [-80, -20, 100])] {
                let matrix = StoredMatrix::random(format, 20, 1536, random);
                let by_parts = |i: usize| [0, exponents[1], 0, exponents[0]][i % 4] as f32;
                for m in [1, 3] {
                    let x = random.values(m * matrix.columns);
                    for exponent in exponents {
                        let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(exponent)).collect();
                        check_products_with(stream, &matrix, dtype, &x, random);
                    }
                    let parts = x.chunks(32).enumerate();
                    let x: Vec<f32> = parts
                        .flat_map(|(i, part)| {
                            let factor = if i % 5 == 3 { 0.0 } else { by_parts(i).exp2() };
                            part.iter().map(move |x| x * factor)
                        })
                        .collect();
                    check_products_with(stream, &matrix, dtype, &x, random);
                }
            }
        }
    });
}

/// Tiles that are full, and the last of each axis that are not; rows of results that vectors fit, and that they do not; formats that are
/// dequantised in registers, and that are not.
#[test]
fn many_rows_of_16_bits() {
    on_every_device(|stream| {
        let random = &mut Random::new(4);
        let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
        // What is emulated is slow, and has one form for all.
        let each = if stream.device().kind().is_emulated() { 4 } else { 1 };
        for dtype in [DType::F16, DType::BF16] {
            let (dense, codes) = (MatrixFormat::Dense(dtype), |format| MatrixFormat::Quantized(format, dtype));
            for (format, n, k, m) in [
                (dense, 133, 160, 65),
                (dense, 136, 176, 129),
                (dense, 264, 64, 300),
                (codes(affine(4, 32)), 133, 160, 257),
                (codes(affine(4, 32)), 136, 192, 65),
                (codes(affine(4, 64)), 392, 64, 257),
                (codes(affine(4, 128)), 8, 384, 130),
                (codes(affine(8, 32)), 128, 128, 129),
                (codes(affine(8, 64)), 264, 448, 66),
                (codes(affine(8, 128)), 136, 256, 257),
                (codes(QuantFormat::Mxfp4), 136, 192, 130),
                (codes(QuantFormat::Mxfp8), 264, 128, 65),
                (codes(QuantFormat::Nvfp4), 136, 320, 257),
                (MatrixFormat::Quantized(affine(4, 64), DType::F32), 136, 128, 256),
                (MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q8_0), DType::F32), 136, 160, 256),
            ]
            .into_iter()
            .step_by(each)
            {
                let matrix = StoredMatrix::random(format, n, k, random);
                check_products(stream, &matrix, dtype, &[m], random);
            }
        }
    });
}

/// Blocks that are dequantised in registers, slabs of 128 or 256 columns at a time, and such as are not: rows of other lengths and of formats with
/// minimums.
#[test]
fn many_rows_by_blocks() {
    on_every_device(|stream| {
        let random = &mut Random::new(20);
        // What is emulated is slow, and has one form for all.
        let each = if stream.device().kind() == DeviceKind::Cuda { 1 } else { 7 };
        for (i, &format) in GgmlFormat::ALL.iter().enumerate().step_by(each) {
            let blocks = if format.block_elements() == 256 { 8 } else { 10 };
            for k in [blocks * format.block_elements(), 768] {
                let matrix = MatrixFormat::Quantized(QuantFormat::Ggml(format), DType::F32);
                let matrix = StoredMatrix::random(matrix, [136, 264][i % 2], k, random);
                check_products(stream, &matrix, [DType::BF16, DType::F16][i % 2], &[[66, 257][i % 2]], random);
                let dtype = [DType::F16, DType::BF16][i % 2];
                check_products(stream, &matrix, dtype, &[130], random);
            }
        }
    });
}

/// Tiles so few and rows so long that several threadgroups of an NVIDIA GPU share the columns, as evenly as they go.
#[test]
fn columns_that_threadgroups_share() {
    on_every_device(|stream| {
        let random = &mut Random::new(24);
        let affine = |bits, group_size| QuantFormat::Affine { bits, group_size };
        let each = if stream.device().kind() == DeviceKind::Cuda { 1 } else { 9 };
        for dtype in [DType::BF16, DType::F16] {
            let codes = |format| MatrixFormat::Quantized(format, dtype);
            let ggml = |format| codes(QuantFormat::Ggml(format));
            for (format, n, k, m) in [
                (MatrixFormat::Dense(dtype), 40, 2064, 64),
                (MatrixFormat::Dense(dtype), 264, 1104, 33),
                (codes(affine(4, 64)), 264, 2112, 17),
                (codes(affine(4, 128)), 40, 1152, 100),
                (codes(affine(8, 32)), 136, 2240, 60),
                (codes(QuantFormat::Mxfp4), 264, 2496, 31),
                (codes(QuantFormat::Nvfp4), 40, 1088, 130),
                (codes(affine(6, 64)), 136, 2112, 40),
                (ggml(GgmlFormat::Q8_0), 40, 2176, 64),
                (ggml(GgmlFormat::Q4_0), 264, 1152, 20),
                (ggml(GgmlFormat::Q6_K), 136, 2304, 65),
                (ggml(GgmlFormat::Q4_K), 40, 2304, 48),
            ]
            .into_iter()
            .step_by(each)
            {
                let matrix = StoredMatrix::random(format, n, k, random);
                check_products(stream, &matrix, dtype, &[m], random);
            }
        }
    });
}

/// Threads that launch one kernel with more and with less threadgroup memory.
#[test]
fn threads_with_rows_of_other_lengths() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(25);
        let format = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 64 }, DType::BF16);
        let times = if device.kind() == DeviceKind::Cuda { 200 } else { 3 };
        let products: Vec<_> = [4096 + 512, 512, 2048, 1024]
            .into_iter()
            .map(|k| {
                let weight = Weight::new(&StoredMatrix::random(format, 40, k, random).on(device)).unwrap();
                let x = rounded(DType::BF16, &random.values(k));
                let x = random.tensor_by(8, device, DType::BF16, &x, [1, k]);
                let wanted = matmul(stream, &x, &weight, Precision::Reduced).unwrap();
                (x, weight, values_of(stream, &wanted))
            })
            .collect();
        std::thread::scope(|scope| {
            for (x, weight, wanted) in &products {
                scope.spawn(move || {
                    let stream = &mut device.stream();
                    for _ in 0..times {
                        let out = matmul(stream, x, weight, Precision::Reduced).unwrap();
                        assert_eq!(&values_of(stream, &out), wanted);
                    }
                });
            }
        });
    });
}

/// A view that shows one row many times.
#[test]
fn rows_that_are_broadcast() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(16);
        let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::BF16), 136, 64, random);
        let weight = Weight::new(&matrix.on(device)).unwrap();
        let row = rounded(DType::BF16, &random.values(64));
        let x = random.tensor_by(8, device, DType::BF16, &row, [1, 64]).broadcast_to([130, 64]).unwrap();
        for precision in PRECISIONS {
            let out = matmul(stream, &x, &weight, precision).unwrap();
            let wanted = reference(&matrix, &row.repeat(130), DType::BF16, precision);
            assert_products(&format!("{device:?}, {precision:?}"), &values_of(stream, &out), &wanted);
        }
    });
}
