//! Ops on caches of quantised keys and values.

use silicide::ops::{
    self, AffineOptions, AffineRows, Attention, CacheLayout, KvCodec, KvCodecOptions, KvDomain, Mask, QuantizedRows,
};
use silicide::{DType, Result, Tensor};

use super::case::{Arithmetic, Case, Setup, call};
use super::models::{Dims, LLAMA};

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (bits, tokens) in [(4, 1), (4, 512), (4, 16384), (8, 16384)] {
        cases.push(kv_quantize(LLAMA, bits, tokens));
    }
    cases.push(kv_quantize_with(LLAMA, 4, 512));
    for (bits, tokens) in [(4, 512), (4, 2048), (4, 16384), (8, 16384)] {
        cases.push(kv_dequantize(LLAMA, bits, tokens, KvDomain::Original));
    }
    cases.push(kv_dequantize(LLAMA, 8, 16384, KvDomain::Rotated));
    for (bits, tokens) in [(8, 1), (8, 512), (4, 16384), (8, 16384)] {
        cases.push(kv_quantize_affine(LLAMA, bits, tokens));
        cases.push(kv_dequantize_affine(LLAMA, bits, tokens));
    }
    for keys in [4096, 32768] {
        for bits in [4, 8] {
            cases.push(affine_attention(LLAMA, bits, keys));
            cases.push(rotated_attention(LLAMA, bits, keys));
        }
    }
    cases
}

fn kv_quantize(model: Dims, bits: u32, tokens: usize) -> Case {
    let Dims { kv_heads: heads, head_dim, .. } = model;
    Case::new("kv_quantize", model.name, format!("{bits} bits, {tokens} x {heads} x {head_dim}"), move |s| {
        let codec = KvCodec::new(s.device(), head_dim, KvCodecOptions { bits, ..KvCodecOptions::default() })?;
        let (x, slots) = (s.input(s.float(), [tokens, heads, head_dim])?, s.positions(tokens)?);
        let codes = s.output(DType::U8, [heads, tokens, codec.row_bytes()])?;
        let norms = s.output(DType::F32, [heads, tokens])?;
        call(move |stream| ops::kv_quantize(stream, &x, &slots, &codec, &codes, &norms))
    })
}

fn kv_dequantize(model: Dims, bits: u32, tokens: usize, domain: KvDomain) -> Case {
    let Dims { kv_heads: heads, head_dim, .. } = model;
    let rotated = if domain == KvDomain::Rotated { ", still rotated" } else { "" };
    let shape = format!("{bits} bits, {heads} x {tokens} x {head_dim}{rotated}");
    Case::new("kv_dequantize", model.name, shape, move |s| {
        let codec = KvCodec::new(s.device(), head_dim, KvCodecOptions { bits, ..KvCodecOptions::default() })?;
        let codes = s.input(DType::U8, [heads, tokens, codec.row_bytes()])?;
        let (norms, out) = (s.input(DType::F32, [heads, tokens])?, s.output(s.float(), [heads, tokens, head_dim])?);
        call(move |stream| ops::kv_dequantize_into(stream, &codes, &norms, &codec, domain, &out))
    })
}

fn kv_quantize_with(model: Dims, bits: u32, tokens: usize) -> Case {
    let Dims { kv_heads: heads, head_dim, .. } = model;
    let shape = format!("{bits} bits, {tokens} x {heads} x {head_dim}, a ring");
    Case::new("kv_quantize_with", model.name, shape, move |s| {
        let codec = KvCodec::new(s.device(), head_dim, KvCodecOptions { bits, ..KvCodecOptions::default() })?;
        let (x, slots) = (s.input(s.float(), [tokens, heads, head_dim])?, s.positions(tokens)?);
        let codes = s.output(DType::U8, [heads, tokens, codec.row_bytes()])?;
        let norms = s.output(DType::F32, [heads, tokens])?;
        call(move |stream| ops::kv_quantize_with(stream, &x, &slots, CacheLayout::Ring, &codec, &codes, &norms))
    })
}

/// Affine rows as [`AffineRows::zeros`] lays them out, from `take`.
fn affine(
    options: AffineOptions,
    heads: usize,
    rows: usize,
    head_dim: usize,
    mut take: impl FnMut(DType, [usize; 3]) -> Result<Tensor>,
) -> Result<AffineRows> {
    let AffineOptions { bits, group_size, dtype } = options;
    Ok(AffineRows {
        codes: take(DType::U32, [heads, rows, head_dim * bits as usize / 32])?,
        scales: take(dtype, [heads, rows, head_dim / group_size])?,
        biases: take(dtype, [heads, rows, head_dim / group_size])?,
    })
}

