use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::device::CpuOptions;
use crate::ops::{
    AffineOptions, KvCodecOptions, copy_into, hadamard_signs, kv_dequantize_affine, kv_quantize_affine,
    kv_quantize_with,
};
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

/// How keys or values are stored.
#[derive(Clone, Copy, Debug)]
enum Store {
    Affine { bits: u32, group_size: usize, scales: usize },
    Rotated { bits: u32, norms: usize, signed: bool },
}

/// A cache of one of them.
enum Cache {
    Affine(AffineRows),
    Rotated(Tensor, Tensor, Box<KvCodec>),
}

impl Cache {
    fn rows(&self) -> QuantizedRows<'_> {
        match self {
            Cache::Affine(rows) => QuantizedRows::Affine(rows),
            Cache::Rotated(codes, norms, codec) => QuantizedRows::Rotated { codes, norms, codec },
        }
    }

    /// `[keys, heads, head_dim]`, in f32.
    fn values(&self, stream: &mut Stream, dim: usize) -> Vec<f32> {
        let t = match self {
            Cache::Affine(rows) => kv_dequantize_affine(stream, rows, dim, DType::F32),
            Cache::Rotated(codes, norms, codec) => {
                kv_dequantize(stream, codes, norms, codec, KvDomain::Original, DType::F32)
            }
        };
        let t = crate::ops::copy(stream, &t.unwrap().permute(&[1, 0, 2]).unwrap()).unwrap();
        values_of(stream, &t)
    }
}

/// A view of a tensor of the same shape with other strides: rows before heads, and gaps.
fn spread(stream: &mut Stream, t: &Tensor, gap: usize) -> Tensor {
    let mut shape = *t.shape();
    shape.swap(0, 1);
    let (axis, len) = (t.rank() - 1, t.dim(-1));
    // Of two axes the last is not that of a row's elements.
    if axis == 1 {
        return t.clone();
    }
    shape[axis] += 2 * gap;
    let wide = t.device().zeros(t.dtype(), shape).unwrap().slice(axis, gap..gap + len).unwrap();
    let view = wide.permute(&[1, 0, 2]).unwrap();
    copy_into(stream, t, &view).unwrap();
    view
}

impl Store {
    /// A cache of `keys` rows after `tokens` tokens were written.
    fn cache(self, stream: &mut Stream, c: &Case, tokens: usize, random: &mut Random) -> Cache {
        let device = &stream.device().clone();
        let x = random.values(tokens * c.kv_heads * c.dim);
        let x = tensor_of(device, DType::F32, &x, [tokens, c.kv_heads, c.dim]);
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let positions = device.tensor(&positions, [tokens]).unwrap();
        match self {
            Store::Affine { bits, group_size, scales } => {
                let options = AffineOptions { bits, group_size, dtype: DType::FLOATS[scales] };
                let rows = AffineRows::zeros(device, c.kv_heads, c.keys, c.dim, options).unwrap();
                kv_quantize_affine(stream, &x, &positions, c.layout(), &rows).unwrap();
                if !c.spread {
                    return Cache::Affine(rows);
                }
                Cache::Affine(AffineRows {
                    codes: spread(stream, &rows.codes, 1),
                    scales: spread(stream, &rows.scales, 3),
                    biases: spread(stream, &rows.biases, 2),
                })
            }
            Store::Rotated { bits, norms, signed } => {
                let signs = signed.then(|| hadamard_signs(device, c.dim, c.seed).unwrap());
                let options = KvCodecOptions { bits, norms, signs: signs.as_ref() };
                let codec = KvCodec::new(device, c.dim, options).unwrap();
                let (codes, norms) = codec.cache(c.kv_heads, c.keys).unwrap();
                kv_quantize_with(stream, &x, &positions, c.layout(), &codec, &codes, &norms).unwrap();
                if !c.spread {
                    return Cache::Rotated(codes, norms, codec.into());
                }
                Cache::Rotated(spread(stream, &codes, 4), spread(stream, &norms, 1), codec.into())
            }
        }
    }
}

/// A case: sizes, and what [`Attention`] says.
#[derive(Clone, Debug)]
struct Case {
    queries: usize,
    keys: usize,
    kv_heads: usize,
    group: usize,
    dim: usize,
    k: Store,
    v: Store,
    shows: Shows,
    window: Option<usize>,
    softcap: Option<f32>,
    sinks: bool,
    spread: bool,
    dtype: usize,
    seed: u64,
}

