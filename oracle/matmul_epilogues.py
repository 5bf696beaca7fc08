"""Products with what follows them: biases, residuals, gated linear units, by mlx and beside an f64 evaluation."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from common import Cases, random

M, N, K = 3, 35, 128
ACTIVATIONS = {
    "silu": (nn.silu, lambda g: g / (1 + np.exp(-g))),
    "gelu_tanh": (nn.gelu_approx, lambda g: 0.5 * g * (1 + np.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3)))),
    "gelu_erf": (nn.gelu, lambda g: 0.5 * g * (1 + np.vectorize(math.erf)(g / math.sqrt(2)))),
    "sigmoid": (mx.sigmoid, lambda g: 1 / (1 + np.exp(-g))),
}


def main():
    cases = Cases("matmul_epilogues")
    x, bias, residual = random(1, M, K), random(2, N), random(3, M, N)
    dense = random(4, N, K, scale=0.1)
    for name, tensor in {"x": x, "bias": bias, "residual": residual, "dense": dense}.items():
        cases.share(name, tensor)
    x, bias, residual = mx.array(x), mx.array(bias), mx.array(residual)
    addmm = mx.addmm(bias, x, mx.array(dense).T)
    cases.share("addmm", agreed(addmm, f64(x) @ f64(dense).T + f64(bias)))

    for mode, bits, group_size in (("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32)):
        params = {"mode": mode, "bits": bits, "group_size": group_size}
        products, exact = [], []
        for seed, role in enumerate(("gate", "up")):
            stored = mx.quantize(mx.array(random(5 + seed, N, K, scale=0.2)), **params)
            w = mx.dequantize(*stored, **params, dtype=mx.float32)
            products.append(mx.quantized_matmul(x, *stored, **params))
            exact.append(f64(x) @ f64(w).T)
            tensors = dict(zip(("q", "scales", "biases"), stored))
            tensors["added"] = agreed(products[-1] + bias + residual, exact[-1] + f64(bias) + f64(residual))
            if role == "up":
                for name, (ours, definition) in ACTIVATIONS.items():
                    tensors[name] = agreed(ours(products[0]) * products[1], definition(exact[0]) * exact[1])
            cases.add(f"{mode}_{bits}_{role}", params, **tensors)
    cases.save()


def f64(x):
    return np.asarray(x, np.float64)


def agreed(ours, exact):
    """The exact answer, which mlx's is close to."""
    error = np.abs(f64(ours) - exact).max()
    assert error < 1e-4, error
    return exact.astype(np.float32)


if __name__ == "__main__":
    main()
