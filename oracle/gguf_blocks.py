"""Blocks of every GGUF type that the project computes with, and their values by gguf-py.

Blocks are random bytes, so every bit of every field matters, with the f16 scales set to finite values.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as Type, quants

from common import Cases, random

# Byte offsets of the f16 scales in a block.
SCALES = {
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q8_0: [0],
    Type.Q2_K: [80, 82],
    Type.Q3_K: [108],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
    Type.IQ4_NL: [0],
    Type.IQ4_XS: [0],
}
ROWS, COLUMNS = 3, 512


def main():
    cases = Cases("gguf_blocks")
    x = random(1, 2, COLUMNS)
    cases.share("x", x)
    for i, type in enumerate(SCALES):
        blocks = random_blocks(type, ROWS, COLUMNS, seed=10 + i)
        w = quants.dequantize(blocks, type)
        assert w.shape == (ROWS, COLUMNS) and np.isfinite(w).all()
        out = (x.astype(np.float64) @ w.astype(np.float64).T).astype(np.float32)
        cases.add(type.name, {"type": int(type)}, blocks=blocks, dequantized=w.astype(np.float32), out=out)
    cases.save()


def random_blocks(type, rows, columns, seed, scale=0.01):
    """`rows` of `columns` random elements, as bytes [rows, bytes in a row]."""
    elements, size = GGML_QUANT_SIZES[type]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows, columns // elements, size), dtype=np.uint8)
    for offset in SCALES[type]:
        # Some scales are negative: the formats allow it.
        values = (rng.uniform(0.2, 1.0, blocks.shape[:2]) * rng.choice([1, 1, 1, -1], blocks.shape[:2]) * scale)
        blocks[..., offset : offset + 2] = values.astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


if __name__ == "__main__":
    main()
