use serde_json::Value;

use super::*;

/// What the cut keeps, as probabilities.
fn distribution(options: SamplingOptions, logits: &mut [f32], history: &[u32]) -> Vec<f64> {
    let mut sampler = Sampler::new(options).expect("options");
    sampler.penalize(logits, history).expect("penalties");
    let (_, max) = best(logits).expect("logits");
    let cut = sampler.cut(logits, max);
    let mut weights = vec![0.0; logits.len()];
    sampler.weigh(logits, cut);
    for (&token, &weight) in sampler.kept.iter().zip(&sampler.weights) {
        weights[token as usize] = weight;
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

fn numbers<T: serde::de::DeserializeOwned>(json: &Value) -> Vec<T> {
    serde_json::from_value(json.clone()).expect("numbers")
}

#[test]
fn distributions_are_those_of_mlx_lm() {
    let vectors: Value =
        serde_json::from_str(include_str!("../../../../oracle/vectors/sampling.json")).expect("golden vectors");
    let cases = vectors["cases"].as_array().expect("cases");
    assert_eq!(cases.len(), 120);
    for case in cases {
        let json = &case["options"];
        let number = |name: &str, default: f32| json[name].as_f64().map_or(default, |number| number as f32);
        let bias = json["logit_bias"].as_object().into_iter().flatten();
        let options = SamplingOptions {
            temperature: number("temperature", 0.0),
            top_p: number("top_p", 1.0),
            top_k: number("top_k", 0.0) as usize,
            min_p: number("min_p", 0.0),
            repetition_penalty: number("repetition_penalty", 1.0),
            presence_penalty: number("presence_penalty", 0.0),
            frequency_penalty: number("frequency_penalty", 0.0),
            logit_bias: bias
                .map(|(token, bias)| (token.parse().expect("a token"), bias.as_f64().expect("a bias") as f32))
                .collect(),
            ..SamplingOptions::default()
        };
        let row = &vectors["rows"][case["row"].as_u64().expect("a row") as usize];
        let mut logits: Vec<f32> = numbers(&row["logits"]);
        let got = distribution(options, &mut logits, &numbers::<u32>(&row["history"]));
        let mut want = vec![0.0; logits.len()];
        for (token, probability) in numbers::<(usize, f64)>(&case["kept"]) {
            want[token] = probability;
        }
        for (token, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() < 1e-6, "{json}: token {token} has probability {got}; mlx-lm has {want}");
            // Below this mlx's f32 is 0.
            assert_eq!(*got > 1e-30, *want > 1e-30, "{json}: token {token}");
        }
    }
}

#[test]
fn greedy_takes_the_first_of_equals() {
    let mut sampler = Sampler::new(SamplingOptions::default()).expect("options");
    assert_eq!(sampler.sample(&mut [0.0, 3.0, -1.0, 3.0], &[]).expect("a token"), 1);
    assert_eq!(sampler.sample(&mut [f32::NEG_INFINITY, -5.0], &[]).expect("a token"), 1);
}

#[test]
fn top_k_keeps_the_first_of_equals() {
    let options = SamplingOptions { temperature: 1.0, top_k: 3, ..SamplingOptions::default() };
    let got = distribution(options.clone(), &mut [1.0, 0.0, 2.0, 1.0, 1.0], &[]);
    assert_eq!(got.iter().map(|p| *p > 0.0).collect::<Vec<_>>(), [true, false, true, true, false]);
    // Fewer than top_k are possible.
    let got = distribution(options, &mut [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &[]);
    assert_eq!(got, [0.0, 0.5, 0.0, 0.5, 0.0]);
}

/// The cuts by halving and by growing windows against sorting, on flat and on peaked logits.
#[test]
fn cuts_are_those_of_sorting() {
    let mut random = Philox { seed: 3, counter: 0 };
    for spread in [0.0, 1e-3, 0.3, 5.0, 60.0] {
        for (top_p, top_k) in [(0.01, 0), (0.5, 0), (0.95, 0), (0.999, 0), (1.0, 1), (1.0, 37), (0.9, 300), (0.3, 5)] {
            // Rounded, so that there are ties.
            let mut logits: Vec<f32> =
                (0..1000).map(|_| ((random.uniform() * spread * 64.0).round() / 64.0) as f32).collect();
            let max = logits.iter().copied().fold(f32::MIN, f32::max);
            let weight = |token: usize| (f64::from(logits[token]) - f64::from(max)).exp();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let total: f64 = order.iter().map(|&token| weight(token)).sum();
            let mut above = 0.0;
            let mut last = f32::MIN;
            let mut want = vec![false; logits.len()];
            for (rank, &token) in order.iter().enumerate() {
                let in_mass = top_p == 1.0 || above < f64::from(top_p) * total - 1e-9 || logits[token] == last;
                if in_mass && (top_k == 0 || rank < top_k) {
                    want[token] = true;
                    last = logits[token];
                }
                above += weight(token);
            }
            let options = SamplingOptions { temperature: 1.0, top_p, top_k, ..SamplingOptions::default() };
            let got = distribution(options, &mut logits, &[]);
            let got: Vec<bool> = got.iter().map(|p| *p > 0.0).collect();
            let (count, wanted) = (got.iter().filter(|x| **x).count(), want.iter().filter(|x| **x).count());
            assert!(got == want, "spread {spread}, top_p {top_p}, top_k {top_k}: kept {count}, sorting keeps {wanted}");
        }
    }
}

#[test]
fn draws_follow_the_distribution_and_the_seed() {
    let logits = [0.0f32, 1.0, f32::NEG_INFINITY, 2.0];
    let options = SamplingOptions { temperature: 1.0, seed: Some(42), ..SamplingOptions::default() };
    let draw = |options: &SamplingOptions, count: usize| {
        let mut sampler = Sampler::new(options.clone()).expect("options");
        (0..count).map(|_| sampler.sample(&mut logits.to_vec(), &[]).expect("a token")).collect::<Vec<_>>()
    };
    // These very tokens, on every platform.
    assert_eq!(draw(&options, 16), [3, 3, 3, 3, 1, 1, 1, 3, 3, 1, 3, 1, 3, 1, 1, 3]);
    assert_ne!(draw(&options, 64), draw(&SamplingOptions { seed: Some(43), ..options.clone() }, 64));
    let tokens = draw(&options, 30_000);
    let want = distribution(options, &mut logits.to_vec(), &[]);
    for (token, want) in want.iter().enumerate() {
        let share = tokens.iter().filter(|&&t| t as usize == token).count() as f64 / tokens.len() as f64;
        assert!((share - want).abs() < 0.015, "token {token}: drawn {share}, probability {want}");
    }
}

#[test]
fn impossible_logits_are_errors() {
    for temperature in [0.0, 1.0] {
        let options = SamplingOptions { temperature, top_p: 0.9, top_k: 5, ..SamplingOptions::default() };
        let mut sampler = Sampler::new(options).expect("options");
        for mut logits in [vec![0.0, f32::NAN], vec![f32::INFINITY, 0.0], vec![f32::NEG_INFINITY; 3], vec![]] {
            assert!(sampler.sample(&mut logits, &[]).is_err(), "{logits:?}");
        }
        assert_eq!(sampler.sample(&mut [f32::MIN, f32::MIN / 2.0], &[]).expect("a token"), 1);
    }
    let mut sampler =
        Sampler::new(SamplingOptions { repetition_penalty: 1.1, ..SamplingOptions::default() }).expect("options");
    assert!(sampler.sample(&mut [0.0], &[7]).expect_err("outside").to_string().contains("token 7"));
}

#[test]
fn options_out_of_range_are_named() {
    let refused = |change: fn(&mut SamplingOptions), name: &str| {
        let mut options = SamplingOptions::default();
        change(&mut options);
        let message = options.validate().expect_err(name).to_string();
        assert!(message.contains(name), "{message}");
    };
    refused(|o| o.temperature = -0.1, "temperature");
    refused(|o| o.temperature = f32::NAN, "temperature");
    refused(|o| o.top_p = 0.0, "top_p");
    refused(|o| o.top_p = 1.5, "top_p");
    refused(|o| o.min_p = f32::NAN, "min_p");
    refused(|o| o.repetition_penalty = 0.0, "repetition_penalty");
    refused(|o| o.presence_penalty = f32::INFINITY, "presence_penalty");
    refused(|o| o.logit_bias = vec![(5, f32::NAN)], "logit_bias of token 5");
}

/// The known answers that Philox's authors publish (Random123, `kat_vectors`).
#[test]
fn philox_gives_the_published_numbers() {
    assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn exp_is_within_a_rounding_of_the_library() {
    for i in 0..70_000 {
        let x = -f64::from(i) / 100.0;
        assert!((exp(x) / x.exp() - 1.0).abs() < 1e-15, "exp({x}) is {}", exp(x));
    }
    assert_eq!(exp(-1e30), 0.0);
}
