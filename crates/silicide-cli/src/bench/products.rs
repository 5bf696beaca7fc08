//! Products with weights: of every token, and of experts.

use std::collections::BTreeSet;

use silicide::ops::{self, ExpertSchedule, Gate, Precision, Router, WeightedReduce};
use silicide::quant::{GgmlFormat, QuantFormat};
use silicide::{DType, MatrixFormat, Result};

use super::case::{Arithmetic, Case, Setup, call, keep, stored_bytes};
use super::models::{Dims, GPT_OSS, LLAMA, QWEN_27B, QWEN_35B};

const fn affine(bits: u8) -> MatrixFormat {
    MatrixFormat::Quantized(QuantFormat::Affine { bits, group_size: 64 }, DType::BF16)
}

const fn ggml(format: GgmlFormat) -> MatrixFormat {
    MatrixFormat::Quantized(QuantFormat::Ggml(format), DType::BF16)
}

pub(super) const FOUR_BITS: MatrixFormat = affine(4);
const MXFP4: MatrixFormat = MatrixFormat::Quantized(QuantFormat::Mxfp4, DType::BF16);
pub(super) const BF16: MatrixFormat = MatrixFormat::Dense(DType::BF16);

/// The formats of weights that decode at several rows is timed with.
const FORMATS: [MatrixFormat; 7] = [
    FOUR_BITS,
    affine(8),
    MXFP4,
    ggml(GgmlFormat::Q4_0),
    ggml(GgmlFormat::Q8_0),
    ggml(GgmlFormat::Q4_K),
    ggml(GgmlFormat::Q6_K),
];

pub(super) fn cases(gpu: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for m in [1, 1024].into_iter().filter(|&m| gpu || m == 1) {
        cases.extend([gate_and_up(LLAMA, m), gate_and_up_then_glu(LLAMA, m), gated(LLAMA, m)]);
    }
    for format in FORMATS.into_iter().chain([BF16]) {
        for m in [1, 2, 4, 8, 16] {
            cases.push(matmul(LLAMA, format, m, LLAMA.intermediate, LLAMA.hidden));
        }
    }
    for (model, format, n, k) in [
        (LLAMA, FOUR_BITS, LLAMA.hidden, LLAMA.hidden),
        (LLAMA, FOUR_BITS, LLAMA.hidden, LLAMA.intermediate),
        (LLAMA, FOUR_BITS, LLAMA.vocab, LLAMA.hidden),
        (QWEN_27B, FOUR_BITS, QWEN_27B.intermediate, QWEN_27B.hidden),
        (QWEN_27B, FOUR_BITS, QWEN_27B.hidden, QWEN_27B.intermediate),
        (QWEN_35B, FOUR_BITS, 8192, QWEN_35B.hidden),
        (GPT_OSS, BF16, GPT_OSS.heads * GPT_OSS.head_dim, GPT_OSS.hidden),
    ] {
        cases.push(matmul(model, format, 1, n, k));
    }
    for format in [BF16, FOUR_BITS] {
        for m in [512, 1024, 2048, 4096] {
            cases.push(matmul(LLAMA, format, m, LLAMA.hidden, LLAMA.hidden));
        }
        // As long as all the others together on a CPU.
        for m in [512, 1024, 2048, 4096].into_iter().filter(|&m| gpu || m == 512) {
            cases.push(matmul(LLAMA, format, m, LLAMA.intermediate, LLAMA.hidden));
        }
    }
    // Sequences that are served together.
    for format in [FOUR_BITS, ggml(GgmlFormat::Q4_K), BF16].into_iter().filter(|_| gpu) {
        for (n, k) in [(LLAMA.intermediate, LLAMA.hidden), (LLAMA.hidden, LLAMA.intermediate)] {
            cases.push(matmul(LLAMA, format, 64, n, k));
        }
    }
    // Formats that are dequantised on the way to the tensor cores, and those that are before.
    for &format in FORMATS[1..].iter().filter(|_| gpu) {
        cases.push(matmul(LLAMA, format, 1024, LLAMA.intermediate, LLAMA.hidden));
    }
    for tokens in [1, 512] {
        cases.push(scores(LLAMA, tokens, 4096));
    }
    for tokens in [1, 8, 512] {
        cases.push(router(QWEN_35B, tokens));
    }
    cases.push(router(GPT_OSS, 1));
    for tokens in [8, 512, 4096] {
        cases.push(schedule(QWEN_35B, tokens));
    }
    for tokens in [1, 8, 512] {
        cases.extend([experts_then_glu(QWEN_35B, tokens), gated_experts(QWEN_35B, tokens)]);
    }
    for (model, format) in [(QWEN_35B, FOUR_BITS), (GPT_OSS, MXFP4)] {
        // Some seconds each on a CPU.
        for tokens in [1, 8, 64, 512, 4096].into_iter().filter(|&tokens| gpu || tokens <= 512) {
            cases.push(experts(model, format, tokens, Experts::Up));
        }
        for tokens in [1, 64, 512, 4096].into_iter().filter(|&tokens| gpu || tokens <= 512) {
            cases.push(experts(model, format, tokens, Experts::Down));
        }
    }
    for tokens in [1, 8, 512, 4096] {
        cases.push(sum_of_experts(QWEN_35B, tokens));
    }
    cases
}

