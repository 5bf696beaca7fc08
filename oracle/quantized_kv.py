"""Keys and values in mlx's affine codes, and mlx-lm's attention over them, beside an f64 evaluation."""

import mlx.core as mx
import numpy as np
from mlx_lm.models.base import quantized_scaled_dot_product_attention

from common import Cases, random

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
# mlx sums in the type of its queries.
TOLERANCE = {"f32": 2e-5, "f16": 1e-2, "bf16": 8e-2}


def main():
    mx.set_default_device(mx.cpu)
    quantize()
    attention()


def quantize():
    """Rows `shared.TYPE`: of both signs, of one, of equals and zeros, with an outlier, and small beside the least scale."""
    cases = Cases("kv_quantize_affine")
    for name, dtype in DTYPES.items():
        x = random(1, 9, 128)
        x[1] = np.abs(x[1]) + 0.5
        x[2] = -np.abs(x[2]) - 0.5
        x[3], x[4], x[5] = 0.0, 2.0, -3.0
        x[6, 5] = 300.0
        x[7] *= 1e-8
        x[8] *= 1e-5
        x = mx.array(x).astype(dtype)
        cases.share(name, x)
        for bits in (4, 8):
            for group in (32, 64, 128):
                q, scales, biases = mx.quantize(x, group_size=group, bits=bits)
                params = {"x": name, "bits": bits, "group_size": group}
                cases.add(f"{name}_{bits}_{group}", params, q=q, scales=scales, biases=biases)
    cases.save()


def attention():
    """q [heads, queries, head_dim] over caches [kv heads, keys, ..], the last query at the last key where it is causal."""
    cases = Cases("quantized_attention")
    rows = [
        # name, type, bits, group size, heads, kv heads, queries, keys, head_dim, causal
        ("decode_8_64", "f32", 8, 64, 6, 2, 1, 19, 64, False),
        ("decode_4_64", "f32", 4, 64, 4, 1, 1, 33, 128, False),
        ("decode_8_128", "f16", 8, 128, 4, 2, 1, 21, 128, False),
        ("decode_4_128", "bf16", 4, 128, 8, 1, 1, 31, 256, False),
        ("decode_8_64_256", "bf16", 8, 64, 2, 1, 1, 17, 256, False),
        ("decode_4_32", "f16", 4, 32, 3, 1, 1, 40, 96, False),
        ("causal_8_32", "f32", 8, 32, 4, 2, 3, 11, 64, True),
        ("causal_4_32", "f16", 4, 32, 5, 1, 4, 13, 96, True),
        ("causal_8_64", "bf16", 8, 64, 2, 2, 5, 9, 64, True),
        ("chunk_8_64", "f32", 8, 64, 2, 1, 20, 37, 64, True),
        ("chunk_4_64", "f16", 4, 64, 2, 1, 18, 18, 128, True),
    ]
    for i, row in enumerate(rows):
        add(cases, i, *row)
    cases.save()


def add(cases, i, name, type_name, bits, group, heads, kv_heads, queries, keys, dim, causal):
    dtype = DTYPES[type_name]
    q = mx.array(random(100 + i, 1, heads, queries, dim)).astype(dtype)
    k = mx.quantize(mx.array(random(200 + i, 1, kv_heads, keys, dim)).astype(dtype), group_size=group, bits=bits)
    v = mx.quantize(mx.array(random(300 + i, 1, kv_heads, keys, dim)).astype(dtype), group_size=group, bits=bits)
    scale = dim**-0.5
    # It multiplies its queries in place.
    out = quantized_scaled_dot_product_attention(
        mx.array(q), k, v, scale, "causal" if causal else None, group_size=group, bits=bits
    )
    exact = evaluate(f64(q), decode(*k, bits), decode(*v, bits), scale, causal)
    error = np.abs(f64(out) - exact).max()
    assert error < TOLERANCE[type_name], (name, error)
    tensors = {f"{side}_{part}": t[0] for side, ts in (("k", k), ("v", v)) for part, t in zip(("q", "scales", "biases"), ts)}
    params = {"scale": scale, "causal": causal}
    cases.add(name, params, q=q[0], out=out[0], exact=exact[0].astype(np.float32), **tensors)


def decode(q, scales, biases, bits):
    codes = np.array(q)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & (2**bits - 1)
    codes = codes.reshape(*scales.shape, -1).astype(np.float64)
    values = codes * f64(scales)[..., None] + f64(biases)[..., None]
    return values.reshape(*scales.shape[:-1], -1)


def evaluate(q, k, v, scale, causal):
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, 1), np.repeat(v, groups, 1)
    scores = q @ k.swapaxes(-1, -2) * scale
    if causal:
        queries, keys = scores.shape[-2:]
        hidden = np.arange(keys)[None] > np.arange(keys - queries, keys)[:, None]
        scores = np.where(hidden, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
