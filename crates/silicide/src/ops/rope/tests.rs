use proptest::prelude::*;

use super::*;
use crate::Shape;
use crate::testing::{Golden, Random, assert_close, on_every_device, rounded, values_of};

const PAIRINGS: [Pairing; 4] = [Pairing::Interleaved, Pairing::Halves, Pairing::HeadHalves, Pairing::SectionHalves];

/// The definition, in f64. `x` is `[positions, heads, head_dim]`.
fn reference(x: &[f32], positions: &[i64], head_dim: usize, inverse: &[f64], scale: f64, pairing: Pairing) -> Vec<f64> {
    let mut out: Vec<f64> = x.iter().map(|&v| v as f64).collect();
    let pairs = inverse.len();
    let heads = x.len().checked_div(positions.len() * head_dim).unwrap_or(0);
    for (row, head) in out.chunks_mut(head_dim).enumerate() {
        for (p, f) in inverse.iter().enumerate() {
            let (i, j) = match pairing {
                Pairing::Interleaved => (2 * p, 2 * p + 1),
                Pairing::Halves | Pairing::SectionHalves => (p, p + pairs),
                Pairing::HeadHalves => (p, p + head_dim / 2),
            };
            let (sin, cos) = (positions[row / heads] as f64 * f).sin_cos();
            let (a, b) = (head[i], head[j]);
            head[i] = (a * cos - b * sin) * scale;
            head[j] = (b * cos + a * sin) * scale;
        }
    }
    out
}

fn position_tensor(device: &Device, positions: &[i64], signed: bool) -> Tensor {
    match signed {
        true => device.tensor(&positions.iter().map(|&p| p as i32).collect::<Vec<_>>(), [positions.len()]),
        false => device.tensor(&positions.iter().map(|&p| p as u32).collect::<Vec<_>>(), [positions.len()]),
    }
    .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn follows_the_definition(
        tokens in 0usize..6,
        heads in 1usize..7,
        half in prop_oneof![Just(1usize), Just(32), Just(33), Just(128), Just(160), 1usize..70],
        part in 0.0f64..1.2,
        seed: u64,
        dtype in 0usize..3,
        pairing in 0usize..4,
        signed: bool,
        in_place: bool,
    ) {
        let (dtype, pairing, head_dim) = (DType::FLOATS[dtype], PAIRINGS[pairing], 2 * half);
        let rope_dim = 2 * ((half as f64 * part) as usize).clamp(1, half);
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let x = rounded(dtype, &random.values(tokens * heads * head_dim));
            let xt = random.tensor(device, dtype, &x, [tokens, heads, head_dim]);
            let low = if signed { -(1i64 << 31) } else { 0 };
            let positions: Vec<i64> = (0..tokens).map(|i| match i % 3 {
                0 => i as i64,
                1 => low + random.below(1 << 20) as i64,
                _ => low + random.below(1 << 32) as i64,
            }).collect();
            // Few bits, so that f64 holds the product with any position.
            let inverse: Vec<f64> = (0..rope_dim / 2).map(|i| (i % 7 + 1) as f64 * 2f64.powi(-(i as i32 % 24))).collect();
            let frequencies = RopeFrequencies::from_inverse(inverse).unwrap().with_attention_factor(1.25).unwrap();
            let rotary = Rope::new(device, &frequencies, pairing).unwrap();
            let pt = position_tensor(device, &positions, signed);
            let out = match in_place {
                true => {
                    rope_into(stream, &xt, &pt, &rotary, &xt).unwrap();
                    xt
                }
                false => rope(stream, &xt, &pt, &rotary).unwrap(),
            };
            let want = reference(&x, &positions, head_dim, frequencies.inverse(), 1.25, pairing);
            assert_close(dtype, &values_of(stream, &out), &want, 2.0);
        });
    }

    #[test]
    fn turns_queries_and_keys_at_once(tokens in 1usize..4, heads in 1usize..6, kv_heads in 1usize..6, seed: u64) {
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let mut random = Random::new(seed);
            let frequencies = RopeFrequencies::new(6, 100.0).unwrap();
            let rotary = Rope::new(device, &frequencies, Pairing::Halves).unwrap();
            let positions: Vec<i64> = (0..tokens as i64).map(|i| 5 * i + 1).collect();
            let pt = position_tensor(device, &positions, true);
            let q = random.values(tokens * heads * 10);
            let k = random.values(tokens * kv_heads * 10);
            let qt = random.tensor(device, DType::F32, &q, [tokens, heads, 10]);
            let kt = random.tensor(device, DType::F32, &k, [tokens, kv_heads, 10]);
            rope_in_place(stream, &qt, &kt, &pt, &rotary).unwrap();
            for (t, x) in [(qt, q), (kt, k)] {
                let want = reference(&x, &positions, 10, frequencies.inverse(), 1.0, Pairing::Halves);
                assert_close(DType::F32, &values_of(stream, &t), &want, 2.0);
            }
        });
    }
}

