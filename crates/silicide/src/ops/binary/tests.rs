use proptest::prelude::*;

use super::*;
use crate::testing::{Random, assert_close, on_every_device, rounded, values_of};
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
