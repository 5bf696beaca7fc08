//! What holds for every op: an output may lie over an input where the op says so, and is refused everywhere else; many
//! threads give what one gives.

use super::*;
use crate::device::{CpuOptions, Stream};
use crate::testing::{Random, StoredMatrix, on_every_device, tensor_of, values_of};
use crate::{DType, Device, MatrixFormat, Result, Tensor};

/// Writes to its last argument.
type Op = fn(&mut Stream, &Tensor, &Tensor) -> Result<()>;

/// Gives a tensor of its own.
type Function = fn(&mut Stream, &Tensor) -> Result<Tensor>;

/// Every way in which `out` may be `x` itself, `[tokens, heads, 4]`.
const ALLOWED: [(&str, Op); 25] = [
    ("binary, a", |s, x, out| binary_into(s, Binary::Sub, x, &other(s, x), out)),
    ("binary, b", |s, x, out| binary_into(s, Binary::Sub, &other(s, x), x, out)),
    ("binary, both", |s, x, out| binary_into(s, Binary::Mul, x, x, out)),
    ("binary, a number", |s, x, out| binary_into(s, Binary::Sub, x, 0.5, out)),
    ("cumsum", |s, x, out| cumsum_into(s, x, Cumsum { exclusive: true, reverse: true }, out)),
    ("glu, gate", |s, x, out| glu_into(s, Gate::Silu, x, &other(s, x), out)),
    ("glu, up", |s, x, out| glu_into(s, Gate::Silu, &other(s, x), x, out)),
    ("hadamard_transform", |s, x, out| hadamard_transform_into(s, x, Hadamard::default(), out)),
    ("l2_norm", |s, x, out| l2_norm_into(s, x, 1e-6, out)),
    ("layer_norm", |s, x, out| layer_norm_into(s, x, Some(&weight(s, x)), None, 1e-5, out)),
    ("matmul, residual", |s, x, out| {
        let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 4, 4, &mut Random::new(5));
        let (weight, bias) = (Weight::new(&matrix.on(s.device()))?, weight(s, x));
        let product = Product { weight: &weight, bias: Some(&bias), residual: Some(x) };
        matmul_each_into(s, &other(s, x), [(product, out)], Precision::F32)
    }),
    ("rms_norm", |s, x, out| rms_norm_into(s, x, &weight(s, x), 1e-5, out)),
    ("rms_norm, residual", |s, x, out| norm_of_sum(s, &other(s, x), x, None, out)),
    ("rms_norm, sum over x", |s, x, out| {
        let normal = s.empty(x.dtype(), *x.shape())?;
        norm_of_sum(s, x, &other(s, x), Some(out), &normal)
    }),
    ("rms_norm_gated, x", |s, x, out| rms_norm_gated_into(s, x, &other(s, x), &weight(s, x), 1e-5, out)),
    ("rms_norm_gated, gate", |s, x, out| rms_norm_gated_into(s, &other(s, x), x, &weight(s, x), 1e-5, out)),
    ("rope", |s, x, out| {
        let rope = Rope::new(x.device(), &RopeFrequencies::new(4, 100.0)?, Pairing::Halves)?;
        rope_into(s, x, &positions(x, 1), &rope, out)
    }),
    ("rope_multi", |s, x, out| {
        let sections =
            RopeSections { mode: RopeMultiMode::Imrope, sections: [1, 1, 0, 0], fallback: FallbackAxis::Extra };
        let rope = RopeMulti::new(x.device(), &RopeFrequencies::new(4, 100.0)?, sections, Pairing::Halves)?;
        rope_multi_into(s, x, &positions(x, 4), &rope, out)
    }),
    ("select, a", |s, x, out| select_into(s, &condition(x), x, &other(s, x), out)),
    ("select, b", |s, x, out| select_into(s, &condition(x), &other(s, x), x, out)),
    ("softmax", |s, x, out| softmax_into(s, x, Softmax { scale: 2.0, mask: Some(&weight(s, x)) }, out)),
    ("triangular_solve", |s, x, out| {
        let (batch, n) = (x.dim(0), x.dim(1));
        let l = Random::new(8).values(batch * n * n);
        triangular_solve_into(s, &tensor_of(x.device(), x.dtype(), &l, [batch, n, n]), x, out)
    }),
    ("unary", |s, x, out| unary_into(s, Unary::Exp, x, out)),
    ("weighted_reduce, shared", |s, x, out| {
        sum_of_slots(s, WeightedReduce { shared: Some(x), residual: Some(&other(s, x)), ..Default::default() }, out)
    }),
    ("weighted_reduce, residual", |s, x, out| {
        sum_of_slots(s, WeightedReduce { residual: Some(x), ..Default::default() }, out)
    }),
];

