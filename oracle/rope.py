"""Rotary embeddings by mlx, and the inverse frequencies of every scaling that transformers knows."""

import mlx.core as mx
import numpy as np
import torch
from transformers import Gemma3TextConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from common import Cases, random

B, H, L = 2, 3, 5


def main():
    rope()
    frequencies()


def rope():
    """x is [batch, heads, length, head_dim]; position = (offset + index) * scale."""
    cases = Cases("rope")
    bands = (10000.0 ** (np.arange(0, 64, 2) / 64) * np.linspace(1, 8, 32)).astype(np.float32)
    rows = [
        # name, head_dim, dims, traditional, base, scale, offset, freqs, dtype
        ("halves", 64, 64, False, 10000.0, 1.0, 0, None, mx.float32),
        ("halves_offset", 64, 64, False, 500000.0, 1.0, 1234, None, mx.float32),
        ("traditional", 64, 64, True, 10000.0, 1.0, 7, None, mx.float32),
        ("partial", 80, 20, False, 10000.0, 1.0, 3, None, mx.float32),
        ("partial_traditional", 80, 32, True, 10000.0, 1.0, 3, None, mx.float32),
        ("partial_256_64", 256, 64, False, 1e7, 1.0, 100, None, mx.float32),
        ("scale", 64, 64, False, 10000.0, 0.125, 40, None, mx.float32),
        ("offsets", 64, 64, False, 10000.0, 1.0, [5, 900], None, mx.float32),
        ("freqs", 64, 64, False, None, 1.0, 50, bands, mx.float32),
        ("freqs_traditional", 64, 64, True, None, 1.0, 50, bands, mx.float32),
        ("f16", 32, 32, False, 10000.0, 1.0, 11, None, mx.float16),
        ("bf16", 32, 32, False, 10000.0, 1.0, 11, None, mx.bfloat16),
    ]
    for i, (name, head_dim, dims, traditional, base, scale, offset, freqs, dtype) in enumerate(rows):
        x = mx.array(random(10 + i, B, H, L, head_dim)).astype(dtype)
        out = mx.fast.rope(
            x,
            dims,
            traditional=traditional,
            base=base,
            scale=scale,
            offset=mx.array(offset) if isinstance(offset, list) else offset,
            freqs=None if freqs is None else mx.array(freqs),
        )
        inv_freq = base ** (-np.arange(0, dims, 2) / dims) if freqs is None else 1.0 / freqs.astype(np.float64)
        exact = rotate(np.array(x.astype(mx.float32)), inv_freq, traditional, scale, offset)
        error = np.abs(np.array(out.astype(mx.float32)) - exact).max()
        assert error < (1e-3 if dtype == mx.float32 else 0.05), (name, error)
        params = {"dims": dims, "traditional": traditional, "base": base, "scale": scale, "offset": offset}
        # mlx's `freqs` are the reciprocals of inverse frequencies.
        extra = {} if freqs is None else {"freqs": freqs}
        cases.add(name, params, x=x, out=out, exact=exact.astype(np.float32), **extra)
    cases.save()


def rotate(x, inv_freq, traditional, scale, offset):
    x = x.astype(np.float64)
    offset = np.broadcast_to(np.array(offset), (x.shape[0],))
    theta = (offset[:, None, None] + np.arange(x.shape[2])[None, :, None]) * scale * inv_freq
    cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
    n = len(inv_freq)
    a, b = (slice(0, 2 * n, 2), slice(1, 2 * n, 2)) if traditional else (slice(0, n), slice(n, 2 * n))
    out = x.copy()
    out[..., a] = x[..., a] * cos - x[..., b] * sin
    out[..., b] = x[..., b] * cos + x[..., a] * sin
    return out


def frequencies():
    """Inverse frequencies [rotary_dim / 2] and the factor that multiplies cosine and sine."""
    cases = Cases("rope_frequencies")
    shape = {"hidden_size": 128, "num_attention_heads": 2, "head_dim": 64, "max_position_embeddings": 131072}
    scalings = {
        "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
        "llama3": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
        "llama3_factor_8": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
        "yarn": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
        },
        "yarn_betas": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 4096,
            "rope_theta": 150000.0,
            "truncate": False,
        },
        "yarn_attention_factor": {
            "rope_type": "yarn",
            "factor": 8.0,
            "attention_factor": 1.25,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
        },
        "yarn_mscale": {
            "rope_type": "yarn",
            "factor": 40.0,
            "mscale": 1.0,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
            "rope_theta": 10000.0,
        },
        "proportional": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
        "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
        "dynamic_within": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    }
    # The length of text at hand, for the scalings that look at it.
    lengths = {"dynamic": 200000, "dynamic_within": 1000}
    for name, scaling in scalings.items():
        config = LlamaConfig(**shape, rope_parameters=dict(scaling))
        compute = ROPE_INIT_FUNCTIONS[scaling["rope_type"]]
        inv_freq, factor = compute(config, torch.device("cpu"), seq_len=lengths.get(name))
        params = {"head_dim": 64, "attention_factor": float(factor), "rope_scaling": scaling}
        if name in lengths:
            params |= {"max_positions": shape["max_position_embeddings"], "length": lengths[name]}
        cases.add(name, params, inv_freq=inv_freq)

    short, long = np.linspace(1, 2, 32).tolist(), np.geomspace(1, 60, 32).tolist()
    scaling = {
        "rope_type": "longrope",
        "factor": 32.0,
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 4096,
        "rope_theta": 10000.0,
    }
    for name, factors, length in (("longrope_short", short, 4096), ("longrope_long", long, 4097)):
        config = LlamaConfig(**shape, rope_parameters=dict(scaling))
        inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"), seq_len=length)
        params = {"head_dim": 64, "attention_factor": float(factor), "rope_scaling": scaling, "factors": factors}
        cases.add(name, params, inv_freq=inv_freq)

    config = Gemma3TextConfig(
        hidden_size=128,
        num_attention_heads=2,
        head_dim=64,
        num_hidden_layers=6,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        },
    )
    module = Gemma3RotaryEmbedding(config)
    for kind, scaling in config.rope_parameters.items():
        inv_freq = getattr(module, f"{kind}_inv_freq")
        factor = getattr(module, f"{kind}_attention_scaling")
        params = {"head_dim": 64, "attention_factor": float(factor), "rope_scaling": scaling}
        cases.add(f"gemma3_{kind}", params, inv_freq=inv_freq)
    cases.save()


main()
