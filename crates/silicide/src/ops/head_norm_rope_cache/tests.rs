use proptest::prelude::*;

use super::*;
use crate::ops::{
    FallbackAxis, Pairing, RmsNormOptions, RopeFrequencies, RopeMultiMode, RopeSections, copy, kv_write, rms_norm_with,
    rope_in_place, rope_multi_in_place,
};
use crate::testing::{Random, on_every_device, on_every_schedule, rounded, tensor_of, values_of};
use crate::{Device, DeviceKind};

#[derive(Clone, Debug)]
struct Case {
    sizes: [usize; 4],
    pairs: usize,
    pairing: Pairing,
    dtype: DType,
    wide_weights: bool,
    cache: DType,
    /// Added to the weights of the norm; none without one.
    offset: Option<f32>,
    several_axes: bool,
    /// Elements of the queries that are NaN and infinite.
    odd: bool,
    seed: u64,
}

enum Turn {
    One(Rope),
    Several(RopeMulti),
}

/// The op beside the three that it stands for, which are held against other implementations.
fn gives_what_the_three_ops_give(stream: &mut Stream, case: &Case) {
    let Case { sizes: [tokens, heads, kv_heads, dim], pairs, pairing, dtype, cache, seed, .. } = *case;
    let device = &stream.device().clone();
    let mut random = Random::new(seed);
    let mut make = |heads: usize| {
        let mut values = rounded(dtype, &random.values(tokens * heads * dim));
        if case.odd && !values.is_empty() {
            values[0] = f32::NAN;
            *values.last_mut().unwrap() = f32::INFINITY;
        }
        // Heads before tokens in memory, some elements into a buffer.
        let t =
            random.tensor(device, dtype, &vec![0.0; values.len()], [heads, tokens, dim]).permute(&[1, 0, 2]).unwrap();
        (t, values)
    };
    let sources = [make(heads), make(kv_heads), make(kv_heads)];
    let [q, k, v] = [0, 1, 2].map(|i| {
        let (view, values) = &sources[i];
        crate::ops::copy_into(stream, &tensor_of(device, dtype, values, *view.shape()), view).unwrap();
        view.clone()
    });
    let weight_dtype = if case.wide_weights { DType::F32 } else { dtype };
    let weights = [0, 1].map(|_| tensor_of(device, weight_dtype, &random.values(dim), [dim]));
    let frequencies = RopeFrequencies::new(2 * pairs, 1e4).unwrap();
    let turn = if case.several_axes {
        let sections =
            RopeSections { mode: RopeMultiMode::Mrope, sections: [1, 1, 1, 0], fallback: FallbackAxis::Temporal };
        let pairing = if pairing == Pairing::SectionHalves { Pairing::Halves } else { pairing };
        Turn::Several(RopeMulti::new(device, &frequencies, sections, pairing).unwrap())
    } else {
        Turn::One(Rope::new(device, &frequencies, pairing).unwrap())
    };
    let axes = if case.several_axes { 4 } else { 1 };
    let positions: Vec<i32> = (0..axes * tokens).map(|_| random.below(100_000) as i32).collect();
    let positions = device.tensor(&positions, [axes * tokens]).unwrap();
    let capacity = tokens + 2;
    // The second token has no place in the cache.
    let slots: Vec<i32> = (0..tokens as i32).map(|t| if t == 1 { -1 } else { tokens as i32 - t }).collect();
    let slots = device.tensor(&slots, [tokens]).unwrap();
    let caches = || {
        [0, 1].map(|_| {
            let nines = vec![9.0; kv_heads * capacity * dim];
            tensor_of(device, cache, &nines, [kv_heads, capacity, dim]).permute(&[1, 0, 2]).unwrap()
        })
    };

    let (ours, theirs) = (caches(), caches());
    let (wanted_q, wanted_k) = (copy(stream, &q).unwrap(), copy(stream, &k).unwrap());
    for (x, weight) in [(&wanted_q, &weights[0]), (&wanted_k, &weights[1])] {
        let Some(weight_offset) = case.offset else { continue };
        let options = RmsNormOptions { weight: Some(weight), weight_offset, eps: 1e-6, residual: None, sum: None };
        rms_norm_with(stream, x, options, x).unwrap();
    }
    match &turn {
        Turn::One(rope) => rope_in_place(stream, &wanted_q, &wanted_k, &positions, rope).unwrap(),
        Turn::Several(rope) => rope_multi_in_place(stream, &wanted_q, &wanted_k, &positions, rope).unwrap(),
    }
    kv_write(stream, &wanted_k, &v, &slots, &theirs[0], &theirs[1]).unwrap();

    let norm = |weight_offset| HeadNorm { q_weight: &weights[0], k_weight: &weights[1], weight_offset, eps: 1e-6 };
    let norm = case.offset.map(norm);
    let to = CacheSlots { slots: &slots, keys: &ours[0], values: &ours[1] };
    match &turn {
        Turn::One(rope) => head_norm_rope_cache(stream, &q, &k, &v, norm, &positions, rope, to).unwrap(),
        Turn::Several(rope) => head_norm_rope_multi_cache(stream, &q, &k, &v, norm, &positions, rope, to).unwrap(),
    }
    // GPUs may contract a product and a sum in one kernel and not in another, which can move a rounding.
    let exact = device.kind() == DeviceKind::Cpu || device.kind().is_emulated();
    let mut same = |got: &Tensor, want: &Tensor, what: &str| {
        for (i, (g, w)) in values_of(stream, got).into_iter().zip(values_of(stream, want)).enumerate() {
            let near = !exact && (g - w).abs() <= 0.01 * (1.0 + w.abs());
            assert!(g == w || g.is_nan() && w.is_nan() || near, "{what} {i}: got {g}, wanted {w} ({case:?})");
        }
    };
    same(&q, &wanted_q, "query");
    same(&ours[0], &theirs[0], "key");
    same(&ours[1], &theirs[1], "value");
    // Keys and values stay as they are.
    for (t, values) in [(&k, &sources[1].1), (&v, &sources[2].1)] {
        same(t, &tensor_of(device, dtype, values, *t.shape()), "source");
    }
}

