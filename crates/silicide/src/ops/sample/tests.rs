use proptest::prelude::*;

use super::*;
use crate::testing::{Random, on_every_device, on_every_schedule};

/// What each token's probability is, by the definition in f64: limits at temperature 1, then the temperature.
fn probabilities(logits: &[f32], options: Sampling) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let mass = |l: f32| (l as f64 - most).exp();
    let total: f64 = logits.iter().map(|&l| mass(l)).sum();
    let kept = |i: usize| {
        let above: f64 = logits.iter().filter(|&&l| l > logits[i]).map(|&l| mass(l)).sum();
        let ahead = (0..logits.len()).filter(|&j| logits[j] > logits[i] || logits[j] == logits[i] && j < i).count();
        (options.top_p == 1.0 || above < options.top_p as f64 * total)
            && mass(logits[i]) >= options.min_p as f64
            && (options.top_k == 0 || ahead < options.top_k as usize)
    };
    let weight = |i: usize| ((logits[i] as f64 - most) / options.temperature as f64).exp();
    let weights: Vec<f64> = (0..logits.len()).map(|i| if kept(i) { weight(i) } else { 0.0 }).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|w| w / sum).collect()
}

/// The number in [0, 1) that step `step` of `seed` draws.
fn uniform(seed: u64, step: u64) -> f64 {
    let [a, b, ..] = cpu::philox([step as u32, (step >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    (a as f64 + b as f64 / 2f64.powi(32)) / 2f64.powi(32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn draws_where_the_random_number_lies(
        vocab in prop_oneof![Just(1usize), Just(31), Just(33), Just(65), Just(1025), Just(2047), Just(2048), Just(2049), Just(4100)],
        temperature in prop_oneof![Just(1.0f32), 0.05f32..3.0],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..0.99],
        min_p in prop_oneof![Just(0.0f32), 0.001f32..0.3],
        top_k in prop_oneof![Just(0u32), 1u32..60],
        (coarse, masked) in any::<(bool, bool)>(),
        spread in prop_oneof![Just(0.2f32), Just(2.0), Just(8.0)],
        seed: u64,
    ) {
        let options = Sampling { temperature, top_p, min_p, top_k };
        let rows = 2;
        let mut random = Random::new(seed);
        let mut x: Vec<f32> = random.values(rows * vocab).iter().map(|v| v * spread).collect();
        for x in x.iter_mut() {
            *x = if coarse { x.round() } else { *x };
            *x = if masked && random.below(4) == 0 { f32::NEG_INFINITY } else { *x };
        }
        (0..rows).for_each(|r| x[r * vocab + random.below(vocab)] = 2.5 * spread);
        let seeds: Vec<u64> = (0..rows as u64).map(|r| seed.wrapping_add(r)).collect();
        let mut first = None;
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let logits = Random::new(seed).tensor(device, DType::F32, &x, [rows, vocab]);
            let state = sample_state(device, &seeds).unwrap();
            for step in 0..3 {
                let tokens = sample(stream, &logits, options, &state).unwrap().to_vec::<u32>(stream).unwrap();
                for (row, &token) in tokens.iter().enumerate() {
                    let p = probabilities(&x[row * vocab..][..vocab], options);
                    let below: f64 = p[..token as usize].iter().sum();
                    let at = uniform(seeds[row], step);
                    // Weights are good to some 2^-20; a limit within that of a token may fall on either side of it.
                    let slack = 1e-5 + if top_p < 1.0 || min_p > 0.0 { 0.02 } else { 0.0 };
                    prop_assert_near(at, below, below + p[token as usize], slack);
                }
                if step == 0 {
                    let first = first.get_or_insert(tokens.clone());
                    assert_eq!(*first, tokens, "every device draws the same");
                }
            }
            let words = state.to_vec::<u32>(stream).unwrap();
            assert!(words.chunks(4).zip(&seeds).all(|(w, &s)| w == [s as u32, (s >> 32) as u32, 3, 0]));
        });
    }
}

#[track_caller]
fn prop_assert_near(x: f64, low: f64, high: f64, slack: f64) {
    assert!(x >= low - slack && x <= high + slack, "{x} is not in {low}..{high}");
}

#[test]
fn draws_from_the_distributions_of_mlx_lm() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../oracle/vectors/sampling.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let draws = 20_000;
    // On one device: the property above holds for all.
    let device = &Device::cpu();
    let stream = &mut device.stream();
    let seeds: Vec<u64> = (0..draws as u64).collect();
    let mut cases = 0;
    for case in golden["cases"].as_array().unwrap() {
        let options = case["options"].as_object().unwrap();
        if options.keys().any(|k| !["temperature", "top_p", "min_p", "top_k"].contains(&k.as_str())) {
            continue;
        }
        cases += 1;
        let option = |name: &str, off: f32| options.get(name).map_or(off, |v| v.as_f64().unwrap() as f32);
        let sampling = Sampling {
            temperature: option("temperature", 0.0),
            top_p: option("top_p", 1.0),
            min_p: option("min_p", 0.0),
            top_k: option("top_k", 0.0) as u32,
        };
        let row = &golden["rows"][case["row"].as_u64().unwrap() as usize]["logits"];
        let logits: Vec<f32> = row.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let mut want = vec![0.0; logits.len()];
        for kept in case["kept"].as_array().unwrap() {
            want[kept[0].as_u64().unwrap() as usize] = kept[1].as_f64().unwrap();
        }
        let wide = device.tensor(&logits, [logits.len()]).unwrap().broadcast_to([draws, logits.len()]).unwrap();
        let state = sample_state(device, &seeds).unwrap();
        let tokens = sample(stream, &wide, sampling, &state).unwrap().to_vec::<u32>(stream).unwrap();
        for (token, p) in want.into_iter().enumerate() {
            let share = tokens.iter().filter(|&&t| t == token as u32).count() as f64 / draws as f64;
            // Five standard deviations, and none at all of what is left out.
            let slack = 5.0 * (p * (1.0 - p) / draws as f64).sqrt() + if p > 0.0 { 1.0 / draws as f64 } else { 0.0 };
            assert!((share - p).abs() <= slack, "{sampling:?}: token {token}: {share} of the draws, wanted {p}");
        }
    }
    assert_eq!(cases, 30);
}

