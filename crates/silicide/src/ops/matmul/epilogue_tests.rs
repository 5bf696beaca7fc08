//! Products with what follows them, on every device, against sums in f64.

use super::tests::{PRECISIONS, assert_products, reference};
use super::*;
use crate::DeviceKind;
use crate::ops::glu::tests::{GATES, reference as glu_reference};
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{
    Golden, Random, StoredMatrix, assert_close, on_every_device, on_every_schedule, rounded, values_of,
};

fn affine(bits: u8, group_size: u16, scales: DType) -> MatrixFormat {
    MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, scales)
}

fn ggml(format: GgmlFormat) -> MatrixFormat {
    MatrixFormat::Quantized(QuantFormat::Ggml(format), DType::F32)
}

/// What storing a result as `dtype` may cost.
fn rounding(dtype: DType, result: f64) -> f64 {
    match dtype {
        DType::F16 => result.abs() * 2f64.powi(-11) + 6e-8,
        DType::BF16 => result.abs() * 2f64.powi(-8),
        _ => 0.0,
    }
}

/// `sum + b + r`, and how far a result may be from it.
fn added(sums: &[(f64, f64)], bias: Option<&[f32]>, residual: Option<&[f32]>, dtype: DType) -> Vec<(f64, f64)> {
    let add = |(i, &(sum, slack)): (usize, &(f64, f64))| {
        let b = bias.map_or(0.0, |b| b[i % b.len()] as f64);
        let r = residual.map_or(0.0, |r| r[i] as f64);
        let result = sum + b + r;
        (result, slack + 2e-7 * (sum.abs() + b.abs() + r.abs()) + rounding(dtype, result))
    };
    sums.iter().enumerate().map(add).collect()
}

/// `activation(g) * u`, and how far a result may be from it.
pub(in crate::ops) fn gated(gate: Gate, g: &[(f64, f64)], u: &[(f64, f64)], dtype: DType) -> Vec<(f64, f64)> {
    let one = |(&(g, g_slack), &(u, u_slack)): (&(f64, f64), &(f64, f64))| {
        let (result, activated) = (glu_reference(gate, g, u), glu_reference(gate, g, 1.0));
        // No activation is steeper than that.
        let slack = 1.2 * g_slack * (u.abs() + u_slack) + activated.abs() * u_slack + 4e-6 * result.abs();
        // Past the largest f16 an infinity is right.
        let slack = slack + 1e-30 + rounding(dtype, result);
        let overflows = dtype == DType::F16 && result.abs() + slack >= 65504.0;
        (result, if overflows { f64::INFINITY } else { slack })
    };
    g.iter().zip(u).map(one).collect()
}

/// Biases, residuals (one of them in place) and gates of two weights, for m rows of x from and into views with gaps.
fn check_epilogues(
    stream: &mut Stream,
    (format, n, k): (MatrixFormat, usize, usize),
    dtype: DType,
    m: usize,
    gate: Gate,
    random: &mut Random,
) {
    let device = &stream.device().clone();
    let matrices = [(); 2].map(|()| StoredMatrix::random(format, n, k, random));
    let weights = matrices.each_ref().map(|matrix| Weight::new(&matrix.on(device)).unwrap());
    let x = rounded(dtype, &random.values(m * k));
    let bias = rounded(dtype, &random.values(n));
    let residuals = [(); 2].map(|()| rounded(dtype, &random.values(m * n)));
    let xt = random.tensor(device, dtype, &x, [m, k]);
    let bias_t = random.tensor(device, dtype, &bias, [n]);
    let residual_t = random.tensor(device, dtype, &residuals[0], [m, n]);
    let rounds = device.kind() == DeviceKind::Cpu || device.takes_nvidia_kernels();
    for &precision in if rounds { &PRECISIONS[..] } else { &PRECISIONS[..1] } {
        let sums = matrices.each_ref().map(|matrix| reference(matrix, &x, DType::F32, precision));
        let name = |what: &str| format!("{device:?} {:?}, {m} rows of {dtype}, {precision:?}: {what}", weights[0]);
        let mut out = |values: &[f32]| random.tensor(device, dtype, values, [m, n]);
        let seven = vec![7.0; m * n];

        let outs = [out(&seven), out(&residuals[1]), out(&seven)];
        let products = [
            (Product { weight: &weights[0], bias: Some(&bias_t), residual: Some(&residual_t) }, &outs[0]),
            (Product { weight: &weights[1], bias: None, residual: Some(&outs[1]) }, &outs[1]),
            (Product { weight: &weights[0], bias: Some(&bias_t), residual: None }, &outs[2]),
        ];
        matmul_each_into(stream, &xt, products, precision).unwrap();
        let wanted = added(&sums[0], Some(&bias), Some(&residuals[0]), dtype);
        assert_products(&name("both"), &values_of(stream, &outs[0]), &wanted);
        let wanted = added(&sums[1], None, Some(&residuals[1]), dtype);
        assert_products(&name("in place"), &values_of(stream, &outs[1]), &wanted);
        let wanted = added(&sums[0], Some(&bias), None, dtype);
        assert_products(&name("bias"), &values_of(stream, &outs[2]), &wanted);

        let y = out(&seven);
        matmul_glu_into(stream, &xt, &weights[0], &weights[1], gate, precision, &y).unwrap();
        let wanted = gated(gate, &sums[0], &sums[1], dtype);
        assert_products(&name(&format!("{gate:?}")), &values_of(stream, &y), &wanted);
    }
}

