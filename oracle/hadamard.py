"""The Walsh-Hadamard transform by mlx, beside a product with Sylvester's matrix in f64."""

import mlx.core as mx
import numpy as np

from common import Cases, random

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
TOLERANCE = {"f32": 2e-6, "f16": 3e-3, "bf16": 3e-2}


def main():
    cases = Cases("hadamard_transform")
    for i, (rows, n) in enumerate([(5, 2), (3, 16), (3, 64), (2, 256)]):
        for name, dtype in DTYPES.items():
            add(cases, f"{name}_{n}", name, mx.array(random(10 + i, rows, n, scale=2.0)).astype(dtype))
    add(cases, "f32_2048", "f32", mx.array(random(20, 1, 2048)))
    cases.save()


def add(cases, case, name, x):
    out, exact = mx.hadamard_transform(x), f64(x) @ sylvester(x.shape[-1])
    error = np.abs(f64(out) - exact).max() / max(1.0, np.abs(exact).max())
    assert error < TOLERANCE[name], (case, error)
    cases.add(case, {}, x=x, out=out, exact=exact.astype(np.float32))


def sylvester(n):
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    return matrix / np.sqrt(n)


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