#[test]
fn random_numbers_are_those_of_the_paper() {
    // From the known answers that the authors publish.
    assert_eq!(cpu::philox([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
    assert_eq!(cpu::philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]);
}

#[test]
fn weights_are_powers_of_e() {
    for i in 0..200_000 {
        let below = i as f32 / 10_000.0;
        let want = (-below as f64).exp() * 2f64.powi(40);
        let got = cpu::weight(below, std::f32::consts::LOG2_E) as f64;
        assert!((got - want).abs() <= 2e-6 * want + 1.0, "{below}: {got} {want}");
    }
    assert_eq!(cpu::weight(0.0, f32::MAX), 1 << 40);
    assert_eq!(cpu::weight(f32::INFINITY, 0.1), 0);
}

#[test]
fn zero_is_greedy_and_rows_without_a_token_say_so() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let x = [0.0, 3.0, 3.0, 1.0, nan, 2.0, 1.0, inf, 2.0, -inf, -inf, -inf, -inf, 0.0, -inf];
        let logits = device.tensor(&x, [5, 3]).unwrap();
        let state = sample_state(device, &[1, 2, 3, 4, 5]).unwrap();
        let greedy = sample(stream, &logits, Sampling::default(), &state).unwrap();
        assert_eq!(greedy.to_vec::<u32>(stream).unwrap(), [1, 1, 1, 0, 1]);
        for top_k in [0, 1, 2] {
            let options = Sampling { temperature: 0.01, top_k, ..Sampling::default() };
            let tokens = sample(stream, &logits, options, &state).unwrap().to_vec::<u32>(stream).unwrap();
            assert!(tokens[0] == 1 || tokens[0] == 2 && top_k != 1);
            assert_eq!(tokens[1..], [u32::MAX, u32::MAX, u32::MAX, 1]);
        }
    });
}

#[test]
fn any_schedule_draws_what_the_cpu_draws() {
    let x = Random::new(1).values(2 * 2100);
    let options = Sampling { temperature: 0.7, top_p: 0.8, min_p: 0.01, top_k: 100 };
    let draw = |stream: &mut Stream| {
        let device = &stream.device().clone();
        let logits = Random::new(2).tensor(device, DType::F32, &x, [2, 2100]);
        let state = sample_state(device, &[7, 8]).unwrap();
        sample(stream, &logits, options, &state).unwrap().to_vec::<u32>(stream).unwrap()
    };
    let want = draw(&mut Device::cpu().stream());
    on_every_schedule(|stream| assert_eq!(draw(stream), want));
}

