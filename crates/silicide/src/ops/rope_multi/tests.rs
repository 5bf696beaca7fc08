use proptest::prelude::*;

use super::*;
use crate::DType;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, tensor_of, values_of};

/// The definition, in f64, one pair at a time. `rope_dim` is that of one axis for `Vision`.
fn reference(
    x: &[f32],
    positions: &[i64],
    [heads, head_dim, rope_dim]: [usize; 3],
    base: f64,
    RopeSections { mode, sections: [s0, s1, s2, s3], fallback }: RopeSections,
    pairing: Pairing,
) -> Vec<f64> {
    let (tokens, sum) = (positions.len() / 4, s0 + s1 + s2 + s3);
    let mut out: Vec<f64> = x.iter().map(|&v| v as f64).collect();
    for (row, head) in out.chunks_mut(head_dim).enumerate() {
        let pairs = if mode == RopeMultiMode::Vision { rope_dim } else { rope_dim / 2 };
        for p in 0..pairs {
            let sector = p as u32 % sum;
            let (contiguous, restarted) = match sector {
                s if s < s0 => (0, s),
                s if s < s0 + s1 => (1, s - s0),
                s if s < s0 + s1 + s2 => (2, s - s0 - s1),
                s => (3, s - s0 - s1 - s2),
            };
            let axis = match mode {
                RopeMultiMode::Imrope if sector.is_multiple_of(3) && sector < 3 * s0 => 0,
                RopeMultiMode::Imrope if sector % 3 == 1 && sector < 3 * s1 => 1,
                RopeMultiMode::Imrope if sector % 3 == 2 && sector < 3 * s2 => 2,
                RopeMultiMode::Imrope => fallback as usize,
                _ => contiguous,
            };
            let exponent = if mode == RopeMultiMode::Vision { restarted as f64 } else { p as f64 };
            let angle = positions[axis * tokens + row / heads] as f64 * base.powf(-2.0 * exponent / rope_dim as f64);
            let (i, j) = match pairing {
                Pairing::SectionHalves => (p + p / s0 as usize * s0 as usize, p + (p / s0 as usize + 1) * s0 as usize),
                Pairing::Interleaved => (2 * p, 2 * p + 1),
                Pairing::Halves => (p, p + pairs),
                Pairing::HeadHalves => (p, p + head_dim / 2),
            };
            let (a, b) = (head[i], head[j]);
            (head[i], head[j]) = (a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin());
        }
    }
    out
}

fn sections() -> impl Strategy<Value = RopeSections> {
    let mode = prop_oneof![Just(RopeMultiMode::Mrope), Just(RopeMultiMode::Imrope)];
    let counts =
        prop_oneof![Just([11, 11, 10, 0]), Just([24, 20, 20, 0]), Just([16, 24, 24, 0]), [0u32..6, 0..6, 0..6, 1..6]];
    let fallback = prop_oneof![Just(FallbackAxis::Temporal), Just(FallbackAxis::Extra)];
    (mode, counts, fallback).prop_map(|(mode, sections, fallback)| RopeSections { mode, sections, fallback })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        tokens in 0usize..5,
        heads in 1usize..6,
        (half, pairs) in prop_oneof![Just((128usize, 32usize)), Just((64, 64)), (1usize..70, 1usize..70)],
        sections in sections(),
        seed: u64,
        dtype in 0usize..3,
        pairing in 0usize..3,
        signed: bool,
        flat: bool,
        in_place: bool,
    ) {
        let (dtype, head_dim, rope_dim) = (DType::FLOATS[dtype], 2 * half, 2 * pairs.min(half));
        let pairing = [Pairing::Interleaved, Pairing::Halves, Pairing::HeadHalves][pairing];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(tokens * heads * head_dim));
            let xt = random.tensor(device, dtype, &x, [tokens, heads, head_dim]);
            let positions: Vec<i64> = (0..4 * tokens)
                .map(|_| random.below(1 << 20) as i64 - if signed { 1 << 19 } else { 0 })
                .collect();
            let pt = match signed {
                true => device.tensor(&positions.iter().map(|&p| p as i32).collect::<Vec<_>>(), [4, tokens]),
                false => device.tensor(&positions.iter().map(|&p| p as u32).collect::<Vec<_>>(), [4, tokens]),
            }.unwrap();
            let pt = if flat { pt.reshape([4 * tokens]).unwrap() } else { pt };
            let frequencies = RopeFrequencies::new(rope_dim, 1e7).unwrap();
            let rope = RopeMulti::new(device, &frequencies, sections, pairing).unwrap();
            let out = match in_place {
                true => {
                    rope_multi_into(stream, &xt, &pt, &rope, &xt).unwrap();
                    xt
                }
                false => rope_multi(stream, &xt, &pt, &rope).unwrap(),
            };
            let want = reference(&x, &positions, [heads, head_dim, rope_dim], 1e7, sections, pairing);
            assert_close(dtype, &values_of(stream, &out), &want, 2.0);
        });
    }
}

