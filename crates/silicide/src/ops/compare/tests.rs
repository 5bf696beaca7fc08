use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, bytes_of, on_every_device, rounded};

const ALL: [Compare; 6] =
    [Compare::Equal, Compare::NotEqual, Compare::Less, Compare::LessEqual, Compare::Greater, Compare::GreaterEqual];

fn reference<T: PartialOrd>(op: Compare, a: T, b: T) -> u8 {
    let holds = match op {
        Compare::Equal => a == b,
        Compare::NotEqual => a != b,
        Compare::Less => a < b,
        Compare::LessEqual => a <= b,
        Compare::Greater => a > b,
        Compare::GreaterEqual => a >= b,
    };
    holds.into()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        rows in 0usize..4,
        len in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65), Just(1500)],
        dtype in 0usize..3,
        op in 0usize..6,
        (number, turned) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let (dtype, op) = (DType::FLOATS[dtype], ALL[op]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            // Coarse, so that many are equal.
            let mut coarse = |n| rounded(dtype, &random.values(n).iter().map(|x| x.round()).collect::<Vec<_>>());
            let (a, b) = (coarse(rows * len), coarse(len));
            let at = random.tensor(device, dtype, &a, [rows, len]);
            let bt = random.tensor(device, dtype, &b, [len]);
            let b = if number { vec![1.0; len] } else { b };
            let right = if number { Operand::from(1.0) } else { Operand::from(&bt) };
            let mut out = device.zeros(DType::Bool, [rows, len]).unwrap();
            if turned {
                // A view whose elements are apart.
                out = device.zeros(DType::Bool, [len, rows]).unwrap().permute(&[1, 0]).unwrap();
            }
            compare_into(stream, op, &at, right, &out).unwrap();
            let want: Vec<u8> = (0..rows * len).map(|i| reference(op, a[i], b[i % len])).collect();
            assert_eq!(bytes_of(stream, &out), want);
        });
    }
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("compare");
    let names = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"];
    let cases = golden.cases();
    assert_eq!(cases.len(), 7);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let (a, b) = (tensor("a"), tensor("b"));
            for (name, op) in names.into_iter().zip(ALL) {
                let (got, want) = (compare(stream, op, &a, &b).unwrap(), tensor(name));
                assert_eq!((got.shape(), got.dtype()), (want.shape(), DType::Bool), "{case} {name}");
                assert_eq!(bytes_of(stream, &got), bytes_of(stream, &want), "{case} {name}");
            }
        }
    });
}

#[test]
fn integers_beside_numbers() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for dtype in [DType::U8, DType::I8, DType::U16, DType::U32, DType::I32, DType::I64] {
            let values = crate::ops::arange(stream, dtype, 0.0, 1.0, 100).unwrap();
            for op in ALL {
                let got = compare(stream, op, &values, 33.0).unwrap();
                assert_eq!(bytes_of(stream, &got), (0..100).map(|i| reference(op, i, 33)).collect::<Vec<_>>());
            }
        }
        let edges = device.tensor(&[i32::MIN, -1, 0, i32::MAX], [4]).unwrap();
        let got = compare(stream, Compare::Less, &edges, -1.0).unwrap();
        assert_eq!(bytes_of(stream, &got), [1, 0, 0, 0]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let (x, c) = (device.zeros(DType::F32, [3]).unwrap(), device.zeros(DType::Bool, [3]).unwrap());
    let error = compare(stream, Compare::Less, &c, 1.0).unwrap_err().to_string();
    assert_eq!(error, "compare: a: got bool[3], wanted numbers");
    assert!(compare(stream, Compare::Less, &x, &c).unwrap_err().to_string().contains("b: got bool[3], wanted f32"));
    let ids = device.zeros(DType::U32, [3]).unwrap();
    assert!(compare(stream, Compare::Less, &ids, -1.0).unwrap_err().to_string().contains("b: got -1"));
    assert!(compare_into(stream, Compare::Less, &x, 1.0, &x).unwrap_err().to_string().contains("wanted bool[3]"));
}