/// The same token everywhere, where rows are long, equals are many, cuts are far down and most is out of reach.
#[test]
fn every_device_draws_the_same_from_long_rows() {
    let vocab = 10_000;
    let mut random = Random::new(4);
    let mut bells = |n: usize| (0..n).map(|_| 2.0 * random.values(6).iter().sum::<f32>()).collect::<Vec<f32>>();
    let (bell, long) = (bells(vocab), bells(248_320));
    let rounded = bell.iter().map(|x| (x * 4.0).round() / 4.0).collect();
    // Most of them impossible, and one far above the rest.
    let masked = bell.iter().enumerate().map(|(i, &x)| if i % 20 == 3 { x } else { f32::NEG_INFINITY }).collect();
    let mut alone = bell.clone();
    alone[9_000] = 400.0;
    let rows = [bell, rounded, masked, alone, vec![0.0; vocab]].concat();
    let all = [
        Sampling { temperature: 1.0, ..Sampling::default() },
        Sampling { temperature: 0.6, top_p: 0.95, top_k: 20, ..Sampling::default() },
        Sampling { temperature: 1.0, top_p: 0.9, ..Sampling::default() },
        Sampling { temperature: 1000.0, top_k: 5000, ..Sampling::default() },
        Sampling { temperature: 2.0, top_k: 7, min_p: 0.1, ..Sampling::default() },
        Sampling { temperature: 1.0, top_k: 1, ..Sampling::default() },
    ];
    let mut want: Option<Vec<Vec<u32>>> = None;
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let logits = device.tensor(&rows, [5, vocab]).unwrap();
        let state = sample_state(device, &[1, 2, 3, 4, 5]).unwrap();
        let draw =
            |options: &Sampling| sample(stream, &logits, *options, &state).unwrap().to_vec::<u32>(stream).unwrap();
        let mut tokens: Vec<_> = all.iter().map(draw).collect();
        let (logits, state) = (device.tensor(&long, [long.len()]).unwrap(), sample_state(device, &[6]).unwrap());
        tokens.push(sample(stream, &logits, all[1], &state).unwrap().to_vec::<u32>(stream).unwrap());
        assert_eq!(*want.get_or_insert(tokens.clone()), tokens);
    });
    let want = want.unwrap();
    let greatest = |row: &[f32]| row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for (row, token) in rows.chunks(vocab).zip(&want[5]) {
        assert_eq!(row.iter().position(|x| *x == greatest(row)).unwrap() as u32, *token);
    }
}

#[test]
fn a_plan_draws_anew_in_each_replay() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let logits = device.zeros(DType::F32, [1, 1000]).unwrap();
    let state = sample_state(&device, &[9]).unwrap();
    let options = Sampling { temperature: 1.0, ..Sampling::default() };
    let (plan, out) = stream.record(|s| sample(s, &logits, options, &state)).unwrap();
    let mut tokens = Vec::new();
    for _ in 0..4 {
        stream.replay(&plan).unwrap();
        tokens.push(out.to_vec::<u32>(stream).unwrap()[0]);
    }
    let want: Vec<u32> = (0..4).map(|step| (uniform(9, step) * 1000.0) as u32).collect();
    assert_eq!(tokens, want);
}

/// D-22: a token without probability is not drawn, however small the random number; of a large vocabulary either.
#[test]
fn d_22_the_first_token_is_not_drawn_where_it_has_no_probability() {
    let least = (0..400_000u64).min_by(|&a, &b| uniform(a, 0).total_cmp(&uniform(b, 0))).unwrap();
    assert!(uniform(least, 0) < 2e-5);
    let options = Sampling { temperature: 1.0, ..Sampling::default() };
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for vocab in [3, 262_144] {
            let mut x = vec![f32::NEG_INFINITY; 2 * vocab];
            // The first token that there is, and the last.
            (x[vocab - 2], x[2 * vocab - 1]) = (1.0, -80.0);
            let logits = device.tensor(&x, [2, vocab]).unwrap();
            let state = sample_state(device, &[least, least]).unwrap();
            let tokens = sample(stream, &logits, options, &state).unwrap().to_vec::<u32>(stream).unwrap();
            assert_eq!(tokens, [vocab as u32 - 2, vocab as u32 - 1]);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let logits = device.zeros(DType::F32, [2, 4]).unwrap();
    let state = sample_state(&device, &[1]).unwrap();
    let error = sample(stream, &logits, Sampling::default(), &state).unwrap_err().to_string();
    assert_eq!(error, "sample: state: got u32[1, 4], wanted u32[2, 4], contiguous; sample_state makes one");
    let state = sample_state(&device, &[1, 2]).unwrap();
    let mut run = |options| sample(stream, &logits, options, &state).unwrap_err().to_string();
    assert!(run(Sampling { temperature: f32::NAN, ..Default::default() }).contains("temperature: got NaN"));
    assert!(run(Sampling { top_p: 0.0, ..Default::default() }).contains("top_p: got 0"));
    assert!(run(Sampling { min_p: 1.5, ..Default::default() }).contains("min_p: got 1.5"));
}
