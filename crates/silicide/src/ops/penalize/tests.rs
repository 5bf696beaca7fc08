use super::*;
use crate::Device;
use crate::testing::{Random, on_every_device};

/// The definition, in f64.
fn reference(logits: &[f32], recent: &[u32], p: Penalties) -> Vec<f64> {
    let lowered = |(id, &logit): (usize, &f32)| {
        let (logit, times) = (logit as f64, recent.iter().filter(|&&r| r as usize == id).count());
        let repetition = p.repetition as f64;
        match times {
            0 => logit,
            _ if logit < 0.0 => logit * repetition - (p.presence as f64 + p.frequency as f64 * times as f64),
            _ => logit / repetition - (p.presence as f64 + p.frequency as f64 * times as f64),
        }
    };
    logits.iter().enumerate().map(lowered).collect()
}

#[test]
fn follows_the_definition_in_the_same_bits_everywhere() {
    let all = [
        Penalties::default(),
        Penalties { repetition: 1.1, ..Penalties::default() },
        Penalties { repetition: 0.7, presence: 0.3, frequency: 0.11 },
        Penalties { frequency: -0.2, ..Penalties::default() },
    ];
    for (vocab, count, p) in
        [(1, 1), (31, 33), (65, 20), (5000, 65), (33, 0)].iter().flat_map(|&(v, c)| all.map(|p| (v, c, p)))
    {
        let mut random = Random::new(vocab as u64);
        let x = random.values(3 * vocab);
        // Some occur more than once, and some are no tokens.
        let recent: Vec<u32> = (0..3 * count).map(|_| random.below(vocab + 2) as u32 / 2 * 2).collect();
        let mut first: Option<Vec<u32>> = None;
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let logits = Random::new(2).tensor(device, DType::F32, &x, [3, vocab]);
            let ids = device.tensor(&recent, [3, count]).unwrap();
            penalize_in_place(stream, &logits, &ids, p).unwrap();
            let got = logits.to_vec::<f32>(stream).unwrap();
            for row in 0..3 {
                let want = reference(&x[row * vocab..][..vocab], &recent[row * count..][..count], p);
                for (got, want) in got[row * vocab..].iter().zip(want) {
                    assert!((*got as f64 - want).abs() < 1e-6, "{p:?}: {got} {want}");
                }
            }
            let bits: Vec<u32> = got.iter().map(|v| v.to_bits()).collect();
            assert_eq!(*first.get_or_insert(bits.clone()), bits, "every device has the same");
        });
    }
}

#[test]
fn agrees_with_mlx_lm() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../oracle/vectors/sampling.json");
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut cases = 0;
    for case in golden["cases"].as_array().unwrap() {
        let options = case["options"].as_object().unwrap();
        let number = |name: &str, off: f32| options.get(name).map_or(off, |v| v.as_f64().unwrap() as f32);
        let penalties = Penalties {
            repetition: number("repetition_penalty", 1.0),
            presence: number("presence_penalty", 0.0),
            frequency: number("frequency_penalty", 0.0),
        };
        let others = ["logit_bias", "top_p", "top_k", "min_p"].iter().any(|name| options.contains_key(*name));
        let temperature = number("temperature", 0.0);
        if penalties == Penalties::default() || others || temperature == 0.0 {
            continue;
        }
        cases += 1;
        let row = &golden["rows"][case["row"].as_u64().unwrap() as usize];
        let values = |name: &str| row[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
        let logits: Vec<f32> = values("logits").into_iter().map(|v| v as f32).collect();
        let history: Vec<u32> = values("history").into_iter().map(|v| v as u32).collect();
        let recent = &history[history.len().saturating_sub(20)..];
        on_every_device(|stream| {
            let device = &stream.device().clone();
            let t = device.tensor(&logits, [1, logits.len()]).unwrap();
            penalize_in_place(stream, &t, &device.tensor(recent, [1, recent.len()]).unwrap(), penalties).unwrap();
            let got = t.to_vec::<f32>(stream).unwrap();
            let most = got.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
            let weights: Vec<f64> = got.iter().map(|&l| ((l as f64 - most) / temperature as f64).exp()).collect();
            let total: f64 = weights.iter().sum();
            for kept in case["kept"].as_array().unwrap() {
                let (token, want) = (kept[0].as_u64().unwrap() as usize, kept[1].as_f64().unwrap());
                assert!((weights[token] / total - want).abs() < 1e-6, "{penalties:?}: token {token}");
            }
        });
    }
    assert!(cases > 3, "{cases}");
}

#[test]
fn leaves_what_is_not_finite() {
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        let logits = device.tensor(&[-inf, inf, nan, 1.0], [1, 4]).unwrap();
        let recent = device.tensor(&[0u32, 1, 2, 4], [1, 4]).unwrap();
        penalize_in_place(stream, &logits, &recent, Penalties { repetition: 1.5, presence: 1.0, frequency: 0.0 })
            .unwrap();
        let got = logits.to_vec::<f32>(stream).unwrap();
        assert!(got[0] == -inf && got[1] == inf && got[2].is_nan() && got[3] == 1.0, "{got:?}");
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let logits = device.zeros(DType::F32, [2, 4]).unwrap();
    let recent = device.zeros(DType::U32, [2, 3]).unwrap();
    let mut run = |l: &Tensor, r: &Tensor, p| penalize_in_place(stream, l, r, p).unwrap_err().to_string();
    let error = run(&logits, &logits, Penalties::default());
    assert_eq!(error, "penalize: recent: got f32[2, 4], wanted u32[2, n], contiguous");
    assert!(run(&recent, &recent, Penalties::default()).contains("logits: got u32[2, 3]"));
    assert!(run(&logits, &recent, Penalties { repetition: 0.0, ..Penalties::default() }).contains("repetition: got 0"));
    assert!(
        run(&logits, &recent, Penalties { presence: f32::NAN, ..Penalties::default() }).contains("presence: got NaN")
    );
    let over = Tensor::new(logits.buffer().clone(), 0, DType::U32, [2, 3]).unwrap();
    assert!(run(&logits, &over, Penalties { presence: 1.0, ..Penalties::default() }).contains("memory of its own"));
}
