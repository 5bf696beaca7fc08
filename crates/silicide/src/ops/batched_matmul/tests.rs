use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, values_of};
use crate::{DType, Device};

/// The definition, in f64, of the entries of a and b that `pairs` names.
fn reference(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), pairs: &[(usize, usize)]) -> Vec<f64> {
    let mut y = Vec::new();
    for &(of_a, of_b) in pairs {
        for i in of_a * m..(of_a + 1) * m {
            for j in of_b * n..(of_b + 1) * n {
                y.push((0..k).map(|c| a[i * k + c] as f64 * b[j * k + c] as f64).sum());
            }
        }
    }
    y
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        batch in 1usize..4,
        heads in 1usize..4,
        shared in 0usize..4,
        m in prop_oneof![Just(1usize), Just(2), Just(5), Just(16), Just(31), Just(33), Just(65)],
        n in prop_oneof![Just(1usize), Just(31), Just(64), Just(65)],
        k in prop_oneof![Just(1usize), Just(31), Just(33), Just(64), Just(96)],
        (a_dtype, b_dtype) in (0usize..3, 0usize..3),
        seed: u64,
    ) {
        let (a_dtype, b_dtype) = (DType::FLOATS[a_dtype], DType::FLOATS[b_dtype]);
        // An axis of one element, or none at all, is repeated.
        let (a_heads, b_heads) = (if shared == 1 { 1 } else { heads }, if shared == 2 { 1 } else { heads });
        let b_batch = if shared == 3 { 1 } else { batch };
        let pairs: Vec<_> = (0..batch * heads)
            .map(|i| (i / heads, i % heads))
            .map(|(entry, head)| (entry * a_heads + head % a_heads, entry % b_batch * b_heads + head % b_heads))
            .collect();
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let a = rounded(a_dtype, &random.values(batch * a_heads * m * k));
            let b = rounded(b_dtype, &random.values(b_batch * b_heads * n * k));
            let at = random.tensor(device, a_dtype, &a, [batch, a_heads, m, k]);
            let bt = match shared {
                3 => random.tensor(device, b_dtype, &b, [b_heads, n, k]),
                _ => random.tensor(device, b_dtype, &b, [batch, b_heads, n, k]),
            };
            let out = random.tensor(device, a_dtype, &vec![7.0; batch * heads * m * n], [batch, heads, m, n]);
            batched_matmul_into(stream, &at, &bt, Precision::F32, &out).unwrap();
            assert_close(a_dtype, &values_of(stream, &out), &reference(&a, &b, (m, n, k), &pairs), k as f64);
        });
    }
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("batched_matmul");
    let names: Vec<String> = golden.names().iter().filter_map(|n| n.strip_suffix(".a").map(String::from)).collect();
    assert_eq!(names.len(), 15);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for case in &names {
            let [a, b, out] = ["a", "b", "out"].map(|name| golden.tensor(device, &format!("{case}.{name}")));
            let want: Vec<f64> = golden.values(&format!("{case}.exact")).iter().map(|&v| v as f64).collect();
            // Rounding to bf16, where that is allowed, changes nothing that is bf16 already.
            for precision in [Precision::F32, Precision::Reduced] {
                if precision == Precision::Reduced && a.dtype() != DType::BF16 {
                    continue;
                }
                let y = batched_matmul(stream, &a, &b, precision).unwrap();
                assert_eq!(y.shape(), out.shape(), "{case}");
                assert_close(a.dtype(), &values_of(stream, &y), &want, 40.0);
            }
        }
    });
}

#[test]
fn any_schedule_gives_the_definition() {
    let (a, b) = (Random::new(1).values(2 * 33 * 65), Random::new(2).values(2 * 35 * 65));
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let bt = Random::new(3).tensor(device, DType::F32, &b, [2, 35, 65]);
        for m in [1, 9, 33] {
            let at = Random::new(4).tensor(device, DType::F32, &a[..2 * m * 65], [2, m, 65]);
            let y = batched_matmul(stream, &at, &bt, Precision::F32).unwrap();
            let want = reference(&a[..2 * m * 65], &b, (m, 35, 65), &[(0, 0), (1, 1)]);
            assert_close(DType::F32, &values_of(stream, &y), &want, 65.0);
        }
    });
}

