//! What went wrong elsewhere.

use super::*;

/// D-08: lengths just past a power of two, and rows that a mask hides wholly.
#[test]
fn d_08_odd_lengths_and_queries_that_see_nothing() {
    on_every_device(|stream| {
        for keys in [33, 65, 225] {
            for (queries, types) in [(1, 0), (33, 4)] {
                let case = Case { queries, keys, types, shows: Shows::Full, ..PLAIN };
                check_case(stream, &case);
                let mask = Some(Masked { dtype: DType::F16, heads: 2, shared: false });
                check_case(stream, &Case { mask, ..case });
            }
        }
        let device = &stream.device().clone();
        for queries in [2, 20] {
            let q = device.tensor(&vec![half::f16::ONE; queries * 8], [queries, 1, 8]).unwrap();
            let k = device.tensor(&[half::f16::ONE; 33 * 8], [33, 1, 8]).unwrap();
            let nothing = device.zeros(DType::Bool, [queries, 33]).unwrap();
            let mask = Mask::Boolean(&nothing);
            let options =
                Attention { scale: 1.0, mask, window: None, softcap: None, sinks: None, cache: CacheLayout::Rows };
            let out = attention(stream, &q, &k, &k, options).unwrap();
            assert!(values_of(stream, &out).iter().all(|&x| x == 0.0));
        }
    });
}

/// D-11: with more keys than queries the last query stands at the last key, and the last keys' tile is no whole one.
#[test]
fn d_11_causal_queries_of_a_chunk_see_the_keys_before_it() {
    on_every_device(|stream| {
        for (queries, types) in [(1, 0), (5, 0), (40, 4), (40, 8), (40, 0)] {
            check_case(stream, &Case { queries, keys: 73, dim: 64, types, ..PLAIN });
        }
    });
}

/// D-19: a softcap caps, by every form; queries keep their digits beside keys of fewer.
#[test]
fn d_19_softcaps_cap_and_queries_are_not_rounded_to_the_type_of_keys() {
    on_every_device(|stream| {
        for (queries, types) in [(1, 0), (1, 3), (3, 6), (40, 4), (40, 3)] {
            let case = Case { queries, keys: 70, dim: 64, types, softcap: Some(0.5), ..PLAIN };
            check_case(stream, &case);
            let device = &stream.device().clone();
            let ones = device.tensor(&[1.0f32; 8], [1, 1, 8]).unwrap();
            let keys = device.tensor(&[[1.0f32; 8], [2.0; 8]].concat(), [2, 1, 8]).unwrap();
            let mut options = Attention {
                scale: 1.0,
                mask: Mask::Full,
                window: None,
                softcap: Some(1.0),
                sinks: None,
                cache: CacheLayout::Rows,
            };
            let capped = attention(stream, &ones, &keys, &keys, options).unwrap().to_vec::<f32>(stream).unwrap();
            options.softcap = None;
            let plain = attention(stream, &ones, &keys, &keys, options).unwrap().to_vec::<f32>(stream).unwrap();
            // Scores of 8 and 16 are both about the cap.
            assert!((capped[0] - 1.5).abs() < 1e-5 && plain[0] > 1.99, "{capped:?} {plain:?}");
        }
    });
}

/// D-21: f16 is f16, a window of n is n keys; what would run past an end is refused by `says_what_does_not_fit`.
#[test]
fn d_21_half_types_and_windows_are_what_they_say() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (queries, dtype) in [(1, DType::F16), (20, DType::F16), (20, DType::BF16), (20, DType::F32)] {
            let values: Vec<f32> = (0..30).map(|i| (i % 7) as f32).collect();
            let zeros = tensor_of(device, dtype, &vec![0.0; queries], [queries, 1, 1]);
            let (k, v) =
                (tensor_of(device, dtype, &[0.0; 30], [30, 1, 1]), tensor_of(device, dtype, &values, [30, 1, 1]));
            for window in [1, 4] {
                let options = Attention {
                    scale: 1.0,
                    mask: Mask::Causal,
                    window: Some(window),
                    softcap: None,
                    sinks: None,
                    cache: CacheLayout::Rows,
                };
                let out = attention(stream, &zeros, &k, &v, options).unwrap();
                for (query, got) in values_of(stream, &out).into_iter().enumerate() {
                    let last = 30 - queries + query;
                    let want = values[last + 1 - window..=last].iter().sum::<f32>() / window as f32;
                    assert!((got - want).abs() <= 0.02, "{dtype}, window {window}: got {got}, wanted {want}");
                }
            }
        }
    });
}
