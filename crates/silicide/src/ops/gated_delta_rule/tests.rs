use proptest::prelude::*;

use super::*;
use crate::Device;
use crate::device::CpuOptions;
use crate::device::cpu::Features;
use crate::testing::{Golden, Random, assert_close, on_every_device, on_every_schedule, rounded, tensor_of, values_of};

/// A problem in numbers: queries and keys of about unit length, as models have them, and gates in f32.
#[derive(Clone)]
struct Problem {
    dtype: DType,
    tokens: usize,
    key_heads: usize,
    value_heads: usize,
    dk: usize,
    dv: usize,
    heads: HeadMap,
    scale: f32,
    /// What views' starts and gaps are multiples of.
    unit: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    decay: Vec<f32>,
    beta: Vec<f32>,
    state: Vec<f32>,
}

impl Problem {
    fn random(dtype: DType, [tokens, key_heads, ratio, dk, dv]: [usize; 5], heads: HeadMap, seed: u64) -> Problem {
        let mut random = Random::new(seed);
        let value_heads = key_heads * ratio;
        let mut unit = |n: usize| {
            let scale = 0.8 / (dk as f32).sqrt();
            rounded(dtype, &random.values(n).iter().map(|x| x * scale).collect::<Vec<_>>())
        };
        let (q, k) = (unit(tokens * key_heads * dk), unit(tokens * key_heads * dk));
        let v = rounded(dtype, &random.values(tokens * value_heads * dv));
        // From all forgotten to nothing.
        let decay = (0..tokens * value_heads).map(|_| match random.below(20) {
            0 => 0.0,
            1 => 1.0,
            _ => 1.0 - random.value().abs() * 0.3,
        });
        let decay = decay.collect();
        let beta = (0..tokens * value_heads).map(|_| random.value().abs() / 2.0).collect();
        let state = random.values(value_heads * dv * dk);
        let scale = 1.0 / (dk as f32).sqrt();
        let unit = [1, 8][random.below(2)];
        Problem { dtype, tokens, key_heads, value_heads, dk, dv, heads, scale, unit, q, k, v, decay, beta, state }
    }

    /// The definition, in f64: results and the state after.
    fn reference(&self) -> (Vec<f64>, Vec<f64>) {
        let Problem { tokens, key_heads, value_heads, dk, dv, .. } = *self;
        let mut state: Vec<f64> = self.state.iter().map(|&s| s as f64).collect();
        let mut out = Vec::new();
        for t in 0..tokens {
            for h in 0..value_heads {
                let key_head = match self.heads {
                    HeadMap::Grouped => h / (value_heads / key_heads),
                    HeadMap::Tiled => h % key_heads,
                };
                let at = (t * key_heads + key_head) * dk;
                let (q, k) = (&self.q[at..at + dk], &self.k[at..at + dk]);
                let (g, beta) = (self.decay[t * value_heads + h] as f64, self.beta[t * value_heads + h] as f64);
                for r in 0..dv {
                    let row = &mut state[(h * dv + r) * dk..][..dk];
                    row.iter_mut().for_each(|s| *s *= g);
                    let predicted: f64 = row.iter().zip(k).map(|(s, &k)| s * k as f64).sum();
                    let u = (self.v[(t * value_heads + h) * dv + r] as f64 - predicted) * beta;
                    row.iter_mut().zip(k).for_each(|(s, &k)| *s += u * k as f64);
                    out.push(row.iter().zip(q).map(|(s, &q)| s * q as f64).sum::<f64>() * self.scale as f64);
                }
            }
        }
        (out, state)
    }

    /// Runs it in launches of `chunk` tokens, in views with gaps: results and the state after.
    fn run(&self, stream: &mut Stream, chunk: usize, log: bool, form: Option<bool>) -> (Vec<f32>, Vec<f32>) {
        let device = &stream.device().clone();
        let Problem { dtype, tokens, key_heads, value_heads, dk, dv, .. } = *self;
        let mut random = Random::new(chunk as u64);
        let mut view =
            |dtype, values: &[f32], shape: [usize; 3]| random.tensor_by(self.unit, device, dtype, values, shape);
        let q = view(dtype, &self.q, [tokens, key_heads, dk]);
        let k = view(dtype, &self.k, [tokens, key_heads, dk]);
        let v = view(dtype, &self.v, [tokens, value_heads, dv]);
        let out = view(dtype, &vec![9.0; self.v.len()], [tokens, value_heads, dv]);
        let g: Vec<f32> = self.decay.iter().map(|&g| if log { g.ln() } else { g }).collect();
        let g = random.tensor(device, DType::F32, &g, [tokens, value_heads]);
        let beta = random.tensor(device, DType::F32, &self.beta, [tokens, value_heads]);
        let state = tensor_of(device, DType::F32, &self.state, [value_heads, dv, dk]);
        for first in (0..tokens).step_by(chunk) {
            let part = |t: &Tensor| t.slice(0, first..tokens.min(first + chunk)).unwrap();
            let (g, beta) = (part(&g), part(&beta));
            let options = GatedDeltaRule {
                decay: if log { Decay::Log(&g) } else { Decay::Factor(&g) },
                beta: &beta,
                state: &state,
                scale: self.scale,
                heads: self.heads,
            };
            super::run(stream, &part(&q), &part(&k), &part(&v), options, &part(&out), form).unwrap();
        }
        (values_of(stream, &out), values_of(stream, &state))
    }