/// One row is a step of decoding, few are of several sequences or of drafts, many are a prompt.
fn matmul(model: Dims, format: MatrixFormat, m: usize, n: usize, k: usize) -> Case {
    let make = move |s: &mut Setup| {
        let [weight] = s.weights(format, n, k)?;
        let (x, out) = (s.input(s.float(), [m, k])?, s.output(s.float(), [m, n])?);
        call(move |stream| ops::matmul_into(stream, &x, &weight, Precision::Reduced, &out))
    };
    Case::new("matmul", model.name, format!("{m} x [{n}, {k}] {format}"), make)
        .flops(arithmetic(format, m), 2 * m * n * k)
}

/// Few rows repay products with the codes themselves, many repay dequantising them.
fn arithmetic(format: MatrixFormat, rows: usize) -> Arithmetic {
    if format == BF16 || rows > 16 { Arithmetic::Matrix } else { Arithmetic::Codes }
}

/// Gate and up projection, in one launch.
fn gate_and_up(model: Dims, m: usize) -> Case {
    let Dims { intermediate: n, hidden: k, .. } = model;
    let make = move |s: &mut Setup| {
        let [gate, up] = s.weights(FOUR_BITS, n, k)?;
        let (x, a, b) = (s.input(s.float(), [m, k])?, s.output(s.float(), [m, n])?, s.output(s.float(), [m, n])?);
        call(move |stream| ops::matmul_each_into(stream, &x, [(&gate, &a), (&up, &b)], Precision::Reduced))
    };
    Case::new("matmul_each", model.name, format!("{m} x 2 of [{n}, {k}] {FOUR_BITS}"), make)
        .flops(arithmetic(FOUR_BITS, m), 4 * m * n * k)
}

/// As above, and what a feed-forward network does next in a launch of its own.
fn gate_and_up_then_glu(model: Dims, m: usize) -> Case {
    let Dims { intermediate: n, hidden: k, .. } = model;
    let make = move |s: &mut Setup| {
        let [gate, up] = s.weights(FOUR_BITS, n, k)?;
        let (x, a, b) = (s.input(s.float(), [m, k])?, s.output(s.float(), [m, n])?, s.space(s.float(), [m, n])?);
        call(move |stream| {
            ops::matmul_each_into(stream, &x, [(&gate, &a), (&up, &b)], Precision::Reduced)?;
            ops::glu_into(stream, Gate::Silu, &a, &b, &a)
        })
    };
    Case::new("matmul_each", model.name, format!("{m} x 2 of [{n}, {k}] {FOUR_BITS}, then glu"), make)
        .flops(arithmetic(FOUR_BITS, m), 4 * m * n * k)
}

/// Both in one launch.
fn gated(model: Dims, m: usize) -> Case {
    let Dims { intermediate: n, hidden: k, .. } = model;
    let make = move |s: &mut Setup| {
        let [gate, up] = s.weights(FOUR_BITS, n, k)?;
        let (x, out) = (s.input(s.float(), [m, k])?, s.output(s.float(), [m, n])?);
        call(move |stream| ops::matmul_glu_into(stream, &x, &gate, &up, Gate::Silu, Precision::Reduced, &out))
    };
    Case::new("matmul_glu", model.name, format!("silu, {m} x 2 of [{n}, {k}] {FOUR_BITS}"), make)
        .flops(arithmetic(FOUR_BITS, m), 4 * m * n * k)
}

