mod caches;
mod case;
mod defects;
mod masks;

use proptest::prelude::*;

use self::case::{Case, Kept, Masked, PLAIN, Shows, cases, check_case, reference};
use super::*;
use crate::Device;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(case in cases()) {
        on_every_device(|stream| check_case(stream, &case));
    }
}

/// One token and a prompt, of every head dimension that models have.
#[test]
fn takes_the_head_dims_of_models_for_one_query_and_for_many() {
    on_every_device(|stream| {
        for dim in [64, 80, 96, 128, 192, 256, 512] {
            for (queries, types) in [(1, 3), (1, 8), (35, 4), (35, 8), (18, 0)] {
                check_case(stream, &Case { queries, keys: 45, dim, types, ..PLAIN });
            }
        }
    });
}

#[test]
fn takes_every_head_dim_to_512() {
    on_every_device(|stream| {
        for (types, dim) in [1, 31, 33, 65, 80, 96, 128, 192, 256, 511, 512].into_iter().enumerate() {
            check_case(stream, &Case { dim, types: types % 9, ..PLAIN });
        }
    });
}

/// A GPU computes many keys of few queries in parts, some of which may see nothing, and joins them.
#[test]
fn takes_many_keys() {
    on_every_device(|stream| {
        let many = Case { queries: 1, keys: 300, shows: Shows::From(299), dim: 64, ..PLAIN };
        check_case(stream, &many);
        check_case(stream, &Case { shows: Shows::From(40), sinks: true, ..many });
        check_case(stream, &Case { shows: Shows::From(-1), sinks: true, ..many });
        check_case(stream, &Case { window: Some(130), types: 8, dim: 256, ..many });
        check_case(stream, &Case { queries: 3, shows: Shows::Causal, softcap: Some(4.0), types: 4, ..many });
        check_case(stream, &Case { queries: 17, shows: Shows::Causal, types: 7, ..many });
    });
}

/// Sums so far count for less where a score rises, in every turn of a GPU's.
#[test]
fn scores_rise_and_fall_from_turn_to_turn() {
    on_every_device(|stream| {
        for (i, dim) in [64, 128, 256].into_iter().enumerate() {
            for queries in [1, 3, 40, 150] {
                let types = [4, 8][i % 2];
                let case = Case {
                    queries,
                    keys: 290,
                    shows: Shows::Causal,
                    group: 4,
                    kv_heads: 1,
                    dim,
                    types,
                    steep: true,
                    ..PLAIN
                };
                check_case(stream, &case);
                check_case(stream, &Case { sinks: true, window: Some(110), types: 12 - types, ..case });
            }
        }
        // So many heads leave parts of the keys that take several turns.
        let case = Case {
            queries: 1,
            keys: 400,
            shows: Shows::Causal,
            group: 4,
            kv_heads: 64,
            dim: 64,
            types: 4,
            steep: true,
            ..PLAIN
        };
        check_case(stream, &case);
    });
}

/// Of so many heads that simdgroups of a GPU take twice as many queries.
#[test]
fn takes_prompts_of_many_heads() {
    on_every_device(|stream| {
        let kv_heads = stream.device().processors().unwrap_or(1) as usize;
        let case = Case { queries: 150, keys: 170, shows: Shows::Causal, kv_heads, group: 2, ..PLAIN };
        check_case(stream, &Case { dim: 128, types: 8, steep: true, ..case });
        check_case(stream, &Case { dim: 80, types: 4, window: Some(70), sinks: true, ..case });
    });
}

#[test]
fn takes_every_number_of_heads_a_key_head() {
    on_every_device(|stream| {
        for group in [1, 2, 3, 4, 5, 6, 7, 8, 9, 16] {
            check_case(stream, &Case { queries: 1, group, kv_heads: 2, ..PLAIN });
        }
    });
}

#[test]
fn queries_that_see_nothing_give_zeros_whatever_else_is_asked() {
    on_every_device(|stream| {
        for (sinks, softcap, window) in [(false, None, None), (true, None, Some(2)), (true, Some(5.0), Some(1))] {
            // Five queries see nothing, the others one key more each.
            let case = Case { queries: 9, shows: Shows::From(-5), sinks, softcap, window, ..PLAIN };
            check_case(stream, &case);
        }
    });
}