/// The cases of the golden file: transformers' Qwen2-VL, Qwen3-VL and Qwen3.5, its vision tower, and ggml's convention.
#[test]
fn is_no_further_from_exact_than_transformers() {
    let golden = Golden::read("rope_multi");
    for (case, p) in golden.cases() {
        let mode = match p["mode"].as_u64() {
            Some(8) => RopeMultiMode::Mrope,
            Some(24) => RopeMultiMode::Vision,
            _ => RopeMultiMode::Imrope,
        };
        let fallback = if p["fallback"] == "time" { FallbackAxis::Temporal } else { FallbackAxis::Extra };
        let pairing = match p["pairing"].as_str() {
            Some("rotary_halves") => Pairing::Halves,
            Some("section_halves") => Pairing::SectionHalves,
            _ => Pairing::HeadHalves,
        };
        let sections = serde_json::from_value(p["sections"].clone()).unwrap();
        let sections = RopeSections { mode, sections, fallback };
        let frequencies =
            RopeFrequencies::new(p["rope_dim"].as_u64().unwrap() as usize, p["base"].as_f64().unwrap()).unwrap();
        let name = |name: &str| format!("{case}.{name}");
        let x = golden.values(&name("x"));
        let exact = golden.exact_values(&name("exact"));
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let shape = *golden.tensor(device, &name("x")).shape();
            let mut positions = golden.tensor(device, &name("positions"));
            let rope = if case.starts_with("vision_") {
                positions = positions.slice(0, 0..2).unwrap();
                RopeMulti::vision(device, shape[2], p["base"].as_f64().unwrap(), pairing).unwrap()
            } else {
                RopeMulti::new(device, &frequencies, sections, pairing).unwrap()
            };
            let token = shape[1] * shape[2];
            for (dtype, theirs) in [(DType::F32, name("transformers")), (DType::BF16, name("transformers_bf16"))] {
                let xt = tensor_of(device, dtype, &x, shape);
                let out = rope_multi(stream, &xt, &positions, &rope).unwrap();
                let ours = values_of(stream, &out);
                if dtype == DType::F32 {
                    assert_close(dtype, &ours, &exact, 0.25);
                }
                if !golden.has(&theirs) {
                    continue;
                }
                let theirs = golden.values(&theirs);
                let error = |got: &[f32], exact: &[f64]| {
                    got.iter().zip(exact).map(|(&g, e)| (g as f64 - e).abs()).fold(0.0, f64::max)
                };
                assert!(error(&ours, &exact) <= error(&theirs, &exact), "{case} {dtype}");
                // Token by token, up to the rounding of the products, which both have.
                for (t, exact) in exact.chunks(token).enumerate() {
                    let (ours, theirs) = (&ours[t * token..][..token], &theirs[t * token..][..token]);
                    let rounding = if dtype == DType::F32 { 4e-7 } else { 1.6e-2 };
                    let (o, t) = (error(ours, exact), error(theirs, exact));
                    assert!(o <= t.max(rounding), "{case} {dtype} token {t}: ours {o}, theirs {t}");
                }
            }
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_vision_tower_follows_the_definition(
        tokens in 0usize..4,
        heads in 1usize..6,
        quarter in prop_oneof![1usize..40, Just(64)],
        rest in 0usize..5,
        seed: u64,
        dtype in 0usize..3,
        pairing in 0usize..3,
        in_place: bool,
    ) {
        let (dtype, dim) = (DType::FLOATS[dtype], 4 * quarter);
        let pairing = [Pairing::Halves, Pairing::SectionHalves, Pairing::Interleaved][pairing];
        // Only a part of the head turns where there is a rest.
        let head_dim = dim + 2 * rest;
        let (mode, fallback) = (RopeMultiMode::Vision, FallbackAxis::Temporal);
        let two = RopeSections { mode, sections: [quarter as u32, quarter as u32, 0, 0], fallback };
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(tokens * heads * head_dim));
            let xt = random.tensor(device, dtype, &x, [tokens, heads, head_dim]);
            let positions: Vec<i64> = (0..4 * tokens).map(|_| random.below(1000) as i64).collect();
            let own: Vec<u32> = positions[..2 * tokens].iter().map(|&p| p as u32).collect();
            let rope = RopeMulti::vision(device, dim, 1e4, pairing).unwrap();
            let out = if in_place { xt.clone() } else { stream.empty(dtype, *xt.shape()).unwrap() };
            rope_multi_into(stream, &xt, &device.tensor(&own, [2, tokens]).unwrap(), &rope, &out).unwrap();
            let want = reference(&x, &positions, [heads, head_dim, dim / 2], 1e4, two, pairing);
            assert_close(dtype, &values_of(stream, &out), &want, 2.0);
        });
    }
}

