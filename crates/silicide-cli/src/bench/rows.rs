//! Ops on rows: norms, softmax, and what is done with logits.

use silicide::ops::{self, Cumsum, Hadamard, Order, Penalties, Reduce, RmsNormOptions, Sampling, Softmax};
use silicide::{DType, Result};

use super::case::{Case, Setup, call};
use super::models::{ANY, Dims, LINEAR_DIM, LLAMA, QWEN_27B, VISION};
use super::products::{BF16, FOUR_BITS, embedding};

/// Tokens of one step, of a prompt, and of one that is past every cache.
pub(super) const TOKENS: [usize; 3] = [1, 512, 8192];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in TOKENS {
        cases.push(rms_norm(LLAMA, tokens));
    }
    for tokens in TOKENS {
        cases.push(rms_norm_of_sum(QWEN_27B, tokens));
    }
    for tokens in [1, 512, 4096] {
        cases.push(rms_norm_gated(QWEN_27B, tokens));
    }
    for tokens in [1, 512, 8192] {
        cases.push(l2_norm(QWEN_27B, tokens));
    }
    for patches in [1024, 16384] {
        cases.push(layer_norm(patches, 1152));
    }
    for (rows, dim) in [(32, 8192), (32 * 512, 2048)] {
        cases.push(softmax(rows, dim));
    }
    for (rows, dim) in [(32, 128), (8192 * 32, 128), (512, 4096)] {
        cases.push(hadamard(rows, dim));
    }
    for (format, tokens) in [(FOUR_BITS, 1), (FOUR_BITS, 512), (FOUR_BITS, 8192), (BF16, 8192)] {
        cases.push(embedding(LLAMA, format, tokens));
    }
    // One sequence, and as many as a server has.
    for rows in [1, 64] {
        let vocab = QWEN_27B.vocab;
        cases.push(of_logits("argmax", rows, vocab, "", |s, [rows, vocab]| {
            let (x, out) = (s.input(DType::F32, [rows, vocab])?, s.output(DType::U32, [rows])?);
            call(move |stream| ops::argmax_into(stream, &x, &out))
        }));
        cases.push(of_logits("top_k", rows, vocab, ", best 20", |s, [rows, vocab]| {
            let x = s.input(DType::F32, [rows, vocab])?;
            let (values, indices) = (s.output(DType::F32, [rows, 20])?, s.output(DType::U32, [rows, 20])?);
            call(move |stream| ops::top_k_into(stream, &x, &values, &indices))
        }));
        cases.push(Case::new("penalize_in_place", QWEN_27B.name, format!("{rows} x {vocab}, 20 recent"), move |s| {
            let logits = s.numbers_in_space(DType::F32, [rows, vocab])?;
            let recent = s.ids(20 * rows, vocab)?.reshape([rows, 20])?;
            s.reads(4 * recent.elements());
            s.writes(4 * recent.elements());
            let penalties = Penalties { repetition: 1.1, ..Penalties::default() };
            call(move |stream| ops::penalize_in_place(stream, &logits, &recent, penalties))
        }));
        cases.push(sample(rows, vocab, "temperature", Sampling { temperature: 0.7, ..Sampling::default() }));
        let options = Sampling { temperature: 0.6, top_p: 0.95, top_k: 20, ..Sampling::default() };
        cases.push(sample(rows, vocab, "top-k 20, top-p 0.95", options));
        cases.push(of_logits("sort", rows, vocab, "", |s, [rows, vocab]| {
            let (x, out) = (s.input(DType::F32, [rows, vocab])?, s.output(DType::F32, [rows, vocab])?);
            call(move |stream| ops::sort_into(stream, &x, Order::Descending, &out))
        }));
        cases.push(of_logits("argsort", rows, vocab, "", |s, [rows, vocab]| {
            let (x, out) = (s.input(DType::F32, [rows, vocab])?, s.output(DType::U32, [rows, vocab])?);
            call(move |stream| ops::argsort_into(stream, &x, Order::Descending, &out))
        }));
        cases.push(of_logits("cumsum", rows, vocab, "", |s, [rows, vocab]| {
            let (x, out) = (s.input(DType::F32, [rows, vocab])?, s.output(DType::F32, [rows, vocab])?);
            call(move |stream| ops::cumsum_into(stream, &x, Cumsum::default(), &out))
        }));
        cases.push(of_logits("reduce", rows, vocab, ", max", |s, [rows, vocab]| {
            let (x, out) = (s.input(DType::F32, [rows, vocab])?, s.output(DType::F32, [rows])?);
            call(move |stream| ops::reduce_into(stream, Reduce::Max, &x, &out))
        }));
    }
    cases.push(Case::new("reduce", LLAMA.name, "8192 x 4096, mean", |s| {
        let (x, out) = (s.input(s.float(), [8192, 4096])?, s.output(s.float(), [8192])?);
        call(move |stream| ops::reduce_into(stream, Reduce::Mean, &x, &out))
    }));
    cases.push(Case::new("reduce_all", LLAMA.name, "8192 x 4096, sum", |s| {
        let (x, out) = (s.input(s.float(), [8192, 4096])?, s.output(s.float(), [1])?);
        call(move |stream| ops::reduce_all_into(stream, Reduce::Sum, &x, &out))
    }));
    cases
}