#[test]
fn any_schedule_gives_the_definition() {
    on_every_schedule(|stream| {
        check_case(stream, &Case { sinks: true, window: Some(20), dim: 65, ..PLAIN });
        check_case(stream, &Case { queries: 37, keys: 70, shows: Shows::Causal, types: 4, dim: 33, ..PLAIN });
        let ring = Case { keys: 70, shows: Shows::From(30), cache: Kept::Ring(26), dim: 33, ..PLAIN };
        check_case(stream, &ring);
        check_case(stream, &Case { queries: 37, types: 4, ..ring.clone() });
        let pages = Case { cache: Kept::Pages(8, true), ..ring };
        check_case(stream, &pages);
        check_case(stream, &Case { queries: 37, types: 4, ..pages });
        let mask = Some(Masked { dtype: DType::Bool, heads: 2, shared: false });
        let masked = Case { queries: 5, keys: 70, shows: Shows::Full, mask, ..PLAIN };
        check_case(stream, &masked);
        check_case(stream, &Case { queries: 37, types: 4, ..masked });
    });
}

/// mlx's answers, torch's for masks, and for softcaps those of transformers' Gemma 2.
#[test]
fn agrees_with_mlx_and_transformers() {
    let golden = Golden::read("attention");
    let cases = golden.cases();
    let cases: Vec<_> = cases.iter().filter(|(case, _)| case != "rotating").collect();
    assert_eq!(cases.len(), 36);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let [q, k, v] = ["q", "k", "v"].map(tensor);
            let number = |name: &str| p[name].as_f64().map(|n| n as f32);
            let sinks = golden.has(&format!("{case}.sinks")).then(|| tensor("sinks"));
            let masks = golden.has(&format!("{case}.mask")).then(|| tensor("mask"));
            let options = Attention {
                scale: number("scale").unwrap(),
                mask: if p["causal"] == true { Mask::Causal } else { Mask::Full },
                window: p["window"].as_u64().map(|w| w as usize),
                softcap: number("softcap"),
                sinks: sinks.as_ref(),
                cache: CacheLayout::Rows,
            };
            let out = stream.empty(q.dtype(), *q.shape()).unwrap();
            for b in 0..q.dim(0) {
                let one = |t: &Tensor| t.slice(0, b..b + 1).unwrap().reshape([t.dim(1), t.dim(2), t.dim(3)]).unwrap();
                // mlx has heads before tokens; strides put them in our order.
                let view = |t: &Tensor| one(t).permute(&[1, 0, 2]).unwrap();
                let mask = masks.as_ref().map(one);
                let mask = match &mask {
                    Some(t) if t.dtype() == DType::Bool => Mask::Boolean(t),
                    Some(t) => Mask::Additive(t),
                    None => options.mask,
                };
                let options = Attention { mask, ..options };
                attention_into(stream, &view(&q), &view(&k), &view(&v), options, &view(&out)).unwrap();
            }
            let exact: Vec<f64> = golden.values(&format!("{case}.exact")).iter().map(|&v| v as f64).collect();
            // Scores of some hundreds have an error of as many units, and their exponentials that of the scores.
            let size = if options.scale > 1.0 { 100.0 } else { 2.0 };
            // Values beside rounded weights of a GPU's tiles go to about 4.
            let unit = if q.dtype() == DType::F16 { 2f64.powi(-11) } else { 2f64.powi(-8) };
            let tiled = device.as_cpu().is_none() && q.dim(2) > 16;
            assert_close(q.dtype(), &values_of(stream, &out), &exact, if tiled { 4.0 * unit / 4e-6 } else { size });
        }
    });
}

#[test]
fn causal_is_aligned_to_the_last_key() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(5);
        let make = |random: &mut Random, n| tensor_of(device, DType::F32, &random.values(n * 2 * 16), [n, 2, 16]);
        let (q, k, v) = (make(&mut random, 3), make(&mut random, 10), make(&mut random, 10));
        let mut options = Attention {
            scale: 0.25,
            mask: Mask::Causal,
            window: Some(4),
            softcap: None,
            sinks: None,
            cache: CacheLayout::Rows,
        };
        let causal = attention(stream, &q, &k, &v, options).unwrap();
        let positions = device.tensor(&[7u32, 8, 9], [3]).unwrap();
        options.mask = Mask::Positions(&positions);
        let placed = attention(stream, &q, &k, &v, options).unwrap();
        assert_eq!(values_of(stream, &causal), values_of(stream, &placed));
    });
}

