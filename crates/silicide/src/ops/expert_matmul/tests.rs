//! Products on every device, in every form, against sums in f64 over the elements as the plain reader gives them.

use proptest::prelude::*;

use super::*;
use crate::device::EmulatedOptions;
use crate::formats::Mapped;
use crate::ops::expert_schedule::{FEW, MANY, schedule};
use crate::ops::matmul::tests::{PRECISIONS, assert_products, reference};
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{
    Golden, Random, StoredMatrix, on_every_device, on_every_schedule, quantized_formats, rounded, tensor_of, values_of,
};
use crate::{DType, DeviceKind};

/// Not grouped, in tiles of either size, and in larger ones, which the plain forms take in parts.
pub(super) const FORMS: [Option<usize>; 4] = [None, Some(FEW), Some(MANY), Some(70)];

#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) experts: usize,
    pub(super) tokens: usize,
    pub(super) slots: usize,
    pub(super) dtype: DType,
    /// Whether the slots of a token share a row of x.
    pub(super) shared: bool,
    pub(super) bias: bool,
}

impl Case {
    /// An expert for each pair; one in ten has none.
    pub(super) fn ids(&self, random: &mut Random) -> Vec<u32> {
        let id = |_| if random.below(10) == 0 { self.experts as u32 } else { random.below(self.experts) as u32 };
        (0..self.tokens * self.slots).map(id).collect()
    }

    /// Rows of `x` as views with gaps, which begin on 16 bytes where rows of this type can go to tensor cores.
    pub(super) fn x(&self, device: &Device, x: &[f32], k: usize, random: &mut Random) -> Tensor {
        let rows = if self.shared { [self.tokens, 1] } else { [self.tokens, self.slots] };
        let x = match self.dtype == DType::F32 || !k.is_multiple_of(32) {
            true => random.tensor(device, self.dtype, x, [rows[0], rows[1], k]),
            false => {
                let x: Vec<f32> = x.chunks(k).flat_map(|row| row.iter().copied().chain([f32::NAN; 8])).collect();
                tensor_of(device, self.dtype, &x, [rows[0], rows[1], k + 8]).slice(2, 0..k).unwrap()
            }
        };
        if self.shared { x.reshape([rows[0], k]).unwrap() } else { x }
    }
}

/// Products of a stack with random rows, from and into views with gaps, for each form.
fn check_products(
    stream: &mut Stream,
    stack: &StoredMatrix,
    case: &Case,
    forms: &[Option<usize>],
    random: &mut Random,
) {
    let device = &stream.device().clone();
    let &Case { experts, tokens, slots, dtype, shared, bias } = case;
    let (n, k, pairs) = (stack.rows / experts, stack.columns, tokens * slots);
    let weight = ExpertWeight::stacked(&stack.on(device), experts).unwrap();
    let ids = case.ids(random);
    let ids_t = device.tensor(&ids, [tokens, slots]).unwrap();
    let rows = if shared { tokens } else { pairs };
    let x = rounded(dtype, &random.values(rows * k));
    let xt = case.x(device, &x, k, random);
    let bias = bias.then(|| rounded(dtype, &random.values(experts * n)));
    let bias_t = bias.as_ref().map(|b| crate::testing::tensor_of(device, dtype, b, [experts, n]));
    // Only the CPU rounds activations, and NVIDIA's tensor cores weights.
    let rounds = device.kind() == DeviceKind::Cpu || device.takes_nvidia_kernels();
    let precisions = if rounds { &PRECISIONS[..] } else { &PRECISIONS[..1] };
    for &precision in precisions {
        let of_rows: Vec<_> = x.chunks(k).map(|x| reference(stack, x, dtype, precision)).collect();
        let wanted: Vec<(f64, f64)> = (0..pairs * n)
            .map(|i| {
                let (pair, row) = (i / n, i % n);
                let expert = ids[pair] as usize;
                let Some(&(sum, slack)) = of_rows[if shared { pair / slots } else { pair }].get(expert * n + row)
                else {
                    return (0.0, 0.0);
                };
                let bias = bias.as_ref().map_or(0.0, |b| b[expert * n + row] as f64);
                (sum + bias, slack + if dtype == DType::F32 { 1e-6 } else { 0.01 } * bias.abs())
            })
            .collect();
        for &form in forms {
            let schedule = schedule(stream, &ids_t, experts, form).unwrap();
            let out = random.tensor(device, dtype, &vec![7.0; pairs * n], [tokens, slots, n]);
            expert_matmul_into(stream, &xt, &weight, &schedule, bias_t.as_ref(), precision, &out).unwrap();
            let name =
                format!("{device:?} {weight:?}, {tokens} by {slots} of {dtype}, {precision:?}, tiles of {form:?}");
            assert_products(&name, &values_of(stream, &out), &wanted);
        }
    }
}