const PAIRINGS: [Pairing; 4] = [Pairing::Interleaved, Pairing::Halves, Pairing::HeadHalves, Pairing::SectionHalves];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_three_ops(
        tokens in 0usize..4,
        heads in (1usize..7, 1usize..4),
        half in prop_oneof![Just(16usize), Just(32), Just(33), Just(64), Just(128), Just(129), Just(256), 1usize..70],
        part in 0usize..4,
        pairing in 0usize..4,
        types in 0usize..9,
        wide_weights: bool,
        several_axes: bool,
        offset in 0u8..3,
        odd: bool,
        seed: u64,
    ) {
        let case = Case {
            sizes: [tokens, heads.0, heads.1, 2 * half],
            pairs: (half * (4 - part) / 4).max(1),
            pairing: PAIRINGS[pairing],
            dtype: DType::FLOATS[types % 3],
            wide_weights,
            cache: DType::FLOATS[types / 3],
            offset: (offset < 2).then_some(offset.into()),
            several_axes,
            odd,
            seed,
        };
        on_every_device(|stream| gives_what_the_three_ops_give(stream, &case));
    }
}

#[test]
fn any_schedule_gives_what_the_three_ops_give() {
    let case = Case {
        sizes: [3, 5, 3, 258],
        pairs: 65,
        pairing: Pairing::HeadHalves,
        dtype: DType::BF16,
        wide_weights: true,
        cache: DType::F16,
        offset: Some(1.0),
        several_axes: false,
        odd: false,
        seed: 3,
    };
    on_every_schedule(|stream| gives_what_the_three_ops_give(stream, &case));
}

#[test]
fn teams_of_several_heads_give_what_the_three_ops_give() {
    for (dim, pairs, dtype, cache) in [
        (128, 64, DType::BF16, DType::BF16),
        (256, 32, DType::F16, DType::F32),
        (64, 32, DType::F32, DType::F16),
        (80, 20, DType::BF16, DType::F16),
    ] {
        let case = Case {
            sizes: [11, 7, 3, dim],
            pairs,
            pairing: Pairing::Halves,
            dtype,
            wide_weights: dtype == DType::F16,
            cache,
            offset: (dim > 64).then_some(1.0),
            several_axes: dim == 256,
            odd: true,
            seed: 5,
        };
        on_every_device(|stream| gives_what_the_three_ops_give(stream, &case));
    }
}