/// Sections of the same size that go round more than once, as the mathematics of `RopeSections` has it.
#[test]
fn sections_of_one_size_have_their_own_parts_of_the_head() {
    let fallback = FallbackAxis::Temporal;
    let sections = RopeSections { mode: RopeMultiMode::Mrope, sections: [3, 0, 3, 3], fallback };
    let x = Random::new(3).values(2 * 36);
    let positions: Vec<i32> = (0..8).map(|i| i * 7).collect();
    let wide: Vec<i64> = positions.iter().map(|&p| p.into()).collect();
    let want = reference(&x, &wide, [1, 36, 36], 1e4, sections, Pairing::SectionHalves);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let frequencies = RopeFrequencies::new(36, 1e4).unwrap();
        let rope = RopeMulti::new(device, &frequencies, sections, Pairing::SectionHalves).unwrap();
        let (x, positions) = (device.tensor(&x, [2, 1, 36]).unwrap(), device.tensor(&positions, [4, 2]).unwrap());
        let out = rope_multi(stream, &x, &positions, &rope).unwrap();
        assert_close(DType::F32, &values_of(stream, &out), &want, 2.0);
    });
}

/// D-04: time, as in transformers, or the fourth axis, as in ggml.
#[test]
fn d_04_the_two_fallbacks_differ_where_no_rule_names_an_axis() {
    let inverse = RopeFrequencies::new(128, 5e6).unwrap();
    let axes = |fallback| {
        let sections = RopeSections { mode: RopeMultiMode::Imrope, sections: [24, 20, 20, 0], fallback };
        sections.table(inverse.inverse()).unwrap().into_iter().map(|(_, axis)| axis).collect::<Vec<_>>()
    };
    let (temporal, extra) = (axes(FallbackAxis::Temporal), axes(FallbackAxis::Extra));
    let differ: Vec<usize> = (0..64).filter(|&p| temporal[p] != extra[p]).collect();
    assert_eq!(differ, [61, 62]);
    assert!(differ.iter().all(|&p| temporal[p] == 0 && extra[p] == 3));

    let (x, positions) = (Random::new(1).values(2 * 128), [3, 500, 7, 9, 11, 13, 40_000, 90_000]);
    let wide = positions.map(i64::from);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (xt, pt) = (device.tensor(&x, [2, 1, 128]).unwrap(), device.tensor(&positions, [4, 2]).unwrap());
        for fallback in [FallbackAxis::Temporal, FallbackAxis::Extra] {
            let sections = RopeSections { mode: RopeMultiMode::Imrope, sections: [24, 20, 20, 0], fallback };
            let rope = RopeMulti::new(device, &inverse, sections, Pairing::Halves).unwrap();
            let out = rope_multi(stream, &xt, &pt, &rope).unwrap();
            let want = reference(&x, &wide, [1, 128, 128], 5e6, sections, Pairing::Halves);
            assert_close(DType::F32, &values_of(stream, &out), &want, 2.0);
        }
    });
}

