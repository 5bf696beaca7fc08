use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Random, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

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

/// D-26: a slot is held against the capacity.
#[test]
fn d_26_a_slot_outside_the_cache_writes_nothing() {
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

/// More tokens than a GPU has threadgroups for, which take several each and then others.
#[test]
fn many_tokens_fill_a_ring() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (tokens, rows, dim) = (2100, 2090, 1024);
        let values: Vec<f32> = (0..tokens * dim).map(|i| (i / dim) as f32).collect();
        let k = device.tensor(&values, [tokens, 1, dim]).unwrap();
        let caches = [0, 1].map(|_| device.zeros(DType::F32, [rows, 1, dim]).unwrap());
        // From the newest to the oldest.
        let positions = device.tensor(&(0..tokens as u32).rev().collect::<Vec<_>>(), [tokens]).unwrap();
        kv_write_with(stream, &k, &k, &positions, CacheLayout::Ring, &caches[0], &caches[1]).unwrap();
        for cache in caches {
            let got = cache.to_vec::<f32>(stream).unwrap();
            for position in tokens - rows..tokens {
                let row = &got[position % rows * dim..][..dim];
                assert!(row.iter().all(|&x| x == (tokens - 1 - position) as f32), "position {position}: {:?}", row[0]);
            }
        }
    });
}

#[test]
fn any_schedule_finds_the_newest_of_a_ring() {
    on_every_schedule(|stream| {
        let device = &stream.device().clone();
        let values: Vec<f32> = (0..70).map(|i| i as f32).collect();
        let k = device.tensor(&values, [70, 1, 1]).unwrap();
        let caches = [0, 1].map(|_| device.zeros(DType::F32, [9, 1, 1]).unwrap());
        let positions = device.tensor(&(0..70u32).collect::<Vec<_>>(), [70]).unwrap();
        kv_write_with(stream, &k, &k, &positions, CacheLayout::Ring, &caches[0], &caches[1]).unwrap();
        assert_eq!(caches[1].to_vec::<f32>(stream).unwrap(), [63.0, 64.0, 65.0, 66.0, 67.0, 68.0, 69.0, 61.0, 62.0]);
    });
}

#[test]
fn pages_are_found_by_their_table() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (pages, size, heads, dim) = (5, 3, 2, 33);
        // Of six pages two are not there.
        let table = [4i32, -1, 0, 2, 5, 1];
        let layout = device.tensor(&table, [6]).unwrap();
        let positions = [0i32, 1, 2, 3, 8, 9, 11, 12, 16, 17, 18, 400, -1];
        let at = device.tensor(&positions, [positions.len()]).unwrap();
        for dtype in DType::FLOATS {
            let values = rounded(dtype, &Random::new(2).values(positions.len() * heads * dim));
            let k = Random::new(3).tensor(device, DType::F32, &values, [positions.len(), heads, dim]);
            // Heads before rows.
            let caches = [0, 1].map(|_| {
                let whole = tensor_of(device, dtype, &vec![9.0; pages * heads * size * dim], [pages, heads, size, dim]);
                whole.permute(&[0, 2, 1, 3]).unwrap()
            });
            kv_write_with(stream, &k, &k, &at, CacheLayout::Pages(&layout), &caches[0], &caches[1]).unwrap();
            let mut want = vec![9.0; pages * size * heads * dim];
            for (token, &p) in positions.iter().enumerate() {
                let page = table.get(p as usize / size).copied().unwrap_or(-1);
                if (0..pages as i32).contains(&page) {
                    let row = page as usize * size + p as usize % size;
                    want[row * heads * dim..][..heads * dim]
                        .copy_from_slice(&values[token * heads * dim..][..heads * dim]);
                }
            }
            for cache in &caches {
                let dense = crate::ops::copy(stream, cache).unwrap();
                assert_eq!(values_of(stream, &dense), want);
            }
        }
        // A cache without a page.
        let none = device.zeros(DType::F32, [0, 3, 1, 2]).unwrap();
        let k = device.zeros(DType::F32, [13, 1, 2]).unwrap();
        kv_write_with(
            stream,
            &k,
            &k,
            &at,
            CacheLayout::Pages(&layout),
            &none,
            &device.zeros(DType::F32, [0, 3, 1, 2]).unwrap(),
        )
        .unwrap();
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
    let (none, ring) = (zeros(DType::F16, [0, 3, 8]), CacheLayout::Ring);
    let message =
        kv_write_with(stream, &k, &k, &slots, ring, &none, &zeros(DType::F16, [0, 3, 8])).unwrap_err().to_string();
    assert!(message.contains("a ring without rows"), "{message}");
    let pages = CacheLayout::Pages(&slots);
    let message = kv_write_with(stream, &k, &k, &slots, pages, &cache[0], &cache[1]).unwrap_err().to_string();
    assert!(message.contains("key_cache: got f16[4, 3, 8], wanted [pages, page_size, heads, head_dim]"), "{message}");
    let mut error = |k: &Tensor, v: &Tensor, slots: &Tensor, kc: &Tensor, vc: &Tensor| {
        kv_write(stream, k, v, slots, kc, vc).unwrap_err().to_string()
    };
    let turned = zeros(DType::F32, [8, 3, 2]).permute(&[2, 1, 0]).unwrap();
    assert!(error(&turned, &turned, &slots, &cache[0], &cache[1]).contains("contiguous last axis"));
    let ids = zeros(DType::U32, [2, 3, 8]);
    assert!(error(&ids, &ids, &slots, &cache[0], &cache[1]).contains("of floats"));
}
