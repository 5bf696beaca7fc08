//! Masks that are tensors.

use super::*;

/// Masks of every type beside all else, by both forms of a GPU: some queries see nothing, and tiles are of every class.
#[test]
fn takes_masks_of_every_type_and_shape() {
    on_every_device(|stream| {
        let plain = Case { keys: 150, kv_heads: 2, dim: 40, shows: Shows::Full, ..PLAIN };
        let mut seed = 0;
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::Bool] {
            for (heads, shared) in [(0, false), (1, true), (4, false), (4, true)] {
                let mask = Some(Masked { dtype, heads, shared });
                for (queries, types) in [(1, 0), (5, 8), (70, 4), (40, 2)] {
                    seed += 1;
                    let (window, softcap) = ([None, Some(45)][seed % 2], [None, Some(6.0)][seed / 2 % 2]);
                    let sinks = seed % 3 == 0;
                    let case =
                        Case { queries, types, mask, window, softcap, sinks, seed: seed as u64, ..plain.clone() };
                    check_case(stream, &case);
                }
            }
        }
    });
}

/// What is not finite behind a mask is not there, and a NaN of a mask is that of its query alone.
#[test]
fn what_a_mask_hides_may_be_anything() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (keys, dim) = (70, 16);
        let values = Random::new(4).values(keys * dim);
        for (queries, dtype) in [(3, DType::F32), (40, DType::F16), (40, DType::BF16)] {
            let q = tensor_of(device, dtype, &values[..queries * dim], [queries, 1, dim]);
            // Query 1 alone sees key 33; query 2 sees nothing.
            let mut terms = vec![0.0; queries * keys];
            for query in (0..queries).filter(|&query| query != 1) {
                terms[query * keys + 33] = f32::NEG_INFINITY;
            }
            terms[2 * keys..3 * keys].fill(f32::NEG_INFINITY);
            let seen: Vec<u8> = terms.iter().map(|&t| (t == 0.0) as u8).collect();
            let seen = device.tensor_from_bytes(&seen, DType::Bool, [queries, keys]).unwrap();
            let additive = tensor_of(device, dtype, &terms, [queries, keys]);
            let options = Attention {
                scale: 0.5,
                mask: Mask::Full,
                window: None,
                softcap: None,
                sinks: None,
                cache: CacheLayout::Rows,
            };
            for mask in [Mask::Boolean(&seen), Mask::Additive(&additive)] {
                let options = Attention { mask, ..options };
                let x = tensor_of(device, dtype, &values, [keys, 1, dim]);
                let plain = attention(stream, &q, &x, &x, options).unwrap();
                let plain = values_of(stream, &plain);
                assert_eq!(plain[2 * dim..3 * dim], [0.0; 16]);
                for lost in [f32::NAN, f32::INFINITY] {
                    let mut bad = values.clone();
                    bad[33 * dim..34 * dim].fill(lost);
                    let bad = tensor_of(device, dtype, &bad, [keys, 1, dim]);
                    for (k, v) in [(&bad, &x), (&x, &bad)] {
                        let out = attention(stream, &q, k, v, options).unwrap();
                        for (i, (got, want)) in values_of(stream, &out).chunks(dim).zip(plain.chunks(dim)).enumerate() {
                            let near = got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 0.02);
                            assert!(i == 1 || near, "{lost}, query {i}: {got:?}, wanted {want:?}");
                            assert!(i != 1 || std::ptr::eq(k, &bad) || !got[0].is_finite(), "{lost}: {got:?}");
                        }
                    }
                }
            }
            terms[5.min(queries - 1) * keys + 40] = f32::NAN;
            let odd = tensor_of(device, dtype, &terms, [queries, keys]);
            let x = tensor_of(device, dtype, &values, [keys, 1, dim]);
            let out = attention(stream, &q, &x, &x, Attention { mask: Mask::Additive(&odd), ..options }).unwrap();
            for (i, got) in values_of(stream, &out).chunks(dim).enumerate() {
                assert_eq!(got[0].is_nan(), i == 5.min(queries - 1), "query {i}: {got:?}");
            }
        }
    });
}