#[test]
fn a_query_does_not_depend_on_its_neighbours() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(11);
        let (n, heads, dim) = (21, 4, 48);
        let q = tensor_of(device, DType::F32, &random.values(n * heads * dim), [n, heads, dim]);
        let k = tensor_of(device, DType::BF16, &random.values(n * 2 * dim), [n, 2, dim]);
        let v = tensor_of(device, DType::BF16, &random.values(n * 2 * dim), [n, 2, dim]);
        let positions = device.tensor(&(0..n as u32).collect::<Vec<_>>(), [n]).unwrap();
        let mut run = |from: usize, to: usize| {
            let positions = positions.slice(0, from..to).unwrap();
            let options = Attention {
                scale: 0.1,
                mask: Mask::Positions(&positions),
                window: Some(9),
                softcap: None,
                sinks: None,
                cache: CacheLayout::Rows,
            };
            let out = attention(stream, &q.slice(0, from..to).unwrap(), &k, &v, options).unwrap();
            values_of(stream, &out)
        };
        let whole = run(0, n);
        let parts: Vec<f32> = [(0, 1), (1, 8), (8, n)].into_iter().flat_map(|(a, b)| run(a, b)).collect();
        assert_eq!(whole, parts);
    });
}

#[test]
fn a_query_that_sees_nothing_gives_zeros_and_infinite_scores_do_not_spread() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let q = device.tensor(&[1.0f32, 1.0], [2, 1, 1]).unwrap();
        let k = device.tensor(&[f32::NEG_INFINITY, 0.0], [2, 1, 1]).unwrap();
        let v = device.tensor(&[5.0f32, 7.0], [2, 1, 1]).unwrap();
        let positions = device.tensor(&[-1i32, 1], [2]).unwrap();
        let options = Attention {
            scale: 1.0,
            mask: Mask::Positions(&positions),
            window: None,
            softcap: None,
            sinks: None,
            cache: CacheLayout::Rows,
        };
        let y = attention(stream, &q, &k, &v, options).unwrap().to_vec::<f32>(stream).unwrap();
        assert_eq!(y, [0.0, 7.0]);
    });
}

#[test]
fn nan_stays_with_the_queries_that_see_it() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let options = Attention {
            scale: 1.0,
            mask: Mask::Causal,
            window: None,
            softcap: None,
            sinks: None,
            cache: CacheLayout::Rows,
        };
        let x = device.tensor(&[0.5f32, 1.0, 2.0], [3, 1, 1]).unwrap();
        for lost in [f32::NAN, f32::INFINITY] {
            let bad = device.tensor(&[1.0, lost, 1.0], [3, 1, 1]).unwrap();
            // In a query, a key and a value.
            let by_query = attention(stream, &bad, &x, &x, options).unwrap().to_vec::<f32>(stream).unwrap();
            assert!(by_query[0] == 0.5 && by_query[1].is_nan() && by_query[2].is_finite(), "{lost}: {by_query:?}");
            let by_key = attention(stream, &x, &bad, &x, options).unwrap().to_vec::<f32>(stream).unwrap();
            assert!(by_key[0] == 0.5 && by_key[1].is_nan() && by_key[2].is_nan(), "{lost}: {by_key:?}");
            let by_value = attention(stream, &x, &x, &bad, options).unwrap().to_vec::<f32>(stream).unwrap();
            assert!(by_value[0] == 1.0 && !by_value[1].is_finite() && !by_value[2].is_finite(), "{lost}: {by_value:?}");
        }
    });
}

