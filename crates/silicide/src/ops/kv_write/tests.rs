use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Random, on_every_device, rounded, tensor_of, values_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn rows_land_in_their_slots(
        tokens in 0usize..5,
        heads in 1usize..4,
        dim in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), Just(257), 1usize..70],
        seed: u64,
        types in 0usize..9,
    ) {
        let (dtype, cache_dtype) = (DType::FLOATS[types % 3], DType::FLOATS[types / 3]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let shape = [tokens, heads, dim];
            let k = rounded(dtype, &random.values(tokens * heads * dim));
            let v = rounded(dtype, &random.values(tokens * heads * dim));
            let kt = random.tensor(device, dtype, &k, [tokens, heads, dim]);
            // Values with heads before tokens.
            let vt = tensor_of(device, dtype, &vec![0.0; v.len()], [heads, tokens, dim]).permute(&[1, 0, 2]).unwrap();
            crate::ops::copy_into(stream, &tensor_of(device, dtype, &v, shape), &vt).unwrap();
            let slots: Vec<u32> = (0..tokens as u32).map(|t| 6 - t).collect();
            // Head-major caches, as one would lay them out for a GPU.
            let caches = [0, 1].map(|_| tensor_of(device, cache_dtype, &vec![9.0; heads * 7 * dim], [heads, 7, dim]).permute(&[1, 0, 2]).unwrap());
            kv_write(stream, &kt, &vt, &device.tensor(&slots, [tokens]).unwrap(), &caches[0], &caches[1]).unwrap();
            for (cache, source) in caches.iter().zip([&k, &v]) {
                let got = values_of(stream, cache);
                for slot in 0..7u32 {
                    let row = &got[slot as usize * heads * dim..][..heads * dim];
                    match slots.iter().position(|&s| s == slot) {
                        Some(t) => assert_eq!(row, rounded(cache_dtype, &source[t * heads * dim..][..heads * dim])),
                        None => assert!(row.iter().all(|&x| x == 9.0)),
                    }
                }
            }
        });
    }
}

#[test]
fn a_slot_outside_the_cache_writes_nothing() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let k = device.tensor(&[1.0f32, 2.0], [2, 1, 1]).unwrap();
        let caches = [0, 1].map(|_| device.zeros(DType::F32, [2, 1, 1]).unwrap());
        let slots = device.tensor(&[-1i32, 1], [2]).unwrap();
        kv_write(stream, &k, &k, &slots, &caches[0], &caches[1]).unwrap();
        assert_eq!(caches[0].to_vec::<f32>(stream).unwrap(), [0.0, 2.0]);
        let slots = device.tensor(&[2i32, 0], [2]).unwrap();
        kv_write(stream, &k, &k, &slots, &caches[0], &caches[1]).unwrap();
        assert_eq!(caches[1].to_vec::<f32>(stream).unwrap(), [2.0, 2.0]);
    });
}

/// D-26: of more tokens than a ring has rows the newest are written, each to a row of its own.
#[test]
fn d_26_more_tokens_than_a_ring_has_rows_do_not_race() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (first, tokens, rows) in [(0, 9, 4), (5, 40, 7), (-3, 5, 4), (3, 3, 1), (-9, 4, 3), (100, 70, 33)] {
            let values: Vec<f32> = (0..tokens * 2).map(|i| i as f32).collect();
            let k = device.tensor(&values, [tokens, 1, 2]).unwrap();
            let caches = [0, 1].map(|_| device.tensor(&vec![-1.0f32; rows * 2], [rows, 1, 2]).unwrap());
            // In falling order, so that the last token is not the newest.
            let positions: Vec<i32> = (0..tokens as i32).rev().map(|t| first + t).collect();
            let at = device.tensor(&positions, [tokens]).unwrap();
            kv_write_with(stream, &k, &k, &at, CacheLayout::Ring, &caches[0], &caches[1]).unwrap();
            let mut want = vec![-1.0; rows * 2];
            for (token, &p) in positions.iter().enumerate().rev().filter(|(_, p)| **p >= 0) {
                want[p as usize % rows * 2..][..2].copy_from_slice(&values[token * 2..][..2]);
            }
            for cache in &caches {
                assert_eq!(cache.to_vec::<f32>(stream).unwrap(), want, "{tokens} tokens from {first}, {rows} rows");
            }
        }
    });
}

#[test]
fn keeps_nan_and_rounds_what_is_too_large() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let k = device.tensor(&[nan, inf, -inf, 1e6, -0.0, 1.0 + 0.5 / 1024.0, 1.0 + 1.5 / 1024.0], [1, 1, 7]).unwrap();
        let caches = [0, 1].map(|_| device.zeros(DType::F16, [1, 1, 7]).unwrap());
        let slots = device.tensor(&[0u32], [1]).unwrap();
        kv_write(stream, &k, &k, &slots, &caches[0], &caches[1]).unwrap();
        for cache in &caches {
            let got = values_of(stream, cache);
            assert!(got[0].is_nan());
            // Halfway between two numbers, the even one.
            assert_eq!(got[1..], [inf, -inf, inf, 0.0, 1.0, 1.0 + 2.0 / 1024.0]);
            assert!(got[4].is_sign_negative());
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |dtype, shape: [usize; 3]| device.zeros(dtype, shape).unwrap();
    let (k, cache) = (zeros(DType::F32, [2, 3, 8]), [zeros(DType::F16, [4, 3, 8]), zeros(DType::F16, [4, 3, 8])]);
    let slots = device.zeros(DType::U32, [2]).unwrap();
    let mut error = |k: &Tensor, v: &Tensor, slots: &Tensor, kc: &Tensor, vc: &Tensor| {
        kv_write(stream, k, v, slots, kc, vc).unwrap_err().to_string()
    };
    let short = zeros(DType::F32, [1, 3, 8]);
    assert_eq!(
        error(&k, &short, &slots, &cache[0], &cache[1]),
        "kv_write: got keys f32[2, 3, 8] and values f32[1, 3, 8], wanted one shape and type"
    );
    let other = zeros(DType::F32, [4, 3, 8]);
    assert!(error(&k, &k, &slots, &cache[0], &other).contains("got caches f16[4, 3, 8] and f32[4, 3, 8]"));
    let narrow = [zeros(DType::F16, [4, 3, 7]), zeros(DType::F16, [4, 3, 7])];
    assert!(error(&k, &k, &slots, &narrow[0], &narrow[1]).contains("wanted the same heads and head_dim"));
    let floats = device.zeros(DType::F32, [2]).unwrap();
    assert!(error(&k, &k, &floats, &cache[0], &cache[1]).contains("slots: got f32[2], wanted i32 or u32 [2]"));
    let turned = zeros(DType::F32, [8, 3, 2]).permute(&[2, 1, 0]).unwrap();
    assert!(error(&turned, &turned, &slots, &cache[0], &cache[1]).contains("contiguous last axis"));
    let ids = zeros(DType::U32, [2, 3, 8]);
    assert!(error(&ids, &ids, &slots, &cache[0], &cache[1]).contains("of floats"));
}