#[test]
fn agrees_with_mlx() {
    let golden = Golden::read("rope");
    for (case, p) in golden.cases() {
        let (mlx, exact) = (golden.values(&format!("{case}.out")), golden.exact_values(&format!("{case}.exact")));
        let shape = *golden.tensor(&Device::cpu(), &format!("{case}.x")).shape();
        let (batch, length, head_dim) = (shape[0], shape[2], shape[3]);
        let frequencies = match golden.has(&format!("{case}.freqs")) {
            true => {
                let wavelengths = golden.exact_values(&format!("{case}.freqs"));
                RopeFrequencies::from_inverse(wavelengths.iter().map(|f| 1.0 / f).collect())
            }
            false => RopeFrequencies::new(p["dims"].as_u64().unwrap() as usize, p["base"].as_f64().unwrap()),
        };
        let frequencies = frequencies.unwrap().linear(1.0 / p["scale"].as_f64().unwrap()).unwrap();
        let pairing = if p["traditional"] == true { Pairing::Interleaved } else { Pairing::Halves };
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let rotary = Rope::new(device, &frequencies, pairing).unwrap();
            let xt = golden.tensor(device, &format!("{case}.x"));
            let out = stream.empty(xt.dtype(), shape).unwrap();
            for b in 0..batch {
                let offset = p["offset"].as_i64().unwrap_or_else(|| p["offset"][b].as_i64().unwrap());
                let positions: Vec<i64> = (0..length as i64).map(|i| offset + i).collect();
                // mlx has heads before tokens; strides put them in our order.
                let view = |t: &Tensor| {
                    t.slice(0, b..b + 1)
                        .unwrap()
                        .reshape(Shape::new(&shape[1..]).unwrap())
                        .unwrap()
                        .permute(&[1, 0, 2])
                        .unwrap()
                };
                let pt = position_tensor(device, &positions, false);
                rope_into(stream, &view(&xt), &pt, &rotary, &view(&out)).unwrap();
            }
            let got = values_of(stream, &out);
            assert_close(xt.dtype(), &got, &exact, 4.0);
            for (i, ((&g, &m), &e)) in got.iter().zip(&mlx).zip(&exact).enumerate() {
                let slack = mlx_slack(xt.dtype(), e);
                assert!((g - m).abs() as f64 <= slack, "{case} {head_dim} {i}: got {g}, mlx {m}, exactly {e}");
            }
        });
    }
}

/// mlx rounds angles to f32, and intermediate products to the element type.
fn mlx_slack(dtype: DType, exact: f64) -> f64 {
    match dtype {
        DType::F32 => 1e-3,
        DType::F16 => 4e-3 * exact.abs().max(1.0),
        _ => 3e-2 * exact.abs().max(1.0),
    }
}