/// A [`Mask`] without its tensor.
#[derive(Clone, Copy, Debug)]
enum Shows {
    Full,
    Causal,
    /// The position of the first query: below 0 it sees nothing.
    From(i64),
    /// The same over a ring.
    Ring(i64),
}

impl Case {
    fn layout(&self) -> CacheLayout<'static> {
        if matches!(self.shows, Shows::Ring(_)) { CacheLayout::Ring } else { CacheLayout::Rows }
    }

    /// The positions that a query sees.
    fn sees(&self, query: usize) -> std::ops::Range<usize> {
        let (keys, query) = (self.keys as i64, query as i64);
        let (end, oldest) = match self.shows {
            Shows::Full => (keys, 0),
            Shows::Causal => (keys - self.queries as i64 + query + 1, 0),
            Shows::From(p) => ((p + query + 1).clamp(0, keys), 0),
            Shows::Ring(p) => ((p + query + 1).max(0), (p + self.queries as i64 - keys).max(0)),
        };
        let start = self.window.map_or(0, |w| end - w as i64).max(oldest).min(end);
        start as usize..end as usize
    }
}

/// The definition, in f64.
fn reference(c: &Case, scale: f64, q: &[f32], k: &[f32], v: &[f32], sinks: &[f32]) -> Vec<f64> {
    let mut out = Vec::new();
    for query in 0..c.queries {
        for head in 0..c.kv_heads * c.group {
            let q = &q[(query * c.kv_heads * c.group + head) * c.dim..][..c.dim];
            let row = |key: usize| (key % c.keys * c.kv_heads + head / c.group) * c.dim..;
            let score = |key: usize| {
                let s = scale * q.iter().zip(&k[row(key)]).map(|(&a, &b)| a as f64 * b as f64).sum::<f64>();
                c.softcap.map_or(s, |cap| cap as f64 * (s / cap as f64).tanh())
            };
            let scores: Vec<f64> = c.sees(query).map(score).collect();
            let sink = c.sinks.then(|| sinks[head] as f64);
            let highest = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
            let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - highest).exp());
            let weighted =
                |d: usize| c.sees(query).zip(&weights).map(|(i, w)| w / total * v[row(i)][d] as f64).sum::<f64>();
            out.extend((0..c.dim).map(weighted));
        }
    }
    out
}

fn check_case(stream: &mut Stream, c: &Case) {
    let dtype = DType::FLOATS[c.dtype];
    let heads = c.kv_heads * c.group;
    let device = &stream.device().clone();
    let mut random = Random::new(c.seed);
    let q = rounded(dtype, &random.values(c.queries * heads * c.dim));
    let sinks = random.values(heads);
    let qt = random.tensor(device, dtype, &q, [c.queries, heads, c.dim]);
    let first = match c.shows {
        Shows::From(p) | Shows::Ring(p) => p,
        _ => 0,
    };
    let tokens = match c.shows {
        Shows::Ring(p) => (p + c.queries as i64).max(0) as usize,
        _ => c.keys,
    };
    let (k, v) = (c.k.cache(stream, c, tokens, &mut random), c.v.cache(stream, c, tokens, &mut random));
    let positions: Vec<i32> = (0..c.queries as i64).map(|t| (first + t) as i32).collect();
    let positions = device.tensor(&positions, [c.queries]).unwrap();
    let sinks_t = device.tensor(&sinks, [heads]).unwrap();
    let scale = 1.0 / (c.dim as f32).sqrt();
    let options = Attention {
        scale,
        mask: match c.shows {
            Shows::Full => Mask::Full,
            Shows::Causal => Mask::Causal,
            Shows::From(_) | Shows::Ring(_) => Mask::Positions(&positions),
        },
        window: c.window,
        softcap: c.softcap,
        sinks: c.sinks.then_some(&sinks_t),
        cache: c.layout(),
    };
    let out = random.tensor(device, dtype, &vec![7.0; q.len()], *qt.shape());
    quantized_attention_into(stream, &qt, k.rows(), v.rows(), options, &out).unwrap();
    let many = c.queries > FEW as usize;
    let [k, v] = [k, v].map(|cache| {
        let values = cache.values(stream, c.dim);
        if many { rounded(dtype, &values) } else { values }
    });
    let want = reference(c, scale as f64, &q, &k, &v, &sinks);
    // Of many queries elements are rounded, and on a GPU weights of values: with them a sum of values up to 2 or so.
    let slack = match dtype {
        DType::F16 if many => 2f64.powi(-11) / 4e-6,
        DType::BF16 if many => 2f64.powi(-8) / 4e-6,
        _ => 4.0,
    };
    assert_close(dtype, &values_of(stream, &out), &want, 2.0 * slack);
}

