//! Two stacks as gated units, on every device and in every form, against sums in f64 and the ops that they stand for.

use super::tests::{Case, FORMS};
use super::*;
use crate::ops::expert_schedule::schedule;
use crate::ops::glu::tests::GATES;
use crate::ops::matmul::epilogue_tests::gated;
use crate::ops::matmul::tests::{PRECISIONS, assert_products, reference};
use crate::quant::{GgmlFormat, QuantFormat};
use crate::testing::{Golden, Random, StoredMatrix, on_every_device, on_every_schedule, rounded, tensor_of, values_of};
use crate::{DType, DeviceKind};

/// Tiles of every form for tensor cores.
const TILES: [Option<usize>; 6] = [None, Some(8), Some(16), Some(32), Some(64), Some(128)];

fn affine(bits: u8, group_size: u16, scales: DType) -> MatrixFormat {
    MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size }, scales)
}

fn stacks(device: &Device, stored: &[StoredMatrix; 2], experts: usize) -> [ExpertWeight; 2] {
    stored.each_ref().map(|stack| ExpertWeight::stacked(&stack.on(device), experts).unwrap())
}

/// Gated units of two random stacks, from and into views with gaps, for each form.
fn check_glu(
    stream: &mut Stream,
    (format, n, k): (MatrixFormat, usize, usize),
    case: &Case,
    forms: &[Option<usize>],
    gate: Gate,
    random: &mut Random,
) {
    let device = &stream.device().clone();
    let &Case { experts, tokens, slots, dtype, shared, .. } = case;
    let pairs = tokens * slots;
    let stored = [(); 2].map(|()| StoredMatrix::random(format, experts * n, k, random));
    let [g, u] = stacks(device, &stored, experts);
    let ids = case.ids(random);
    let ids_t = device.tensor(&ids, [tokens, slots]).unwrap();
    let x = rounded(dtype, &random.values(if shared { tokens } else { pairs } * k));
    let xt = case.x(device, &x, k, random);
    let rounds = device.kind() == DeviceKind::Cpu || device.takes_nvidia_kernels();
    for &precision in if rounds { &PRECISIONS[..] } else { &PRECISIONS[..1] } {
        let of_all = stored.each_ref().map(|stack| reference(stack, &x, DType::F32, precision));
        let pair = |pair: usize| {
            let first = (if shared { pair / slots } else { pair } * experts + ids[pair] as usize) * n;
            match (ids[pair] as usize) < experts {
                true => gated(gate, &of_all[0][first..][..n], &of_all[1][first..][..n], dtype),
                false => vec![(0.0, 0.0); n],
            }
        };
        let wanted: Vec<_> = (0..pairs).flat_map(pair).collect();
        for &form in forms {
            let schedule = schedule(stream, &ids_t, experts, form).unwrap();
            let out = random.tensor(device, dtype, &vec![7.0; pairs * n], [tokens, slots, n]);
            expert_matmul_glu_into(stream, &xt, &g, &u, &schedule, gate, precision, &out).unwrap();
            let name =
                format!("{device:?} {g:?}, {tokens} by {slots} of {dtype}, {gate:?}, {precision:?}, tiles of {form:?}");
            assert_products(&name, &values_of(stream, &out), &wanted);
        }
    }
}

#[test]
fn gated_units_of_odd_shapes() {
    on_every_device(|stream| {
        let random = &mut Random::new(31);
        for (i, (format, n, k, dtype)) in [
            (affine(4, 64, DType::BF16), 17, 192, DType::F32),
            (affine(4, 32, DType::F16), 33, 96, DType::F16),
            (MatrixFormat::Quantized(QuantFormat::Mxfp4, DType::F32), 1, 64, DType::F32),
            (MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q6_K), DType::F32), 35, 512, DType::BF16),
            (MatrixFormat::Dense(DType::BF16), 65, 37, DType::BF16),
            (MatrixFormat::Dense(DType::F32), 7, 1, DType::F32),
        ]
        .into_iter()
        .enumerate()
        {
            let case = Case { experts: 2 + i % 3, tokens: 11, slots: 3, dtype, shared: i % 2 == 0, bias: false };
            check_glu(stream, (format, n, k), &case, &FORMS, GATES[i % 4], random);
            let one = Case { tokens: 1, ..case };
            check_glu(stream, (format, n, k), &one, &[None], GATES[i % 4], random);
        }
    });
}

