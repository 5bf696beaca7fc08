use proptest::prelude::*;

use super::*;
use crate::testing::{Random, on_every_device, rounded, tensor_of, values_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn rows_land_in_their_slots(tokens in 1usize..5, heads in 1usize..4, dim in 1usize..70, seed: u64, types in 0usize..9) {
        let (dtype, cache_dtype) = (DType::FLOATS[types % 3], DType::FLOATS[types / 3]);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let shape = [tokens, heads, dim];
            let k = rounded(dtype, &random.values(tokens * heads * dim));
            let v = rounded(dtype, &random.values(tokens * heads * dim));
            let kt = random.tensor(device, dtype, &k, [tokens, heads, dim]);
            let vt = tensor_of(device, dtype, &v, shape);
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
