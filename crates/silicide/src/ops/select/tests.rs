use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, bytes_of, on_every_device, rounded, values_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), Just(1500)],
        dtype in 0usize..3,
        number in 0usize..3,
        (wide, in_place) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let a = rounded(dtype, &random.values(rows * len));
            let b = rounded(dtype, &random.values(len));
            let flags: Vec<u8> = (0..if wide { rows } else { rows * len }).map(|_| random.below(2) as u8).collect();
            let shape = [rows, if wide { 1 } else { len }];
            let condition = device.tensor_from_bytes(&flags, DType::Bool, shape).unwrap();
            let at = random.tensor(device, dtype, &a, [rows, len]);
            let bt = random.tensor(device, dtype, &b, [len]);
            let (x, y) = match number {
                0 => (Operand::from(&at), Operand::from(&bt)),
                1 => (Operand::from(&at), Operand::from(-1.5)),
                _ => (Operand::from(-1.5), Operand::from(&at)),
            };
            let out = if in_place { at.clone() } else { stream.empty(dtype, [rows, len]).unwrap() };
            select_into(stream, &condition, x, y, &out).unwrap();
            let want: Vec<f32> = (0..rows * len)
                .map(|i| match (flags[if wide { i / len } else { i }] != 0, number) {
                    (true, 2) | (false, 1) => -1.5,
                    (false, 0) => b[i % len],
                    _ => a[i],
                })
                .collect();
            assert_eq!(values_of(stream, &out), want);
        });
    }
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("select");
    let cases = golden.cases();
    assert_eq!(cases.len(), 7);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let (a, b, want) = (tensor("a"), tensor("b"), tensor("out"));
            let got = select(stream, &tensor("condition"), &a, &b).unwrap();
            assert_eq!((got.shape(), got.dtype()), (want.shape(), want.dtype()), "{case}");
            assert_eq!(bytes_of(stream, &got), bytes_of(stream, &want), "{case}");
        }
    });
}

/// What is not chosen leaves no trace, and numbers keep all bits of their type.
#[test]
fn nan_stays_where_it_is() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let condition = device.tensor_from_bytes(&[1, 0, 1], DType::Bool, [3]).unwrap();
        let x = device.tensor(&[f32::NAN, f32::NAN, 2.0], [3]).unwrap();
        let y = select(stream, &condition, &x, f32::NEG_INFINITY).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(y[0].is_nan() && y[1..] == [f32::NEG_INFINITY, 2.0]);
        let ids = device.tensor(&[-7i64, 8, 9], [3]).unwrap();
        assert_eq!(select(stream, &condition, -1.0, &ids).unwrap().to_vec::<i64>(stream).unwrap(), [-1, 8, -1]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let (x, c) = (device.zeros(DType::F32, [3]).unwrap(), device.zeros(DType::Bool, [3]).unwrap());
    assert_eq!(select(stream, &x, &x, &x).unwrap_err().to_string(), "select: condition: got f32[3], wanted bool");
    assert!(select(stream, &c, 1.0, 2.0).unwrap_err().to_string().contains("got two numbers"));
    assert!(select(stream, &c, &x, &c).unwrap_err().to_string().contains("b: got bool[3], wanted f32"));
    assert!(select(stream, &c, &c, 2.0).unwrap_err().to_string().contains("b: got 2, wanted a whole number"));
    let wide = device.zeros(DType::F32, [4]).unwrap();
    assert!(select(stream, &c, &wide, 2.0).unwrap_err().to_string().contains("equal or 1"));
}