fn stores() -> impl Strategy<Value = (usize, Store)> {
    let affine = (1usize..6, prop_oneof![Just(4u32), Just(8)], 0usize..3, 0usize..3);
    let affine = affine.prop_map(|(groups, bits, group, scales)| {
        let group_size = 32 << group;
        let dim = (group_size * groups).min(512);
        (dim, Store::Affine { bits, group_size, scales })
    });
    let rotated = (6u32..10, 0usize..4, 1usize..3, any::<bool>());
    let rotated = rotated
        .prop_map(|(log, bits, norms, signed)| (1 << log, Store::Rotated { bits: [4, 5, 6, 8][bits], norms, signed }));
    prop_oneof![affine, rotated]
}

fn cases() -> impl Strategy<Value = Case> {
    let keys = prop_oneof![Just(1usize), Just(31), Just(33), Just(65), 1usize..140];
    let group = prop_oneof![Just(1usize), Just(2), Just(3), Just(4), Just(7), Just(8), Just(9)];
    let shows = prop_oneof![
        Just(Shows::Full),
        Just(Shows::Causal),
        (-9i64..140).prop_map(Shows::From),
        (-9i64..200).prop_map(Shows::Ring)
    ];
    let sizes = (1usize..11, keys, 1usize..3, group);
    let options = (
        shows,
        proptest::option::of(1usize..70),
        proptest::option::of(1.0f32..30.0),
        any::<(bool, bool)>(),
        0usize..3,
        any::<u64>(),
    );
    (sizes, stores(), stores(), options).prop_map(|(sizes, (dim, k), (v_dim, v), options)| {
        let (queries, keys, kv_heads, group) = sizes;
        let (shows, window, softcap, (sinks, spread), dtype, seed) = options;
        // Values that fit the head_dim, or what keys have.
        let v = if v_dim == dim { v } else { k };
        // Causal queries have a key each; and large cases are not larger than they must be.
        let most = if matches!(shows, Shows::Causal) { keys } else { 10 };
        let queries = queries.min(most).min((4000 / (group * kv_heads * dim)).max(1));
        Case { queries, keys, kv_heads, group, dim, k, v, shows, window, softcap, sinks, spread, dtype, seed }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn follows_the_definition(case in cases()) {
        on_every_device(|stream| check_case(stream, &case));
    }
}

const AFFINE: Store = Store::Affine { bits: 8, group_size: 64, scales: 1 };
const ROTATED: Store = Store::Rotated { bits: 4, norms: 1, signed: true };

/// Queries at the last keys, two heads a key head.
const PLAIN: Case = Case {
    queries: 3,
    keys: 33,
    kv_heads: 1,
    group: 2,
    dim: 64,
    k: AFFINE,
    v: ROTATED,
    shows: Shows::Causal,
    window: None,
    softcap: None,
    sinks: false,
    spread: false,
    dtype: 0,
    seed: 1,
};

#[test]
fn takes_every_store() {
    on_every_device(|stream| {
        for (i, dim) in [64, 128, 256, 512].into_iter().enumerate() {
            for (j, bits) in [4, 5, 6, 8].into_iter().enumerate() {
                let k = Store::Rotated { bits, norms: 1 + (i + j) % 2, signed: i % 2 == 0 };
                let v = Store::Affine { bits: [4, 8][(i + j) % 2], group_size: [32, 64][i % 2], scales: j % 3 };
                let (k, v) = if j % 2 == 0 { (k, v) } else { (v, k) };
                check_case(stream, &Case { queries: 1, dim, k, v, dtype: j % 3, ..PLAIN });
            }
        }
        for (dim, group_size) in [(32, 32), (96, 32), (160, 32), (192, 64), (320, 64), (384, 128)] {
            let k = Store::Affine { bits: 4, group_size, scales: 0 };
            let v = Store::Affine { bits: 8, group_size, scales: 0 };
            check_case(stream, &Case { dim, k, v, ..PLAIN });
        }
    });
}

/// Keys are computed in parts, some of which may see nothing, and joined.
#[test]
fn takes_many_keys() {
    on_every_device(|stream| {
        let many = Case { queries: 1, keys: 600, shows: Shows::From(599), ..PLAIN };
        check_case(stream, &many);
        check_case(stream, &Case { shows: Shows::From(40), sinks: true, ..many });
        check_case(stream, &Case { shows: Shows::From(-1), sinks: true, ..many });
        check_case(stream, &Case { window: Some(330), dtype: 2, dim: 256, ..many });
        check_case(stream, &Case { shows: Shows::Ring(1000), window: Some(500), dim: 128, ..many });
        check_case(stream, &Case { queries: 3, shows: Shows::Causal, softcap: Some(4.0), dtype: 1, ..many });
    });
}

/// So many heads leave no parts: a simdgroup of an NVIDIA GPU takes keys more than once, and maxima and scales change as it does.
#[test]
fn takes_many_keys_in_one_part() {
    on_every_device(|stream| {
        if stream.device().takes_nvidia_kernels() {
            let v = Store::Affine { bits: 4, group_size: 64, scales: 0 };
            let many = Case { queries: 1, keys: 300, kv_heads: 128, group: 1, shows: Shows::From(290), ..PLAIN };
            check_case(stream, &Case { k: ROTATED, v, dtype: 1, ..many });
        }
    });
}

/// More queries than read codes.
#[test]
fn takes_many_queries() {
    on_every_device(|stream| {
        for (dtype, shows) in [Shows::Causal, Shows::From(3), Shows::Ring(50)].into_iter().enumerate() {
            check_case(stream, &Case { queries: 17, keys: 40, shows, dtype, window: Some(19), sinks: true, ..PLAIN });
        }
    });
}

#[test]
fn takes_every_number_of_heads_a_key_head() {
    on_every_device(|stream| {
        for group in [1, 3, 5, 6, 7, 8, 9, 16, 17] {
            let dim = if group % 3 == 0 { 512 } else { 64 };
            check_case(stream, &Case { queries: 1, group, kv_heads: 2, dim, ..PLAIN });
        }
    });
}

#[test]
fn queries_that_see_nothing_give_zeros_whatever_else_is_asked() {
    on_every_device(|stream| {
        for (sinks, softcap, window) in [(false, None, None), (true, None, Some(2)), (true, Some(5.0), Some(1))] {
            // Five queries see nothing, the others one key more each.
            for shows in [Shows::From(-5), Shows::Ring(-5)] {
                check_case(stream, &Case { queries: 9, shows, sinks, softcap, window, ..PLAIN });
            }
        }
    });
}

#[test]
fn any_schedule_gives_the_definition() {
    on_every_schedule(|stream| {
        check_case(stream, &Case { sinks: true, window: Some(20), spread: true, ..PLAIN });
        check_case(stream, &Case { queries: 1, keys: 290, group: 5, dim: 128, shows: Shows::Ring(300), ..PLAIN });
    });
}

/// The answers of mlx-lm.
#[test]
fn agrees_with_mlx_lm() {
    let golden = Golden::read("quantized_attention");
    let cases = golden.cases();
    assert_eq!(cases.len(), 11);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
            let rows = |side: &str| {
                let [codes, scales, biases] = ["q", "scales", "biases"].map(|part| tensor(&format!("{side}_{part}")));
                AffineRows { codes, scales, biases }
            };
            let (q, k, v) = (tensor("q"), rows("k"), rows("v"));
            let options = Attention {
                scale: p["scale"].as_f64().unwrap() as f32,
                mask: if p["causal"] == true { Mask::Causal } else { Mask::Full },
                window: None,
                softcap: None,
                sinks: None,
                cache: CacheLayout::Rows,
            };
            // mlx has heads before tokens; strides put them in our order.
            let out = stream.empty(q.dtype(), *q.shape()).unwrap();
            let turned = |t: &Tensor| t.permute(&[1, 0, 2]).unwrap();
            let (k, v) = (QuantizedRows::Affine(&k), QuantizedRows::Affine(&v));
            quantized_attention_into(stream, &turned(&q), k, v, options, &turned(&out)).unwrap();
            let exact = golden.exact_values(&format!("{case}.exact"));
            // Many queries have keys, values and perhaps weights rounded once more.
            let slack = if q.dim(1) > 16 && q.dtype() == DType::F16 { 2f64.powi(-10) / 4e-6 } else { 4.0 };
            assert_close(q.dtype(), &values_of(stream, &out), &exact, 2.0 * slack);
        }
    });
}