#[test]
fn many_threads_give_what_one_gives() {
    let run = |threads: usize| {
        let device = Device::cpu_with(crate::device::CpuOptions { threads, ..Default::default() });
        let case = Case {
            sizes: [400, 3, 2, 64],
            pairs: 24,
            pairing: Pairing::Halves,
            dtype: DType::F32,
            wide_weights: false,
            cache: DType::F16,
            offset: None,
            several_axes: false,
            odd: false,
            seed: 4,
        };
        gives_what_the_three_ops_give(&mut device.stream(), &case);
    };
    run(1);
    run(3);
}

/// D-03: one token of a decode has the pairs that the tokens of a prompt have, and heads of 512 find room.
#[test]
fn d_03_one_token_and_many_have_the_same_pairs_in_heads_of_512() {
    on_every_device(|stream| {
        for tokens in [1, 3] {
            for pairing in [Pairing::Halves, Pairing::HeadHalves] {
                let case = Case {
                    sizes: [tokens, 3, 2, 512],
                    pairs: 64,
                    pairing,
                    dtype: DType::BF16,
                    wide_weights: false,
                    cache: DType::BF16,
                    offset: Some(0.0),
                    several_axes: false,
                    odd: false,
                    seed: 5,
                };
                gives_what_the_three_ops_give(stream, &case);
            }
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |dtype, shape: [usize; 3]| device.zeros(dtype, shape).unwrap();
    let (q, k, v) = (zeros(DType::F16, [2, 4, 8]), zeros(DType::F16, [2, 2, 8]), zeros(DType::F16, [2, 2, 8]));
    let caches = [zeros(DType::F32, [5, 2, 8]), zeros(DType::F32, [5, 2, 8])];
    let rope = Rope::new(&device, &RopeFrequencies::new(8, 1e4).unwrap(), Pairing::Halves).unwrap();
    let weight = device.zeros(DType::F16, [8]).unwrap();
    let slots = device.zeros(DType::U32, [2]).unwrap();
    let mut error = |q: &Tensor, k: &Tensor, v: &Tensor, weight: &Tensor, keys: &Tensor, slots: &Tensor| {
        let norm = HeadNorm { q_weight: weight, k_weight: weight, weight_offset: 0.0, eps: 1e-6 };
        let cache = CacheSlots { slots, keys, values: &caches[1] };
        head_norm_rope_cache(stream, q, k, v, Some(norm), slots, &rope, cache).unwrap_err().to_string()
    };
    let keys = &caches[0];
    let short = zeros(DType::F16, [2, 1, 8]);
    let says = error(&q, &k, &short, &weight, keys, &slots);
    assert_eq!(says, "head_norm_rope_cache: got keys f16[2, 2, 8] and values f16[2, 1, 8], wanted one shape and type");
    let says = error(&q, &k, &v, &weight, &zeros(DType::F16, [5, 2, 8]), &slots);
    assert!(says.contains("got caches f16[5, 2, 8] and f32[5, 2, 8]"), "{says}");
    let says = error(&q, &short, &short, &weight, keys, &slots);
    assert!(says.contains("keys: got f32[5, 2, 8], wanted [rows, 1, 8] of floats"), "{says}");
    let says = error(&q, &k, &v, &device.zeros(DType::BF16, [8]).unwrap(), keys, &slots);
    assert!(says.contains("q_weight: got bf16[8], wanted f16 or, both of them, f32 [8]"), "{says}");
    let says = error(&q, &k, &v, &weight, keys, &device.zeros(DType::U32, [3]).unwrap());
    assert!(says.contains("positions: got u32[3]"), "{says}");
    let says = error(&q, &q.slice(1, 0..2).unwrap(), &v, &weight, keys, &slots);
    assert!(says.contains("q and k: got overlapping memory"), "{says}");
    let says = error(&q, &k, &q.slice(1, 0..2).unwrap(), &weight, keys, &slots);
    assert!(says.contains("memory of its own"), "{says}");
    let says = error(&q, &k, &v, &weight, &caches[1], &slots);
    assert!(says.contains("memory of its own"), "{says}");
}
