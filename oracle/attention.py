"""Scaled dot product attention: mlx's, transformers' soft cap, torch's for masks, and an f64 evaluation of each.

q is [batch, heads, length, head_dim]; k and v have the key-value heads and the longer length. A query that sees no key has
zeros in `exact`, whatever the libraries say. Case `rotating` is a chunk and then one token at a time against mlx-lm's
RotatingKVCache of `rows` rows: `out` has the answers of all steps.
"""

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models.cache import RotatingKVCache
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
        ("bool_mask_decode", 1, 6, 2, 1, 33, 32, False, None, {"mask": "bool"}),
        ("bool_mask_tiles", 1, 2, 1, 40, 75, 16, False, None, {"mask": "bool_tiles"}),
        ("additive_mask_tiles", 1, 2, 1, 40, 75, 16, False, None, {"mask": "additive_tiles"}),
        ("additive_mask_window", 1, 4, 2, 5, 14, 16, False, 6, {"mask": "additive"}),
        ("bool_mask_sinks", 1, 4, 2, 6, 9, 16, False, None, {"mask": "bool", "sinks": True}),
        ("additive_mask_sinks", 1, 4, 2, 6, 9, 16, False, None, {"mask": "additive", "sinks": True}),
        ("additive_mask_softcap", 1, 4, 2, 5, 8, 16, False, None, {"mask": "additive", "softcap": 5.0}),
    ]
    for i, row in enumerate(rows):
        types = {"bool_mask_tiles": ("f16", "bf16"), "additive_mask_tiles": ("f16", "bf16")}
        types.update(dict.fromkeys(("causal_offset", "decode", "window", "bool_mask_decode"), DTYPES))
        for dtype in types.get(row[0], ("f32",)):
            add(cases, i, dtype, *row)
    rotating(cases)
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
    if causal or window:
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
    elif options.get("mask"):
        # Of 32 x 32 tiles the first shows all, the next two nothing, the others some; a query sees nothing.
        shown = random(400 + i, 1, 1, length, kv_length) > -0.3
        shown[..., :32, :32] = True
        shown[..., :32, 32:64] = shown[..., 32:, :32] = shown[..., 35, :] = False
        mask = mx.array(np.where(shown, random(600 + i, *shown.shape), -np.inf)).astype(DTYPES[dtype])
        mask[..., :32, :32] = 0
        inputs["mask"] = shown if options["mask"] == "bool_tiles" else mask
        bias = np.where(shown, 0.0, -np.inf) if options["mask"] == "bool_tiles" else f64(mask)
    if options.get("sinks"):
        inputs["sinks"] = random(500 + i, heads)

    sinks = inputs.get("sinks")
    exact = evaluate(f64(q), f64(k), f64(v), scale, bias, softcap, sinks)
    seen = np.broadcast_to(bias > -np.inf, (batch, heads, length, kv_length)).any(-1, keepdims=True)
    if softcap:
        out = gemma2(q, k, v, scale, bias, softcap)
    else:
        mask = "causal" if causal and not window else mx.array(visible)
        if "mask" in inputs:
            mask = mx.array(inputs["mask"])
            if window:
                mask = mx.where(mx.array(visible), mask, -mx.inf)
        out = mx.fast.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, sinks=None if sinks is None else mx.array(sinks)
        )
    if "mask" in inputs and not softcap and sinks is None:
        torch_error = np.abs(np.where(seen, by_torch(f64(q), f64(k), f64(v), scale, bias) - exact, 0.0)).max()
        assert torch_error < 1e-9, (name, dtype, torch_error)
    error = np.abs(np.where(seen, f64(out) - exact, 0.0)).max()
    assert error < TOLERANCE[dtype], (name, dtype, error)
    params = {"scale": scale, "causal": causal, "window": window, "softcap": softcap}
    cases.add(f"{name}_{dtype}", params, **inputs, out=out, exact=exact.astype(np.float32))


def rotating(cases):
    heads, kv_heads, dim, chunk, tokens, window, rows = 4, 2, 16, 5, 33, 6, 10
    q, k, v = (mx.array(random(700 + i, 1, h, tokens, dim)) for i, h in enumerate((heads, kv_heads, kv_heads)))
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None]
    bias = np.where((distance >= 0) & (distance < window), 0.0, -np.inf)
    exact = evaluate(f64(q), f64(k), f64(v), dim**-0.5, bias, None, None)
    cache = RotatingKVCache(max_size=rows)
    out, start = [], 0
    while start < tokens:
        part = slice(start, start + (chunk if start == 0 else 1))
        mask = cache.make_mask(part.stop - part.start, window_size=window)
        keys, values = cache.update_and_fetch(k[:, :, part], v[:, :, part])
        out.append(mx.fast.scaled_dot_product_attention(q[:, :, part], keys, values, scale=dim**-0.5, mask=mask))
        start = part.stop
    out = mx.concatenate(out, axis=2)
    error = np.abs(f64(out) - exact).max()
    assert error < TOLERANCE["f32"], ("rotating", error)
    params = {"scale": dim**-0.5, "window": window, "rows": rows, "chunk": chunk}
    cases.add("rotating", params, q=q, k=k, v=v, out=out, exact=exact.astype(np.float32))


def by_torch(q, k, v, scale, bias):
    groups = q.shape[1] // k.shape[1]
    q, k, v, bias = (torch.from_numpy(np.ascontiguousarray(t)) for t in (q, np.repeat(k, groups, 1), np.repeat(v, groups, 1), bias))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).numpy()


def gemma2(q, k, v, scale, bias, softcap):
    class Module:
        num_key_value_groups = q.shape[1] // k.shape[1]
        training = False

    mask = torch.from_numpy(np.maximum(bias, -1e30)).float()
    mask = mask if mask.ndim == 4 else mask[None, None]
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
    top = np.where(top == -np.inf, 0.0, top)
    if sinks is not None:
        sinks = sinks.astype(np.float64)[None, :, None, None]
        top = np.maximum(top, sinks)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - top)
    return weights / np.where(total == 0, 1.0, total) @ v


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
