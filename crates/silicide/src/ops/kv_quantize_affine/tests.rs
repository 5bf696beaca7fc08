use proptest::prelude::*;

use super::*;
use crate::testing::{
    Golden, Random, assert_close, bytes_of, on_every_device, on_every_schedule, rounded, tensor_of, values_of,
};

/// A cache whose rows lie apart, heads first or slots first, of codes `0xaaaaaaaa`, scales 9 and biases 8.
fn apart(device: &Device, shape: [usize; 3], options: AffineOptions, turned: bool) -> AffineRows {
    let [heads, capacity, dim] = shape;
    let AffineOptions { bits, group_size, dtype } = options;
    let (first, second) = if turned { (capacity, heads) } else { (heads, capacity) };
    let order: &[usize] = if turned { &[1, 0, 2] } else { &[0, 1, 2] };
    let (words, groups) = (dim * bits as usize / 32, dim / group_size);
    let codes = device.tensor(&vec![0xaaaa_aaaau32; first * second * (words + 3)], [first, second, words + 3]).unwrap();
    let part = |value, lead: usize, gap| {
        let wide = groups + lead + gap;
        let t = tensor_of(device, dtype, &vec![value; first * second * wide], [first, second, wide]);
        t.slice(2, lead..lead + groups).unwrap().permute(order).unwrap()
    };
    AffineRows {
        codes: codes.slice(2, 1..words + 1).unwrap().permute(order).unwrap(),
        scales: part(9.0, 1, 0),
        biases: part(8.0, 0, 3),
    }
}

fn codes_of(stream: &mut Stream, cache: &AffineRows, bits: u32) -> Vec<u32> {
    let bytes = bytes_of(stream, &cache.codes);
    match bits {
        4 => bytes.into_iter().flat_map(|b| [b as u32 & 15, b as u32 >> 4]).collect(),
        _ => bytes.into_iter().map(u32::from).collect(),
    }
}

/// What MLX does, by its documentation and its answers: f32 throughout, codes by what is not yet rounded.
fn reference(group: &[f32], bits: u32) -> (f32, f32, Vec<u32>) {
    let most = ((1 << bits) - 1) as f32;
    let (low, high) = group.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), &x| (l.min(x), h.max(x)));
    let step = ((high - low) / most).max(1e-7);
    let (edge, step) = if low.abs() > high.abs() { (low, step) } else { (high, -step) };
    let steps = (edge / step).round_ties_even();
    let (scale, bias) = if steps == 0.0 { (step, 0.0) } else { (edge / steps, edge) };
    let code = |&x: &f32| ((x - bias) / scale).round_ties_even().clamp(0.0, most) as u32;
    (scale, bias, group.iter().map(code).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(
        tokens in 0usize..5,
        heads in 1usize..6,
        (bits, group, groups) in (prop_oneof![Just(4u32), Just(8)], 0usize..3, 1usize..6),
        (dtype, scales, out_dtype) in (0usize..3, 0usize..3, 0usize..3),
        (turned, one_sign) in any::<(bool, bool)>(),
        seed: u64,
    ) {
        let group_size = 32 << group;
        let dim = group_size * groups;
        let [dtype, scales, out_dtype] = [dtype, scales, out_dtype].map(|i| DType::FLOATS[i]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let mut x = random.values(tokens * heads * dim);
            if one_sign {
                x.iter_mut().for_each(|x| *x = x.abs() + 0.25);
            }
            let x = rounded(dtype, &x);
            let xt = random.tensor(device, dtype, &x, [tokens, heads, dim]);
            let cache = apart(device, [heads, 7, dim], AffineOptions { bits, group_size, dtype: scales }, turned);
            let slots: Vec<u32> = (0..tokens as u32).map(|t| 6 - t).collect();
            kv_quantize_affine(stream, &xt, &device.tensor(&slots, [tokens]).unwrap(), CacheLayout::Rows, &cache).unwrap();

            let codes = codes_of(stream, &cache, bits);
            let (got_scales, got_biases) = (values_of(stream, &cache.scales), values_of(stream, &cache.biases));
            let mut decoded = Vec::new();
            for (i, codes) in codes.chunks(group_size).enumerate() {
                let (head, slot, group) = (i / groups / 7, i / groups % 7, i % groups);
                let (scale, bias) = (got_scales[i], got_biases[i]);
                match slots.iter().position(|&s| s as usize == slot) {
                    Some(token) => {
                        let x = &x[(token * heads + head) * dim + group * group_size..][..group_size];
                        let want = reference(x, bits);
                        assert_eq!(rounded(scales, &[want.0, want.1]), [scale, bias]);
                        assert_eq!(codes, want.2);
                    }
                    None => {
                        let code = if bits == 4 { 0xa } else { 0xaa };
                        assert!((scale, bias) == (9.0, 8.0) && codes.iter().all(|&c| c == code));
                    }
                }
                decoded.extend(codes.iter().map(|&c| c as f64 * scale as f64 + bias as f64));
            }

            let out = device.zeros(out_dtype, [7, heads, dim]).unwrap().permute(&[1, 0, 2]).unwrap();
            kv_dequantize_affine_into(stream, &cache, &out).unwrap();
            let size = decoded.iter().fold(1.0f64, |m, y| m.max(y.abs()));
            assert_close(out_dtype, &values_of(stream, &out), &decoded, size);
        });
    }
}

