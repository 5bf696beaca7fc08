use proptest::prelude::*;

use super::*;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};
use crate::{DType, Device};

/// The definition of one row, in f64.
fn reference(scores: &[f64]) -> Vec<f64> {
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most == f64::NEG_INFINITY {
        return vec![0.0; scores.len()];
    }
    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    scores.iter().map(|s| (s - most).exp() / sum).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        (heads, rows) in (1usize..4, 0usize..4),
        len in prop_oneof![Just(0), Just(1), Just(31), Just(33), Just(65), Just(225), Just(1025)],
        dtype in 0usize..3,
        (masked, wide, causal) in any::<(bool, bool, bool)>(),
        in_place: bool,
        seed: u64,
    ) {
        let dtype = DType::FLOATS[dtype];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let scale = 1.7f32;
            let x = rounded(dtype, &random.values(heads * rows * len).iter().map(|v| v * 4.0).collect::<Vec<_>>());
            let xt = random.tensor(device, dtype, &x, [heads, rows, len]);
            // One mask for all heads; some rows may be masked altogether.
            let mask_dtype = if wide { DType::F32 } else { dtype };
            let mut mask = rounded(mask_dtype, &random.values(rows * len));
            for (i, m) in mask.iter_mut().enumerate() {
                let hidden = if causal { i % len > i / len } else { random.below(3) > 0 };
                *m = if hidden { f32::NEG_INFINITY } else { *m };
            }
            let mt = random.tensor(device, mask_dtype, &mask, [rows, len]);
            let options = Softmax { scale, mask: masked.then_some(&mt) };
            let out = if in_place { xt.clone() } else { stream.empty(dtype, [heads, rows, len]).unwrap() };
            softmax_into(stream, &xt, options, &out).unwrap();
            let scores: Vec<f64> = x
                .iter()
                .enumerate()
                .map(|(i, &x)| x as f64 * scale as f64 + if masked { mask[i % (rows * len)] as f64 } else { 0.0 })
                .collect();
            let want: Vec<f64> = scores.chunks(len.max(1)).flat_map(reference).collect();
            assert_close(dtype, &values_of(stream, &out), &want, 0.3);
        });
    }

    #[test]
    fn takes_any_strides(rows in 1usize..40, len in 1usize..40, seed: u64) {
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = random.values(rows * len);
            let xt = random.tensor(device, DType::F32, &x, [rows, len]).permute(&[1, 0]).unwrap();
            let column = device.zeros(DType::F32, [len, 1]).unwrap();
            let y = softmax(stream, &xt, Softmax { scale: 1.0, mask: Some(&column) }).unwrap();
            let want: Vec<f64> = (0..len)
                .flat_map(|c| reference(&(0..rows).map(|r| x[r * len + c] as f64).collect::<Vec<_>>()))
                .collect();
            assert_close(DType::F32, &values_of(stream, &y), &want, 0.3);
        });
    }
}

#[test]
fn any_schedule_gives_the_definition() {
    let x = Random::new(1).values(3 * 1025);
    let mask = Random::new(2).values(1025);
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let xt = Random::new(3).tensor(device, DType::F32, &x, [3, 1025]);
        let mt = tensor_of(device, DType::F32, &mask, [1025]);
        softmax_into(stream, &xt, Softmax { scale: 3.0, mask: Some(&mt) }, &xt).unwrap();
        let row = |x: &[f32]| reference(&x.iter().zip(&mask).map(|(x, m)| (3.0 * x + m) as f64).collect::<Vec<_>>());
        assert_close(DType::F32, &values_of(stream, &xt), &x.chunks(1025).flat_map(row).collect::<Vec<_>>(), 0.3);
    });
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("softmax");
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for name in ["plain", "long", "one", "large", "masked", "f16", "bf16"] {
            let x = golden.tensor(device, &format!("{name}.x"));
            let y = softmax(stream, &x, Softmax::default()).unwrap();
            let want: Vec<f64> = golden.values(&format!("{name}.exact")).iter().map(|&v| v as f64).collect();
            assert_close(x.dtype(), &values_of(stream, &y), &want, 0.3);
        }
    });
}

#[test]
fn keeps_nan_and_infinity_in_their_rows() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let x = device.tensor(&[1.0, nan, inf, 1.0, -inf, nan, -inf, -inf, -inf, 3.0], [5, 2]).unwrap();
        let y = softmax(stream, &x, Softmax::default()).unwrap().to_vec::<f32>(stream).unwrap();
        assert!(y[..6].iter().all(|y| y.is_nan()), "{y:?}");
        assert_eq!(y[6..], [0.0, 0.0, 0.0, 1.0]);
    });
}

/// D-08: lengths whose last simdgroup is no whole one, and a row that its mask hides wholly.
#[test]
fn d_08_lengths_past_a_power_of_two_and_rows_that_are_hidden() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for len in [33, 65, 225] {
            let x = Random::new(len as u64).values(2 * len);
            let mut mask = vec![0.0f32; 2 * len];
            mask[len..].fill(f32::NEG_INFINITY);
            let (xt, mt) = (device.tensor(&x, [2, len]).unwrap(), device.tensor(&mask, [2, len]).unwrap());
            let y = softmax(stream, &xt, Softmax { scale: 1.0, mask: Some(&mt) }).unwrap();
            let scores: Vec<f64> = x.iter().zip(&mask).map(|(&x, &m)| x as f64 + m as f64).collect();
            let want: Vec<f64> = scores.chunks(len).flat_map(reference).collect();
            assert_close(DType::F32, &values_of(stream, &y), &want, 0.3);
        }
    });
}

/// D-22: of half types only the result is rounded, not the powers that are summed; rows of -inf give zeros.
#[test]
fn d_22_half_types_are_rounded_once() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for dtype in [DType::F16, DType::BF16] {
            let mut x = rounded(dtype, &Random::new(9).values(2 * 1500));
            x[1500..].fill(f32::NEG_INFINITY);
            let y = softmax(stream, &tensor_of(device, dtype, &x, [2, 1500]), Softmax::default()).unwrap();
            let scores: Vec<f64> = x.iter().map(|&x| x as f64).collect();
            let want: Vec<f64> = scores.chunks(1500).flat_map(reference).collect();
            // No slack but that of one rounding: results are all small.
            assert_close(dtype, &values_of(stream, &y), &want, 0.0);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let x = device.zeros(DType::F32, [2, 4]).unwrap();
    let mask = device.zeros(DType::F32, [3]).unwrap();
    let error = softmax(stream, &x, Softmax { scale: 1.0, mask: Some(&mask) }).unwrap_err().to_string();
    assert_eq!(error, "softmax: mask: got f32[3], wanted one that broadcasts to [2, 4]");
    let scalar = tensor_of(&device, DType::F32, &[1.0], []);
    assert!(softmax(stream, &scalar, Softmax::default()).unwrap_err().to_string().contains("wanted rows"));
}
