use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

/// A case: sizes, and what [`Attention`] says.
#[derive(Clone, Debug)]
struct Case {
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    shows: Shows,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    /// Whether the cache has heads before tokens.
    head_major: bool,
    /// Rows of a ring.
    ring: Option<usize>,
    types: usize,
    seed: u64,
}

/// A [`Mask`] without its tensor.
#[derive(Clone, Copy, Debug)]
enum Shows {
    Full,
    Causal,
    /// The position of the first query: below 0 it sees nothing.
    From(i64),
}

impl Case {
    fn sees(&self, query: usize, key: usize) -> bool {
        let end = match self.shows {
            Shows::Full => self.keys as i64,
            Shows::Causal => (self.keys - self.queries + query) as i64 + 1,
            Shows::From(p) => (p + query as i64 + 1).min(self.keys as i64),
        };
        let there = self.ring.is_none_or(|rows| key + rows >= self.written());
        there && (key as i64) < end && self.window.is_none_or(|w| (key + w) as i64 >= end)
    }

    /// Positions that a ring was written with.
    fn written(&self) -> usize {
        let Shows::From(first) = self.shows else { panic!("a ring goes by positions") };
        (first + self.queries as i64).max(0) as usize
    }

    /// What a cache holds of the rows of all positions.
    fn rows(&self, values: &[f32]) -> Vec<f32> {
        let Some(rows) = self.ring else { return values.to_vec() };
        let size = self.kv_heads * self.dim;
        let mut ring = vec![f32::NAN; rows * size];
        for position in 0..self.written().min(self.keys) {
            ring[position % rows * size..][..size].copy_from_slice(&values[position * size..][..size]);
        }
        ring
    }
}

/// The definition, in f64.
fn reference(c: &Case, scale: f64, q: &[f32], k: &[f32], v: &[f32], sinks: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for query in 0..c.queries {
        for head in 0..c.kv_heads * c.group {
            let q = &q[(query * c.kv_heads * c.group + head) * c.dim..][..c.dim];
            let row = |key: usize| (key * c.kv_heads + head / c.group) * c.dim..;
            let seen: Vec<usize> = (0..c.keys).filter(|&key| c.sees(query, key)).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|&key| {
                    let s = scale * q.iter().zip(&k[row(key)]).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
                    c.softcap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh())
                })
                .collect();
            let sink = c.sinks.then(|| sinks[head] as f64);
            let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - highest).exp());
            out.extend(
                (0..c.dim)
                    .map(|d| seen.iter().zip(&weights).map(|(&i, w)| w / total * v[row(i)][d] as f64).sum::<f64>()),
            );
        }
    }
    out
}

fn check_case(stream: &mut Stream, c: &Case) {
    let (dtype, cache_dtype) = (DType::FLOATS[c.types % 3], DType::FLOATS[c.types / 3]);
    let heads = c.kv_heads * c.group;
    let device = &stream.device().clone();
    let mut random = Random::new(c.seed);
    let q = rounded(dtype, &random.values(c.queries * heads * c.dim));
    let k = rounded(cache_dtype, &random.values(c.keys * c.kv_heads * c.dim));
    let v = rounded(cache_dtype, &random.values(c.keys * c.kv_heads * c.dim));
    let sinks = random.values(heads);
    let qt = random.tensor(device, dtype, &q, [c.queries, heads, c.dim]);
    let rows = c.ring.unwrap_or(c.keys);
    let [kt, vt] = [&k, &v].map(|values| {
        let t = random.tensor(device, cache_dtype, &c.rows(values), [rows, c.kv_heads, c.dim]);
        if !c.head_major {
            return t;
        }
        let cache = device.zeros(cache_dtype, [c.kv_heads, rows + 1, c.dim]).unwrap();
        let cache = cache.slice(1, 1..rows + 1).unwrap().permute(&[1, 0, 2]).unwrap();
        crate::ops::copy_into(stream, &t, &cache).unwrap();
        cache
    });
    let first = if let Shows::From(p) = c.shows { p } else { 0 };
    let positions: Vec<i32> = (0..c.queries as i64).map(|t| (first + t) as i32).collect();
    let positions = device.tensor(&positions, [c.queries]).unwrap();
    let sinks_t = device.tensor(&sinks, [heads]).unwrap();
    let scale = 1.0 / (c.dim as f32).sqrt();
    let options = Attention {
        scale,
        mask: match c.shows {
            Shows::Full => Mask::Full,
            Shows::Causal => Mask::Causal,
            Shows::From(_) => Mask::Positions(&positions),
        },
        window: c.window,
        softcap: c.softcap,
        sinks: c.sinks.then_some(&sinks_t),
        cache: if c.ring.is_some() { CacheLayout::Ring } else { CacheLayout::Rows },
    };
    let out = random.tensor(device, dtype, &vec![7.0; q.len()], *qt.shape());
    attention_into(stream, &qt, &kt, &vt, options, &out).unwrap();
    let want = reference(c, scale as f64, &q, &k, &v, &sinks);
    // A GPU rounds the weights of many queries to their type, and with them a sum of values up to 2.
    let rounded_weights = device.as_cpu().is_none() && c.queries > 16;
    let slack = match dtype {
        DType::F16 if rounded_weights => 2f64.powi(-11) / 4e-6,
        DType::BF16 if rounded_weights => 2f64.powi(-8) / 4e-6,
        _ => 1.0,
    };
    assert_close(dtype, &values_of(stream, &out), &want, 2.0 * slack);
}