/// Tiles whose edges lie within them, a head of b for two of a, lines of the result that pack and others.
#[test]
fn tensor_cores_give_the_definition_under_every_schedule() {
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        for (m, n, k, dtype) in
            [(17, 8, 8, DType::F16), (33, 65, 96, DType::BF16), (130, 136, 72, DType::F16), (40, 264, 136, DType::BF16)]
        {
            let mut random = Random::new(n as u64);
            let (a, b) = (rounded(dtype, &random.values(2 * m * k)), rounded(dtype, &random.values(n * k)));
            let at = random.tensor_by(8, device, dtype, &a, [1, 2, m, k]);
            let bt = random.tensor_by(8, device, dtype, &b, [1, 1, n, k]);
            let (plan, y) = stream.record(|s| batched_matmul(s, &at, &bt, Precision::F32)).unwrap();
            stream.replay(&plan).unwrap();
            let tensor = plan.launches()[0].chosen().kernel.contains("tensor");
            assert_eq!(tensor, device.takes_nvidia_kernels());
            let want = reference(&a, &b, (m, n, k), &[(0, 0), (1, 0)]);
            assert_close(dtype, &values_of(stream, &y), &want, k as f64);
        }
    });
}

#[test]
fn leading_axes_may_have_any_strides() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (tokens, heads, dim) = (5, 3, 32);
        let (q, k) = (Random::new(5).values(tokens * heads * dim), Random::new(6).values(7 * heads * dim));
        let qt = device.tensor(&q, [tokens, heads, dim]).unwrap().permute(&[1, 0, 2]).unwrap();
        let kt = device.tensor(&k, [7, heads, dim]).unwrap().permute(&[1, 0, 2]).unwrap();
        let y = batched_matmul(stream, &qt, &kt, Precision::F32).unwrap();
        let [q, k] = [&qt, &kt].map(|t| crate::ops::copy(stream, t).unwrap().to_vec::<f32>(stream).unwrap());
        let want = reference(&q, &k, (tokens, 7, dim), &[(0, 0), (1, 1), (2, 2)]);
        assert_close(DType::F32, &values_of(stream, &y), &want, 32.0);
    });
}

#[test]
fn nan_and_infinity_stay_in_their_rows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for m in [3, 33] {
            let mut a = vec![1.0f32; 2 * m * 32];
            (a[3], a[m * 32]) = (f32::NAN, f32::INFINITY);
            let at = device.tensor(&a, [2, m, 32]).unwrap();
            let bt = device.tensor(&[0.5f32; 2 * 32], [2, 32]).unwrap();
            let y = batched_matmul(stream, &at, &bt, Precision::F32).unwrap().to_vec::<f32>(stream).unwrap();
            assert!(y[..2].iter().all(|y| y.is_nan()));
            assert!(y[2 * m..2 * m + 2].iter().all(|&y| y == f32::INFINITY));
            assert!(y[2..2 * m].iter().chain(&y[2 * m + 2..]).all(|&y| y == 16.0));
        }
    });
}

#[test]
fn nothing_to_sum_is_zero() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let zeros = |shape: [usize; 3]| device.zeros(DType::F32, shape).unwrap();
        let y = batched_matmul(stream, &zeros([2, 3, 0]), &zeros([2, 4, 0]), Precision::F32).unwrap();
        assert_eq!(y.to_vec::<f32>(stream).unwrap(), [0.0; 24]);
        let y = batched_matmul(stream, &zeros([2, 0, 5]), &zeros([2, 4, 5]), Precision::F32).unwrap();
        assert_eq!(y.shape()[..], [2, 0, 4]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |shape: &[usize]| device.zeros(DType::F32, Shape::new(shape).unwrap()).unwrap();
    let mut error = |a: &Tensor, b: &Tensor| batched_matmul(stream, a, b, Precision::F32).unwrap_err().to_string();
    assert!(error(&zeros(&[3, 4]), &zeros(&[3, 5])).contains("wanted floats [.., m, k] and [.., n, k]"));
    assert!(error(&zeros(&[4]), &zeros(&[3, 4])).contains("wanted floats"));
    assert!(error(&zeros(&[2, 3, 4]), &zeros(&[3, 3, 4])).contains("axes that are equal or 1"));
    let turned = zeros(&[4, 3]).permute(&[1, 0]).unwrap();
    assert!(error(&turned, &zeros(&[3, 4])).contains("copy it first"));
    let out = zeros(&[2, 2]);
    let error = batched_matmul_into(stream, &zeros(&[3, 4]), &zeros(&[3, 4]), Precision::F32, &out).unwrap_err();
    assert!(error.to_string().contains("wanted f32 [3, 3]"));
}