/// Rows of x for every form: one and few, the last that are few and the first that are many, whole tiles and more.
const ROWS_OF_X: [usize; 8] = [1, 3, 4, 8, 16, 17, 33, 300];

#[test]
fn every_form_takes_epilogues() {
    on_every_device(|stream| {
        let random = &mut Random::new(21);
        let emulated = stream.device().kind().is_emulated();
        let (f32, f16, bf16) = (DType::F32, DType::F16, DType::BF16);
        for (i, (format, n, k, dtype)) in [
            (affine(4, 64, bf16), 35, 320, bf16),
            (affine(8, 32, f16), 17, 288, f16),
            (affine(4, 32, f32), 33, 96, f32),
            (affine(6, 64, bf16), 19, 512, bf16),
            (ggml(GgmlFormat::Q6_K), 21, 512, f16),
            (MatrixFormat::Quantized(QuantFormat::Mxfp4, f32), 31, 256, bf16),
            (MatrixFormat::Dense(bf16), 34, 128, bf16),
            (MatrixFormat::Dense(f32), 5, 37, f32),
        ]
        .into_iter()
        .enumerate()
        {
            // A kernel is compiled for each format and gate, and the emulated device is slow at many rows.
            let gate = GATES[i % 4];
            for (j, m) in ROWS_OF_X.into_iter().enumerate() {
                if !emulated || (m < 100 && (i + j) % 3 == 0) {
                    check_epilogues(stream, (format, n, k), dtype, m, gate, random);
                }
            }
        }
    });
}

/// Several tiles of every form, and rows so long that many simdgroups share a tile.
#[test]
fn tiles_beside_each_other() {
    on_every_device(|stream| {
        if stream.device().kind().is_emulated() {
            return;
        }
        let random = &mut Random::new(22);
        for (format, n, k, dtype, ms) in [
            (affine(4, 64, DType::BF16), 293, 640, DType::BF16, &[1, 9, 40, 300][..]),
            (affine(4, 64, DType::F16), 72, 4096 + 256, DType::F16, &[1, 7]),
            (affine(8, 64, DType::BF16), 40, 4096 + 64, DType::BF16, &[2, 11]),
            (ggml(GgmlFormat::Q6_K), 150, 512, DType::BF16, &[3, 16, 70]),
            (MatrixFormat::Dense(DType::F16), 261, 192, DType::F16, &[5, 65, 130]),
            // Columns that threadgroups share.
            (MatrixFormat::Dense(DType::BF16), 264, 2064, DType::BF16, &[33, 64]),
            (affine(4, 64, DType::BF16), 136, 1088, DType::BF16, &[17, 100]),
            (ggml(GgmlFormat::Q8_0), 40, 2176, DType::BF16, &[50]),
        ] {
            for &m in ms {
                check_epilogues(stream, (format, n, k), dtype, m, Gate::Silu, random);
            }
        }
    });
}

#[test]
fn any_schedule_gives_the_same() {
    on_every_schedule(|stream| {
        let random = &mut Random::new(23);
        for m in [1, 5, 33] {
            let shape = (affine(4, 32, DType::BF16), 17, 96);
            check_epilogues(stream, shape, DType::F32, m, Gate::Silu, random);
        }
    });
}

