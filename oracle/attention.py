"""Scaled dot product attention: mlx's, transformers' soft cap, and an f64 evaluation of each.

q is [batch, heads, length, head_dim]; k and v have the key-value heads and the longer length.
"""

import mlx.core as mx
import numpy as np
import torch
from transformers.models.gemma2 import modeling_gemma2

from common import Cases, random

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
TOLERANCE = {"f32": 2e-5, "f16": 5e-3, "bf16": 4e-2}


def main():
    cases = Cases("attention")
    rows = [
        # name, batch, heads, kv heads, q length, kv length, head_dim, causal, window, options
        ("full", 1, 2, 2, 5, 5, 32, False, None, {}),
        ("causal", 2, 3, 3, 7, 7, 16, True, None, {}),
        ("causal_offset", 1, 4, 2, 3, 11, 24, True, None, {}),
        ("decode", 1, 6, 2, 1, 19, 64, True, None, {}),
        ("decode_80", 1, 2, 1, 1, 33, 80, True, None, {}),
        ("gqa_odd_dim", 1, 9, 3, 4, 6, 20, True, None, {}),
        ("head_128", 1, 2, 1, 5, 9, 128, True, None, {}),
        ("head_256", 1, 2, 1, 3, 5, 256, True, None, {}),
        ("head_512", 1, 1, 1, 2, 3, 512, True, None, {}),
        ("window", 1, 2, 1, 12, 12, 16, True, 4, {}),
        ("window_decode", 1, 2, 1, 1, 12, 16, True, 4, {}),
        ("window_offset", 1, 2, 1, 5, 14, 16, True, 6, {}),
        ("sinks", 1, 4, 2, 6, 9, 16, True, None, {"sinks": True}),
        ("sinks_window", 1, 4, 2, 6, 9, 16, True, 3, {"sinks": True}),
        ("bool_mask", 1, 2, 2, 4, 7, 16, False, None, {"mask": "bool"}),
        ("additive_mask", 2, 2, 1, 4, 7, 16, False, None, {"mask": "additive"}),
        ("large_scores", 1, 1, 1, 4, 9, 16, True, None, {"scale": 40.0}),
        ("softcap", 1, 4, 2, 5, 8, 16, True, None, {"softcap": 5.0}),
        ("softcap_window", 1, 2, 1, 5, 8, 16, True, 3, {"softcap": 5.0, "scale": 0.5}),
    ]
    for i, row in enumerate(rows):
        for dtype in ("f32", "f16", "bf16") if row[0] in ("causal_offset", "decode", "window") else ("f32",):
            add(cases, i, dtype, *row)
    cases.save()


def add(cases, i, dtype, name, batch, heads, kv_heads, length, kv_length, dim, causal, window, options):
    q = mx.array(random(100 + i, batch, heads, length, dim)).astype(DTYPES[dtype])
    k = mx.array(random(200 + i, batch, kv_heads, kv_length, dim)).astype(DTYPES[dtype])
    v = mx.array(random(300 + i, batch, kv_heads, kv_length, dim)).astype(DTYPES[dtype])
    scale, softcap = options.get("scale", dim**-0.5), options.get("softcap")
    inputs = {"q": q, "k": k, "v": v}

    # The last query sees the last key.
    distance = np.arange(length)[:, None] + kv_length - length - np.arange(kv_length)[None]
    visible = np.ones_like(distance, bool)
    if causal:
        visible &= distance >= 0
    if window:
        visible &= distance < window
    bias = np.where(visible, 0.0, -np.inf)
    if options.get("mask") == "bool":
        inputs["mask"] = random(400 + i, batch, 1, length, kv_length) > -0.3
        bias = np.where(inputs["mask"], bias, -np.inf)
    elif options.get("mask") == "additive":
        inputs["mask"] = random(400 + i, batch, heads, length, kv_length)
        bias = bias + inputs["mask"]
    if options.get("sinks"):
        inputs["sinks"] = random(500 + i, heads)

    sinks = inputs.get("sinks")
    exact = evaluate(f64(q), f64(k), f64(v), scale, bias, softcap, sinks)
    if softcap:
        out = gemma2(q, k, v, scale, bias, softcap)
    else:
        mask = "causal" if causal and not window else mx.array(inputs["mask"]) if "mask" in inputs else mx.array(visible)
        out = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, sinks=None if sinks is None else mx.array(sinks)
        )
    error = np.abs(f64(out) - exact).max()
    assert error < TOLERANCE[dtype], (name, dtype, error)
    params = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
    cases.add(f"{name}_{dtype}", params, **inputs, out=out, exact=exact.astype(np.float32))


def gemma2(q, k, v, scale, bias, softcap):
    class Module:
        num_key_value_groups = q.shape[1] // k.shape[1]
        training = False

    mask = torch.from_numpy(np.maximum(bias, -1e30)).float()[None, None]
    q, k, v = (torch.from_numpy(np.array(t)) for t in (q, k, v))
    out, _ = modeling_gemma2.eager_attention_forward(Module, q, k, v, mask, scaling=scale, softcap=softcap)
    return mx.array(out.transpose(1, 2).contiguous().numpy())


def evaluate(q, k, v, scale, bias, softcap, sinks):
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    scores = q @ k.swapaxes(-1, -2) * scale
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    scores = scores + bias
    top = scores.max(-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(np.float64)[None, :, None, None]
        top = np.maximum(top, sinks)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - top)
    return weights / total @ v


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