fn other(stream: &Stream, x: &Tensor) -> Tensor {
    tensor_of(stream.device(), x.dtype(), &Random::new(9).values(x.elements()), *x.shape())
}

fn condition(x: &Tensor) -> Tensor {
    x.device().tensor_from_bytes(&[1, 0, 0, 1], DType::Bool, [4]).unwrap()
}

fn weight(stream: &Stream, x: &Tensor) -> Tensor {
    tensor_of(stream.device(), x.dtype(), &[0.5, 1.0, -1.5, 2.0], [4])
}

fn positions(x: &Tensor, axes: i32) -> Tensor {
    let positions: Vec<i32> = (0..axes * x.dim(0) as i32).collect();
    x.device().tensor(&positions, [positions.len()]).unwrap()
}

/// With three rows of every token.
fn sum_of_slots(stream: &mut Stream, options: WeightedReduce, out: &Tensor) -> Result<()> {
    let (device, shape) = (stream.device(), out.shape());
    let y = Random::new(8).values(3 * out.elements());
    let y = tensor_of(device, out.dtype(), &y, [shape[0], shape[1], 3, shape[2]]);
    let weights = device.tensor(&Random::new(2).values(3 * shape[0] * shape[1]), [shape[0], shape[1], 3])?;
    weighted_reduce_into(stream, &y, &weights, options, out)
}

fn norm_of_sum(stream: &mut Stream, x: &Tensor, residual: &Tensor, sum: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let options = RmsNormOptions { weight: None, weight_offset: 0.0, eps: 1e-5, residual: Some(residual), sum };
    rms_norm_with(stream, x, options, out)
}

#[test]
fn in_place_gives_what_apart_gives() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (name, op) in ALLOWED {
            for dtype in DType::FLOATS {
                let values = Random::new(3).values(33 * 5 * 4);
                let make = || Random::new(4).tensor(device, dtype, &values, [33, 5, 4]);
                let (x, apart) = (make(), stream.empty(dtype, [33, 5, 4]).unwrap());
                op(stream, &x, &apart).unwrap();
                let want = values_of(stream, &apart);
                op(stream, &x, &x).unwrap();
                assert_eq!(values_of(stream, &x), want, "{name} of {dtype}");
            }
        }
    });
}

/// The CPU shares out only what is worth waking a thread for, more than the ops' own tests have.
#[test]
fn many_threads_give_what_one_gives() {
    let values = Random::new(6).values(400 * 65 * 4);
    let run = |threads: usize, op: &dyn Fn(&mut Stream, &Tensor) -> Result<Tensor>| {
        let device = Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() });
        let stream = &mut device.stream();
        let x = Random::new(7).tensor(&device, DType::F32, &values, [400, 65, 4]);
        let result = op(stream, &x).unwrap();
        // Bits, as any type has them.
        let dense = copy(stream, &result).unwrap();
        let bytes = Tensor::new(dense.buffer().clone(), 0, DType::U8, [dense.byte_range().len()]).unwrap();
        bytes.to_vec::<u8>(stream).unwrap()
    };
    for (name, op) in ALLOWED {
        let apart = |s: &mut Stream, x: &Tensor| {
            let out = s.empty(x.dtype(), *x.shape())?;
            op(s, x, &out).map(|()| out)
        };
        let in_place = |s: &mut Stream, x: &Tensor| op(s, x, x).map(|()| x.clone());
        let one = run(1, &apart);
        assert!(one == run(3, &apart), "{name}");
        assert!(one == run(3, &in_place), "{name}, in place");
    }
    let others: [(&str, Function); 17] = [
        ("argmax", |s, x| argmax(s, x)),
        ("argsort", |s, x| argsort(s, x, Order::Ascending)),
        ("argsort of a long row", |s, x| {
            let row = x_row(s, x)?;
            argsort(s, &row, Order::Descending)
        }),
        ("cast", |s, x| cast(s, x, DType::I8)),
        ("cast of integers", |s, x| {
            let whole = cast(s, x, DType::I32)?;
            cast(s, &whole, DType::I64)
        }),
        ("compare", |s, x| compare(s, Compare::Less, x, 0.5)),
        ("copy", |s, x| copy(s, &x.permute(&[2, 0, 1])?)),
        ("cumsum of a long row", |s, x| {
            let row = x_row(s, x)?;
            cumsum(s, &row, Cumsum::default())
        }),
        ("full", |s, x| full(s, DType::F32, *x.shape(), 2.5)),
        ("gather", |s, x| gather(s, x, &positions(x, 1))),
        ("reduce", |s, x| reduce(s, Reduce::Sum, x)),
        ("reduce_all", |s, x| reduce_all(s, Reduce::Mean, x)),
        ("resize", |s, x| resize(s, x, [97, 200], Resize { antialias: true, ..Resize::default() })),
        ("router", |s, x| router(s, x, Router { top_k: 2, ..Router::default() }).map(|(_, weights)| weights)),
        ("take_along_axis", |s, x| {
            let greatest = argmax(s, x)?.reshape([x.dim(0), x.dim(1), 1])?;
            take_along_axis(s, x, &greatest, 2)
        }),
        ("top_k, values", |s, x| top_k(s, x, 3).map(|(values, _)| values)),
        ("top_k, indices", |s, x| top_k(s, x, 3).map(|(_, indices)| indices)),
    ];
    for (name, op) in others {
        assert!(run(1, &op) == run(3, &op), "{name}");
    }
}

