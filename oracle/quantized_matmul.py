"""Packed weights of every MLX mode, their dequantised values, and products with them.

The truth is f32: scales and biases are widened first, because mlx's CPU kernels accumulate in the type
of the scales. The product is taken in f64 from mlx's dequantised f32 weight.
"""

import mlx.core as mx
import numpy as np

from common import Cases, random

DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
N, K, M = 5, 384, 3


def main():
    cases = Cases("quantized_matmul")
    x = random(1, M, K)
    cases.share("x", x)
    cases.share("x_bf16", mx.array(x).astype(mx.bfloat16))

    for bits in (2, 3, 4, 5, 6, 8):
        for group_size in (32, 64, 128):
            # Widths share one weight so that a wrong unpacking shows beside the right ones.
            w = mx.array(random(2, N, K, scale=0.05) + random(3, N, 1, scale=0.02))
            for name, dtype in DTYPES.items():
                q, s, b = mx.quantize(w.astype(dtype), group_size=group_size, bits=bits)
                add(cases, f"affine_{bits}_{group_size}_{name}", "affine", bits, group_size, x, q, s, b)

    for mode, bits, group_size in (("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)):
        w = mx.array(random(4, N, K, scale=0.05))
        q, s = mx.quantize(w, group_size=group_size, bits=bits, mode=mode)
        add(cases, mode, mode, bits, group_size, x, q, s, None)

    # An expert stack: [experts, out, in], experts chosen by the caller.
    q, s, b = mx.quantize(mx.array(random(5, 3, N, 64, scale=0.05)), group_size=64, bits=4)
    w = mx.dequantize(q, s, b, group_size=64, bits=4)
    cases.add("stack_affine_4_64", params("affine", 4, 64), q=q, scales=s, biases=b, dequantized=w)

    every_code(cases)
    cases.save()


def add(cases, case, mode, bits, group_size, x, q, scales, biases):
    wide = [t.astype(mx.float32) if mode == "affine" else t for t in (scales, biases) if t is not None]
    w = mx.dequantize(q, *wide, group_size=group_size, bits=bits, mode=mode, dtype=mx.float32)
    out = x.astype(np.float64) @ np.array(w).astype(np.float64).T
    tensors = {"q": q, "scales": scales, "dequantized": w, "out": out.astype(np.float32)}
    if biases is not None:
        tensors["biases"] = biases

    ours = mx.quantized_matmul(mx.array(x), q, *wide, group_size=group_size, bits=bits, mode=mode)
    error = np.abs(np.array(ours) - out).max()
    assert error < 1e-4, (case, error)
    cases.add(case, params(mode, bits, group_size), **tensors)


def every_code(cases):
    """Each element code under a scale of one, and each scale code over the element one."""
    codes4 = np.array([sum(((8 * i + j) % 16) << (4 * j) for j in range(8)) for i in range(4)], np.uint32)[None]
    codes8 = np.arange(256, dtype=np.uint8).view(np.uint32)[None]
    ones4 = np.full((256, 4), 0x22222222, np.uint32)
    scales = np.arange(256, dtype=np.uint8)[:, None]
    for case, mode, bits, group_size, q, s in (
        ("elements_mxfp4", "mxfp4", 4, 32, codes4, np.full((1, 1), 127, np.uint8)),
        ("elements_mxfp8", "mxfp8", 8, 32, codes8, np.full((1, 8), 127, np.uint8)),
        ("elements_nvfp4", "nvfp4", 4, 16, codes4, np.full((1, 2), 0x38, np.uint8)),
        # mlx reads scale 255 as infinity or NaN by back end: it is left out.
        ("scales_mxfp4", "mxfp4", 4, 32, ones4[:255], scales[:255]),
        ("scales_nvfp4", "nvfp4", 4, 16, ones4[:, :2], scales),
    ):
        w = mx.dequantize(mx.array(q), mx.array(s), group_size=group_size, bits=bits, mode=mode, dtype=mx.float32)
        w = w[:, :1] if case.startswith("scales") else w
        cases.add(case, params(mode, bits, group_size), q=q, scales=s, dequantized=w)


def params(mode, bits, group_size):
    return {"mode": mode, "bits": bits, "group_size": group_size}


main()
