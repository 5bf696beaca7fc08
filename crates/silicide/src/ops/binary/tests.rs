use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, values_of};
use crate::{Device, Shape};

const ALL: [Binary; 6] = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min];

fn reference(op: Binary, a: f64, b: f64) -> f64 {
    match op {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        _ if a.is_nan() || b.is_nan() => f64::NAN,
        Binary::Max => a.max(b),
        Binary::Min => a.min(b),
    }
}

/// The element of `values`, of `shape`, that `index` of a wider shape reads.
fn broadcast_at(values: &[f32], shape: &[usize], index: &[usize]) -> f64 {
    let lead = index.len() - shape.len();
    let at = shape.iter().zip(&index[lead..]).fold(0, |at, (&d, &i)| at * d + if d == 1 { 0 } else { i });
    values[at] as f64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition_and_broadcasts(
        dims in proptest::collection::vec(prop_oneof![Just(1usize), Just(2), Just(3), Just(33), 0usize..5], 0..=5),
        ones: u32,
        drop in 0usize..6,
        op in 0usize..6,
        dtype in 0usize..3,
        seed: u64,
    ) {
        let (op, dtype) = (ALL[op], DType::FLOATS[dtype]);
        prop_assume!(dims.iter().product::<usize>() < 5000);
        // Each operand has some axes of size 1, and the second fewer axes.
        let pick = |bits: u32| dims.iter().enumerate().map(|(i, &d)| if bits >> i & 1 == 1 { 1 } else { d }).collect::<Vec<_>>();
        let a_shape = pick(ones & 0xff);
        let b_shape = pick(ones >> 8 & 0xff)[drop.min(dims.len())..].to_vec();
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let a = rounded(dtype, &random.values(a_shape.iter().product()));
            let b = rounded(dtype, &random.values(b_shape.iter().product()));
            let at = random.tensor(device, dtype, &a, Shape::new(&a_shape).unwrap());
            let bt = random.tensor(device, dtype, &b, Shape::new(&b_shape).unwrap());
            let y = binary(stream, op, &at, &bt).unwrap();
            let shape = *y.shape();
            let want: Vec<f64> = (0..y.elements())
                .map(|mut i| {
                    let mut index = vec![0; shape.rank()];
                    for axis in (0..shape.rank()).rev() {
                        index[axis] = i % shape[axis];
                        i /= shape[axis];
                    }
                    reference(op, broadcast_at(&a, &a_shape, &index), broadcast_at(&b, &b_shape, &index))
                })
                .collect();
            // A quotient may pass the range of f16.
            let want: Vec<f64> = want.iter().map(|&w| if dtype == DType::F16 { w.clamp(-7e4, 7e4) } else { w }).collect();
            assert_close(dtype, &values_of(stream, &y), &want, 0.1);
        });
    }

    #[test]
    fn takes_numbers_and_writes_in_place(len in 1usize..2000, op in 0usize..6, dtype in 0usize..3, scalar in -4.0f32..4.0, seed: u64) {
        let (op, dtype) = (ALL[op], DType::FLOATS[dtype]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let a = rounded(dtype, &random.values(len));
            let at = random.tensor(device, dtype, &a, [len]);
            binary_into(stream, op, &at, scalar, &at).unwrap();
            let want: Vec<f64> = a.iter().map(|&a| reference(op, a as f64, scalar as f64)).collect();
            prop_assume_finite(dtype, &want, || assert_close(dtype, &values_of(stream, &at), &want, 0.1));
        });
    }
}

/// Leaves out results near the end of f16's range, where rounding decides between a number and an infinity.
fn prop_assume_finite(dtype: DType, want: &[f64], then: impl FnOnce()) {
    if dtype != DType::F16 || want.iter().all(|w| w.abs() < 6e4) {
        then();
    }
}