/// D-14: odd numbers of rows among them, for which rows past the last must be neither read nor written.
#[test]
fn d_14_every_format_of_odd_shapes() {
    on_every_device(|stream| {
        let random = &mut Random::new(1);
        for (i, format) in quantized_formats().into_iter().enumerate() {
            let MatrixFormat::Quantized(quantized, _) = format else { unreachable!("all are quantised") };
            let (n, groups) = [(1, 1), (17, 3), (33, 2), (15, 1)][i % 4];
            let experts = 2 + i % 3;
            let stack = StoredMatrix::random(format, experts * n, groups * quantized.group_size(), random);
            let case = Case { experts, tokens: 7, slots: 2, dtype: DType::F32, shared: i % 2 == 0, bias: i % 5 == 0 };
            check_products(stream, &stack, &case, &[FORMS[i % 3]], random);
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_shape(
        tokens in prop_oneof![Just(0usize), Just(1), Just(31), Just(65), 1usize..20],
        slots in 1usize..5,
        experts in prop_oneof![Just(1usize), Just(3), Just(60)],
        n in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..80],
        k in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..200],
        kind in 0usize..5,
        shared: bool,
        bias: bool,
        seed: u64,
    ) {
        let format = match kind {
            0..3 => MatrixFormat::Dense(DType::FLOATS[kind]),
            3 => MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 64 }, DType::BF16),
            _ => MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q8_0), DType::F32),
        };
        let k = if let MatrixFormat::Quantized(format, _) = format { k.next_multiple_of(format.group_size()) } else { k };
        on_every_device(|stream| {
            let random = &mut Random::new(seed);
            let stack = StoredMatrix::random(format, experts * n, k, random);
            // One type of activations a format: each pair is a kernel that is compiled.
            let case = Case { experts, tokens, slots, dtype: DType::FLOATS[kind % 3], shared, bias };
            check_products(stream, &stack, &case, &FORMS, random);
        });
    }
}

#[test]
fn any_schedule_gives_the_products() {
    let affine = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 32 }, DType::BF16);
    on_every_schedule(|stream| {
        let random = &mut Random::new(2);
        let stack = StoredMatrix::random(affine, 3 * 17, 96, random);
        let case = Case { experts: 3, tokens: 33, slots: 2, dtype: DType::F32, shared: true, bias: true };
        check_products(stream, &stack, &case, &FORMS, random);
    });
}

/// Rows of 16 bits: tiles that are full and not, an expert with most of the pairs, columns that are no whole turn, and formats that tensor
/// cores have a reader for, and others.
#[test]
fn pairs_of_16_bits() {
    on_every_device(|stream| {
        let random = &mut Random::new(16);
        let affine = |bits, group_size, dtype| MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, dtype);
        let cuda = stream.device().kind() == DeviceKind::Cuda;
        for (i, dtype) in [DType::F16, DType::BF16].into_iter().enumerate() {
            for (j, format) in [
                affine(4, 64, dtype),
                MatrixFormat::Quantized(QuantFormat::Mxfp4, dtype),
                MatrixFormat::Dense(dtype),
                affine(4, 32, DType::F32),
                MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q6_K), DType::F32),
            ]
            .into_iter()
            .enumerate()
            {
                let (n, k) = [(133, 320), (20, 1344), (64, 128), (17, 96), (129, 256)][(i + j) % 5];
                let k = if j == 4 { 768 } else { k };
                let stack = |experts: usize, random: &mut Random| StoredMatrix::random(format, experts * n, k, random);
                let case = Case { experts: 3, tokens: 21, slots: 2, dtype, shared: j % 2 == 0, bias: i == j % 2 };
                let forms = [None, Some(8), Some(16), Some(32), Some(64), Some(128)];
                let forms = if cuda { &forms[..] } else { &forms[j % 6..][..1] };
                check_products(stream, &stack(3, random), &case, forms, random);
                if cuda {
                    let case = Case { experts: 2, tokens: 170, slots: 2, ..case };
                    check_products(stream, &stack(2, random), &case, forms, random);
                }
            }
        }
    });
}

