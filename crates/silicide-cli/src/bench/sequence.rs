//! Ops along a sequence: rotary embeddings, caches, attention, linear attention.

use silicide::ops::{
    self, Attention, CacheLayout, CacheSlots, CausalConv1d, Decay, DecayRate, FallbackAxis, GatedDeltaGates,
    GatedDeltaRule, HeadMap, HeadNorm, Mask, Pairing, Rope, RopeFrequencies, RopeMulti, RopeMultiMode, RopeSections,
};
use silicide::{DType, Device, Result, Tensor};

use super::case::{Arithmetic, Case, Setup, call};
use super::models::{Dims, GPT_OSS, GPT_OSS_WINDOW, LINEAR_DIM, LLAMA, QWEN_27B, QWEN_35B};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for tokens in [1, 512, 8192] {
        cases.push(rope(LLAMA, tokens));
        cases.push(rope_in_place(LLAMA, tokens));
        cases.push(rope_multi(QWEN_27B, tokens));
        cases.push(rope_multi_in_place(QWEN_27B, tokens));
    }
    for tokens in [1, 512, 16384] {
        cases.push(kv_write(LLAMA, tokens));
        cases.push(kv_write_with(LLAMA, tokens));
    }
    for tokens in [1, 512, 4096] {
        cases.push(fused_cache(LLAMA, tokens));
        cases.push(fused_multi_cache(QWEN_27B, tokens));
    }
    for model in [LLAMA, QWEN_27B, QWEN_35B] {
        for keys in [4096, 8192, 32768] {
            cases.push(decode(model, keys, None));
        }
    }
    for (keys, window) in [(8192, None), (8192, Some(GPT_OSS_WINDOW))] {
        cases.push(decode(GPT_OSS, keys, window));
    }
    for (model, window) in [(LLAMA, None), (QWEN_27B, None), (GPT_OSS, None), (GPT_OSS, Some(GPT_OSS_WINDOW))] {
        for tokens in [512, 2048] {
            cases.push(prefill(model, tokens, window));
        }
    }
    for tokens in [1, 512, 4096] {
        cases.push(convolution(QWEN_27B, tokens));
        cases.push(gates(QWEN_27B, tokens));
    }
    for model in [QWEN_27B, QWEN_35B] {
        for tokens in [1, 512, 2048] {
            cases.push(delta_rule(model, tokens));
        }
    }
    for chunks in [8, 64] {
        cases.push(triangular_solve(QWEN_27B, chunks));
    }
    cases
}

fn frequencies(model: Dims) -> Result<RopeFrequencies> {
    if model.name == QWEN_27B.name { RopeFrequencies::new(64, 1e7) } else { RopeFrequencies::new(model.head_dim, 5e5) }
}

fn multi(device: &Device, model: Dims) -> Result<RopeMulti> {
    let sections =
        RopeSections { mode: RopeMultiMode::Imrope, sections: [11, 11, 10, 0], fallback: FallbackAxis::Temporal };
    RopeMulti::new(device, &frequencies(model)?, sections, Pairing::Halves)
}

/// The same positions on all four axes.
fn four_axes(s: &mut Setup, tokens: usize) -> Result<Tensor> {
    s.integers(&(0..4 * tokens).map(|i| (i % tokens) as u32).collect::<Vec<_>>())
}

fn rope(model: Dims, tokens: usize) -> Case {
    let shape = [tokens, model.heads, model.head_dim];
    Case::new("rope", model.name, format!("{tokens} x {} x {}", model.heads, model.head_dim), move |s| {
        let rope = Rope::new(s.device(), &frequencies(model)?, Pairing::Halves)?;
        let (x, out, positions) = (s.input(s.float(), shape)?, s.output(s.float(), shape)?, s.positions(tokens)?);
        call(move |stream| ops::rope_into(stream, &x, &positions, &rope, &out))
    })
}

fn rope_multi(model: Dims, tokens: usize) -> Case {
    let shape = [tokens, model.heads, model.head_dim];
    Case::new("rope_multi", model.name, format!("{tokens} x {} x {}", model.heads, model.head_dim), move |s| {
        let rope = multi(s.device(), model)?;
        let (x, out, positions) = (s.input(s.float(), shape)?, s.output(s.float(), shape)?, four_axes(s, tokens)?);
        call(move |stream| ops::rope_multi_into(stream, &x, &positions, &rope, &out))
    })
}