fn cases() -> impl Strategy<Value = Case> {
    let dim = prop_oneof![
        Just(1usize),
        Just(31),
        Just(33),
        Just(64),
        Just(65),
        Just(80),
        Just(96),
        Just(128),
        Just(192),
        Just(256),
        Just(512),
        1usize..512
    ];
    let keys = prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..140];
    let group = prop_oneof![Just(1usize), Just(2), Just(3), Just(4), Just(7), Just(8), Just(9)];
    let shows = prop_oneof![Just(Shows::Full), Just(Shows::Causal), (-9i64..140).prop_map(Shows::From)];
    let sizes = (1usize..11, keys, 1usize..3, group, dim);
    let options = (
        shows,
        proptest::option::of(1usize..70),
        proptest::option::of(1.0f32..30.0),
        any::<(bool, bool, bool)>(),
        1usize..80,
        0usize..9,
        any::<u64>(),
    );
    (sizes, options).prop_map(
        |(
            (queries, keys, kv_heads, group, dim),
            (shows, window, softcap, (sinks, head_major, ring), rows, types, seed),
        )| {
            // Causal queries have a key each; and large cases are not larger than they must be.
            let most = if matches!(shows, Shows::Causal) { keys } else { 10 };
            let queries = queries.min(most).min((4000 / (group * kv_heads * dim)).max(1));
            let ring = (ring && matches!(shows, Shows::From(_))).then_some(rows);
            // A ring has all positions to the last query's.
            let keys = if let (Some(_), Shows::From(first)) = (ring, shows) {
                keys.max((first + queries as i64).max(0) as usize)
            } else {
                keys
            };
            Case { queries, keys, kv_heads, group, dim, shows, window, softcap, sinks, head_major, ring, types, seed }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(case in cases()) {
        on_every_device(|stream| check_case(stream, &case));
    }
}

/// Queries at the last keys, two heads a key head.
const PLAIN: Case = Case {
    queries: 3,
    keys: 33,
    kv_heads: 1,
    group: 2,
    dim: 33,
    shows: Shows::Causal,
    window: None,
    softcap: None,
    sinks: false,
    head_major: false,
    ring: None,
    types: 0,
    seed: 1,
};

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
        let ring = Case { keys: 70, shows: Shows::From(30), ring: Some(26), dim: 33, ..PLAIN };
        check_case(stream, &ring);
        check_case(stream, &Case { queries: 37, types: 4, ..ring });
    });
}

