"""Products of two activations whose leading axes broadcast: a [.., m, k] times b [.., n, k] transposed."""

import mlx.core as mx
import numpy as np

from common import Cases, random

# Of mx.matmul, and of what a type rounds. mlx's CPU kernels sum f16 and bf16 in f32.
DTYPES = {"f32": (mx.float32, 1e-6), "f16": (mx.float16, 2e-3), "bf16": (mx.bfloat16, 1e-2)}
SHAPES = [
    ((5, 33), (7, 33)),
    ((3, 1, 48), (3, 33, 48)),
    ((2, 4, 3, 31), (2, 1, 9, 31)),
    ((2, 1, 17, 32), (3, 33, 32)),
    ((17, 40), (2, 1, 31, 40)),
]


def main():
    cases = Cases("batched_matmul")
    for i, (a_shape, b_shape) in enumerate(SHAPES):
        for name, (dtype, tolerance) in DTYPES.items():
            a, b = mx.array(random(2 * i, *a_shape)).astype(dtype), mx.array(random(2 * i + 1, *b_shape)).astype(dtype)
            out = mx.matmul(a, mx.swapaxes(b, -1, -2))
            exact = f64(a) @ np.swapaxes(f64(b), -1, -2)
            error = np.abs(f64(out) - exact).max() / np.abs(exact).max()
            assert error < tolerance, (i, name, error)
            cases.add(f"{name}_{i}", {}, a=a, b=b, out=out, exact=exact.astype(np.float32))
    cases.save()


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
