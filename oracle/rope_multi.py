"""Multi-section rotary embeddings: transformers' Qwen2-VL, Qwen3-VL, Qwen3.5 and Gemma 4 modules, ggml's convention,
and an f64 evaluation of both.

`x` and every output are [length, heads, head_dim]; `positions` are [4, length] in the order time, height, width, extra.

The conventions differ in three parameters, which each case states:

- pairing: `rotary_halves` pairs x[p] with x[p + rope_dim/2], `head_halves` with x[p + head_dim/2], `section_halves` the
  halves of each section's own part of the head;
- fallback: the axis of a pair that no interleaving rule names, `time` or `extra`;
- mode: 8 contiguous sections, 40 interleaved, 24 contiguous with frequencies that restart in each section.
"""

import importlib.util

import mlx.core as mx
import numpy as np
import torch
from transformers.models.gemma4 import modeling_gemma4 as gemma4
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig
from transformers.models.qwen3_5 import modeling_qwen3_5 as qwen3_5
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_vl import modeling_qwen3_vl as qwen3_vl
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig
from transformers.vision_utils import get_vision_position_ids

from common import Cases, random

MROPE, VISION, IMROPE = 8, 24, 40
HEADS = 2
TEXT = [0, 1, 7, 4095, 131071, 262143, 1000000]
# Time, height and width of text, then an image's patches, then text; the extra axis must never be read by transformers' forms.
IMAGE = [
    [3, 4, 4, 4, 4, 8, 999990],
    [3, 4, 4, 5, 5, 8, 1000000],
    [3, 4, 5, 4, 5, 8, 999995],
    [17, 18, 19, 20, 21, 22, 23],
]


def main():
    cases = Cases("rope_multi")
    families = {
        "qwen2_vl": (qwen2_vl.Qwen2VLRotaryEmbedding, Qwen2VLTextConfig, qwen2_vl, MROPE, [16, 24, 24], 128, 128, 1e6),
        "qwen3_vl": (qwen3_vl.Qwen3VLTextRotaryEmbedding, Qwen3VLTextConfig, qwen3_vl, IMROPE, [24, 20, 20], 128, 128, 5e6),
        "qwen3_5": (qwen3_5.Qwen3_5TextRotaryEmbedding, Qwen3_5TextConfig, qwen3_5, IMROPE, [11, 11, 10], 256, 64, 1e7),
    }
    for seed, (family, row) in enumerate(families.items()):
        for kind, positions in (("text", [TEXT] * 4), ("image", IMAGE)):
            transformers_case(cases, f"{family}_{kind}", seed, np.array(positions, np.int32), *row)
    vision_case(cases)
    qwen3_vl_vision_case(cases)
    gemma4_vision_case(cases)
    ggml_cases(cases)
    cases.save()


def transformers_case(cases, name, seed, positions, module, config, code, mode, sections, head_dim, rope_dim, base):
    rope = {"rope_type": "default", "rope_theta": base, "mrope_section": sections}
    if rope_dim != head_dim:
        rope["partial_rotary_factor"] = rope_dim / head_dim
    config = config(
        hidden_size=HEADS * head_dim,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=head_dim,
        rope_parameters=rope,
        max_position_embeddings=1 << 20,
    )
    module = module(config)
    x = random(10 + seed, positions.shape[1], HEADS, head_dim)

    def run(dtype):
        q = torch.from_numpy(x).to(dtype).permute(1, 0, 2)[None]
        cos, sin = module(q, torch.from_numpy(positions[:3].astype(np.int64))[:, None])
        q, _ = code.apply_rotary_pos_emb(q, q, cos, sin)
        return q[0].permute(1, 0, 2).contiguous()

    params = {
        "mode": mode,
        "sections": sections + [0],
        "head_dim": head_dim,
        "rope_dim": rope_dim,
        "base": base,
        "pairing": "rotary_halves",
        "fallback": "time",
    }
    exact = evaluate(x, positions, **params)
    out = run(torch.float32)
    # Far positions lose digits in transformers' f32 angles, near ones must agree.
    near = positions.max(0) < 5000
    assert np.abs(out.numpy() - exact)[near].max() < 2e-3, name
    assert np.abs(out.numpy() - exact).max() < 1, name
    check_mlx(name, x, positions, exact, mode, sections, rope_dim, base, near)
    cases.add(name, params, x=x, positions=positions, exact=exact, transformers=out, transformers_bf16=run(torch.bfloat16))