/// What tensor cores take: tiles that are full and not, of one weight's last rows too, and columns that are no whole turn.
#[test]
fn gated_units_of_16_bits() {
    on_every_device(|stream| {
        let random = &mut Random::new(32);
        let cuda = stream.device().kind() == DeviceKind::Cuda;
        let dense = MatrixFormat::Dense;
        for (i, (format, n, k, dtype)) in [
            (affine(4, 64, DType::F16), 133, 320, DType::F16),
            (affine(4, 64, DType::BF16), 20, 1344, DType::BF16),
            (affine(4, 32, DType::F32), 64, 128, DType::BF16),
            (MatrixFormat::Quantized(QuantFormat::Mxfp4, DType::BF16), 17, 96, DType::BF16),
            (MatrixFormat::Quantized(QuantFormat::Ggml(GgmlFormat::Q6_K), DType::F32), 33, 768, DType::F16),
            (dense(DType::BF16), 65, 256, DType::BF16),
            (dense(DType::F32), 31, 64, DType::BF16),
        ]
        .into_iter()
        .enumerate()
        {
            let case = Case { experts: 3, tokens: 21, slots: 2, dtype, shared: i % 2 == 0, bias: false };
            // A format has two of the forms where all of them would take long.
            let some = [TILES[i % 3], TILES[3 + i % 3]];
            let forms = if cuda { &TILES[..] } else { &some[..] };
            check_glu(stream, (format, n, k), &case, forms, GATES[i % 4], random);
            if cuda {
                let case = Case { experts: 2, tokens: 170, ..case };
                check_glu(stream, (format, n, k), &case, forms, GATES[i % 4], random);
            }
        }
    });
}

#[test]
fn every_gate_in_every_form() {
    on_every_device(|stream| {
        let random = &mut Random::new(33);
        for gate in GATES {
            for (format, dtype) in [(affine(4, 64, DType::BF16), DType::BF16), (affine(4, 64, DType::BF16), DType::F32)]
            {
                let case = Case { experts: 3, tokens: 9, slots: 2, dtype, shared: true, bias: false };
                check_glu(stream, (format, 21, 128), &case, &TILES, gate, random);
            }
        }
    });
}

#[test]
fn any_schedule_gives_the_gated_units() {
    on_every_schedule(|stream| {
        let random = &mut Random::new(34);
        let case = Case { experts: 3, tokens: 33, slots: 2, dtype: DType::F32, shared: true, bias: false };
        check_glu(stream, (affine(4, 32, DType::BF16), 17, 96), &case, &FORMS, Gate::Silu, random);
    });
}

/// For f32 nothing else is rounded; on the CPU, which has sums in one order, it is the very same.
#[test]
fn as_two_products_and_glu() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let random = &mut Random::new(35);
        let (experts, n, k, slots) = (4, 21, 320, 2);
        let format = affine(4, 64, DType::F32);
        let stored = [(); 2].map(|()| StoredMatrix::random(format, experts * n, k, random));
        let [g, u] = &stacks(device, &stored, experts);
        for tokens in [1, 5, 70] {
            let case = Case { experts, tokens, slots, dtype: DType::F32, shared: true, bias: false };
            let x = device.tensor(&random.values(tokens * k), [tokens, k]).unwrap();
            let ids = device.tensor(&case.ids(random), [tokens, slots]).unwrap();
            let schedule = crate::ops::expert_schedule(stream, &ids, experts).unwrap();
            let [gate, up] = [g, u].map(|w| expert_matmul(stream, &x, w, &schedule, None, Precision::F32).unwrap());
            let apart = crate::ops::glu(stream, Gate::Silu, &gate, &up).unwrap();
            let fused = expert_matmul_glu(stream, &x, g, u, &schedule, Gate::Silu, Precision::F32).unwrap();
            let [apart, fused] = [apart, fused].map(|t| t.to_vec::<f32>(stream).unwrap());
            if device.kind() == DeviceKind::Cpu {
                assert!(apart == fused, "{tokens} tokens");
            }
            let largest = apart.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
            let wanted: Vec<_> = apart.into_iter().map(|x| (x as f64, 1e-5 * largest)).collect();
            assert_products(&format!("{device:?}, {tokens} tokens"), &fused, &wanted);
        }
    });
}