/// All elements as one row.
fn x_row(stream: &mut Stream, x: &Tensor) -> Result<Tensor> {
    copy(stream, x)?.reshape([x.elements()])
}

/// The launch sees the same bytes read and written; only the op can see that the order differs.
#[test]
fn the_same_bytes_in_another_order_are_refused() {
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let values = Random::new(5).values(64);
    for (name, op) in ALLOWED {
        let x = device.tensor(&values, [4, 4, 4]).unwrap();
        let turned = x.permute(&[1, 0, 2]).unwrap();
        assert_eq!(x.byte_range(), turned.byte_range());
        for (x, out) in [(&x, &turned), (&turned, &x)] {
            let error = op(stream, x, out).expect_err(name).to_string();
            let says = ["another order", "overlaps x", "one stride between rows"].iter().any(|s| error.contains(s));
            assert!(says, "{name}: {error}");
        }
        assert_eq!(x.to_vec::<f32>(stream).unwrap(), values, "{name}");
    }
}

#[test]
fn outputs_over_part_of_an_input_are_refused() {
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let whole = device.zeros(DType::F32, [5, 4, 4]).unwrap();
    for (name, op) in ALLOWED {
        let (x, out) = (whole.slice(0, 0..4).unwrap(), whole.slice(0, 1..5).unwrap());
        let error = op(stream, &x, &out).expect_err(name).to_string();
        assert!(error.contains("memory of its own"), "{name}: {error}");
    }
}

/// One row for all others must stay as it is, even where its bytes are those of the output.
#[test]
fn outputs_over_weights_are_refused() {
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let over = |t: &Tensor, dtype, shape: [usize; 2]| Tensor::new(t.buffer().clone(), 0, dtype, shape).unwrap();
    for rows in [1, 2] {
        let dtype = if rows == 1 { DType::F32 } else { DType::F16 };
        let x = device.zeros(dtype, [rows, 4]).unwrap();
        let weight = device.zeros(DType::F32, [4]).unwrap();
        let out = over(&weight, dtype, [rows, 4]);
        assert_eq!(out.byte_range(), weight.byte_range());
        let refused = |result: Result<()>| {
            let error = result.expect_err("an output over a weight").to_string();
            assert!(error.contains("memory of its own") || error.contains("another order"), "{error}");
        };
        refused(rms_norm_into(stream, &x, &weight, 1e-5, &out));
        refused(rms_norm_gated_into(stream, &x, &x, &weight, 1e-5, &out));
        refused(layer_norm_into(stream, &x, Some(&weight), None, 1e-5, &out));
        refused(layer_norm_into(stream, &x, None, Some(&weight), 1e-5, &out));
        if rows == 2 {
            refused(softmax_into(stream, &x, Softmax { scale: 1.0, mask: Some(&weight) }, &out));
        }
    }
    // The sum and the norm may not be one tensor.
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let r = device.zeros(DType::F32, [2, 4]).unwrap();
    let error = norm_of_sum(stream, &x, &r, Some(&r), &r).unwrap_err().to_string();
    assert!(error.contains("memory of its own"), "{error}");
    // Positions over the heads that they turn.
    let rope = Rope::new(device, &RopeFrequencies::new(4, 100.0).unwrap(), Pairing::Halves).unwrap();
    let x = device.zeros(DType::F32, [4, 1, 4]).unwrap();
    let positions = Tensor::new(x.buffer().clone(), 0, DType::I32, [4]).unwrap();
    let error = rope_into(stream, &x, &positions, &rope, &x).unwrap_err().to_string();
    assert!(error.contains("overlaps the positions"), "{error}");
}