/// As above with as many queries as go by tiles on a GPU: those before the lost one stay what they are without it.
#[test]
fn nan_stays_with_the_queries_of_a_prompt_that_see_it() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let options = Attention {
            scale: 0.5,
            mask: Mask::Causal,
            window: Some(9),
            softcap: None,
            sinks: None,
            cache: CacheLayout::Rows,
        };
        let (tokens, dim, at) = (40, 16, 21);
        let values = Random::new(3).values(tokens * dim);
        for dtype in [DType::F16, DType::BF16] {
            let x = tensor_of(device, dtype, &values, [tokens, 1, dim]);
            let plain = attention(stream, &x, &x, &x, options).unwrap();
            let plain = values_of(stream, &plain);
            for lost in [f32::NAN, f32::INFINITY] {
                let mut bad = values.clone();
                bad[at * dim..][..dim].fill(lost);
                let bad = tensor_of(device, dtype, &bad, [tokens, 1, dim]);
                for (name, q, k, v, sees) in [
                    ("query", &bad, &x, &x, at..at + 1),
                    ("key", &x, &bad, &x, at..at + 9),
                    ("value", &x, &x, &bad, at..at + 9),
                ] {
                    let out = attention(stream, q, k, v, options).unwrap();
                    for (i, (got, want)) in values_of(stream, &out).chunks(dim).zip(plain.chunks(dim)).enumerate() {
                        let near = got.iter().zip(want).all(|(g, w)| (g - w).abs() <= 0.02);
                        assert!(sees.contains(&i) || near, "{lost} in {name}, query {i}: {got:?}, wanted {want:?}");
                        let odd = got.iter().any(|g| !g.is_finite());
                        assert!(name != "value" || odd == sees.contains(&i), "{lost} in value, query {i}: {got:?}");
                    }
                }
            }
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let q = device.zeros(DType::F32, [1, 3, 8]).unwrap();
    let k = device.zeros(DType::F32, [4, 2, 8]).unwrap();
    let options = Attention {
        scale: 1.0,
        mask: Mask::Causal,
        window: None,
        softcap: None,
        sinks: None,
        cache: CacheLayout::Rows,
    };
    let error = attention(stream, &q, &k, &k, options).unwrap_err().to_string();
    assert_eq!(error, "attention: q: got 3 heads, wanted a multiple of the 2 key heads");
    let q = device.zeros(DType::F32, [5, 2, 8]).unwrap();
    let mut error = |q: &Tensor, k: &Tensor, v: &Tensor, options: Attention, out: &Tensor| {
        attention_into(stream, q, k, v, options, out).unwrap_err().to_string()
    };
    assert!(error(&q, &k, &k, options, &q).contains("5 queries and 4 keys"));
    let full = Attention { mask: Mask::Full, ..options };
    let zeros = |dtype, shape: [usize; 3]| device.zeros(dtype, shape).unwrap();
    let out = zeros(DType::F32, [5, 2, 8]);
    assert!(
        error(&q, &k, &zeros(DType::F16, [4, 2, 8]), full, &out).contains("k, v: got f32[4, 2, 8] and f16[4, 2, 8]")
    );
    assert!(error(&q, &k, &zeros(DType::F32, [3, 2, 8]), full, &out).contains("both of one shape and type"));
    assert!(
        error(&q, &k, &k, full, &zeros(DType::F16, [5, 2, 8])).contains("out: got f16[5, 2, 8], wanted f32[5, 2, 8]")
    );
    assert!(error(&q, &k, &k, Attention { softcap: Some(0.0), ..full }, &out).contains("softcap: got Some(0.0)"));
    assert!(
        error(&q, &k, &k, Attention { window: Some(0), ..full }, &out).contains("window: got 0, wanted at least 1")
    );
    let three = device.zeros(DType::F32, [3]).unwrap();
    assert!(
        error(&q, &k, &k, Attention { sinks: Some(&three), ..full }, &out).contains("sinks: got f32[3], wanted f32[2]")
    );
    let ring = Attention { cache: CacheLayout::Ring, ..full };
    assert!(error(&q, &k, &k, ring, &out).contains("cache: got Ring with Full, wanted Mask::Positions"));
    let shown = Attention { mask: Mask::Boolean(&q), ..full };
    assert!(
        error(&q, &k, &k, shown, &out)
            .contains("mask: got f32[5, 2, 8], wanted [5, 4], or [1, 5, 4] or [2, 5, 4], of bool")
    );
    let flags = device.zeros(DType::Bool, [5, 4]).unwrap();
    let added = Attention { mask: Mask::Additive(&flags), ..full };
    assert!(error(&q, &k, &k, added, &out).contains("mask: got bool[5, 4]"));
    let shown = Attention { mask: Mask::Boolean(&flags), window: Some(3), ..full };
    assert!(error(&q, &k, &k, shown, &out).contains("5 queries and 4 keys"));
    let turned = device.zeros(DType::Bool, [4, 5]).unwrap().permute(&[1, 0]).unwrap();
    let shown = Attention { mask: Mask::Boolean(&turned), ..full };
    assert!(error(&q, &k, &k, shown, &out).contains("contiguous last axis"));
    let (table, places) = (device.zeros(DType::U32, [3]).unwrap(), device.zeros(DType::U32, [5]).unwrap());
    let paged = Attention { cache: CacheLayout::Pages(&table), mask: Mask::Positions(&places), ..full };
    assert!(error(&q, &k, &k, paged, &out).contains("k: got f32[4, 2, 8], wanted [pages, page_size, heads, head_dim]"));
    let floats = Attention { cache: CacheLayout::Pages(&k), ..paged };
    assert!(error(&q, &k, &k, floats, &out).contains("table: got f32[4, 2, 8], wanted i32 or u32"));
    let placed = Attention { mask: Mask::Positions(&three), ..full };
    assert!(error(&q, &k, &k, placed, &out).contains("positions: got f32[3], wanted i32 or u32 [5]"));
    let turned = zeros(DType::F32, [8, 2, 5]).permute(&[2, 1, 0]).unwrap();
    assert!(error(&turned, &k, &k, full, &out).contains("contiguous last axis"));
    let wide = zeros(DType::F32, [1, 1, 513]);
    assert!(
        error(&wide, &wide, &wide, full, &zeros(DType::F32, [1, 1, 513]))
            .contains("head_dim: got 513, wanted at most 512")
    );
}

