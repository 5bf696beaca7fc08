"""RMS and layer normalisation by mlx, in each dtype, beside an f64 evaluation."""

import mlx.core as mx
import numpy as np

from common import Cases, random

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
TOLERANCE = {"f32": 2e-6, "f16": 3e-3, "bf16": 3e-2}


def main():
    rms_norm()
    layer_norm()


def rms_norm():
    cases = Cases("rms_norm")
    for i, (shape, eps, weight_offset) in enumerate(
        # Gemma keeps weights that are one too small: weight_offset 1.
        [((5, 37), 1e-5, 0.0), ((2, 3, 128), 1e-6, 0.0), ((1, 576), 1e-5, 0.0), ((3, 257), 1e-6, 1.0), ((4, 1), 1e-5, 0.0)]
    ):
        for name, dtype in DTYPES.items():
            x = mx.array(random(10 + i, *shape, scale=3.0)).astype(dtype)
            w = mx.array(random(20 + i, shape[-1], scale=0.3) + (1 - weight_offset)).astype(dtype)
            out = mx.fast.rms_norm(x, w + weight_offset if weight_offset else w, eps)
            x64, w64 = f64(x), f64(w) + weight_offset
            exact = x64 / np.sqrt((x64 * x64).mean(-1, keepdims=True) + eps) * w64
            add(cases, f"{name}_{i}", {"eps": eps, "weight_offset": weight_offset}, name, out, exact, x=x, weight=w)
    x = mx.array(random(30, 3, 65))
    x64 = f64(x)
    exact = x64 / np.sqrt((x64 * x64).mean(-1, keepdims=True) + 1e-6)
    add(cases, "no_weight", {"eps": 1e-6, "weight_offset": 0.0}, "f32", mx.fast.rms_norm(x, None, 1e-6), exact, x=x)
    # A row whose sum of squares passes the range of f16, and a row of zeros.
    x = mx.array(np.stack([random(31, 96, scale=20000.0).clip(-6e4, 6e4), np.zeros(96, np.float32)])).astype(mx.float16)
    w = mx.ones((96,), mx.float16)
    x64 = f64(x)
    exact = x64 / np.sqrt((x64 * x64).mean(-1, keepdims=True) + 1e-5)
    add(cases, "wide_f16", {"eps": 1e-5, "weight_offset": 0.0}, "f16", mx.fast.rms_norm(x, w, 1e-5), exact, x=x, weight=w)
    cases.save()


def layer_norm():
    cases = Cases("layer_norm")
    for i, (shape, has_weight, has_bias) in enumerate(
        [((5, 37), True, True), ((2, 3, 128), True, False), ((3, 257), False, False), ((1, 384), True, True)]
    ):
        for name, dtype in DTYPES.items():
            x = mx.array(random(40 + i, *shape, scale=2.0) + 1.5).astype(dtype)
            w = mx.array(random(50 + i, shape[-1], scale=0.3) + 1).astype(dtype) if has_weight else None
            b = mx.array(random(60 + i, shape[-1], scale=0.3)).astype(dtype) if has_bias else None
            out = mx.fast.layer_norm(x, w, b, 1e-5)
            x64 = f64(x)
            exact = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
            exact = exact * (f64(w) if has_weight else 1) + (f64(b) if has_bias else 0)
            parts = {"x": x, "weight": w, "bias": b}
            add(cases, f"{name}_{i}", {"eps": 1e-5}, name, out, exact, **{k: v for k, v in parts.items() if v is not None})
    cases.save()


def add(cases, case, params, dtype, out, exact, **inputs):
    error = np.abs(f64(out) - exact).max() / max(1.0, np.abs(exact).max())
    assert error < TOLERANCE[dtype], (case, error)
    cases.add(case, params, out=out, exact=exact.astype(np.float32), **inputs)


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
