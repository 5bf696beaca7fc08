"""The Walsh-Hadamard transform by mlx, and keys and values quantised behind it, beside an f64 evaluation."""

import math

import mlx.core as mx
import numpy as np
import torch

from common import Cases, random

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
TOLERANCE = {"f32": 2e-6, "f16": 3e-3, "bf16": 3e-2}


def main():
    transform()
    quantize()


def transform():
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


def quantize():
    """Levels, and rows in codes of several widths: `codes` has code i in bits i * width of a row, the lowest first."""
    cases = Cases("kv_quantize")
    for bits, want in [(4, 9.501e-3), (5, 2.505e-3), (6, 6.442e-4), (8, 4.119e-5)]:
        levels = lloyd_max(bits)
        mass, _ = moments(levels)
        # At the optimum the levels' variance is what the error leaves of 1.
        error = 1 - (mass * levels * levels).sum()
        assert abs(error - want) < 6e-4 * want, (bits, error)
        cases.add(f"bits_{bits}", {}, levels=levels)
        sizes = {4: [(64, 1), (512, 1)], 5: [(64, 1), (256, 1)], 6: [(128, 1)], 8: [(256, 1), (512, 2)]}
        for dim, norms in sizes[bits]:
            rows(cases, bits, levels, dim, norms)
    cases.save()


def rows(cases, bits, levels, dim, norms):
    midpoints = (levels[1:] + levels[:-1]) / 2
    signs = np.random.default_rng(dim + bits).integers(0, 2, dim)
    for seed in range(1000):
        # One channel is an outlier, as keys have them.
        x = random(1000 * dim + seed, 1, 3, dim)
        x[..., 5] *= 20
        turned = x * (1 - 2 * signs).astype(np.float32)
        rotated = turned.astype(np.float64) @ sylvester(dim)
        assert np.abs(np.array(mx.hadamard_transform(mx.array(turned))) - rotated).max() < 1e-5
        blocks = rotated.reshape(1, 3, norms, dim // norms)
        norm = np.sqrt((blocks * blocks).sum(-1))
        scale = np.repeat(norm / math.sqrt(dim // norms), dim // norms, -1)
        unit = rotated / scale
        # No coordinate so near a midpoint that rounding to f32 could choose the other code.
        if np.abs(unit[..., None] - midpoints).min() > 3e-6:
            break
    else:
        raise AssertionError((bits, dim))
    codes = np.abs(unit[..., None] - levels).argmin(-1)
    stream = (codes[..., None] >> np.arange(bits) & 1).reshape(1, 3, dim * bits)
    decoded = levels[codes] * scale
    original = decoded @ sylvester(dim) * (1 - 2 * signs)
    cases.add(
        f"rows_{bits}_{dim}_{norms}",
        {"bits": bits, "dim": dim, "norms": norms},
        x=x,
        signs=np.packbits(signs, bitorder="little").view(np.uint32),
        codes=np.packbits(stream.astype(np.uint8), axis=-1, bitorder="little"),
        norms=(norm if norms > 1 else norm[..., 0]).astype(np.float32),
        rotated=decoded.astype(np.float32),
        exact=original.astype(np.float32),
    )


def lloyd_max(bits):
    """The fixed point of Lloyd's alternation for N(0, 1), by Anderson's acceleration of it."""
    count = 1 << bits
    quantiles = torch.linspace(-1 + 1 / count, 1 - 1 / count, count, dtype=torch.float64)
    levels = math.sqrt(6) * torch.erfinv(quantiles).numpy()
    past = []
    for _ in range(5000):
        mass, moment = moments(levels)
        residual = moment / mass - levels
        if np.abs(residual).max() < 2e-13:
            return levels
        past = (past + [(levels, residual)])[-12:]
        step = residual
        if len(past) > 1:
            d_levels = np.stack([b[0] - a[0] for a, b in zip(past, past[1:])], 1)
            d_residuals = np.stack([b[1] - a[1] for a, b in zip(past, past[1:])], 1)
            weights = np.linalg.lstsq(d_residuals, residual, rcond=None)[0]
            step = residual - (d_levels + d_residuals) @ weights
        moved = levels + step
        moved = (moved - moved[::-1]) / 2
        if (np.diff(moved) <= 0).any():
            moved, past = levels + residual, []
        levels = moved
    raise AssertionError((bits, np.abs(residual).max()))


def moments(levels):
    """Mass and first moment of N(0, 1) over what is nearest to each level. The upper half stands for the lower."""
    upper = levels[len(levels) // 2 :]
    edges = np.concatenate([[0.0], (upper[1:] + upper[:-1]) / 2, [np.inf]])
    tail = torch.special.erfc(torch.tensor(edges / math.sqrt(2))).numpy() / 2
    density = np.exp(-edges * edges / 2) / math.sqrt(2 * math.pi)
    mass, moment = tail[:-1] - tail[1:], density[:-1] - density[1:]
    return np.concatenate([mass[::-1], mass]), np.concatenate([-moment[::-1], moment])


def sylvester(n):
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
    return matrix / np.sqrt(n)


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


main()