/// On the CPU keys are taken in parts, by one task or by several.
#[test]
fn long_contexts_at_every_level_of_the_cpu() {
    let (n, heads, kv_heads, dim) = (300, 6, 2, 72);
    let mut random = Random::new(3);
    let q = rounded(DType::F32, &random.values(n * heads * dim));
    let k = rounded(DType::F16, &random.values(n * kv_heads * dim));
    let v = rounded(DType::F16, &random.values(n * kv_heads * dim));
    let sinks = random.values(heads);
    for window in [None, Some(170)] {
        let case = Case {
            queries: n,
            keys: n,
            kv_heads,
            group: heads / kv_heads,
            dim,
            shows: Shows::From(0),
            head_major: false,
            cache: Kept::Rows,
            mask: None,
            window,
            softcap: None,
            sinks: true,
            types: 0,
            steep: false,
            seed: 0,
        };
        let want = reference(&case, 0.2f32 as f64, &q, &k, &v, &sinks);
        for &features in crate::device::cpu::Features::all() {
            let device = Device::cpu_with(crate::device::CpuOptions { threads: 3, features: Some(features) });
            let stream = &mut device.stream();
            let q = device.tensor(&q, [n, heads, dim]).unwrap();
            let k = tensor_of(&device, DType::F16, &k, [n, kv_heads, dim]);
            let v = tensor_of(&device, DType::F16, &v, [n, kv_heads, dim]);
            let positions = device.tensor(&(0..n as u32).collect::<Vec<_>>(), [n]).unwrap();
            let sinks = device.tensor(&sinks, [heads]).unwrap();
            let mut run = |range: std::ops::Range<usize>| {
                let positions = positions.slice(0, range.clone()).unwrap();
                let mask = Mask::Positions(&positions);
                let options = Attention {
                    scale: 0.2,
                    mask,
                    window,
                    softcap: None,
                    sinks: Some(&sinks),
                    cache: CacheLayout::Rows,
                };
                let out = attention(stream, &q.slice(0, range).unwrap(), &k, &v, options).unwrap();
                values_of(stream, &out)
            };
            let whole = run(0..n);
            assert_close(DType::F32, &whole, &want, 2.0);
            for range in [n - 1..n, 140..141, 250..253] {
                assert_eq!(run(range.clone()), whole[range.start * heads * dim..range.end * heads * dim], "{features}");
            }
        }
    }
}