/// D-20: a ring that has wrapped is its positions and not its rows, with room to spare beside the window or without.
#[test]
fn d_20_a_wrapped_ring_is_the_cache_that_was_not_wrapped() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(20);
        let (heads, kv_heads, dim, total) = (4, 2, 48, 203);
        for dtype in [DType::F32, DType::BF16] {
            let make = |random: &mut Random, n, heads| {
                tensor_of(device, dtype, &random.values(n * heads * dim), [n, heads, dim])
            };
            let (k, v) = (make(&mut random, total, kv_heads), make(&mut random, total, kv_heads));
            for (queries, window, rows) in [(1, 16, 16), (1, 16, 23), (5, 16, 20), (40, 16, 55), (40, 33, 90)] {
                let ring = [0, 1]
                    .map(|_| tensor_of(device, dtype, &vec![f32::NAN; rows * kv_heads * dim], [rows, kv_heads, dim]));
                let mut written = 0;
                while written + queries <= total {
                    let range = written..written + queries;
                    written += queries;
                    let part = |t: &Tensor| t.slice(0, range.clone()).unwrap();
                    let positions =
                        device.tensor(&range.clone().map(|p| p as u32).collect::<Vec<_>>(), [queries]).unwrap();
                    let (layout, [kc, vc]) = (CacheLayout::Ring, &ring);
                    crate::ops::kv_write_with(stream, &part(&k), &part(&v), &positions, layout, kc, vc).unwrap();
                    // Not every step attends: the first, one past the first wrap, and the last.
                    if range.start != 0
                        && !(range.start..range.end + queries).contains(&(rows + 1))
                        && written + queries <= total
                    {
                        continue;
                    }
                    let q = make(&mut random, queries, heads);
                    let mask = Mask::Positions(&positions);
                    let options =
                        Attention { scale: 0.3, mask, window: Some(window), softcap: None, sinks: None, cache: layout };
                    let wrapped = attention(stream, &q, kc, vc, options).unwrap();
                    let options = Attention { cache: CacheLayout::Rows, ..options };
                    let plain = attention(stream, &q, &k, &v, options).unwrap();
                    let (wrapped, plain) = (values_of(stream, &wrapped), values_of(stream, &plain));
                    if device.as_cpu().is_some() {
                        assert_eq!(wrapped, plain);
                    }
                    // A GPU shares keys out by the rows of the cache.
                    let plain: Vec<f64> = plain.iter().map(|&x| x as f64).collect();
                    assert_close(dtype, &wrapped, &plain, if queries > 16 && dtype != DType::F32 { 1e3 } else { 2.0 });
                }
            }
        }
    });
}

#[test]
fn a_ring_has_the_newest_of_its_positions_that_queries_have_come_to() {
    on_every_device(|stream| {
        let ring = Case { queries: 3, keys: 300, dim: 64, ring: Some(70), shows: Shows::From(150), ..PLAIN };
        check_case(stream, &ring);
        for (queries, shows) in [(1, 69), (1, 70), (1, 0), (3, -2), (3, -3), (20, 100), (80, 90)] {
            for (types, window) in [(0, None), (4, Some(9)), (8, Some(64))] {
                check_case(stream, &Case { queries, shows: Shows::From(shows), types, window, sinks: true, ..ring });
            }
        }
        check_case(stream, &Case { queries: 2, ring: Some(1), ..ring });
        check_case(stream, &Case { queries: 20, ring: Some(7), types: 8, head_major: true, ..ring });
    });
}

/// mlx's answers, and for softcaps those of transformers' Gemma 2.
#[test]
fn agrees_with_mlx_and_transformers() {
    let golden = Golden::read("attention");
    let cases = golden.cases();
    let cases: Vec<_> = cases.iter().filter(|(case, _)| !golden.has(&format!("{case}.mask"))).collect();
    assert_eq!(cases.len(), 23);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let [q, k, v] = ["q", "k", "v"].map(tensor);
            let number = |name: &str| p[name].as_f64().map(|n| n as f32);
            let sinks = golden.has(&format!("{case}.sinks")).then(|| tensor("sinks"));
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
                // mlx has heads before tokens; strides put them in our order.
                let view = |t: &Tensor| {
                    let one = t.slice(0, b..b + 1).unwrap().reshape([t.dim(1), t.dim(2), t.dim(3)]);
                    one.unwrap().permute(&[1, 0, 2]).unwrap()
                };
                attention_into(stream, &view(&q), &view(&k), &view(&v), options, &view(&out)).unwrap();
            }
            let exact: Vec<f64> = golden.values(&format!("{case}.exact")).iter().map(|&v| v as f64).collect();
            // Scores of some hundreds have an error of as many units, and their exponentials that of the scores.
            let size = if options.scale > 1.0 { 100.0 } else { 2.0 };
            assert_close(q.dtype(), &values_of(stream, &out), &exact, size);
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
    assert!(error(&q, &k, &zeros(DType::F32, [3, 2, 8]), full, &out).contains("both of one type"));
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
    assert!(error(&q, &k, &k, ring, &out).contains("cache: got a ring with Full, wanted Mask::Positions"));
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
            ring: None,
            window,
            softcap: None,
            sinks: true,
            types: 0,
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