/// Two products with `gather_qmm` and an activation of mlx.
#[test]
fn gated_units_of_mlx() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let golden = Golden::read("expert_matmul_glu");
        let [x, ids] = ["x", "ids"].map(|name| golden.tensor(device, &format!("shared.{name}")));
        let experts = 5;
        for pair in golden.matrices().chunks(2) {
            let [(_, gate), (case, up)] = pair else { panic!("stacks come in pairs") };
            let [g, u] = stacks(device, &[gate.clone(), up.clone()], experts);
            for (name, gate) in ["silu", "gelu_tanh", "gelu_erf", "sigmoid"].into_iter().zip(GATES) {
                let wanted = golden.values(&format!("{case}.{name}"));
                let largest = wanted.iter().fold(0f32, |a, x| a.max(x.abs())) as f64;
                let wanted: Vec<_> = wanted.into_iter().map(|w| (w as f64, 4e-6 * largest)).collect();
                for form in FORMS {
                    let schedule = schedule(stream, &ids, experts, form).unwrap();
                    let y = expert_matmul_glu(stream, &x, &g, &u, &schedule, gate, Precision::F32).unwrap();
                    assert_products(&format!("{case}.{name}, {form:?}"), &values_of(stream, &y), &wanted);
                }
            }
        }
    });
}

/// A row with NaN beside others of its expert, ids of no expert, and an expert whose weight is NaN in one stack.
#[test]
fn what_is_not_finite_stays_apart() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (experts, tokens, n, k) = (3, 40, 20, 96);
        let random = &mut Random::new(36);
        let dense = MatrixFormat::Dense(DType::BF16);
        for (format, dtype) in [(dense, DType::F32), (dense, DType::BF16), (affine(4, 32, DType::BF16), DType::BF16)] {
            let mut stored = [(); 2].map(|()| StoredMatrix::random(format, experts * n, k, random));
            if format == dense {
                let bytes = n * k * 2;
                stored[1].codes[2 * bytes..].chunks_exact_mut(2).for_each(|c| c.copy_from_slice(&[0xc0, 0x7f]));
            }
            let [g, u] = stacks(device, &stored, experts);
            let mut x = random.values(tokens * k);
            x[3 * k + 5] = f32::NAN;
            let x = tensor_of(device, dtype, &x, [tokens, k]);
            let ids: Vec<i32> = (0..tokens as i32).map(|i| [0, 1, 2, -1, 3][i as usize % 5]).collect();
            let ids_of = |token: usize| if token == 3 { 0 } else { ids[token] };
            let all: Vec<i32> = (0..tokens).map(ids_of).collect();
            let ids = device.tensor(&all, [tokens, 1]).unwrap();
            for form in TILES {
                let schedule = schedule(stream, &ids, experts, form).unwrap();
                let y = expert_matmul_glu(stream, &x, &g, &u, &schedule, Gate::Silu, Precision::Reduced).unwrap();
                for (token, row) in values_of(stream, &y).chunks(n).enumerate() {
                    let name = format!("{device:?}, {format}, {form:?}, token {token}");
                    match all[token] {
                        -1 | 3 => assert!(row.iter().all(|&y| y == 0.0), "{name}"),
                        2 if format == dense => assert!(row.iter().all(|y| y.is_nan()), "{name}"),
                        _ => assert!(row.iter().all(|y| y.is_nan() == (token == 3)), "{name}"),
                    }
                }
            }
        }
    });
}

#[test]
fn a_gated_row_does_not_depend_on_its_company() {
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let random = &mut Random::new(37);
    let (experts, n, k, tokens, slots) = (4, 21, 32 * 19, 40, 2);
    let stored = [(); 2].map(|()| StoredMatrix::random(affine(4, 32, DType::F32), experts * n, k, random));
    let [g, u] = stacks(device, &stored, experts);
    let x = device.tensor(&random.values(tokens * k), [tokens, k]).unwrap();
    let ids: Vec<u32> = (0..tokens * slots).map(|_| random.below(experts) as u32).collect();
    let ids = device.tensor(&ids, [tokens, slots]).unwrap();
    let mut product = |tokens: std::ops::Range<usize>| {
        let schedule = crate::ops::expert_schedule(stream, &ids.slice(0, tokens.clone()).unwrap(), experts).unwrap();
        let x = x.slice(0, tokens).unwrap();
        let y = expert_matmul_glu(stream, &x, &g, &u, &schedule, Gate::GeluErf, Precision::F32).unwrap();
        y.to_vec::<f32>(stream).unwrap()
    };
    let all = product(0..tokens);
    for some in [0..1, 7..8, 3..20, 39..40] {
        assert!(product(some.clone()) == all[some.start * slots * n..some.end * slots * n], "tokens {some:?}");
    }
}