#[test]
fn gives_the_bits_of_mlx() {
    let golden = Golden::read("kv_quantize_affine");
    let cases = golden.cases();
    assert_eq!(cases.len(), 18);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let slots: Vec<u32> = (0..9).collect();
        let slots = device.tensor(&slots, [9]).unwrap();
        for (case, p) in &cases {
            let x = golden.tensor(device, &format!("shared.{}", p["x"].as_str().unwrap()));
            let x = x.reshape([9, 1, 128]).unwrap();
            let (bits, group_size) = (p["bits"].as_u64().unwrap() as u32, p["group_size"].as_u64().unwrap() as usize);
            let options = AffineOptions { bits, group_size, dtype: x.dtype() };
            let cache = AffineRows::zeros(device, 1, 9, 128, options).unwrap();
            kv_quantize_affine(stream, &x, &slots, CacheLayout::Rows, &cache).unwrap();
            for (got, name) in [(&cache.codes, "q"), (&cache.scales, "scales"), (&cache.biases, "biases")] {
                let want = golden.tensor(device, &format!("{case}.{name}"));
                assert_eq!(bytes_of(stream, got), bytes_of(stream, &want), "{case}.{name}");
            }
        }
    });
}

#[test]
fn any_schedule_gives_the_same() {
    let x = Random::new(1).values(3 * 3 * 96);
    let mut first: Option<(Vec<u8>, Vec<f32>)> = None;
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let options = AffineOptions { bits: 4, group_size: 32, dtype: DType::F32 };
        let cache = AffineRows::zeros(device, 3, 4, 96, options).unwrap();
        let slots = device.tensor(&[2u32, 0, 3], [3]).unwrap();
        kv_quantize_affine(stream, &tensor_of(device, DType::F32, &x, [3, 3, 96]), &slots, CacheLayout::Rows, &cache)
            .unwrap();
        let back = kv_dequantize_affine(stream, &cache, 96, DType::F32).unwrap();
        let got = (bytes_of(stream, &cache.codes), values_of(stream, &back));
        let error = got.1[2 * 96..3 * 96].iter().zip(&x).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        // The end that is not the edge may be cut by as much as a step.
        assert!(error < 4.0 / 15.0, "{error}");
        assert_eq!(*first.get_or_insert_with(|| got.clone()), got);
    });
}

#[test]
fn a_group_with_what_is_not_finite_becomes_nan_and_no_other() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for lost in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for (bits, group_size) in [(4, 32), (8, 32), (8, 64)] {
                let dim = 2 * group_size;
                let mut x = vec![0.5f32; dim];
                x[3] = lost;
                let cache =
                    AffineRows::zeros(device, 1, 1, dim, AffineOptions { bits, group_size, ..Default::default() });
                let cache = cache.unwrap();
                let slot = device.tensor(&[0u32], [1]).unwrap();
                kv_quantize_affine(stream, &device.tensor(&x, [1, 1, dim]).unwrap(), &slot, CacheLayout::Rows, &cache)
                    .unwrap();
                let back = kv_dequantize_affine(stream, &cache, dim, DType::F32).unwrap();
                let back = values_of(stream, &back);
                assert!(back[..group_size].iter().all(|x| x.is_nan()), "{lost} {bits} {back:?}");
                assert!(back[group_size..].iter().all(|&x| (x - 0.5).abs() < 1e-3), "{lost} {bits} {back:?}");
            }
        }
    });
}

#[test]
fn a_slot_outside_the_cache_writes_nothing() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let cache = AffineRows::zeros(device, 1, 2, 64, AffineOptions::default()).unwrap();
        let x = device.tensor(&vec![1.0f32; 3 * 64], [3, 1, 64]).unwrap();
        let slots = device.tensor(&[-1i32, 1, 2], [3]).unwrap();
        kv_quantize_affine(stream, &x, &slots, CacheLayout::Rows, &cache).unwrap();
        assert_eq!(values_of(stream, &cache.biases), [0.0, 1.0]);
    });
}