#[test]
fn other_ops_write_to_memory_of_their_own() {
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [4, 4, 4]).unwrap();
    let rows = x.reshape([16, 4]).unwrap();
    let ids =
        |shape: &[usize]| Tensor::new(x.buffer().clone(), 0, DType::U32, crate::Shape::new(shape).unwrap()).unwrap();
    let slots = device.tensor(&[0u32, 1, 2, 3], [4]).unwrap();
    let matrix = StoredMatrix::random(MatrixFormat::Dense(DType::F32), 4, 4, &mut Random::new(1));
    let weight = Weight::new(&matrix.on(device)).unwrap();
    let attend =
        Attention { scale: 1.0, mask: Mask::Full, window: None, softcap: None, sinks: None, cache: CacheLayout::Rows };
    let apart = device.zeros(DType::F32, [4, 4, 4]).unwrap();
    let state = sample_state(device, &[1; 16]).unwrap();
    let experts = ExpertWeight::stacked(&matrix.on(device), 4).unwrap();
    let schedule = expert_schedule(stream, &device.zeros(DType::U32, [4, 4]).unwrap(), 4).unwrap();
    let columns = x.slice(2, 0..1).unwrap();
    let draw = Sampling { temperature: 1.0, ..Sampling::default() };
    let flags = Tensor::new(x.buffer().clone(), 0, DType::Bool, [16, 4]).unwrap();
    let results = [
        ("argmax", argmax_into(stream, &rows, &ids(&[16]))),
        ("argsort", argsort_into(stream, &rows, Order::Ascending, &ids(&[16, 4]))),
        ("attention, q", attention_into(stream, &x, &apart, &apart, attend, &x)),
        ("attention, v", attention_into(stream, &apart, &apart, &x, attend, &x)),
        ("compare", compare_into(stream, Compare::Less, &rows, 0.0, &flags)),
        ("copy", copy_into(stream, &rows, &rows)),
        ("expert_matmul", expert_matmul_into(stream, &x, &experts, &schedule, None, Precision::F32, &columns)),
        ("expert_matmul_glu", {
            let (gate, precision) = (Gate::Silu, Precision::F32);
            expert_matmul_glu_into(stream, &x, &experts, &experts, &schedule, gate, precision, &columns)
        }),
        ("gather, x", gather_into(stream, &rows, &slots, &rows.slice(0, 4..8).unwrap())),
        (
            "gather, ids",
            gather_into(stream, &apart.reshape([16, 4]).unwrap(), &ids(&[4]), &rows.slice(0, 0..4).unwrap()),
        ),
        ("kv_quantize", {
            let codec = KvCodec::new(device, 64, KvCodecOptions::default()).unwrap();
            let codes = Tensor::new(x.buffer().clone(), 0, DType::U8, [1, 4, 32]).unwrap();
            let norms = device.zeros(DType::F32, [1, 4]).unwrap();
            kv_quantize(stream, &x.reshape([1, 1, 64]).unwrap(), &slots.slice(0, 0..1).unwrap(), &codec, &codes, &norms)
        }),
        ("kv_dequantize", {
            let codec = KvCodec::new(device, 64, KvCodecOptions::default()).unwrap();
            let codes = Tensor::new(x.buffer().clone(), 0, DType::U8, [1, 1, 32]).unwrap();
            let norms = device.zeros(DType::F32, [1, 1]).unwrap();
            kv_dequantize_into(stream, &codes, &norms, &codec, KvDomain::Rotated, &x.reshape([1, 1, 64]).unwrap())
        }),
        ("kv_write, keys", kv_write(stream, &x, &apart, &slots, &x, &device.zeros(DType::F32, [4, 4, 4]).unwrap())),
        ("kv_write, caches", kv_write(stream, &apart, &apart, &slots, &x, &x)),
        ("matmul", matmul_into(stream, &rows, &weight, Precision::F32, &rows)),
        ("reduce", reduce_into(stream, Reduce::Sum, &rows, &rows.slice(0, 0..4).unwrap().reshape([16]).unwrap())),
        (
            "reduce_all",
            reduce_all_into(stream, Reduce::Sum, &rows, &rows.slice(0, 2..3).unwrap().slice(1, 1..2).unwrap()),
        ),
        ("resize", resize_into(stream, &x, Resize::default(), &x.slice(0, 1..3).unwrap())),
        (
            "router",
            router_into(stream, &rows, Router::default(), &ids(&[16, 1]), &device.zeros(DType::F32, [16, 1]).unwrap()),
        ),
        ("sample, logits", sample_into(stream, &rows, draw, &state, &ids(&[16]))),
        (
            "sample, state",
            sample_into(stream, &rows, draw, &state, &state.reshape([64]).unwrap().slice(0, 0..16).unwrap()),
        ),
        ("sample, greedy", sample_into(stream, &rows, Sampling::default(), &state, &ids(&[16]))),
        ("sort", sort_into(stream, &rows, Order::Ascending, &rows)),
        (
            "take_along_axis",
            take_along_axis_into(stream, &rows, &slots.reshape([4, 1]).unwrap(), 0, &rows.slice(0, 0..4).unwrap()),
        ),
        ("top_k", top_k_into(stream, &rows, &rows, &device.zeros(DType::U32, [16, 4]).unwrap())),
        (
            "weighted_reduce, y",
            weighted_reduce_into(
                stream,
                &x,
                &device.zeros(DType::F32, [4, 4]).unwrap(),
                WeightedReduce::default(),
                &x.slice(1, 0..1).unwrap().reshape([4, 4]).unwrap(),
            ),
        ),
        ("top_k, indices", top_k_into(stream, &rows, &apart.reshape([16, 4]).unwrap(), &ids(&[16, 4]))),
    ];
    for (name, result) in results {
        let error = result.expect_err(name).to_string();
        assert!(error.contains("memory of its own"), "{name}: {error}");
    }
}