def check_mlx(name, x, positions, exact, mode, sections, rope_dim, base, near):
    """mlx-vlm's form, where that package is installed: a second witness, not stored."""
    spec = importlib.util.find_spec("mlx_vlm")
    if spec is None:
        return
    path = f"{spec.submodule_search_locations[0]}/models/rope_utils.py"
    spec = importlib.util.spec_from_file_location("rope_utils", path)
    rope_utils = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rope_utils)

    style = "interleaved" if mode == IMROPE else "chunked"
    rope = rope_utils.MRoPERotaryEmbedding(rope_dim, base=base, mrope_section=sections, style=style)
    q = mx.array(x).transpose(1, 0, 2)[None]
    cos, sin = rope(q, mx.array(positions[:3])[:, None])
    out, _ = rope_utils.apply_multimodal_rotary_pos_emb(q, q, cos, sin, style=style)
    assert np.abs(np.array(out[0].transpose(1, 0, 2)) - exact)[near].max() < 2e-3, name


def vision_case(cases):
    """The vision tower's two axes: heights turn the first quarter of pairs, widths the next, over the whole head."""
    head_dim = 80
    config = Qwen2VLVisionConfig(embed_dim=HEADS * head_dim, num_heads=HEADS)
    config.rope_parameters = {"rope_type": "axial", "rope_theta": 10000.0}
    config.num_attention_heads = HEADS
    module = qwen2_vl.Qwen2VLVisionRotaryEmbedding(config)
    height, width = np.divmod(np.arange(9), 3)
    positions = np.stack([height + 40, width * 17, height * 0 - 1, height * 0 - 1]).astype(np.int32)
    x = random(20, 9, HEADS, head_dim)
    cos, sin = module(torch.from_numpy(x), torch.from_numpy(positions[:2].T.astype(np.int64)))
    out, _ = qwen2_vl.apply_rotary_pos_emb_vision(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    params = {
        "mode": VISION,
        "sections": [head_dim // 4] * 4,
        "head_dim": head_dim,
        # As in ggml, the rotary dims of this mode are those of one axis: frequencies are base^(-2i / (head_dim/2)).
        "rope_dim": head_dim // 2,
        "base": 10000.0,
        "pairing": "head_halves",
        "fallback": "extra",
    }
    exact = evaluate(x, positions, **params)
    assert np.abs(out.numpy() - exact).max() < 1e-4
    cases.add("vision", params, x=x, positions=positions, exact=exact, transformers=out)


def qwen3_vl_vision_case(cases):
    """The same, of patches in the order of 2x2 blocks."""
    head_dim = 72
    config = Qwen3VLVisionConfig(hidden_size=HEADS * head_dim, num_heads=HEADS)
    config.rope_parameters = {"rope_type": "axial", "rope_theta": 10000.0}
    config.num_attention_heads = HEADS
    module = qwen3_vl.Qwen3VLVisionRotaryEmbedding(config)
    places = get_vision_position_ids(torch.tensor([[1, 4, 6]]), 2)
    assert places[:5].tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2]]
    x = random(21, 24, HEADS, head_dim)
    cos, sin = module(torch.from_numpy(x), places)
    out, _ = qwen3_vl.apply_rotary_pos_emb_vision(torch.from_numpy(x), torch.from_numpy(x), cos, sin)
    add_tower(cases, "vision_qwen3_vl", x, places, out, "head_halves")