/// `addmm`, `quantized_matmul` with additions, and gated units of mlx.
#[test]
fn epilogues_of_mlx() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let golden = Golden::read("matmul_epilogues");
        let [x, bias, residual] =
            ["x", "bias", "residual"].map(|name| golden.tensor(device, &format!("shared.{name}")));
        let wanted = |name: &str| golden.values(name).iter().map(|&v| v as f64).collect::<Vec<_>>();
        let dense = golden.tensor(device, "shared.dense");
        let weight = Weight::new(&Matrix::from_tensor(&dense).unwrap()).unwrap();
        let product = Product { weight: &weight, bias: Some(&bias), residual: None };
        let [y] = matmul_each(stream, &x, [product], Precision::F32).unwrap();
        assert_close(DType::F32, &values_of(stream, &y), &wanted("shared.addmm"), 1.0);

        for pair in golden.matrices().chunks(2) {
            let [(gate_case, gate), (up_case, up)] = pair else { panic!("weights come in pairs") };
            let [gate, up] = [gate, up].map(|matrix| Weight::new(&matrix.on(device)).unwrap());
            let added = |weight| Product { weight, bias: Some(&bias), residual: Some(&residual) };
            let ys = matmul_each(stream, &x, [added(&gate), added(&up)], Precision::F32).unwrap();
            for (case, y) in [gate_case, up_case].into_iter().zip(&ys) {
                assert_close(DType::F32, &values_of(stream, y), &wanted(&format!("{case}.added")), 4.0);
            }
            for (name, kind) in ["silu", "gelu_tanh", "gelu_erf", "sigmoid"].into_iter().zip(GATES) {
                let y = matmul_glu(stream, &x, &gate, &up, kind, Precision::F32).unwrap();
                assert_close(DType::F32, &values_of(stream, &y), &wanted(&format!("{up_case}.{name}")), 8.0);
            }
        }
    });
}

#[test]
fn nan_and_infinity_go_where_they_belong() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(24);
        let (n, k) = (18, 128);
        for (m, dtype) in [(2, DType::F32), (3, DType::BF16), (40, DType::BF16)] {
            let [gate, up] = [(); 2].map(|()| {
                Weight::new(&StoredMatrix::random(affine(4, 64, DType::BF16), n, k, random).on(device)).unwrap()
            });
            let mut x = random.values(m * k);
            x[k + 5] = f32::NAN;
            let (mut bias, mut residual) = (random.values(n), random.values(m * n));
            (bias[3], residual[4], residual[5]) = (f32::INFINITY, f32::NAN, f32::NEG_INFINITY);
            let [xt, residual] = [(x, k), (residual, n)].map(|(v, len)| random.tensor(device, dtype, &v, [m, len]));
            let bias = random.tensor(device, dtype, &bias, [n]);
            let product = Product { weight: &gate, bias: Some(&bias), residual: Some(&residual) };
            let [y] = matmul_each(stream, &xt, [product], Precision::F32).unwrap();
            let y = values_of(stream, &y);
            let glu = matmul_glu(stream, &xt, &gate, &up, Gate::GeluTanh, Precision::F32).unwrap();
            let glu = values_of(stream, &glu);
            for (i, (&y, &glu)) in y.iter().zip(&glu).enumerate() {
                let name = format!("{device:?}, {m} rows of {dtype}, element {i}: {y}, {glu}");
                assert_eq!(y.is_nan(), i / n == 1 || i == 4, "{name}");
                assert_eq!(y.is_infinite(), i / n != 1 && (i % n == 3 || i == 5), "{name}");
                assert_eq!(glu.is_nan(), i / n == 1, "{name}");
            }
        }
    });
}