/// To the bit: one operation is rounded once everywhere.
#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("binary");
    let names = ["add", "sub", "mul", "div", "max", "min"];
    assert_eq!(golden.cases().len(), 10);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in golden.cases() {
            let [a, b] = ["a", "b"].map(|name| golden.tensor(device, &format!("{case}.{name}")));
            for (name, op) in names.into_iter().zip(ALL) {
                let name = format!("{case}.{name}");
                if !golden.has(&name) {
                    assert!(op == Binary::Div && !a.dtype().is_float());
                    continue;
                }
                let want = golden.tensor(device, &name);
                let got = binary(stream, op, &a, &b).unwrap();
                assert_eq!(got.shape(), want.shape(), "{name}");
                if a.dtype().is_float() {
                    let (got, want) = (values_of(stream, &got), values_of(stream, &want));
                    let same = got.iter().zip(&want).all(|(g, w)| g == w || g.is_nan() && w.is_nan());
                    assert!(same, "{name}: got {got:?}, wanted {want:?}");
                } else {
                    // Words will do for both signs.
                    let words = |stream: &mut Stream, t: &Tensor| {
                        let t = Tensor::new(t.buffer().clone(), t.offset(), DType::U32, *t.shape()).unwrap();
                        t.to_vec::<u32>(stream).unwrap()
                    };
                    assert_eq!(words(stream, &got), words(stream, &want), "{name}");
                }
            }
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn integers_of_any_bits_wrap(
        rows in 1usize..4,
        len in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), Just(1025)],
        op in 0usize..5,
        signed: bool,
        seed: u64,
    ) {
        let op = [Binary::Add, Binary::Sub, Binary::Mul, Binary::Max, Binary::Min][op];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut make = |n: usize| (0..n).map(|_| random.next() as u32).collect::<Vec<u32>>();
            let (a, b) = (make(rows * (len + 3)), make(rows));
            let dtype = if signed { DType::I32 } else { DType::U32 };
            let view = |x: &[u32], shape: [usize; 2]| device.tensor_from_bytes(bytemuck::cast_slice(x), dtype, shape).unwrap();
            let at = view(&a, [rows, len + 3]).slice(1, 2..len + 2).unwrap();
            let bt = view(&b, [rows, 1]);
            let y = binary(stream, op, &at, &bt).unwrap();
            let y = Tensor::new(y.buffer().clone(), y.offset(), DType::U32, [rows * len]).unwrap();
            let want = |i: usize| {
                let (a, b) = (a[i / len * (len + 3) + 2 + i % len], b[i / len]);
                // By 64 bits, of which the lower 32 are kept.
                let wide = |x: u32| if signed { x as i32 as i64 } else { x as i64 };
                let (a, b) = (wide(a), wide(b));
                (match op {
                    Binary::Add => a + b,
                    Binary::Sub => a - b,
                    Binary::Mul => a.wrapping_mul(b),
                    Binary::Max => a.max(b),
                    _ => a.min(b),
                }) as u32
            };
            assert_eq!(y.to_vec::<u32>(stream).unwrap(), (0..rows * len).map(want).collect::<Vec<_>>());
        });
    }
}

#[test]
fn integers_wrap() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let a = device.tensor(&[i32::MAX, -5, 7], [3]).unwrap();
        let b = device.tensor(&[2i32, 3, -7], [3]).unwrap();
        let mut run = |op, b: Operand| binary(stream, op, &a, b).unwrap().to_vec::<i32>(stream).unwrap();
        assert_eq!(run(Binary::Add, (&b).into()), [i32::MIN + 1, -2, 0]);
        assert_eq!(run(Binary::Mul, (&b).into()), [-2, -15, -49]);
        assert_eq!(run(Binary::Max, (&b).into()), [i32::MAX, 3, 7]);
        assert_eq!(run(Binary::Sub, (-1.0).into()), [i32::MIN, -4, 8]);
        let u = device.tensor(&[1u32, u32::MAX], [2]).unwrap();
        assert_eq!(
            binary(stream, Binary::Sub, &u, 2.0).unwrap().to_vec::<u32>(stream).unwrap(),
            [u32::MAX, u32::MAX - 2]
        );
        assert_eq!(binary(stream, Binary::Min, &u, 5.0).unwrap().to_vec::<u32>(stream).unwrap(), [1, 5]);
    });
}

#[test]
fn nan_and_infinity_follow_ieee() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let inf = f32::INFINITY;
        let a = device.tensor(&[f32::NAN, 1.0, inf, inf, 1.0, 0.0], [6]).unwrap();
        let b = device.tensor(&[1.0, f32::NAN, inf, -inf, 0.0, 0.0], [6]).unwrap();
        for op in ALL {
            let got = binary(stream, op, &a, &b).unwrap().to_vec::<f32>(stream).unwrap();
            let pairs = [
                (f64::NAN, 1.0),
                (1.0, f64::NAN),
                (1.0 / 0.0, 1.0 / 0.0),
                (1.0 / 0.0, -1.0 / 0.0),
                (1.0, 0.0),
                (0.0, 0.0),
            ];
            let want: Vec<f64> = pairs.iter().map(|&(a, b)| reference(op, a, b)).collect();
            assert_close(DType::F32, &got, &want, 0.0);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [2, 3]).unwrap();
    let y = device.zeros(DType::F32, [2]).unwrap();
    let error = binary(stream, Binary::Add, &x, &y).unwrap_err().to_string();
    assert_eq!(error, "binary: got [2, 3] and [2], wanted axes that are equal or 1, matched from the last");
    let ids = device.zeros(DType::U32, [2, 3]).unwrap();
    assert!(binary(stream, Binary::Add, &x, &ids).unwrap_err().to_string().contains("b: got u32[2, 3], wanted f32"));
    assert!(binary(stream, Binary::Div, &ids, &ids).unwrap_err().to_string().contains("cast to a float"));
    assert!(binary(stream, Binary::Add, &ids, 0.5).unwrap_err().to_string().contains("b: got 0.5"));
    assert!(binary(stream, Binary::Add, &ids, -1.0).unwrap_err().to_string().contains("b: got -1"));
}