fn heads_of(model: Dims, tokens: usize) -> String {
    format!("{tokens} x ({} + {}) x {}", model.heads, model.kv_heads, model.head_dim)
}

fn rope_in_place(model: Dims, tokens: usize) -> Case {
    Case::new("rope_in_place", model.name, heads_of(model, tokens), move |s| {
        let rope = Rope::new(s.device(), &frequencies(model)?, Pairing::Halves)?;
        let q = s.state(s.float(), [tokens, model.heads, model.head_dim])?;
        let k = s.state(s.float(), [tokens, model.kv_heads, model.head_dim])?;
        let positions = s.positions(tokens)?;
        call(move |stream| ops::rope_in_place(stream, &q, &k, &positions, &rope))
    })
}

/// A quarter of each head turns; only that has to move.
fn rope_multi_in_place(model: Dims, tokens: usize) -> Case {
    Case::new("rope_multi_in_place", model.name, heads_of(model, tokens) + ", 64 turn", move |s| {
        let rope = multi(s.device(), model)?;
        let q = s.numbers_in_space(s.float(), [tokens, model.heads, model.head_dim])?;
        let k = s.numbers_in_space(s.float(), [tokens, model.kv_heads, model.head_dim])?;
        let turned = tokens * (model.heads + model.kv_heads) * 64 * s.float().size();
        s.reads(turned);
        s.writes(turned);
        let positions = four_axes(s, tokens)?;
        call(move |stream| ops::rope_multi_in_place(stream, &q, &k, &positions, &rope))
    })
}

/// Room for the keys or values of `capacity` tokens, of which `tokens` are written.
fn cache(s: &mut Setup, model: Dims, capacity: usize, tokens: usize) -> Result<Tensor> {
    let kv = s.kv();
    s.writes(tokens * model.kv_heads * model.head_dim * kv.size());
    s.space(kv, [capacity, model.kv_heads, model.head_dim])
}

fn kv_write(model: Dims, tokens: usize) -> Case {
    Case::new("kv_write", model.name, format!("{tokens} x {} x {}", model.kv_heads, model.head_dim), move |s| {
        let shape = [tokens, model.kv_heads, model.head_dim];
        let (k, v, slots) = (s.input(s.float(), shape)?, s.input(s.float(), shape)?, s.positions(tokens)?);
        let (keys, values) = (cache(s, model, tokens, tokens)?, cache(s, model, tokens, tokens)?);
        call(move |stream| ops::kv_write(stream, &k, &v, &slots, &keys, &values))
    })
}

fn kv_write_with(model: Dims, tokens: usize) -> Case {
    let shape = format!("{tokens} x {} x {}, a ring", model.kv_heads, model.head_dim);
    Case::new("kv_write_with", model.name, shape, move |s| {
        let shape = [tokens, model.kv_heads, model.head_dim];
        let (k, v, slots) = (s.input(s.float(), shape)?, s.input(s.float(), shape)?, s.positions(tokens)?);
        let (keys, values) = (cache(s, model, tokens, tokens)?, cache(s, model, tokens, tokens)?);
        call(move |stream| ops::kv_write_with(stream, &k, &v, &slots, CacheLayout::Ring, &keys, &values))
    })
}

/// Queries, keys, values and the rest of a call that norms heads, turns them and fills a cache.
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    weight: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
}

impl Heads {
    fn new(s: &mut Setup, model: Dims, tokens: usize) -> Result<Heads> {
        let shape = [tokens, model.kv_heads, model.head_dim];
        Ok(Heads {
            q: s.state(s.float(), [tokens, model.heads, model.head_dim])?,
            k: s.input(s.float(), shape)?,
            v: s.input(s.float(), shape)?,
            weight: s.input(s.float(), [model.head_dim])?,
            slots: s.positions(tokens)?,
            keys: cache(s, model, tokens, tokens)?,
            values: cache(s, model, tokens, tokens)?,
        })
    }