/// D-01r: where a part of the head turns, its own halves are paired and the rest passes, as transformers has it; pairs half a
/// head apart are another pairing.
#[test]
fn d_01r_a_partial_rotation_pairs_the_halves_of_its_part() {
    let (head_dim, rope_dim) = (32, 8);
    let x = Random::new(2).values(2 * head_dim);
    let sections =
        RopeSections { mode: RopeMultiMode::Mrope, sections: [4, 0, 0, 0], fallback: FallbackAxis::Temporal };
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let xt = device.tensor(&x, [2, 1, head_dim]).unwrap();
        let positions = device.tensor(&[3i32, 70, 0, 0, 0, 0, 0, 0], [4, 2]).unwrap();
        for (pairing, apart) in [(Pairing::Halves, rope_dim / 2), (Pairing::HeadHalves, head_dim / 2)] {
            let frequencies = RopeFrequencies::new(rope_dim, 1e4).unwrap();
            let rope = RopeMulti::new(device, &frequencies, sections, pairing).unwrap();
            let out = rope_multi(stream, &xt, &positions, &rope).unwrap();
            let mut want: Vec<f64> = x.iter().map(|&v| v as f64).collect();
            for (token, position) in [3.0f64, 70.0].into_iter().enumerate() {
                for p in 0..rope_dim / 2 {
                    let (sin, cos) = (position * 1e4f64.powf(-2.0 * p as f64 / rope_dim as f64)).sin_cos();
                    let (i, j) = (token * head_dim + p, token * head_dim + p + apart);
                    (want[i], want[j]) = (want[i] * cos - want[j] * sin, want[j] * cos + want[i] * sin);
                }
            }
            assert_close(DType::F32, &values_of(stream, &out), &want, 2.0);
        }
    });
}

#[test]
fn one_token_gives_what_many_give_and_nan_stays_in_its_pair() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (tokens, heads, dim) = (5, 2, 20);
        let mut x = Random::new(3).values(tokens * heads * dim);
        x[3] = f32::NAN;
        let sections =
            RopeSections { mode: RopeMultiMode::Imrope, sections: [2, 1, 1, 0], fallback: FallbackAxis::Extra };
        let rope =
            RopeMulti::new(device, &RopeFrequencies::new(12, 1e4).unwrap(), sections, Pairing::HeadHalves).unwrap();
        let xt = device.tensor(&x, [tokens, heads, dim]).unwrap();
        let positions: Vec<i32> = (0..4 * tokens as i32).map(|i| i * 997).collect();
        let pt = device.tensor(&positions, [4, tokens]).unwrap();
        let all = rope_multi(stream, &xt, &pt, &rope).unwrap().to_vec::<f32>(stream).unwrap();
        let lost: Vec<usize> = (0..all.len()).filter(|&i| all[i].is_nan()).collect();
        assert_eq!(lost, [3, 13]);
        for t in 1..tokens {
            let own: Vec<i32> = (0..4).map(|axis| positions[axis * tokens + t]).collect();
            let pt = device.tensor(&own, [4]).unwrap();
            let x = xt.slice(0, t..t + 1).unwrap();
            let one = rope_multi(stream, &x, &pt, &rope).unwrap().to_vec::<f32>(stream).unwrap();
            assert_eq!(one, all[t * heads * dim..][..heads * dim]);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let frequencies = RopeFrequencies::new(8, 1e4).unwrap();
    let new = |mode, sections| {
        let sections = RopeSections { mode, sections, fallback: FallbackAxis::Extra };
        RopeMulti::new(&device, &frequencies, sections, Pairing::Halves)
    };
    let error = new(RopeMultiMode::Mrope, [0; 4]).err().unwrap().to_string();
    assert_eq!(error, "rope_multi: sections: got [0, 0, 0, 0], wanted at least one pair for an axis");
    let error = new(RopeMultiMode::Vision, [8, 8, 0, 0]).err().unwrap().to_string();
    assert_eq!(error, "rope_multi: section 0: got 8, wanted at most the 4 frequencies");
    let sections = RopeSections { mode: RopeMultiMode::Mrope, sections: [2, 1, 0, 0], fallback: FallbackAxis::Extra };
    let error = RopeMulti::new(&device, &frequencies, sections, Pairing::SectionHalves).err().unwrap().to_string();
    let wanted = "wanted contiguous ones of one size that divides 4 pairs";
    assert_eq!(error, format!("rope_multi: sections: got Mrope [2, 1, 0, 0], {wanted}"));
    let error = RopeMulti::vision(&device, 6, 1e4, Pairing::Halves).err().unwrap().to_string();
    assert_eq!(error, "rope_multi: head_dim: got 6, wanted a multiple of 4");
    // Counts that overflow when added.
    let rope = new(RopeMultiMode::Imrope, [u32::MAX; 4]).unwrap();
    let x = device.zeros(DType::F32, [3, 1, 8]).unwrap();
    let positions = device.zeros(DType::I32, [3]).unwrap();
    let error = rope_multi(stream, &x, &positions, &rope).unwrap_err().to_string();
    assert_eq!(error, "rope_multi: positions: got i32[3], wanted i32 or u32 [4, 3], contiguous");
    let positions = device.zeros(DType::I32, [6, 2]).unwrap();
    assert!(rope_multi(stream, &x, &positions, &rope).is_err());
}