/// Scores of every query with every key: a product of two activations, in which heads of queries share one of keys.
fn scores(model: Dims, queries: usize, keys: usize) -> Case {
    let Dims { heads, kv_heads, head_dim: dim, .. } = model;
    let group = heads / kv_heads;
    let make = move |s: &mut Setup| {
        let (q, k) =
            (s.input(s.float(), [kv_heads, group, queries, dim])?, s.input(s.float(), [kv_heads, 1, keys, dim])?);
        let out = s.output(s.float(), [kv_heads, group, queries, keys])?;
        call(move |stream| ops::batched_matmul_into(stream, &q, &k, Precision::Reduced, &out))
    };
    Case::new("batched_matmul", model.name, format!("{heads} of {kv_heads} x {queries} x [{keys}, {dim}]"), make)
        .flops(Arithmetic::Matrix, 2 * heads * queries * keys * dim)
}

fn router(model: Dims, tokens: usize) -> Case {
    let Dims { experts, experts_per_token: top_k, .. } = model;
    let make = move |s: &mut Setup| {
        let logits = s.input(s.float(), [tokens, experts])?;
        let (ids, weights) = (s.output(DType::U32, [tokens, top_k])?, s.output(DType::F32, [tokens, top_k])?);
        call(move |stream| ops::router_into(stream, &logits, Router { top_k, ..Router::default() }, &ids, &weights))
    };
    Case::new("router", model.name, format!("{tokens} x {experts}, best {top_k}"), make)
}

fn schedule(model: Dims, tokens: usize) -> Case {
    let Dims { experts, experts_per_token: slots, .. } = model;
    let make = move |s: &mut Setup| {
        let ids = s.ids(tokens * slots, experts)?.reshape([tokens, slots])?;
        // The places in order, and a few words a tile.
        s.writes(4 * tokens * slots);
        call(move |stream| ops::expert_schedule(stream, &ids, experts).map(drop))
    };
    Case::new("expert_schedule", model.name, format!("{tokens} x {slots} of {experts}"), make)
}

/// Which of the products of an expert: of rows that its slots share, or of one for each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Experts {
    Up,
    Down,
}

fn experts(model: Dims, format: MatrixFormat, tokens: usize, which: Experts) -> Case {
    let Dims { experts, experts_per_token: slots, intermediate, hidden, .. } = model;
    let (n, k) = if which == Experts::Up { (intermediate, hidden) } else { (hidden, intermediate) };
    let make = move |s: &mut Setup| {
        let [weight] = s.experts(format, experts, n, k)?;
        let schedule = schedule_of(s, model, tokens, stored_bytes(format, n, k))?;
        let x = match which {
            Experts::Up => s.input(s.float(), [tokens, k])?,
            Experts::Down => s.input(s.float(), [tokens, slots, k])?,
        };
        let out = s.output(s.float(), [tokens, slots, n])?;
        call(move |stream| ops::expert_matmul_into(stream, &x, &weight, &schedule, None, Precision::Reduced, &out))
    };
    let per_slot = if which == Experts::Up { "" } else { " a slot" };
    let shape = format!("{tokens} x {slots} of {experts} x [{n}, {k}] {format}{per_slot}");
    let flops = 2 * tokens * slots * n * k;
    let rows = tokens * slots / experts;
    Case::new("expert_matmul", model.name, shape, make).flops(arithmetic(format, rows), flops)
}

/// Where some tokens go. Each expert that one goes to has so many bytes read.
fn schedule_of(s: &mut Setup, model: Dims, tokens: usize, bytes: usize) -> Result<ExpertSchedule> {
    let Dims { experts, experts_per_token: slots, .. } = model;
    let ids = routed(s.copy(), tokens, slots, experts);
    let used: BTreeSet<u32> = ids.iter().copied().collect();
    s.reads(used.len() * bytes);
    let ids = s.integers(&ids)?.reshape([tokens, slots])?;
    ops::expert_schedule(&mut s.device().stream(), &ids, experts)
}