    fn check(&self, stream: &mut Stream, chunk: usize, log: bool, form: Option<bool>) {
        self.check_to(2.0, stream, chunk, log, form);
    }

    /// Whether the state is right to some 4e-6 of `size`.
    fn check_to(&self, size: f64, stream: &mut Stream, chunk: usize, log: bool, form: Option<bool>) {
        let (out, state) = self.run(stream, chunk, log, form);
        let (want, want_state) = self.reference();
        assert_close(self.dtype, &out, &want, 1.0);
        assert_close(DType::F32, &state, &want_state, size);
    }
}

fn heads() -> impl Strategy<Value = HeadMap> {
    prop_oneof![Just(HeadMap::Grouped), Just(HeadMap::Tiled)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn follows_the_definition(
        tokens in prop_oneof![Just(0usize), Just(1), Just(15), Just(16), Just(17), Just(33)],
        (key_heads, ratio) in (1usize..3, 1usize..4),
        // Few, since each is compiled apart.
        dk in prop_oneof![Just(1usize), Just(33), Just(128), Just(192), Just(256)],
        dv in prop_oneof![Just(1usize), Just(16), Just(31), Just(33)],
        (dtype, heads, log) in (0usize..3, heads(), any::<bool>()),
        form: Option<bool>,
        seed: u64,
    ) {
        let problem = Problem::random(DType::FLOATS[dtype], [tokens, key_heads, ratio, dk, dv], heads, seed);
        on_every_device(|stream| problem.check(stream, tokens.max(1), log, form));
    }
}

/// D-16: value heads have key heads by division, as MLX's weights want it, or by modulo, as GGUF's; heads past 128; a scale.
#[test]
fn d_16_value_heads_have_key_heads_by_division_or_by_modulo() {
    on_every_device(|stream| {
        for heads in [HeadMap::Grouped, HeadMap::Tiled] {
            let problem = Problem { scale: 0.3, ..Problem::random(DType::F32, [17, 2, 3, 192, 33], heads, 6) };
            for form in [Some(true), Some(false)] {
                problem.check(stream, 17, true, form);
            }
        }
    });
}

/// Where keys and values come in sixteens and lie aligned; states are forgotten within a chunk, or outlast several.
#[test]
fn tensor_cores_give_the_definition() {
    on_every_device(|stream| {
        for (dtype, dims, heads, forgets) in [
            (DType::BF16, [130, 2, 2, 128, 80], HeadMap::Grouped, true),
            (DType::BF16, [150, 1, 1, 64, 16], HeadMap::Grouped, false),
            (DType::BF16, [33, 1, 1, 64, 128], HeadMap::Grouped, false),
            (DType::F16, [65, 2, 3, 48, 16], HeadMap::Tiled, true),
            (DType::F16, [64, 1, 1, 128, 32], HeadMap::Grouped, false),
        ] {
            let mut problem = Problem { unit: 8, ..Problem::random(dtype, dims, heads, dims[0] as u64) };
            if !forgets {
                problem.decay.iter_mut().for_each(|g| *g = 1.0 - (1.0 - *g) / 64.0);
            }
            // Pairs of bf16 keep 16 bits of what a state that outlasts chunks gets from each.
            let size = if dtype == DType::BF16 && !forgets { 4.0 } else { 2.0 };
            problem.check_to(size, stream, dims[0], dims[0] % 2 == 0, Some(true));
            // In parts that are no whole chunks.
            problem.check_to(size, stream, 47, dims[0] % 2 == 1, Some(true));
        }
    });
}

/// Pieces of f16 end where f16 does.
#[test]
fn a_state_may_be_past_the_range_of_its_keys() {
    let mut problem = Problem { unit: 8, ..Problem::random(DType::F16, [20, 1, 1, 32, 32], HeadMap::Grouped, 7) };
    problem.state[3 * 32 + 5] = 1e5;
    problem.decay.fill(0.9);
    on_every_device(|stream| {
        let (out, state) = problem.run(stream, 20, false, Some(true));
        let (want, want_state) = problem.reference();
        assert_close(problem.dtype, &out, &want, 1e5);
        assert_close(DType::F32, &state, &want_state, 1e5);
    });
}

#[test]
fn any_schedule_gives_the_definition() {
    let problem = Problem::random(DType::F32, [21, 1, 2, 33, 35], HeadMap::Grouped, 1);
    let sixteens = Problem::random(DType::BF16, [70, 1, 1, 32, 80], HeadMap::Grouped, 1);
    let sixteens = Problem { unit: 8, ..sixteens };
    on_every_schedule(|stream| {
        problem.check(stream, 21, false, Some(true));
        problem.check(stream, 21, false, Some(false));
        sixteens.check(stream, 70, false, Some(true));
    });
}

#[test]
fn any_chunks_give_the_same() {
    let problem = Problem::random(DType::F32, [130, 2, 2, 33, 17], HeadMap::Grouped, 2);
    on_every_device(|stream| {
        let whole = problem.run(stream, 130, true, None);
        for chunk in [1, 7, 64] {
            let parts = problem.run(stream, chunk, true, None);
            if stream.device().kind() == DeviceKind::Cpu {
                assert!(parts == whole, "chunks of {chunk}");
            }
            for (parts, whole) in [(&parts.0, &whole.0), (&parts.1, &whole.1)] {
                let most = whole.iter().fold(0f32, |m, x| m.max(x.abs()));
                let apart = parts.iter().zip(whole).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(apart <= 1e-5 * most, "chunks of {chunk}: {apart} of {most}");
            }
        }
    });
}

#[test]
fn every_level_of_the_processor_gives_the_definition() {
    for dims in [[19, 1, 1, 33, 17], [3, 2, 1, 128, 16]] {
        let problem = Problem::random(DType::BF16, dims, HeadMap::Tiled, 3);
        for &features in Features::all() {
            let options = CpuOptions { threads: 1, features: Some(features) };
            problem.check(&mut Device::cpu_with(options).stream(), dims[0], true, None);
        }
    }
}

#[test]
fn many_threads_give_what_one_gives() {
    let problem = Problem::random(DType::F32, [40, 2, 2, 128, 70], HeadMap::Grouped, 4);
    let run = |threads| {
        let device = Device::cpu_with(CpuOptions { threads, ..CpuOptions::default() });
        problem.run(&mut device.stream(), 40, false, None)
    };
    assert!(run(1) == run(3));
}

#[test]
fn agrees_with_mlx_lm_and_transformers() {
    let golden = Golden::read("gated_delta_rule");
    let cases = golden.cases();
    assert_eq!(cases.len(), 6);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        for (case, p) in &cases {
            for form in [Some(true), Some(false)] {
                let tensor = |name: &str| golden.tensor(device, &format!("{case}.{name}"));
                let exact = |name: &str| golden.exact_values(&format!("{case}.{name}"));
                let (v, g, beta, state) = (tensor("v"), tensor("log_g"), tensor("beta"), tensor("state"));
                let out = stream.empty(v.dtype(), *v.shape()).unwrap();
                let options = GatedDeltaRule {
                    decay: Decay::Log(&g),
                    beta: &beta,
                    state: &state,
                    scale: p["scale"].as_f64().unwrap() as f32,
                    heads: if p["heads"] == "tiled" { HeadMap::Tiled } else { HeadMap::Grouped },
                };
                run(stream, &tensor("q"), &tensor("k"), &v, options, &out, form).unwrap();
                assert_close(v.dtype(), &values_of(stream, &out), &exact("exact"), 0.3);
                assert_close(DType::F32, &values_of(stream, &state), &exact("final_state"), 1.0);
            }
        }
    });
}