#[test]
fn a_query_does_not_depend_on_its_neighbours() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let c = Case { queries: 1, keys: 150, kv_heads: 2, shows: Shows::Full, ..PLAIN };
        let mut random = Random::new(11);
        let (k, v) = (c.k.cache(stream, &c, 150, &mut random), c.v.cache(stream, &c, 150, &mut random));
        let n = 13;
        let q = tensor_of(device, DType::F32, &random.values(n * 4 * 64), [n, 4, 64]);
        let positions: Vec<u32> = (0..n as u32).map(|t| 3 + 11 * t).collect();
        let positions = device.tensor(&positions, [n]).unwrap();
        let mut run = |from: usize, to: usize| {
            let positions = positions.slice(0, from..to).unwrap();
            let mask = Mask::Positions(&positions);
            let cache = CacheLayout::Rows;
            let options = Attention { scale: 0.1, mask, window: Some(90), softcap: None, sinks: None, cache };
            let q = q.slice(0, from..to).unwrap();
            let out = quantized_attention(stream, &q, k.rows(), v.rows(), options).unwrap();
            values_of(stream, &out)
        };
        let whole = run(0, n);
        let parts: Vec<f32> = [(0, 1), (1, 8), (8, n)].into_iter().flat_map(|(a, b)| run(a, b)).collect();
        assert_eq!(whole, parts);
    });
}