#[test]
fn no_gated_units_to_compute() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (tokens, slots, n, k) in [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)] {
            let stored =
                [(); 2].map(|()| StoredMatrix::random(MatrixFormat::Dense(DType::F32), 2 * n, k, &mut Random::new(7)));
            let [g, u] = stacks(device, &stored, 2);
            let ids = device.zeros(DType::U32, [tokens, slots]).unwrap();
            let x = device.zeros(DType::F32, [tokens, k]).unwrap();
            for form in FORMS {
                let schedule = schedule(stream, &ids, 2, form).unwrap();
                let y = expert_matmul_glu(stream, &x, &g, &u, &schedule, Gate::Sigmoid, Precision::F32).unwrap();
                assert_eq!(y.to_vec::<f32>(stream).unwrap(), vec![0.0; tokens * slots * n]);
            }
        }
    });
}

/// One launch, in the form that one product would take.
#[test]
fn which_form_takes_gated_units() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let stored =
            [(); 2].map(|()| StoredMatrix::random(affine(4, 64, DType::BF16), 4 * 32, 256, &mut Random::new(38)));
        let [g, u] = stacks(device, &stored, 4);
        let nvidia = device.takes_nvidia_kernels();
        for (tokens, plain, tensor) in [
            (1, "expert_matmul_one", "expert_matmul_units_8"),
            (2000, "expert_matmul_tiled", "expert_matmul_tensor_128"),
        ] {
            let x = device.zeros(DType::BF16, [tokens, 256]).unwrap();
            let ids = device.zeros(DType::U32, [tokens, 2]).unwrap();
            let schedule = crate::ops::expert_schedule(stream, &ids, 4).unwrap();
            let product = |s: &mut Stream| expert_matmul_glu(s, &x, &g, &u, &schedule, Gate::Silu, Precision::Reduced);
            let (plan, _) = stream.record(product).unwrap();
            let [launch] = plan.launches() else { panic!("one launch") };
            let kernel = &launch.chosen().kernel;
            let wanted = match device.kind() {
                DeviceKind::Cpu => "cpu",
                _ => {
                    if nvidia {
                        tensor
                    } else {
                        plain
                    }
                }
            };
            assert!(kernel.split(' ').next() == Some(wanted), "{tokens} tokens: {kernel}");
        }
    });
}

#[test]
fn says_which_stacks_do_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let stack = |dtype, experts, n, k| {
        let matrix = StoredMatrix::random(MatrixFormat::Dense(dtype), experts * n, k, &mut Random::new(39));
        ExpertWeight::stacked(&matrix.on(&device), experts).unwrap()
    };
    let w = stack(DType::F32, 3, 2, 4);
    let ids = device.zeros(DType::U32, [2, 2]).unwrap();
    let schedule = crate::ops::expert_schedule(stream, &ids, 3).unwrap();
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let out = device.zeros(DType::F32, [2, 2, 2]).unwrap();
    let mut message = |x: &Tensor, gate: &ExpertWeight, up: &ExpertWeight, out: &Tensor| {
        let (silu, precision) = (Gate::Silu, Precision::F32);
        let result = expert_matmul_glu_into(stream, x, gate, up, &schedule, silu, precision, out);
        result.unwrap_err().to_string()
    };
    let hint = "wanted the gate's f32 [3, 2, 4]; take the two products by expert_matmul, then glu";
    for (other, name) in [
        (stack(DType::BF16, 3, 2, 4), "bf16 [3, 2, 4]"),
        (stack(DType::F32, 3, 3, 4), "f32 [3, 3, 4]"),
        (stack(DType::F32, 3, 2, 5), "f32 [3, 2, 5]"),
        (stack(DType::F32, 4, 2, 4), "f32 [4, 2, 4]"),
    ] {
        assert_eq!(message(&x, &w, &other, &out), format!("expert_matmul_glu: up: got {name}, {hint}"));
    }
    let four = stack(DType::F32, 4, 2, 4);
    let error = message(&x, &four, &four, &out);
    assert_eq!(error, "expert_matmul_glu: schedule: got one for 3 experts, wanted the weight's 4");
    let wide = device.zeros(DType::F32, [2, 5]).unwrap();
    let error = message(&wide, &w, &w, &out);
    assert_eq!(error, "expert_matmul_glu: x: got f32[2, 5], wanted floats [2, 4] or [2, 2, 4]");
    for out in [device.zeros(DType::F32, [2, 2, 4]).unwrap(), device.zeros(DType::F16, [2, 2, 2]).unwrap()] {
        assert_eq!(message(&x, &w, &w, &out), format!("expert_matmul_glu: out: got {out:?}, wanted f32 [2, 2, 2]"));
    }
    let elsewhere = Device::cpu();
    let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 6, 4, &mut Random::new(39));
    let elsewhere = ExpertWeight::stacked(&matrix.on(&elsewhere), 3).unwrap();
    assert!(message(&x, &w, &elsewhere, &out).contains("the stream on another"));
}