#[test]
fn frequencies_agree_with_transformers() {
    let golden = Golden::read("rope_frequencies");
    for (case, p) in golden.cases() {
        let scaling = &p["rope_scaling"];
        let number = |name: &str| scaling[name].as_f64();
        let (dim, base) = (p["head_dim"].as_u64().unwrap() as usize, number("rope_theta").unwrap());
        let plain = RopeFrequencies::new(dim, base).unwrap();
        let ours = match scaling["rope_type"].as_str().unwrap() {
            "default" => plain,
            "linear" => plain.linear(number("factor").unwrap()).unwrap(),
            "llama3" => plain
                .llama3(Llama3Scaling {
                    factor: number("factor").unwrap(),
                    low_freq_factor: number("low_freq_factor").unwrap(),
                    high_freq_factor: number("high_freq_factor").unwrap(),
                    original_max_positions: number("original_max_position_embeddings").unwrap(),
                })
                .unwrap(),
            "yarn" => {
                let usual =
                    YarnScaling::new(number("factor").unwrap(), number("original_max_position_embeddings").unwrap());
                let scaling = YarnScaling {
                    beta_fast: number("beta_fast").unwrap_or(usual.beta_fast),
                    beta_slow: number("beta_slow").unwrap_or(usual.beta_slow),
                    truncate: scaling["truncate"].as_bool().unwrap_or(usual.truncate),
                    attention_factor: number("attention_factor"),
                    mscale: number("mscale").unwrap_or(0.0),
                    mscale_all_dim: number("mscale_all_dim").unwrap_or(0.0),
                    ..usual
                };
                RopeFrequencies::yarn(dim, base, scaling).unwrap()
            }
            "longrope" => {
                let factors: Vec<f64> = serde_json::from_value(p["factors"].clone()).unwrap();
                let original = number("original_max_position_embeddings").unwrap();
                RopeFrequencies::longrope(dim, base, &factors, number("factor").unwrap(), original).unwrap()
            }
            "dynamic" => {
                let (max, length) = (p["max_positions"].as_f64().unwrap(), p["length"].as_f64().unwrap());
                RopeFrequencies::dynamic_ntk(dim, base, number("factor").unwrap(), max, length).unwrap()
            }
            "proportional" => {
                let rope_dim = (dim as f64 * number("partial_rotary_factor").unwrap()) as usize;
                let factor = number("factor").unwrap_or(1.0);
                RopeFrequencies::proportional(rope_dim, dim, base).unwrap().linear(factor).unwrap()
            }
            other => panic!("{other}"),
        };
        let theirs = golden.values(&format!("{case}.inv_freq"));
        assert!(ours.inverse().len() <= theirs.len(), "{case}");
        for (i, &t) in theirs.iter().enumerate() {
            // Pairs that do not turn have frequency 0 in transformers and no entry here.
            let o = ours.inverse().get(i).copied().unwrap_or(0.0);
            assert!((o - t as f64).abs() <= 1e-6 * o, "{case} {i}: got {o}, wanted {t}");
        }
        let factor = p["attention_factor"].as_f64().unwrap();
        assert!((ours.attention_factor() - factor).abs() < 1e-7, "{case}: {} {factor}", ours.attention_factor());
    }
}

#[test]
fn one_token_gives_what_many_give() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let mut random = Random::new(1);
        let (tokens, heads, dim) = (9, 3, 80);
        let rotary = Rope::new(device, &RopeFrequencies::new(46, 1e4).unwrap(), Pairing::Halves).unwrap();
        let x = device.tensor(&random.values(tokens * heads * dim), [tokens, heads, dim]).unwrap();
        let positions = device.tensor(&(0..tokens as u32).map(|i| i * 1001).collect::<Vec<_>>(), [tokens]).unwrap();
        let all = rope(stream, &x, &positions, &rotary).unwrap().to_vec::<f32>(stream).unwrap();
        for t in 0..tokens {
            let (x, position) = (x.slice(0, t..t + 1).unwrap(), positions.slice(0, t..t + 1).unwrap());
            let one = rope(stream, &x, &position, &rotary).unwrap().to_vec::<f32>(stream).unwrap();
            assert_eq!(one, all[t * heads * dim..][..heads * dim]);
        }
    });
}

#[test]
fn keeps_nan_in_its_pair() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for pairing in PAIRINGS {
            let rotary = Rope::new(device, &RopeFrequencies::new(4, 10.0).unwrap(), pairing).unwrap();
            let x = device.tensor(&[1.0f32, f32::NAN, 1.0, 1.0, 1.0, f32::INFINITY], [1, 1, 6]).unwrap();
            let position = device.tensor(&[2i32], [1]).unwrap();
            let y = rope(stream, &x, &position, &rotary).unwrap().to_vec::<f32>(stream).unwrap();
            let lost: Vec<usize> = (0..6).filter(|&i| y[i].is_nan()).collect();
            let (wanted, untouched) = match pairing {
                Pairing::Interleaved => ([0, 1], 5),
                Pairing::Halves | Pairing::SectionHalves => ([1, 3], 5),
                Pairing::HeadHalves => ([1, 4], 5),
            };
            assert_eq!(lost, wanted, "{pairing:?}");
            assert_eq!(y[untouched], f32::INFINITY);
        }
    });
}

#[test]
fn a_plan_reads_positions_when_it_runs() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let frequencies = RopeFrequencies::new(2, 1e4).unwrap();
        let rotary = Rope::new(device, &frequencies, Pairing::Halves).unwrap();
        let x = device.tensor(&[1.0f32, 0.0], [1, 1, 2]).unwrap();
        let position = device.tensor(&[0u32], [1]).unwrap();
        let (plan, y) = stream.record(|s| rope(s, &x, &position, &rotary)).unwrap();
        for p in [0u32, 1, 1_000_000] {
            stream.write(&position, &[p]).unwrap();
            stream.replay(&plan).unwrap();
            let (sin, cos) = (p as f64).sin_cos();
            assert_close(DType::F32, &values_of(stream, &y), &[cos, sin], 0.02);
        }
    });
}