/// Gate and up projection of experts, and what they do next, in launches of their own.
fn experts_then_glu(model: Dims, tokens: usize) -> Case {
    let Dims { experts, experts_per_token: slots, intermediate: n, hidden: k, .. } = model;
    let make = move |s: &mut Setup| {
        let [gate, up] = s.experts(FOUR_BITS, experts, n, k)?;
        let schedule = schedule_of(s, model, tokens, 2 * stored_bytes(FOUR_BITS, n, k))?;
        let x = s.input(s.float(), [tokens, k])?;
        let (a, b) = (s.output(s.float(), [tokens, slots, n])?, s.space(s.float(), [tokens, slots, n])?);
        call(move |stream| {
            ops::expert_matmul_into(stream, &x, &gate, &schedule, None, Precision::Reduced, &a)?;
            ops::expert_matmul_into(stream, &x, &up, &schedule, None, Precision::Reduced, &b)?;
            ops::glu_into(stream, Gate::Silu, &a, &b, &a)
        })
    };
    let shape = format!("{tokens} x {slots} of {experts} x 2 of [{n}, {k}] {FOUR_BITS}, then glu");
    Case::new("expert_matmul", model.name, shape, make)
        .flops(arithmetic(FOUR_BITS, tokens * slots / experts), 4 * tokens * slots * n * k)
}

/// All in one launch.
fn gated_experts(model: Dims, tokens: usize) -> Case {
    let Dims { experts, experts_per_token: slots, intermediate: n, hidden: k, .. } = model;
    let make = move |s: &mut Setup| {
        let [gate, up] = s.experts(FOUR_BITS, experts, n, k)?;
        let schedule = schedule_of(s, model, tokens, 2 * stored_bytes(FOUR_BITS, n, k))?;
        let (x, out) = (s.input(s.float(), [tokens, k])?, s.output(s.float(), [tokens, slots, n])?);
        let (silu, precision) = (Gate::Silu, Precision::Reduced);
        call(move |stream| ops::expert_matmul_glu_into(stream, &x, &gate, &up, &schedule, silu, precision, &out))
    };
    let shape = format!("silu, {tokens} x {slots} of {experts} x 2 of [{n}, {k}] {FOUR_BITS}");
    Case::new("expert_matmul_glu", model.name, shape, make)
        .flops(arithmetic(FOUR_BITS, tokens * slots / experts), 4 * tokens * slots * n * k)
}

/// Experts of some tokens, each with `slots` different ones by chance.
fn routed(copy: usize, tokens: usize, slots: usize, experts: usize) -> Vec<u32> {
    let mut seed = copy as u64 + 1;
    let mut ids = Vec::with_capacity(tokens * slots);
    for token in 0..tokens {
        while ids.len() < (token + 1) * slots {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let id = ((seed >> 33) % experts as u64) as u32;
            if !ids[token * slots..].contains(&id) {
                ids.push(id);
            }
        }
    }
    ids
}

fn sum_of_experts(model: Dims, tokens: usize) -> Case {
    let Dims { experts_per_token: slots, hidden, .. } = model;
    let make = move |s: &mut Setup| {
        let float = s.float();
        let (y, weights) = (s.input(float, [tokens, slots, hidden])?, s.input(DType::F32, [tokens, slots])?);
        let (shared, gate) = (s.input(float, [tokens, hidden])?, s.input(float, [tokens, 1])?);
        let (residual, out) = (s.input(float, [tokens, hidden])?, s.output(float, [tokens, hidden])?);
        call(move |stream| {
            let options =
                WeightedReduce { shared: Some(&shared), shared_gate_logit: Some(&gate), residual: Some(&residual) };
            ops::weighted_reduce_into(stream, &y, &weights, options, &out)
        })
    };
    Case::new("weighted_reduce", model.name, format!("{tokens} x {slots} x {hidden}, shared, residual"), make)
}

/// Rows of the token embedding.
pub(super) fn embedding(model: Dims, format: MatrixFormat, tokens: usize) -> Case {
    let Dims { hidden, vocab, .. } = model;
    let make = move |s: &mut Setup| -> Result<_> {
        let (table, ids, float) = (s.table(format, vocab, hidden)?, s.ids(tokens, vocab)?, s.float());
        s.reads(tokens * stored_bytes(format, 1, hidden));
        s.writes(tokens * hidden * float.size());
        keep(move |stream| ops::embedding(stream, &ids, &table, 1.0, float))
    };
    Case::new("embedding", model.name, format!("{tokens} of [{vocab}, {hidden}] {format}"), make)
}