/// Beside others of their expert, and where columns are no whole turn.
#[test]
fn rows_that_are_not_finite_stay_apart() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (experts, tokens, n) = (2, 40, 20);
        let affine = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 32 }, DType::BF16);
        for (format, k) in [(MatrixFormat::Dense(DType::BF16), 224), (affine, 96)] {
            let stack = StoredMatrix::random(format, experts * n, k, &mut Random::new(18));
            let weight = ExpertWeight::stacked(&stack.on(device), experts).unwrap();
            let mut x = Random::new(19).values(tokens * k);
            x[3 * k + 5] = f32::NAN;
            x[8 * k - 1] = f32::INFINITY;
            let x = tensor_of(device, DType::BF16, &x, [tokens, k]);
            let ids: Vec<u32> = (0..tokens).map(|i| i as u32 % 2).collect();
            let ids = device.tensor(&ids, [tokens, 1]).unwrap();
            for form in [None, Some(8), Some(16), Some(32), Some(64)] {
                let schedule = schedule(stream, &ids, experts, form).unwrap();
                let out = expert_matmul(stream, &x, &weight, &schedule, None, Precision::Reduced).unwrap();
                for (token, row) in values_of(stream, &out).chunks(n).enumerate() {
                    let finite = row.iter().filter(|x| x.is_finite()).count();
                    assert_eq!(
                        finite,
                        if [3, 7].contains(&token) { 0 } else { n },
                        "{format}, {form:?}, token {token}"
                    );
                }
            }
        }
    });
}

/// The forms that tensor cores have, and why others are left to the plain form.
#[test]
fn what_tensor_cores_take() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        if !device.takes_nvidia_kernels() {
            return;
        }
        let weight = |bits| {
            let format = MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size: 64 }, DType::BF16);
            let stack = StoredMatrix::random(format, 4 * 128, 256, &mut Random::new(17));
            ExpertWeight::stacked(&stack.on(device), 4).unwrap()
        };
        let (four, eight) = (weight(4), weight(8));
        let mut chosen = |weight, tokens: usize, dtype, precision| {
            let x = device.zeros(dtype, [tokens, 256]).unwrap();
            let ids = device.zeros(DType::U32, [tokens, 2]).unwrap();
            let product = |stream: &mut Stream| {
                let schedule = crate::ops::expert_schedule(stream, &ids, 4)?;
                expert_matmul(stream, &x, weight, &schedule, None, precision)
            };
            let (plan, _) = stream.record(product).unwrap();
            let choice = plan.launches().last().unwrap().chosen().clone();
            (choice.kernel.split(' ').next().unwrap().to_owned(), choice.why.to_string())
        };
        let (reduced, exact) = (Precision::Reduced, Precision::F32);
        for (weight, tokens, dtype, precision, kernel, why) in [
            (&four, 1, DType::BF16, reduced, "expert_matmul_units_8", ""),
            (&four, 4096, DType::BF16, reduced, "expert_matmul_tensor_128", ""),
            (&four, 1, DType::F32, reduced, "expert_matmul_one", "x is f32"),
            (&four, 4096, DType::BF16, exact, "expert_matmul_tiled", "would round"),
            (&eight, 1, DType::BF16, reduced, "expert_matmul_one", "for one token"),
            (&eight, 2, DType::BF16, reduced, "expert_matmul_units_8", ""),
        ] {
            let (got, reason) = chosen(weight, tokens, dtype, precision);
            assert_eq!(got, kernel);
            assert!(reason.contains(why) && reason.is_empty() == why.is_empty(), "{kernel}: {reason}");
        }
    });
}