#[test]
fn nan_and_infinity_stay_in_their_row_and_reach_only_later_tokens() {
    for (dtype, [dk, dv]) in [(DType::F32, [33, 5]), (DType::BF16, [32, 32])] {
        let mut problem = Problem::random(dtype, [20, 1, 2, dk, dv], HeadMap::Grouped, 5);
        problem.unit = 8;
        // Nothing may forget, which would clear an infinity out of a reference but not out of a product with 0.
        problem.decay.fill(0.9);
        let at = |token: usize, head: usize, row: usize| (token * 2 + head) * dv + row;
        problem.v[at(3, 0, 1)] = f32::NAN;
        problem.v[at(18, 1, 4)] = f32::INFINITY;
        let lost_from = |head: usize, row: usize| match (head, row) {
            (0, 1) => 3,
            (1, 4) => 18,
            _ => 20,
        };
        on_every_device(|stream| {
            for form in [true, false] {
                let (out, state) = problem.run(stream, 20, false, Some(form));
                for (i, y) in out.iter().enumerate() {
                    let (token, head, row) = (i / dv / 2, i / dv % 2, i % dv);
                    assert_eq!(y.is_finite(), token < lost_from(head, row), "token {token}, head {head}, row {row}");
                }
                for (i, row) in state.chunks(dk).enumerate() {
                    assert_eq!(row.iter().all(|s| !s.is_finite()), lost_from(i / dv, i % dv) < 20);
                    assert_eq!(row.iter().any(|s| !s.is_finite()), lost_from(i / dv, i % dv) < 20);
                }
            }
        });
    }
}