/// D-02: an ordinary partial rotation has pairs and frequencies of the part that turns, a proportional one those of the head.
#[test]
fn d_02_ordinary_and_proportional_partial_rotations_are_two() {
    let (head_dim, rope_dim, position) = (80usize, 32usize, 11);
    let x = Random::new(6).values(head_dim);
    let ordinary = (RopeFrequencies::new(rope_dim, 1e4).unwrap(), Pairing::Halves, rope_dim);
    let proportional = RopeFrequencies::proportional(rope_dim, head_dim, 1e4).unwrap();
    let proportional = (proportional, Pairing::HeadHalves, head_dim);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let xt = device.tensor(&x, [1, 1, head_dim]).unwrap();
        let pt = device.tensor(&[position], [1]).unwrap();
        for (frequencies, pairing, whole) in [&ordinary, &proportional] {
            let rotary = Rope::new(device, frequencies, *pairing).unwrap();
            let out = rope(stream, &xt, &pt, &rotary).unwrap();
            let mut want: Vec<f64> = x.iter().map(|&v| v as f64).collect();
            for p in 0..rope_dim / 2 {
                let (sin, cos) = (position as f64 * 1e4f64.powf(-2.0 * p as f64 / *whole as f64)).sin_cos();
                let (a, b) = (want[p], want[p + whole / 2]);
                (want[p], want[p + whole / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
            assert_close(DType::F32, &values_of(stream, &out), &want, 2.0);
        }
    });
    assert!(RopeFrequencies::new(0, 1e4).unwrap_err().to_string().contains("rope_dim: got 0"));
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let rotary = Rope::new(&device, &RopeFrequencies::new(8, 1e4).unwrap(), Pairing::Halves).unwrap();
    let positions = device.zeros(DType::U32, [3]).unwrap();
    let x = device.zeros(DType::F32, [3, 2, 6]).unwrap();
    let error = rope(stream, &x, &positions, &rotary).unwrap_err().to_string();
    assert_eq!(error, "rope: head_dim: got 6, wanted an even number that holds the 8 that turn");
    let x = device.zeros(DType::F32, [2, 2, 8]).unwrap();
    let error = rope(stream, &x, &positions, &rotary).unwrap_err().to_string();
    assert_eq!(error, "rope: positions: got u32[3], wanted i32 or u32 [2], contiguous");
    let mut error = |x: &Tensor, positions: &Tensor, out: &Tensor| {
        rope_into(stream, x, positions, &rotary, out).unwrap_err().to_string()
    };
    let positions = positions.slice(0, 0..2).unwrap();
    let floats = device.zeros(DType::F32, [2]).unwrap();
    assert!(error(&x, &floats, &x).contains("wanted i32 or u32 [2]"));
    assert!(error(&device.zeros(DType::F32, [2, 8]).unwrap(), &positions, &x).contains("[tokens, heads, head_dim]"));
    assert!(error(&x, &positions, &device.zeros(DType::F16, [2, 2, 8]).unwrap()).contains("out: got f16"));
    // The same bytes in another order would be written before they are read.
    assert!(error(&x, &positions, &x.permute(&[1, 0, 2]).unwrap()).contains("overlaps x"));
    let one = device.zeros(DType::F32, [1, 1, 8]).unwrap().broadcast_to([2, 2, 8]).unwrap();
    assert!(error(&x, &positions, &one).contains("broadcast"));
    let other = Device::cpu().zeros(DType::F32, [2, 2, 8]).unwrap();
    assert!(error(&other, &positions, &other).contains("another"));
    assert!(rope_in_place(stream, &x, &x, &positions, &rotary).unwrap_err().to_string().contains("one view"));
    for error in [
        RopeFrequencies::new(0, 1e4),
        RopeFrequencies::new(7, 1e4),
        RopeFrequencies::new(8, f64::NAN),
        RopeFrequencies::new(8, -1.0),
        RopeFrequencies::proportional(8, 4, 1e4),
        RopeFrequencies::from_inverse(vec![]),
        RopeFrequencies::from_inverse(vec![1.0, f64::INFINITY]),
        RopeFrequencies::new(8, 1e4).unwrap().divided_by(&[1.0]),
        RopeFrequencies::new(8, 1e4).unwrap().linear(0.0),
    ] {
        assert!(error.unwrap_err().to_string().contains("got"));
    }
}
