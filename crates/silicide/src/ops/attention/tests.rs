use proptest::prelude::*;

use super::*;
use crate::testing::{Random, assert_close, on_every_device, rounded, tensor_of, values_of};

/// A case: sizes, and what [`Attention`] says.
#[derive(Clone, Debug)]
struct Case {
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    /// The position of the first query, for positions; None for a full mask.
    position: Option<usize>,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    types: usize,
    seed: u64,
}

impl Case {
    fn sees(&self, query: usize, key: usize) -> bool {
        let end = self.position.map_or(self.keys, |p| (p + query + 1).min(self.keys));
        key < end && self.window.is_none_or(|w| key + w >= end)
    }
}

/// The definition, in f64.
fn reference(c: &Case, scale: f64, q: &[f32], k: &[f32], v: &[f32], sinks: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for query in 0..c.queries {
        for head in 0..c.kv_heads * c.group {
            let q = &q[(query * c.kv_heads * c.group + head) * c.dim..][..c.dim];
            let row = |t: &[f32], key: usize| t[(key * c.kv_heads + head / c.group) * c.dim..][..c.dim].to_vec();
            let seen: Vec<usize> = (0..c.keys).filter(|&key| c.sees(query, key)).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|&key| {
                    let s = scale * q.iter().zip(row(k, key)).map(|(&a, b)| a as f64 * b as f64).sum::<f64>();
                    c.softcap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh())
                })
                .collect();
            let sink = c.sinks.then(|| sinks[head] as f64);
            let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - highest).exp());
            out.extend(
                (0..c.dim)
                    .map(|d| seen.iter().zip(&weights).map(|(&key, w)| w / total * row(v, key)[d] as f64).sum::<f64>()),
            );
        }
    }
    out
}

fn check_case(c: &Case) {
    let (dtype, cache_dtype) = (DType::FLOATS[c.types % 3], DType::FLOATS[c.types / 3]);
    let heads = c.kv_heads * c.group;
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(c.seed);
        let q = rounded(dtype, &random.values(c.queries * heads * c.dim));
        let k = rounded(cache_dtype, &random.values(c.keys * c.kv_heads * c.dim));
        let v = rounded(cache_dtype, &random.values(c.keys * c.kv_heads * c.dim));
        let sinks = random.values(heads);
        let qt = random.tensor(device, dtype, &q, [c.queries, heads, c.dim]);
        let kt = random.tensor(device, cache_dtype, &k, [c.keys, c.kv_heads, c.dim]);
        let vt = random.tensor(device, cache_dtype, &v, [c.keys, c.kv_heads, c.dim]);
        let positions: Vec<u32> = (0..c.queries).map(|t| (c.position.unwrap_or(0) + t) as u32).collect();
        let positions = device.tensor(&positions, [c.queries]).unwrap();
        let sinks_t = device.tensor(&sinks, [heads]).unwrap();
        let scale = 1.0 / (c.dim as f32).sqrt();
        let options = Attention {
            scale,
            mask: if c.position.is_some() { Mask::Positions(&positions) } else { Mask::Full },
            window: c.window,
            softcap: c.softcap,
            sinks: c.sinks.then_some(&sinks_t),
        };
        let out = attention(stream, &qt, &kt, &vt, options).unwrap();
        let want = reference(c, scale as f64, &q, &k, &v, &sinks);
        assert_close(dtype, &values_of(stream, &out), &want, 2.0);
    });
}

fn cases() -> impl Strategy<Value = Case> {
    let dim = prop_oneof![Just(1usize), Just(31), Just(33), Just(64), Just(80), Just(128), 1usize..100];
    let keys = prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..140];
    let sizes = (1usize..11, keys, 1usize..3, 1usize..4, dim);
    let options = (
        proptest::option::of(0usize..140),
        proptest::option::of(1usize..70),
        proptest::option::of(1.0f32..30.0),
        any::<bool>(),
        0usize..9,
        any::<u64>(),
    );
    (sizes, options).prop_map(
        |((queries, keys, kv_heads, group, dim), (position, window, softcap, sinks, types, seed))| Case {
            queries,
            keys,
            kv_heads,
            group,
            dim,
            position,
            window,
            softcap,
            sinks,
            types,
            seed,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(case in cases()) {
        check_case(&case);
    }
}

#[test]
fn takes_every_head_dim_to_512() {
    for dim in [192, 256, 512] {
        check_case(&Case {
            queries: 3,
            keys: 40,
            kv_heads: 1,
            group: 2,
            dim,
            position: Some(37),
            window: None,
            softcap: None,
            sinks: false,
            types: 0,
            seed: dim as u64,
        });
    }
}

#[test]
fn causal_is_aligned_to_the_last_key() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(5);
        let make = |random: &mut Random, n| tensor_of(device, DType::F32, &random.values(n * 2 * 16), [n, 2, 16]);
        let (q, k, v) = (make(&mut random, 3), make(&mut random, 10), make(&mut random, 10));
        let mut options = Attention { scale: 0.25, mask: Mask::Causal, window: Some(4), softcap: None, sinks: None };
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
        let options =
            Attention { scale: 1.0, mask: Mask::Positions(&positions), window: None, softcap: None, sinks: None };
        let y = attention(stream, &q, &k, &v, options).unwrap().to_vec::<f32>(stream).unwrap();
        assert_eq!(y, [0.0, 7.0]);
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = crate::Device::cpu();
    let stream = &mut device.stream();
    let q = device.zeros(DType::F32, [1, 3, 8]).unwrap();
    let k = device.zeros(DType::F32, [4, 2, 8]).unwrap();
    let options = Attention { scale: 1.0, mask: Mask::Causal, window: None, softcap: None, sinks: None };
    let error = attention(stream, &q, &k, &k, options).unwrap_err().to_string();
    assert_eq!(error, "attention: q: got 3 heads, wanted a multiple of the 2 key heads");
    let q = device.zeros(DType::F32, [5, 2, 8]).unwrap();
    assert!(attention(stream, &q, &k, &k, options).unwrap_err().to_string().contains("5 queries and 4 keys"));
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
            position: Some(0),
            window,
            softcap: None,
            sinks: true,
            types: 0,
            seed: 0,
        };
        let want = reference(&case, 0.2f32 as f64, &q, &k, &v, &sinks);
        for &features in crate::device::cpu::Features::all() {
            let device = crate::Device::cpu_with(crate::device::CpuOptions { threads: 3, features: Some(features) });
            let stream = &mut device.stream();
            let q = device.tensor(&q, [n, heads, dim]).unwrap();
            let k = tensor_of(&device, DType::F16, &k, [n, kv_heads, dim]);
            let v = tensor_of(&device, DType::F16, &v, [n, kv_heads, dim]);
            let positions = device.tensor(&(0..n as u32).collect::<Vec<_>>(), [n]).unwrap();
            let sinks = device.tensor(&sinks, [heads]).unwrap();
            let mut run = |range: std::ops::Range<usize>| {
                let positions = positions.slice(0, range.clone()).unwrap();
                let mask = Mask::Positions(&positions);
                let options = Attention { scale: 0.2, mask, window, softcap: None, sinks: Some(&sinks) };
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