fn options(s: &Setup, bits: u32) -> AffineOptions {
    AffineOptions { bits, dtype: s.float(), ..AffineOptions::default() }
}

fn kv_quantize_affine(model: Dims, bits: u32, tokens: usize) -> Case {
    let Dims { kv_heads: heads, head_dim, .. } = model;
    Case::new("kv_quantize_affine", model.name, format!("{bits} bits, {tokens} x {heads} x {head_dim}"), move |s| {
        let (x, slots) = (s.input(s.float(), [tokens, heads, head_dim])?, s.positions(tokens)?);
        let cache = affine(options(s, bits), heads, tokens, head_dim, |dtype, shape| s.output(dtype, shape))?;
        call(move |stream| ops::kv_quantize_affine(stream, &x, &slots, CacheLayout::Rows, &cache))
    })
}

fn kv_dequantize_affine(model: Dims, bits: u32, tokens: usize) -> Case {
    let Dims { kv_heads: heads, head_dim, .. } = model;
    Case::new("kv_dequantize_affine", model.name, format!("{bits} bits, {heads} x {tokens} x {head_dim}"), move |s| {
        let cache = affine(options(s, bits), heads, tokens, head_dim, |dtype, shape| s.input(dtype, shape))?;
        let out = s.output(s.float(), [heads, tokens, head_dim])?;
        call(move |stream| ops::kv_dequantize_affine_into(stream, &cache, &out))
    })
}

fn affine_attention(model: Dims, bits: u32, keys: usize) -> Case {
    let Dims { heads, kv_heads, head_dim, .. } = model;
    let shape = format!("{bits} bits affine, {heads}/{kv_heads} heads of {head_dim}, {keys} keys");
    let make = move |s: &mut Setup| {
        let (q, out) = (s.input(s.float(), [1, heads, head_dim])?, s.output(s.float(), [1, heads, head_dim])?);
        let mut rows = || affine(options(s, bits), kv_heads, keys, head_dim, |dtype, shape| s.input(dtype, shape));
        let (k, v) = (rows()?, rows()?);
        call(move |stream| {
            let (k, v) = (QuantizedRows::Affine(&k), QuantizedRows::Affine(&v));
            ops::quantized_attention_into(stream, &q, k, v, all_keys(head_dim), &out)
        })
    };
    Case::new("quantized_attention", model.name, shape, make).flops(Arithmetic::Scores, 4 * heads * head_dim * keys)
}

fn rotated_attention(model: Dims, bits: u32, keys: usize) -> Case {
    let Dims { heads, kv_heads, head_dim, .. } = model;
    let shape = format!("{bits} bits rotated, {heads}/{kv_heads} heads of {head_dim}, {keys} keys");
    let make = move |s: &mut Setup| {
        let codec = KvCodec::new(s.device(), head_dim, KvCodecOptions { bits, ..KvCodecOptions::default() })?;
        let (q, out) = (s.input(s.float(), [1, heads, head_dim])?, s.output(s.float(), [1, heads, head_dim])?);
        let mut rows = || -> Result<(Tensor, Tensor)> {
            let codes = s.input(DType::U8, [kv_heads, keys, codec.row_bytes()])?;
            Ok((codes, s.input(DType::F32, [kv_heads, keys])?))
        };
        let (k, v) = (rows()?, rows()?);
        call(move |stream| {
            let k = QuantizedRows::Rotated { codes: &k.0, norms: &k.1, codec: &codec };
            let v = QuantizedRows::Rotated { codes: &v.0, norms: &v.1, codec: &codec };
            ops::quantized_attention_into(stream, &q, k, v, all_keys(head_dim), &out)
        })
    };
    Case::new("quantized_attention", model.name, shape, make).flops(Arithmetic::Scores, 4 * heads * head_dim * keys)
}

fn all_keys(head_dim: usize) -> Attention<'static> {
    let scale = (head_dim as f32).powf(-0.5);
    Attention { scale, mask: Mask::Full, cache: CacheLayout::Rows, window: None, softcap: None, sinks: None }
}