#[test]
fn a_plan_is_replayed_on_its_own_device() {
    let (device, other) = (Device::cpu(), Device::cpu());
    let x = device.tensor(&[1.0f32, 2.0], [2]).unwrap();
    let (plan, _) = device.stream().record(|s| unary(s, Unary::Neg, &x)).unwrap();
    let message = other.stream().replay(&plan).unwrap_err().to_string();
    assert!(message.contains("another device"), "{message}");
    device.stream().replay(&plan).unwrap();
}

/// D-37: every op answers every type of elements, with a result or an error.
#[test]
fn d_37_no_type_of_elements_panics() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for dtype in DType::ALL {
            let x = device.zeros(dtype, [3, 5, 4]).unwrap();
            let mut taken = 0;
            for (name, op) in ALLOWED {
                let out = device.zeros(dtype, [3, 5, 4]).unwrap();
                // Recorded, so that no kernel is compiled for it; the CPU has none to compile.
                let result = stream.record(|s| op(s, &x, &out)).map(|_| ());
                taken += usize::from(result.is_ok());
                if let Err(error) = result {
                    assert!(!dtype.is_float() && error.to_string().contains(dtype.name()), "{name}: {error}");
                } else if device.kind() == crate::DeviceKind::Cpu {
                    op(stream, &x, &out).unwrap();
                }
            }
            assert!(taken == ALLOWED.len() || !dtype.is_float(), "{dtype}");
            for other in DType::ALL {
                stream.record(|s| cast(s, &x, other)).unwrap();
            }
            let _ = stream.record(|s| argmax(s, &x));
            let _ = stream.record(|s| sort(s, &x, Order::Ascending));
            let _ = stream.record(|s| top_k(s, &x, 2));
            let _ = stream.record(|s| router(s, &x, Router::default()));
            let _ = stream.record(|s| reduce(s, Reduce::Mean, &x));
        }
    });
}