#[test]
fn a_ring_keeps_the_newest_tokens() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let options = AffineOptions { bits: 4, group_size: 32, dtype: DType::F32 };
        let cache = AffineRows::zeros(device, 1, 3, 32, options).unwrap();
        let x: Vec<f32> = (0..5 * 32).map(|i| (1 + i / 32) as f32).collect();
        let positions = device.tensor(&[-1i32, 4, 5, 7, 6], [5]).unwrap();
        let x = device.tensor(&x, [5, 1, 32]).unwrap();
        kv_quantize_affine(stream, &x, &positions, CacheLayout::Ring, &cache).unwrap();
        // Positions 6, 7 and 5; 4 lies under 7, and -1 is none.
        assert_eq!(values_of(stream, &cache.biases), [5.0, 4.0, 3.0]);
    });
}

/// Where the greatest is further from the least than f32 reaches, codes are 0, and the scale says so.
#[test]
fn a_range_past_f32_has_no_codes() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let options = AffineOptions { bits: 8, group_size: 32, dtype: DType::F32 };
        let cache = AffineRows::zeros(device, 1, 1, 32, options).unwrap();
        let x: Vec<f32> = (0..32).map(|i| if i % 2 == 0 { 3e38 } else { -3e38 }).collect();
        let x = device.tensor(&x, [1, 1, 32]).unwrap();
        kv_quantize_affine(stream, &x, &device.zeros(DType::U32, [1]).unwrap(), CacheLayout::Rows, &cache).unwrap();
        assert_eq!(cache.codes.to_vec::<u32>(stream).unwrap(), [0; 8]);
        assert!(values_of(stream, &cache.scales)[0].is_infinite());
    });
}

/// More tokens than a GPU has threadgroups for, which take others then.
#[test]
fn many_tokens_fill_a_ring() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let options = AffineOptions { bits: 8, group_size: 128, dtype: DType::F32 };
        let (tokens, rows, dim) = (600, 580, 1024);
        let cache = AffineRows::zeros(device, 1, rows, dim, options).unwrap();
        let x: Vec<f32> = (0..tokens * dim).map(|i| (1 + i / dim) as f32).collect();
        let x = device.tensor(&x, [tokens, 1, dim]).unwrap();
        let positions = device.tensor(&(0..tokens as u32).rev().collect::<Vec<_>>(), [tokens]).unwrap();
        kv_quantize_affine(stream, &x, &positions, CacheLayout::Ring, &cache).unwrap();
        let biases = values_of(stream, &cache.biases);
        for position in tokens - rows..tokens {
            let got = &biases[position % rows * 8..][..8];
            assert!(got.iter().all(|&b| b == (tokens - position) as f32), "position {position}: {got:?}");
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let new = |dim, options| AffineRows::zeros(&device, 1, 1, dim, options).unwrap_err().to_string();
    let options = AffineOptions::default();
    assert_eq!(new(96, options), "AffineRows: head_dim: got 96, wanted a multiple of the group size 64");
    assert!(new(64, AffineOptions { bits: 5, ..options }).contains("bits: got 5, wanted 4 or 8"));
    assert!(new(64, AffineOptions { group_size: 16, ..options }).contains("group_size: got 16, wanted 32, 64 or 128"));
    assert!(new(64, AffineOptions { dtype: DType::U8, ..options }).contains("dtype: got u8"));

    let cache = AffineRows::zeros(&device, 2, 4, 64, options).unwrap();
    let zeros = |dtype, shape: [usize; 3]| device.zeros(dtype, shape).unwrap();
    let slot = device.zeros(DType::U32, [1]).unwrap();
    let mut error = |x: &Tensor, slots: &Tensor, cache: &AffineRows| {
        kv_quantize_affine(stream, x, slots, CacheLayout::Rows, cache).unwrap_err().to_string()
    };
    let x = zeros(DType::F32, [1, 2, 64]);
    assert!(error(&zeros(DType::U32, [1, 2, 64]), &slot, &cache).contains("wanted [tokens, heads, head_dim]"));
    assert!(error(&zeros(DType::F32, [1, 2, 96]), &slot, &cache).contains("cache.codes: got u32[2, 4, 16]"));
    assert!(error(&zeros(DType::F32, [1, 3, 64]), &slot, &cache).contains("wanted the same heads"));
    assert!(error(&x, &device.zeros(DType::U32, [2]).unwrap(), &cache).contains("positions: got u32[2]"));
    let other = AffineRows { scales: zeros(DType::F16, [2, 4, 3]), ..cache.clone() };
    assert!(error(&x, &slot, &other).contains("cache.scales: got f16[2, 4, 3], wanted floats [2, 4, 64 / group_size]"));
    let other = AffineRows { biases: zeros(DType::F32, [2, 4, 1]), ..cache.clone() };
    assert!(error(&x, &slot, &other).contains("cache.biases: got f32[2, 4, 1], wanted f16[2, 4, 1]"));
    let out = zeros(DType::F32, [2, 3, 64]);
    let error = kv_dequantize_affine_into(stream, &cache, &out).unwrap_err().to_string();
    assert!(error.contains("wanted the same heads and capacity"), "{error}");
}