#[test]
fn says_which_epilogue_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let random = &mut Random::new(25);
    let weight = |dtype, n, random: &mut Random| {
        Weight::new(&StoredMatrix::random(MatrixFormat::Dense(dtype), n, 4, random).on(&device)).unwrap()
    };
    let (w, other, taller) =
        (weight(DType::F32, 3, random), weight(DType::BF16, 3, random), weight(DType::F32, 4, random));
    let zeros = |dtype, shape: &[usize]| device.zeros(dtype, Shape::new(shape).unwrap()).unwrap();
    let (x, out) = (zeros(DType::F32, &[2, 4]), zeros(DType::F32, &[2, 3]));
    let mut message = |bias: Option<&Tensor>, residual: Option<&Tensor>| {
        let product = Product { weight: &w, bias, residual };
        matmul_each_into(stream, &x, [(product, &out)], Precision::F32).unwrap_err().to_string()
    };
    let short = zeros(DType::F32, &[2]);
    assert_eq!(message(Some(&short), None), "matmul: bias: got f32[2], wanted f32 [3], contiguous");
    let half = zeros(DType::F16, &[3]);
    assert_eq!(message(Some(&half), None), "matmul: bias: got f16[3], wanted f32 [3], contiguous");
    let apart = zeros(DType::F32, &[3, 2]).slice(1, 0..1).unwrap().reshape([3]).unwrap();
    assert!(message(Some(&apart), None).contains("contiguous"));
    let narrow = zeros(DType::F32, &[2, 2]);
    assert_eq!(message(None, Some(&narrow)), "matmul: residual: got f32[2, 2], wanted f32 [2, 3]");
    // Over another part of the output, over x, and over the output of another product.
    let both = zeros(DType::F32, &[3, 3]);
    let (upper, lower) = (both.slice(0, 0..2).unwrap(), both.slice(0, 1..3).unwrap());
    let mut into = |products: [(Product, &Tensor); 2]| {
        matmul_each_into(stream, &x, products, Precision::F32).unwrap_err().to_string()
    };
    let with = |residual| Product { weight: &w, bias: None, residual: Some(residual) };
    let error = into([(with(&upper), &lower), (Product::from(&w), &out)]);
    assert!(error.contains("memory of its own"), "{error}");
    let error = into([(with(&out), &upper), (Product::from(&w), &out)]);
    assert!(error.contains("output of another product"), "{error}");
    let error = into([(Product { weight: &taller, bias: None, residual: Some(&x) }, &x), (Product::from(&w), &out)]);
    assert!(error.contains("memory of its own"), "{error}");

    let mut glu = |gate, up| matmul_glu(stream, &x, gate, up, Gate::Silu, Precision::F32).unwrap_err().to_string();
    let hint = "take the two products by matmul_each, then glu";
    assert_eq!(glu(&w, &other), format!("matmul_glu: up: got bf16 [3, 4], wanted the gate's f32 [3, 4]; {hint}"));
    assert_eq!(glu(&w, &taller), format!("matmul_glu: up: got f32 [4, 4], wanted the gate's f32 [3, 4]; {hint}"));
    let narrow = zeros(DType::F32, &[2, 5]);
    let error = matmul_glu(stream, &narrow, &w, &w, Gate::Silu, Precision::F32).unwrap_err().to_string();
    assert_eq!(error, "matmul_glu: x: got f32[2, 5], wanted floats [.., 4]");
}

#[test]
fn nothing_to_add_to() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (m, n, k) in [(0, 3, 4), (2, 0, 4), (2, 3, 0)] {
            let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::F32), n, k, &mut Random::new(26));
            let weight = Weight::new(&matrix.on(device)).unwrap();
            let x = device.zeros(DType::F32, [m, k]).unwrap();
            let bias = device.tensor(&vec![2.5f32; n], [n]).unwrap();
            let product = Product { weight: &weight, bias: Some(&bias), residual: None };
            let [y] = matmul_each(stream, &x, [product], Precision::F32).unwrap();
            assert_eq!(y.to_vec::<f32>(stream).unwrap(), vec![2.5; m * n]);
            let y = matmul_glu(stream, &x, &weight, &weight, Gate::Sigmoid, Precision::F32).unwrap();
            assert_eq!(y.to_vec::<f32>(stream).unwrap(), vec![0.0; m * n]);
        }
    });
}

/// More tiles than a GPU takes at once, of which the last are narrower: what a row gives doesn't depend on those beside it.
#[test]
fn more_tiles_than_processors() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(11);
        let (n, k, m) = if device.kind() == DeviceKind::Cuda { (17 * 256 - 3 * 8, 128, 1001) } else { (40, 64, 70) };
        for format in [MatrixFormat::Dense(DType::BF16), affine(4, 64, DType::BF16), ggml(GgmlFormat::Q8_0)] {
            let [gate, up] = [(); 2].map(|()| StoredMatrix::random(format, n, k, random));
            let [gate, up] = [gate, up].map(|matrix| Weight::new(&matrix.on(device)).unwrap());
            let x = rounded(DType::BF16, &random.values(m * k));
            let x = random.tensor_by(8, device, DType::BF16, &x, [m, k]);
            let both = |stream: &mut Stream, x: &Tensor| {
                let product = matmul(stream, x, &up, Precision::Reduced).unwrap();
                let gated = matmul_glu(stream, x, &gate, &up, Gate::Silu, Precision::Reduced).unwrap();
                [values_of(stream, &product), values_of(stream, &gated)]
            };
            let all = both(stream, &x);
            for at in (0..m).step_by(334) {
                let some = at..m.min(at + 334);
                let part = both(stream, &x.slice(0, some.clone()).unwrap());
                for (all, part) in all.iter().zip(&part) {
                    assert_eq!(all[some.start * n..some.end * n], part[..], "{device:?} {format}, rows {some:?}");
                }
            }
        }
    });
}