/// What is chosen for one token, for a few, and for many.
#[test]
fn the_schedule_that_is_chosen() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(3);
        let (experts, slots, n, k) = (6, 2, 9, 64);
        let stack = StoredMatrix::random(MatrixFormat::Dense(DType::F32), experts * n, k, random);
        let weight = ExpertWeight::stacked(&stack.on(device), experts).unwrap();
        for tokens in [1, 5, 20, 70] {
            let ids: Vec<u32> = (0..tokens * slots).map(|_| random.below(experts) as u32).collect();
            let x = random.values(tokens * k);
            let schedule = crate::ops::expert_schedule(stream, &device.tensor(&ids, [tokens, slots]).unwrap(), experts);
            let xt = device.tensor(&x, [tokens, k]).unwrap();
            let out = expert_matmul(stream, &xt, &weight, &schedule.unwrap(), None, Precision::F32).unwrap();
            let of_rows: Vec<_> = x.chunks(k).map(|x| reference(&stack, x, DType::F32, Precision::F32)).collect();
            let pair = |(pair, &id): (usize, &u32)| of_rows[pair / slots][id as usize * n..][..n].to_vec();
            let wanted: Vec<_> = ids.iter().enumerate().flat_map(pair).collect();
            assert_products(&format!("{tokens} tokens"), &values_of(stream, &out), &wanted);
        }
    });
}

/// `gather_mm` and `gather_qmm` of mlx.
#[test]
fn products_of_mlx() {
    let golden = Golden::read("expert_matmul");
    let weight = golden.values("shared.weight");
    let (experts, n) = (5, 7);
    let dense = StoredMatrix {
        format: MatrixFormat::Dense(DType::F32),
        rows: experts * n,
        columns: weight.len() / (experts * n),
        codes: bytemuck::cast_slice(&weight).to_vec(),
        scales: Vec::new(),
        biases: Vec::new(),
    };
    let mut matrices = golden.matrices();
    matrices.push(("shared".into(), dense));
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let ids = golden.tensor(device, "shared.ids");
        for (case, matrix) in &matrices {
            let weight = ExpertWeight::stacked(&matrix.on(device), experts).unwrap();
            for (x, out) in [("shared.x", "out"), ("shared.x_slots", "out_slots")] {
                for form in FORMS {
                    let schedule = schedule(stream, &ids, experts, form).unwrap();
                    let x = golden.tensor(device, x);
                    let got = expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32).unwrap();
                    let wanted = golden.values(&format!("{case}.{out}"));
                    let largest = wanted.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
                    let wanted: Vec<_> = wanted.into_iter().map(|w| (w as f64, 3e-6 * largest)).collect();
                    assert_products(&format!("{case}.{out}"), &values_of(stream, &got), &wanted);
                }
            }
            // The same on tensor cores, which take 16 bits.
            let x = golden.values("shared.x");
            let of_rows: Vec<_> =
                x.chunks(matrix.columns).map(|x| reference(matrix, x, DType::F16, Precision::Reduced)).collect();
            let wanted = golden.values(&format!("{case}.out"));
            let all_ids = ids.to_vec::<u32>(stream).unwrap();
            let slots = ids.dim(1);
            let wanted: Vec<_> = wanted
                .into_iter()
                .enumerate()
                .map(|(i, w)| {
                    let (pair, row) = (i / n, i % n);
                    (w as f64, of_rows[pair / slots][all_ids[pair] as usize * n + row].1)
                })
                .collect();
            let xt = tensor_of(device, DType::F16, &x, [x.len() / matrix.columns, matrix.columns]);
            for form in [None, Some(8), Some(64)] {
                let schedule = schedule(stream, &ids, experts, form).unwrap();
                let got = expert_matmul(stream, &xt, &weight, &schedule, None, Precision::Reduced).unwrap();
                assert_products(&format!("{case}, f16"), &values_of(stream, &got), &wanted);
            }
        }
    });
}