    fn norm(&self) -> Option<HeadNorm<'_>> {
        Some(HeadNorm { q_weight: &self.weight, k_weight: &self.weight, weight_offset: 0.0, eps: 1e-6 })
    }

    fn cache(&self) -> CacheSlots<'_> {
        CacheSlots { slots: &self.slots, keys: &self.keys, values: &self.values }
    }
}

fn fused_cache(model: Dims, tokens: usize) -> Case {
    Case::new("head_norm_rope_cache", model.name, heads_of(model, tokens), move |s| {
        let rope = Rope::new(s.device(), &frequencies(model)?, Pairing::Halves)?;
        let h = Heads::new(s, model, tokens)?;
        call(move |stream| ops::head_norm_rope_cache(stream, &h.q, &h.k, &h.v, h.norm(), &h.slots, &rope, h.cache()))
    })
}

fn fused_multi_cache(model: Dims, tokens: usize) -> Case {
    Case::new("head_norm_rope_multi_cache", model.name, heads_of(model, tokens), move |s| {
        let (rope, positions) = (multi(s.device(), model)?, four_axes(s, tokens)?);
        let h = Heads::new(s, model, tokens)?;
        call(move |stream| {
            ops::head_norm_rope_multi_cache(stream, &h.q, &h.k, &h.v, h.norm(), &positions, &rope, h.cache())
        })
    })
}

fn in_words(window: Option<usize>) -> String {
    window.map_or_else(String::new, |window| format!(", window {window}"))
}

/// A logit for each head that gpt-oss has.
fn sinks(s: &mut Setup, model: Dims) -> Result<Option<Tensor>> {
    if model.name != GPT_OSS.name {
        return Ok(None);
    }
    s.input(DType::F32, [model.heads]).map(Some)
}

fn decode(model: Dims, keys: usize, window: Option<usize>) -> Case {
    let Dims { heads, kv_heads, head_dim, .. } = model;
    let seen = window.map_or(keys, |window| window.min(keys));
    let shape = format!("decode, {heads}/{kv_heads} heads of {head_dim}, {keys} keys{}", in_words(window));
    let make = move |s: &mut Setup| {
        let kv = s.kv();
        let (q, out) = (s.input(s.float(), [1, heads, head_dim])?, s.output(s.float(), [1, heads, head_dim])?);
        // A head's tokens follow each other, as in the models' caches.
        let mut cache = || s.part(kv, [kv_heads, keys, head_dim])?.permute(&[1, 0, 2]);
        let (k, v) = (cache()?, cache()?);
        s.reads(2 * seen * kv_heads * head_dim * kv.size());
        let (position, sinks) = (s.integers(&[keys as u32 - 1])?, sinks(s, model)?);
        let scale = (head_dim as f32).powf(-0.5);
        call(move |stream| {
            let mask = Mask::Positions(&position);
            let options =
                Attention { scale, mask, cache: CacheLayout::Rows, window, softcap: None, sinks: sinks.as_ref() };
            ops::attention_into(stream, &q, &k, &v, options, &out)
        })
    };
    Case::new("attention", model.name, shape, make).flops(Arithmetic::Scores, 4 * heads * head_dim * seen)
}

fn prefill(model: Dims, tokens: usize, window: Option<usize>) -> Case {
    let Dims { heads, kv_heads, head_dim, .. } = model;
    // Query t sees t + 1 keys.
    let pairs: usize = (1..=tokens).map(|seen| window.map_or(seen, |window| seen.min(window))).sum();
    let shape = format!("prefill, {heads}/{kv_heads} heads of {head_dim}, {tokens} tokens{}", in_words(window));
    let make = move |s: &mut Setup| {
        let (q, out) =
            (s.input(s.float(), [tokens, heads, head_dim])?, s.output(s.float(), [tokens, heads, head_dim])?);
        let kv = s.kv();
        let mut cache = || s.input(kv, [kv_heads, tokens, head_dim])?.permute(&[1, 0, 2]);
        let (k, v) = (cache()?, cache()?);
        let sinks = sinks(s, model)?;
        let scale = (head_dim as f32).powf(-0.5);
        call(move |stream| {
            let options = Attention {
                scale,
                mask: Mask::Causal,
                cache: CacheLayout::Rows,
                window,
                softcap: None,
                sinks: sinks.as_ref(),
            };
            ops::attention_into(stream, &q, &k, &v, options, &out)
        })
    };
    Case::new("attention", model.name, shape, make).flops(Arithmetic::Scores, 4 * heads * head_dim * pairs)
}