#[test]
fn a_plan_goes_on_from_the_state() {
    let problem = Problem::random(DType::F32, [2, 1, 1, 33, 3], HeadMap::Grouped, 6);
    on_every_device(|stream| {
        let device = &stream.device().clone();
        let state = tensor_of(device, DType::F32, &problem.state, [1, 3, 33]);
        let token =
            |values: &[f32], t: usize, n: usize| tensor_of(device, DType::F32, &values[t * n..][..n], [1, 1, n]);
        let (q, k, v) = (token(&problem.q, 0, 33), token(&problem.k, 0, 33), token(&problem.v, 0, 3));
        let gate = |values: &[f32]| tensor_of(device, DType::F32, &values[..1], [1, 1]);
        let (g, beta) = (gate(&problem.decay), gate(&problem.beta));
        let options = GatedDeltaRule {
            decay: Decay::Factor(&g),
            beta: &beta,
            state: &state,
            scale: problem.scale,
            heads: HeadMap::Grouped,
        };
        let (plan, out) = stream.record(|s| gated_delta_rule(s, &q, &k, &v, options)).unwrap();
        let (want, _) = problem.reference();
        for t in 0..2 {
            stream.write(&q, &problem.q[t * 33..][..33]).unwrap();
            stream.write(&k, &problem.k[t * 33..][..33]).unwrap();
            stream.write(&v, &problem.v[t * 3..][..3]).unwrap();
            stream.write(&g, &problem.decay[t..=t]).unwrap();
            stream.write(&beta, &problem.beta[t..=t]).unwrap();
            stream.replay(&plan).unwrap();
            assert_close(DType::F32, &values_of(stream, &out), &want[t * 3..][..3], 1.0);
        }
    });
}

#[test]
fn says_what_does_not_fit() {
    let device = Device::cpu();
    let stream = &mut device.stream();
    let zeros = |shape: [usize; 3]| device.zeros(DType::F32, shape).unwrap();
    let gates = device.zeros(DType::F32, [3, 4]).unwrap();
    let (q, v, state) = (zeros([3, 2, 8]), zeros([3, 4, 5]), zeros([4, 5, 8]));
    let mut error = |q: &Tensor, k: &Tensor, v: &Tensor, gates: &Tensor, state: &Tensor, out: &Tensor| {
        let options =
            GatedDeltaRule { decay: Decay::Log(gates), beta: gates, state, scale: 1.0, heads: HeadMap::Grouped };
        gated_delta_rule_into(stream, q, k, v, options, out).unwrap_err().to_string()
    };
    let out = zeros([3, 4, 5]);
    assert_eq!(
        error(&q, &q, &v, &gates, &zeros([4, 8, 5]), &out),
        "gated_delta_rule: state: got f32[4, 8, 5], wanted f32[4, 5, 8], contiguous"
    );
    assert!(error(&q, &zeros([3, 2, 7]), &v, &gates, &state, &out).contains("wanted one shape and type"));
    assert!(error(&q, &q, &zeros([2, 4, 5]), &gates, &state, &out).contains("v: got f32[2, 4, 5]"));
    let odd = zeros([3, 3, 5]);
    assert!(error(&q, &q, &odd, &gates, &state, &odd).contains("3 value heads for 2 key heads"));
    let wide = zeros([3, 2, 257]);
    assert!(error(&wide, &wide, &v, &gates, &state, &out).contains("heads of 257, wanted 1 to 256"));
    let short = device.zeros(DType::F32, [3, 2]).unwrap();
    assert!(error(&q, &q, &v, &short, &state, &out).contains("decay: got f32[3, 2], wanted f32[3, 4]"));
    assert!(error(&q, &q, &v, &gates, &state, &v).contains("memory of its own"));
    let half = device.zeros(DType::F16, [3, 4, 5]).unwrap();
    assert!(error(&q, &q, &v, &gates, &state, &half).contains("out: got f16"));
}