fn rms_norm(model: Dims, tokens: usize) -> Case {
    let dim = model.hidden;
    Case::new("rms_norm", model.name, format!("{tokens} x {dim}"), move |s| {
        let (x, weight) = (s.input(s.float(), [tokens, dim])?, s.input(s.float(), [dim])?);
        let out = s.output(s.float(), [tokens, dim])?;
        call(move |stream| ops::rms_norm_into(stream, &x, &weight, 1e-5, &out))
    })
}

/// With the residual stream kept.
fn rms_norm_of_sum(model: Dims, tokens: usize) -> Case {
    let dim = model.hidden;
    Case::new("rms_norm_with", model.name, format!("{tokens} x {dim}, residual and sum"), move |s| {
        let float = s.float();
        let (x, residual) = (s.input(float, [tokens, dim])?, s.input(float, [tokens, dim])?);
        let (sum, out) = (s.output(float, [tokens, dim])?, s.output(float, [tokens, dim])?);
        let weight = s.input(float, [dim])?;
        call(move |stream| {
            let options = RmsNormOptions {
                weight: Some(&weight),
                weight_offset: 0.0,
                eps: 1e-6,
                residual: Some(&residual),
                sum: Some(&sum),
            };
            ops::rms_norm_with(stream, &x, options, &out)
        })
    })
}

fn rms_norm_gated(model: Dims, tokens: usize) -> Case {
    let [_, heads] = model.linear_heads;
    Case::new("rms_norm_gated", model.name, format!("{tokens} x {heads} x {LINEAR_DIM}"), move |s| {
        let shape = [tokens, heads, LINEAR_DIM];
        let (x, gate) = (s.input(s.float(), shape)?, s.input(s.float(), shape)?);
        let (weight, out) = (s.input(s.float(), [LINEAR_DIM])?, s.output(s.float(), shape)?);
        call(move |stream| ops::rms_norm_gated_into(stream, &x, &gate, &weight, 1e-6, &out))
    })
}

/// Of queries and keys.
fn l2_norm(model: Dims, tokens: usize) -> Case {
    let heads = 2 * model.linear_heads[0];
    Case::new("l2_norm", model.name, format!("{tokens} x {heads} x {LINEAR_DIM}"), move |s| {
        let shape = [tokens, heads, LINEAR_DIM];
        let (x, out) = (s.input(s.float(), shape)?, s.output(s.float(), shape)?);
        call(move |stream| ops::l2_norm_into(stream, &x, 1e-6, &out))
    })
}

fn layer_norm(patches: usize, dim: usize) -> Case {
    Case::new("layer_norm", VISION, format!("{patches} x {dim}"), move |s| {
        let (x, out) = (s.input(s.float(), [patches, dim])?, s.output(s.float(), [patches, dim])?);
        let (weight, bias) = (s.input(s.float(), [dim])?, s.input(s.float(), [dim])?);
        call(move |stream| ops::layer_norm_into(stream, &x, Some(&weight), Some(&bias), 1e-6, &out))
    })
}

fn softmax(rows: usize, dim: usize) -> Case {
    Case::new("softmax", LLAMA.name, format!("{rows} x {dim}"), move |s| {
        let (x, out) = (s.input(s.float(), [rows, dim])?, s.output(s.float(), [rows, dim])?);
        call(move |stream| ops::softmax_into(stream, &x, Softmax { scale: 0.1, mask: None }, &out))
    })
}

fn hadamard(rows: usize, dim: usize) -> Case {
    Case::new("hadamard_transform", ANY, format!("{rows} x {dim}"), move |s| {
        let (x, out) = (s.input(s.float(), [rows, dim])?, s.output(s.float(), [rows, dim])?);
        call(move |stream| ops::hadamard_transform_into(stream, &x, Hadamard::default(), &out))
    })
}

fn of_logits(
    op: &'static str,
    rows: usize,
    vocab: usize,
    what: &str,
    make: impl Fn(&mut Setup, [usize; 2]) -> Result<super::case::Call> + 'static,
) -> Case {
    Case::new(op, QWEN_27B.name, format!("{rows} x {vocab}{what}"), move |s| make(s, [rows, vocab]))
}

fn sample(rows: usize, vocab: usize, what: &str, options: Sampling) -> Case {
    Case::new("sample", QWEN_27B.name, format!("{rows} x {vocab}, {what}"), move |s| {
        let (x, out) = (s.input(DType::F32, [rows, vocab])?, s.output(DType::U32, [rows])?);
        let state = ops::sample_state(s.device(), &vec![s.copy() as u64; rows])?;
        call(move |stream| ops::sample_into(stream, &x, options, &state, &out))
    })
}