/// The elements that gguf-py reads, as stacks.
#[test]
fn products_with_the_elements_of_gguf_py() {
    let golden = Golden::read("gguf_blocks");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, matrix) in golden.matrices() {
            let elements = golden.values(&format!("{case}.dequantized"));
            if elements.len() != matrix.rows * matrix.columns {
                continue;
            }
            // Each row an expert.
            let (experts, k) = (matrix.rows, matrix.columns);
            let weight = ExpertWeight::stacked(&matrix.on(device), experts).unwrap();
            let x = Random::new(4).values(2 * k);
            let ids = [experts as u32 - 1, 0, 0, experts as u32 / 2];
            let ids_t = device.tensor(&ids, [2, 2]).unwrap();
            let schedule = crate::ops::expert_schedule(stream, &ids_t, experts).unwrap();
            let xt = device.tensor(&x, [2, k]).unwrap();
            let out = expert_matmul(stream, &xt, &weight, &schedule, None, Precision::F32).unwrap();
            let pair = |(pair, &id): (usize, &u32)| {
                let terms = elements[id as usize * k..][..k].iter().zip(&x[pair / 2 * k..]);
                let terms = terms.map(|(&w, &x)| w as f64 * x as f64);
                let size: f64 = terms.clone().map(f64::abs).sum();
                (terms.sum::<f64>(), 1e-5 * size)
            };
            let wanted: Vec<_> = ids.iter().enumerate().map(pair).collect();
            assert_products(&case, &values_of(stream, &out), &wanted);
        }
    });
}

#[test]
fn one_matrix_an_expert_is_as_a_stack() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(5);
        let affine = MatrixFormat::Quantized(QuantFormat::Affine { bits: 4, group_size: 32 }, DType::F16);
        for format in [affine, MatrixFormat::Dense(DType::BF16)] {
            let parts: Vec<_> = (0..3).map(|_| StoredMatrix::random(format, 7, 64, random)).collect();
            let join = |part: fn(&StoredMatrix) -> &Vec<u8>| parts.iter().flat_map(|m| part(m).clone()).collect();
            let stack = StoredMatrix {
                rows: 21,
                codes: join(|m| &m.codes),
                scales: join(|m| &m.scales),
                biases: join(|m| &m.biases),
                ..parts[0].clone()
            };
            let separate: Vec<_> = parts.iter().map(|m| m.on(device)).collect();
            let weights =
                [ExpertWeight::stacked(&stack.on(device), 3).unwrap(), ExpertWeight::separate(&separate).unwrap()];
            let x = device.tensor(&random.values(4 * 64), [4, 64]).unwrap();
            let ids = device.tensor(&[2u32, 0, 1, 2, 0, 1, 1, 0], [4, 2]).unwrap();
            let schedule = crate::ops::expert_schedule(stream, &ids, 3).unwrap();
            let [one, other] = weights.map(|weight| {
                let out = expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32).unwrap();
                out.to_vec::<f32>(stream).unwrap()
            });
            assert_eq!(one, other, "{format}");
        }
    });
}

#[test]
fn a_plan_follows_its_ids() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let format = MatrixFormat::Dense(DType::F32);
        let weight =
            ExpertWeight::stacked(&StoredMatrix::random(format, 9, 33, &mut Random::new(9)).on(device), 3).unwrap();
        for tokens in [1, 40] {
            let x = device.tensor(&Random::new(10).values(tokens * 33), [tokens, 33]).unwrap();
            let ids = device.zeros(DType::U32, [tokens, 2]).unwrap();
            let product = |stream: &mut Stream| {
                let schedule = crate::ops::expert_schedule(stream, &ids, 3)?;
                expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32)
            };
            let (plan, out) = stream.record(product).unwrap();
            for seed in [11, 12] {
                let random = &mut Random::new(seed);
                stream.write(&ids, &(0..2 * tokens).map(|_| random.below(4) as u32).collect::<Vec<_>>()).unwrap();
                stream.replay(&plan).unwrap();
                let replayed = out.to_vec::<f32>(stream).unwrap();
                let want = product(stream).unwrap().to_vec::<f32>(stream).unwrap();
                assert_eq!(replayed, want, "{tokens} tokens");
            }
        }
    });
}