/// What is not finite, or is not yet written, stays with the queries that see it.
#[test]
fn nan_stays_with_the_queries_that_see_it() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (keys, dim) = (9, 64);
        let positions = device.tensor(&[3u32, 5], [2]).unwrap();
        for store in [AFFINE, ROTATED] {
            for lost in [f32::NAN, f32::INFINITY] {
                // In a key, a value and a query.
                for place in 0..3 {
                    let c = Case { queries: 2, keys, k: store, v: store, ..PLAIN };
                    let mut random = Random::new(5);
                    let (k, v) = (store.cache(stream, &c, 4, &mut random), store.cache(stream, &c, 4, &mut random));
                    let mut bad = vec![1.0; 5 * dim];
                    // Row 4 is seen by the second query, the rows behind by none.
                    (bad[3], bad[2 * dim], bad[3 * dim], bad[4 * dim]) = (lost, lost, lost, lost);
                    let bad = device.tensor(&bad, [5, 1, dim]).unwrap();
                    let (k_at, v_at) = match place {
                        0 => ([4u32, 5, 6, 7, 8], [20u32, 5, 6, 7, 8]),
                        1 => ([20, 5, 6, 7, 8], [4, 5, 6, 7, 8]),
                        _ => ([20, 20, 6, 7, 8], [20, 20, 6, 7, 8]),
                    };
                    for (cache, at) in [(&k, k_at), (&v, v_at)] {
                        let at = device.tensor(&at, [5]).unwrap();
                        let layout = CacheLayout::Rows;
                        match cache {
                            Cache::Affine(rows) => kv_quantize_affine(stream, &bad, &at, layout, rows),
                            Cache::Rotated(codes, norms, codec) => {
                                kv_quantize_with(stream, &bad, &at, layout, codec, codes, norms)
                            }
                        }
                        .unwrap();
                    }
                    let mut q = random.values(2 * 2 * dim);
                    if place == 2 {
                        q[2 * dim + 9] = lost;
                    }
                    let q = device.tensor(&q, [2, 2, dim]).unwrap();
                    let mask = Mask::Positions(&positions);
                    let options = Attention {
                        scale: 0.1,
                        mask,
                        window: None,
                        softcap: None,
                        sinks: None,
                        cache: CacheLayout::Rows,
                    };
                    let y = quantized_attention(stream, &q, k.rows(), v.rows(), options).unwrap();
                    let y = values_of(stream, &y);
                    assert!(y[..2 * dim].iter().all(|y| y.is_finite()), "{store:?} {lost} {place} {y:?}");
                    // A NaN among affine codes stays in its group, which is the row here; a query's is one head's.
                    assert!(y[2 * dim..3 * dim].iter().all(|y| !y.is_finite()), "{store:?} {lost} {place} {y:?}");
                    assert_eq!(
                        y[3 * dim..].iter().all(|y| y.is_finite()),
                        place == 2,
                        "{store:?} {lost} {place} {y:?}"
                    );
                }
            }
        }
    });
}