def gemma4_vision_case(cases):
    """Each half of a head turns by itself."""
    head_dim = 64
    config = Gemma4VisionConfig(hidden_size=HEADS * head_dim, num_attention_heads=HEADS, head_dim=head_dim)
    config.rope_parameters = {"rope_type": "axial", "rope_theta": 100.0}
    module = gemma4.Gemma4VisionRotaryEmbedding(config)
    places = torch.tensor([[0, 0], [1, 0], [0, 1], [17, 5], [255, 300]])
    x = random(22, 5, HEADS, head_dim)
    cos, sin = module(torch.from_numpy(x), places[None])
    out = gemma4.apply_multidimensional_rope(torch.from_numpy(x)[None], cos, sin, places[None])[0]
    add_tower(cases, "vision_gemma4", x, places, out, "section_halves", base=100.0)


def add_tower(cases, name, x, places, out, pairing, base=10000.0):
    head_dim = x.shape[2]
    positions = np.concatenate([places.numpy().T, np.full((2, len(places)), -1)]).astype(np.int32)
    params = {
        "mode": VISION,
        "sections": [head_dim // 4, head_dim // 4, 0, 0],
        "head_dim": head_dim,
        "rope_dim": head_dim // 2,
        "base": base,
        "pairing": pairing,
        "fallback": "extra",
    }
    exact = evaluate(x, positions, **params)
    assert np.abs(out.numpy() - exact).max() < 1e-4, name
    cases.add(name, params, x=x, positions=positions, exact=exact, transformers=out.contiguous())


def ggml_cases(cases):
    rows = [
        ("head_halves_mrope", MROPE, [16, 24, 24, 0], 128, 128, 1e6),
        ("head_halves_imrope", IMROPE, [24, 20, 20, 0], 128, 128, 5e6),
        # Partial rotation: this is where the pairings part.
        ("head_halves_partial", IMROPE, [11, 11, 10, 0], 256, 64, 1e7),
        ("head_halves_partial_mrope", MROPE, [4, 3, 2, 3], 40, 24, 1e4),
        # Sections that wrap, an empty one, and one that only the extra axis turns.
        ("wrapping_mrope", MROPE, [2, 1, 3, 1], 64, 64, 1e4),
        ("wrapping_imrope", IMROPE, [2, 2, 1, 2], 64, 48, 1e4),
        ("empty_section", MROPE, [0, 5, 0, 3], 32, 16, 1e4),
        ("extra_only", MROPE, [0, 0, 0, 8], 16, 16, 1e4),
    ]
    for i, (name, mode, sections, head_dim, rope_dim, base) in enumerate(rows):
        positions = np.array(IMAGE, np.int32)[:, :6]
        x = random(30 + i, 6, HEADS, head_dim)
        params = {
            "mode": mode,
            "sections": sections,
            "head_dim": head_dim,
            "rope_dim": rope_dim,
            "base": base,
            "pairing": "head_halves",
            "fallback": "extra",
        }
        cases.add(name, params, x=x, positions=positions, exact=evaluate(x, positions, **params))


def evaluate(x, positions, mode, sections, head_dim, rope_dim, base, pairing, fallback):
    """The mathematics in f64, one pair at a time; the result is f64."""
    out = x.astype(np.float64)
    starts = np.cumsum([0] + sections)
    pairs = head_dim // 2 if mode == VISION else rope_dim // 2
    for p in range(pairs):
        sector = p % starts[4]
        exponent = p
        if mode == IMROPE:
            axis = sector % 3
            if sector >= 3 * sections[axis]:
                axis = {"extra": 3, "time": 0}[fallback]
        else:
            axis = int(np.searchsorted(starts, sector, side="right")) - 1
            if mode == VISION:
                exponent = sector - starts[axis]
        theta = positions[axis].astype(np.float64) * float(base) ** (-2.0 * exponent / rope_dim)
        cos, sin = np.cos(theta)[:, None], np.sin(theta)[:, None]
        i, q = p, p + (rope_dim if pairing == "rotary_halves" else head_dim) // 2
        if pairing == "section_halves":
            i = 2 * starts[axis] + sector - starts[axis]
            q = i + sections[axis]
        a, b = x[..., i].astype(np.float64), x[..., q].astype(np.float64)
        out[..., i], out[..., q] = a * cos - b * sin, b * cos + a * sin
    return out


main()