fn convolution(model: Dims, tokens: usize) -> Case {
    let [key_heads, value_heads] = model.linear_heads;
    let channels = (2 * key_heads + value_heads) * LINEAR_DIM;
    Case::new("causal_conv1d", model.name, format!("{tokens} x {channels}, width 4, silu"), move |s| {
        let (x, out) = (s.input(s.float(), [tokens, channels])?, s.output(s.float(), [tokens, channels])?);
        let (weight, state) = (s.input(s.float(), [channels, 4])?, s.state(s.float(), [3, channels])?);
        call(move |stream| {
            let options =
                CausalConv1d { bias: None, silu: true, initial_state: Some(&state), final_state: Some(&state) };
            ops::causal_conv1d_into(stream, &x, &weight, options, &out)
        })
    })
}

fn gates(model: Dims, tokens: usize) -> Case {
    let [_, heads] = model.linear_heads;
    Case::new("gated_delta_gates", model.name, format!("{tokens} x {heads}"), move |s| {
        let (a, b) = (s.input(s.float(), [tokens, heads])?, s.input(s.float(), [tokens, heads])?);
        let (rate, dt_bias) = (s.input(DType::F32, [heads])?, s.input(DType::F32, [heads])?);
        let (g, beta) = (s.output(DType::F32, [tokens, heads])?, s.output(DType::F32, [tokens, heads])?);
        call(move |stream| {
            let options = GatedDeltaGates { rate: DecayRate::Log(&rate), dt_bias: &dt_bias, log: false };
            ops::gated_delta_gates_into(stream, &a, &b, options, &g, &beta)
        })
    })
}

fn delta_rule(model: Dims, tokens: usize) -> Case {
    let [key_heads, value_heads] = model.linear_heads;
    let shape = format!("{tokens} x {key_heads}/{value_heads} heads of {LINEAR_DIM}");
    let make = move |s: &mut Setup| {
        let dim = LINEAR_DIM;
        let q = s.unit_rows(s.float(), [tokens, key_heads, dim])?;
        let k = s.unit_rows(s.float(), [tokens, key_heads, dim])?;
        let (v, out) =
            (s.input(s.float(), [tokens, value_heads, dim])?, s.output(s.float(), [tokens, value_heads, dim])?);
        let (g, beta) = (s.input(DType::F32, [tokens, value_heads])?, s.input(DType::F32, [tokens, value_heads])?);
        let state = s.state(DType::F32, [value_heads, dim, dim])?;
        call(move |stream| {
            let options = GatedDeltaRule {
                decay: Decay::Factor(&g),
                beta: &beta,
                state: &state,
                scale: (dim as f32).powf(-0.5),
                heads: HeadMap::Grouped,
            };
            ops::gated_delta_rule_into(stream, &q, &k, &v, options, &out)
        })
    };
    // Token by token: the decay, two products with the state and one outer product.
    let flops = 7 * tokens * value_heads * LINEAR_DIM * LINEAR_DIM;
    Case::new("gated_delta_rule", model.name, shape, make).flops(Arithmetic::Vector, flops)
}

/// The systems of the gated delta rule's chunked form.
fn triangular_solve(model: Dims, chunks: usize) -> Case {
    let (n, batch) = (64, chunks * model.linear_heads[1]);
    let make = move |s: &mut Setup| {
        let l = s.part(DType::F32, [batch, n, n])?;
        s.reads(4 * batch * n * (n - 1) / 2);
        let (b, out) = (s.input(DType::F32, [batch, n, LINEAR_DIM])?, s.output(DType::F32, [batch, n, LINEAR_DIM])?);
        call(move |stream| ops::triangular_solve_into(stream, &l, &b, &out))
    };
    Case::new("triangular_solve", model.name, format!("f32, {batch} of {n} x {n} with {LINEAR_DIM} columns"), make)
        .flops(Arithmetic::Vector, batch * n * (n - 1) * LINEAR_DIM)
}