#[test]
fn every_level_of_instructions_and_number_of_threads_gives_the_definition() {
    for &features in crate::device::cpu::Features::all() {
        for threads in [1, 3] {
            let stream = &mut Device::cpu_with(CpuOptions { threads, features: Some(features) }).stream();
            for (i, bits) in [4, 5, 6, 8].into_iter().enumerate() {
                let k = Store::Rotated { bits, norms: 1 + i % 2, signed: true };
                let v = Store::Affine { bits: [4, 8][i % 2], group_size: 32 << (i % 3), scales: i % 3 };
                let case =
                    Case { k, v, queries: 6, keys: 300, dim: 128, group: [1, 7, 8, 13][i], kv_heads: 2, ..PLAIN };
                check_case(stream, &case);
                check_case(stream, &Case { k: v, v: k, ..case });
            }
        }
    }
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let rows = AffineRows::zeros(&device, 2, 4, 64, AffineOptions::default()).unwrap();
    let other = AffineRows::zeros(&device, 2, 5, 64, AffineOptions::default()).unwrap();
    let codec = KvCodec::new(&device, 128, KvCodecOptions::default()).unwrap();
    let (codes, norms) = codec.cache(2, 4).unwrap();
    let affine = QuantizedRows::Affine(&rows);
    let wide = QuantizedRows::Rotated { codes: &codes, norms: &norms, codec: &codec };
    let options = Attention {
        scale: 1.0,
        mask: Mask::Causal,
        window: None,
        softcap: None,
        sinks: None,
        cache: CacheLayout::Rows,
    };
    let q = |shape: [usize; 3]| device.zeros(DType::F32, shape).unwrap();
    let mut error = |q: &Tensor, k: QuantizedRows, v: QuantizedRows, options: Attention| {
        quantized_attention(stream, q, k, v, options).unwrap_err().to_string()
    };
    let one = q([1, 4, 64]);
    assert_eq!(
        error(&one, affine, wide, options),
        "quantized_attention: v: got a codec for a head_dim of 128, wanted 64"
    );
    let got = error(&one, affine, QuantizedRows::Affine(&other), options);
    assert!(got.contains("got keys of 2 heads and 4 rows, and values of 2 and 5"), "{got}");
    assert!(
        error(&q([1, 3, 64]), affine, affine, options).contains("got 3 heads, wanted a multiple of the 2 key heads")
    );
    assert!(error(&q([1, 4, 96]), affine, affine, options).contains("k.codes: got u32[2, 4, 16]"));
    assert!(error(&q([5, 4, 64]), affine, affine, options).contains("causal queries need a key each"));
    assert!(error(&q([1, 4, 576]), affine, affine, options).contains("head_dim: got 576, wanted at most 512"));
    let ring = Attention { cache: CacheLayout::Ring, ..options };
    assert!(error(&one, affine, affine, ring).contains("cache: got a ring with Causal, wanted Mask::Positions"));
    let table = device.zeros(DType::U32, [1]).unwrap();
    let paged = Attention { cache: CacheLayout::Pages(&table), ..options };
    assert!(error(&one, affine, affine, paged).contains("got a cache in pages; codes are kept in rows or in a ring"));
    let shown = device.zeros(DType::Bool, [1, 4]).unwrap();
    for mask in [Mask::Boolean(&shown), Mask::Additive(&norms)] {
        let masked = Attention { mask, ..options };
        assert!(error(&one, affine, affine, masked).contains("mask: got the tensor"));
    }
    let capped = Attention { softcap: Some(0.0), ..options };
    assert!(error(&one, affine, affine, capped).contains("softcap: got Some(0.0), wanted more than 0"));
    let windowed = Attention { window: Some(0), ..options };
    assert!(error(&one, affine, affine, windowed).contains("window: got 0, wanted at least 1"));
    let sinks = device.zeros(DType::F32, [3]).unwrap();
    let sunk = Attention { sinks: Some(&sinks), ..options };
    assert!(error(&one, affine, affine, sunk).contains("sinks: got f32[3], wanted f32[4]"));
    let positions = device.zeros(DType::F32, [1]).unwrap();
    let placed = Attention { mask: Mask::Positions(&positions), ..options };
    assert!(error(&one, affine, affine, placed).contains("positions: got f32[1], wanted i32 or u32 [1]"));
}
