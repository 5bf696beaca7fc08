use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, values_of};
use crate::{DType, Device};

/// The definition, in f64.
fn reference(l: &[f32], b: &[f32], (n, m): (usize, usize)) -> Vec<f64> {
    let mut x: Vec<f64> = b.iter().map(|&b| b as f64).collect();
    for (l, x) in l.chunks(n * n).zip(x.chunks_mut((n * m).max(1))) {
        for i in 0..n {
            for j in 0..i {
                for c in 0..m {
                    x[i * m + c] -= l[i * n + j] as f64 * x[j * m + c];
                }
            }
        }
    }
    x
}

/// Small numbers, so that solutions stay small, with NaN where nothing is to be read.
fn lower(random: &mut Random, dtype: DType, batch: usize, n: usize) -> Vec<f32> {
    let values = random.values(batch * n * n);
    let l = (0..batch * n * n).map(|i| if i % n < i / n % n { values[i] * 0.5 / (n as f32).sqrt() } else { f32::NAN });
    rounded(dtype, &l.collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn follows_the_definition(
        batch in 1usize..4,
        n in prop_oneof![Just(1usize), Just(31), Just(33), Just(64), Just(65), Just(150)],
        m in prop_oneof![Just(0usize), Just(1), Just(31), Just(33), Just(65)],
        dtype in 0usize..3,
        in_place: bool,
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let (l, b) = (lower(&mut random, dtype, batch, n), rounded(dtype, &random.values(batch * n * m)));
            let lt = random.tensor(device, dtype, &l, [batch, n, n]);
            let bt = random.tensor(device, dtype, &b, [batch, n, m]);
            let out = if in_place { bt.clone() } else { stream.empty(dtype, [batch, n, m]).unwrap() };
            triangular_solve_into(stream, &lt, &bt, &out).unwrap();
            assert_close(dtype, &values_of(stream, &out), &reference(&l, &b, (n, m)), 4.0);
        });
    }
}

#[test]
fn any_schedule_gives_the_definition() {
    let mut random = Random::new(1);
    let (l, b) = (lower(&mut random, DType::F32, 2, 33), random.values(2 * 33 * 35));
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let lt = Random::new(2).tensor(device, DType::F32, &l, [2, 33, 33]);
        let bt = Random::new(3).tensor(device, DType::F32, &b, [2, 33, 35]);
        triangular_solve_into(stream, &lt, &bt, &bt).unwrap();
        assert_close(DType::F32, &values_of(stream, &bt), &reference(&l, &b, (33, 35)), 4.0);
    });
}

#[test]
fn large_systems_take_fewer_columns_at_once() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(5);
        let (n, m) = (1025, 3);
        let (l, b) = (lower(&mut random, DType::F32, 1, n), random.values(n * m));
        let lt = random.tensor(device, DType::F32, &l, [1, n, n]);
        let bt = random.tensor(device, DType::F32, &b, [1, n, m]);
        let x = triangular_solve(stream, &lt, &bt).unwrap();
        assert_close(DType::F32, &values_of(stream, &x), &reference(&l, &b, (n, m)), 8.0);
    });
}

#[test]
fn agrees_with_torch() {
    let golden = Golden::read("triangular_solve");
    let cases = golden.cases();
    assert_eq!(cases.len(), 12);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, _) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let (l, b) = (tensor("l"), tensor("b"));
            let x = triangular_solve(stream, &l, &b).unwrap();
            let exact = golden.exact_values(&format!("{case}.exact"));
            let most = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            assert_close(b.dtype(), &values_of(stream, &x), &exact, most);
        }
    });
}

#[test]
fn nan_stays_in_its_column_and_reaches_only_later_rows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let l = device.tensor(&[9.0f32, 9.0, 9.0, 1.0, 9.0, 9.0, 2.0, 3.0, 9.0], [1, 3, 3]).unwrap();
        let b = device.tensor(&[1.0, 1.0, f32::NAN, 5.0, 1.0, f32::INFINITY], [1, 3, 2]).unwrap();
        let x = triangular_solve(stream, &l, &b).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(x[0] == 1.0 && x[2].is_nan() && x[4].is_nan());
        assert!(x[1] == 1.0 && x[3] == 4.0 && x[5] == f32::INFINITY);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |dtype, shape: [usize; 3]| device.zeros(dtype, shape).unwrap();
    let (l, b) = (zeros(DType::F32, [2, 4, 4]), zeros(DType::F32, [2, 4, 3]));
    let error = triangular_solve(stream, &zeros(DType::F32, [2, 4, 3]), &b).unwrap_err().to_string();
    assert_eq!(error, "triangular_solve: l: got f32[2, 4, 3], wanted f32[2, 4, 4]");
    let error = triangular_solve(stream, &zeros(DType::F16, [2, 4, 4]), &b).unwrap_err().to_string();
    assert!(error.contains("l: got f16"));
    let error = triangular_solve(stream, &l, &device.zeros(DType::F32, [4, 3]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("b: got f32[4, 3], wanted [batch, rows, columns]"));
    let error = triangular_solve_into(stream, &l, &zeros(DType::F32, [2, 4, 4]), &l).unwrap_err().to_string();
    assert!(error.contains("memory of its own"), "{error}");
    let row = zeros(DType::F16, [1, 1, 4097]).broadcast_to([1, 4097, 4097]).unwrap();
    let error = triangular_solve(stream, &row, &zeros(DType::F16, [1, 4097, 1])).unwrap_err().to_string();
    assert!(error.contains("got 4097 unknowns, wanted 4096 at most"), "{error}");
}