#[test]
fn a_row_does_not_depend_on_its_company() {
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let random = &mut Random::new(6);
    let (experts, n, k, tokens, slots) = (4, 21, 32 * 19, 40, 2);
    for bits in [4, 8] {
        let format = MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size: 32 }, DType::F32);
        let weight =
            ExpertWeight::stacked(&StoredMatrix::random(format, experts * n, k, random).on(device), experts).unwrap();
        let x = device.tensor(&random.values(tokens * k), [tokens, k]).unwrap();
        let ids: Vec<u32> = (0..tokens * slots).map(|_| random.below(experts) as u32).collect();
        let ids = device.tensor(&ids, [tokens, slots]).unwrap();
        let mut product = |tokens: std::ops::Range<usize>| {
            let ids = ids.slice(0, tokens.clone()).unwrap();
            let schedule = crate::ops::expert_schedule(stream, &ids, experts).unwrap();
            let x = x.slice(0, tokens).unwrap();
            let out = expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32).unwrap();
            out.to_vec::<f32>(stream).unwrap()
        };
        let all = product(0..tokens);
        for some in [0..1, 7..8, 3..20, 39..40] {
            assert!(product(some.clone()) == all[some.start * slots * n..some.end * slots * n], "tokens {some:?}");
        }
    }
}

#[test]
fn ids_of_no_expert_give_zeros_and_nan_stays_where_it_is() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (experts, n, k) = (3, 2, 3);
        // The second expert is NaN.
        let mut elements = vec![1.0f32; experts * n * k];
        elements[n * k..2 * n * k].fill(f32::NAN);
        let bytes = Mapped::copy_from(bytemuck::cast_slice(&elements)).unwrap();
        let format = MatrixFormat::Dense(DType::F32);
        let stack = Matrix::new(device, format, experts * n, k, &bytes, None, None).unwrap();
        let weight = ExpertWeight::stacked(&stack, experts).unwrap();
        let bias = device.tensor(&[10.0f32, 20.0, 30.0, 40.0, 50.0, 60.0], [experts, n]).unwrap();
        let x = [1.0f32, 2.0, 3.0, f32::INFINITY, 0.0, 0.0];
        let x = device.tensor(&x, [2, 3]).unwrap();
        let ids = device.tensor(&[-1i32, 0, 1, 2, 3, i32::MIN], [2, 3]).unwrap();
        for form in FORMS {
            let schedule = schedule(stream, &ids, experts, form).unwrap();
            let out = expert_matmul(stream, &x, &weight, &schedule, Some(&bias), Precision::F32).unwrap();
            let got = out.to_vec::<f32>(stream).unwrap();
            assert_eq!(got[..4], [0.0, 0.0, 16.0, 26.0], "{form:?}");
            assert!(got[4].is_nan() && got[5].is_nan(), "{form:?}");
            assert_eq!(got[6..], [f32::INFINITY, f32::INFINITY, 0.0, 0.0, 0.0, 0.0], "{form:?}");
        }
    });
}

#[test]
fn nothing_to_compute() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let format = MatrixFormat::Dense(DType::F32);
        for (tokens, slots, n, k) in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0), (40, 2, 3, 0)] {
            let stack = StoredMatrix::random(format, 2 * n, k, &mut Random::new(7));
            let weight = ExpertWeight::stacked(&stack.on(device), 2).unwrap();
            let ids = device.zeros(DType::U32, [tokens, slots]).unwrap();
            let x = device.zeros(DType::F32, [tokens, k]).unwrap();
            for form in FORMS {
                let schedule = schedule(stream, &ids, 2, form).unwrap();
                let out = expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32).unwrap();
                assert_eq!(out.to_vec::<f32>(stream).unwrap(), vec![0.0; tokens * slots * n]);
            }
        }
    });
}

/// D-13: offsets into a stack need more than 32 bits. A file with holes stands for it, which the CPU would have to pack.
#[test]
fn d_13_stacks_past_4_gib() {
    const EXPERTS: usize = 1025;
    const ROWS: usize = 65;
    const COLUMNS: usize = 1 << 14;
    let Ok(device) = Device::emulated_metal(EmulatedOptions { checks: true, seed: Some(0), ..Default::default() })
    else {
        return eprintln!("emulated-metal: clang 19 is not here, left out");
    };
    let stream = &mut device.stream();
    let file = tempfile::NamedTempFile::new().unwrap();
    let bytes = EXPERTS * ROWS * COLUMNS * 4;
    assert!(bytes > 1 << 32);
    file.as_file().set_len(bytes as u64).unwrap();
    // The last expert's last row, and what lies where 32 bits would end up.
    let write = |at: usize, x: f32| {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = file.as_file();
        file.seek(SeekFrom::Start(at as u64)).unwrap();
        file.write_all(&x.to_le_bytes()).unwrap();
    };
    let last = bytes - COLUMNS * 4;
    write(last, 3.0);
    write(last % (1 << 32), 5.0);
    let mapped = Mapped::open(file.path()).unwrap();
    let format = MatrixFormat::Dense(DType::F32);
    let stack = Matrix::new(&device, format, EXPERTS * ROWS, COLUMNS, &mapped, None, None).unwrap();
    let weight = ExpertWeight::stacked(&stack, EXPERTS).unwrap();
    let x = device.tensor(&vec![2.0f32; COLUMNS], [1, COLUMNS]).unwrap();
    let ids = device.tensor(&[EXPERTS as u32 - 1], [1, 1]).unwrap();
    let mut want = vec![0.0; ROWS];
    want[ROWS - 1] = 6.0;
    for form in FORMS {
        let schedule = schedule(stream, &ids, EXPERTS, form).unwrap();
        let out = expert_matmul(stream, &x, &weight, &schedule, None, Precision::F32).unwrap();
        assert_eq!(out.to_vec::<f32>(stream).unwrap(), want, "{form:?}");
    }
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 6, 4, &mut Random::new(8)).on(&device);
    let weight = ExpertWeight::stacked(&matrix, 3).unwrap();
    assert_eq!(format!("{weight:?}"), "f32 [3, 2, 4]");
    let error = ExpertWeight::stacked(&matrix, 4).unwrap_err().to_string();
    assert_eq!(error, "expert_matmul: weight: got f32 [6, 4] for 4 experts, wanted as many rows for each");
    let narrow = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 6, 5, &mut Random::new(8)).on(&device);
    let error = ExpertWeight::separate(&[matrix, narrow]).unwrap_err().to_string();
    assert!(error.contains("got f32 [6, 5] beside f32 [6, 4]"), "{error}");
    assert!(ExpertWeight::separate(&[]).unwrap_err().to_string().contains("no experts"));

    let ids = device.zeros(DType::U32, [2, 2]).unwrap();
    let schedule = crate::ops::expert_schedule(stream, &ids, 3).unwrap();
    let other = crate::ops::expert_schedule(stream, &ids, 4).unwrap();
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let error = expert_matmul(stream, &x, &weight, &other, None, Precision::F32).unwrap_err().to_string();
    assert_eq!(error, "expert_matmul: schedule: got one for 4 experts, wanted the weight's 3");
    let wide = device.zeros(DType::F32, [2, 3, 4]).unwrap();
    let error = expert_matmul(stream, &wide, &weight, &schedule, None, Precision::F32).unwrap_err().to_string();
    assert_eq!(error, "expert_matmul: x: got f32[2, 3, 4], wanted floats [2, 4] or [2, 2, 4]");
    let bias = device.zeros(DType::F16, [3, 2]).unwrap();
    let error = expert_matmul(stream, &x, &weight, &schedule, Some(&bias), Precision::F32).unwrap_err().to_string();
    assert_eq!(error, "expert_matmul: bias: got f16[3, 2], wanted f32 [3, 2], contiguous");
    let out = device.zeros(DType::F16, [2, 2, 2]).unwrap();
    let error = expert_matmul_into(stream, &x, &weight, &schedule, None, Precision::F32, &out).unwrap_err().to_string();
    assert_eq!(error, "expert_matmul: out: got f16[2, 2, 2], wanted f32 [2, 2, 2]");
}
