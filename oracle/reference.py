"""Reference logits and greedy tokens of a checkpoint, by mlx-lm and by transformers, in f32.

`save_expected` writes `expected.safetensors` beside a checkpoint, for prompts of 12 and 100 tokens:

- `prompt_N` [N] and `greedy_N` [32]: token ids;
- `logits_N` [rows, vocab]: f32 logits of the prompt's last `rows` positions (all of the short prompt);
- metadata `expected`, JSON: which oracle's logits they are, how far the oracles are apart, the least margin
  between the best two tokens of a greedy step, and how far transformers' own bf16 run is from its f32 run.
"""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import dequantize_model, load_model
from transformers import AutoConfig, AutoModelForCausalLM

from common import save_tensors

STEPS = 32
LONG_ROWS = 4
# Greedy tokens that repeat would hide an error of position.
DISTINCT = 4


class Mlx:
    """mlx-lm with every float parameter widened to f32."""

    name = "mlx-lm"

    def __init__(self, folder, dense=False):
        self.model, _ = load_model(Path(folder))
        self.model.update(tree_map(widen, self.model.parameters()))
        if dense:
            # The same values: mlx multiplies packed f32 weights slowly.
            self.model = dequantize_model(self.model)
            self.model.update(tree_map(widen, self.model.parameters()))

    def run(self, prompt, steps=STEPS):
        cache = make_prompt_cache(self.model)
        logits = np.array(self.model(mx.array(prompt)[None], cache=cache)[0])
        row, rows = logits[-1], []
        for _ in range(steps):
            rows.append(row)
            row = np.array(self.model(mx.array([[int(row.argmax())]]), cache=cache)[0, -1])
        return logits, np.array(rows)

    def weights(self):
        """The dequantised f32 weights by name."""
        dense = dequantize_model(self.model)
        return {k: torch.from_numpy(np.array(widen(v))) for k, v in tree_flatten(dense.parameters())}


class Transformers:
    """transformers in f32: a Hugging Face folder, a GGUF file, or the weights of another oracle."""

    name = "transformers"

    def __init__(self, folder=None, gguf=None, config=None, weights=None):
        if weights is not None:
            config = AutoConfig.from_pretrained(config)
            config.quantization_config = None
            del config.quantization_config
            config._attn_implementation = "eager"
            self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            missing, unexpected = self.model.load_state_dict(weights, strict=False)
            assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
            self.model.tie_weights()
        else:
            options = {"gguf_file": gguf} if gguf else {}
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", **options
            )
        self.model.eval()

    @torch.no_grad()
    def run(self, prompt, steps=STEPS):
        out = self.model(torch.tensor([prompt]), use_cache=True)
        logits = out.logits[0].float().numpy()
        row, rows = logits[-1], []
        for _ in range(steps):
            rows.append(row)
            token = torch.tensor([[int(row.argmax())]])
            out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            row = out.logits[0, -1].float().numpy()
        return logits, np.array(rows)

    def bfloat16(self):
        self.model = self.model.to(torch.bfloat16)
        return self


def widen(x):
    return x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x


def save_expected(path, oracle, witness, vocab, tolerance=1e-3, least_margin=0.02, prompts=None):
    """Run both oracles, check that they agree, and store the first one's answers."""
    tensors, notes = {}, {"oracle": oracle.name, "f32_disagreement": 0.0, "least_margin": None, "bf16": {}}
    runs = {}
    for length in (12, 100):
        for seed in range(1000):
            prompt = prompts[length] if prompts else np.random.default_rng(1000 * length + seed).integers(3, vocab, length).tolist()
            logits, rows = oracle.run(prompt)
            best = np.sort(rows, -1)
            margin = float((best[:, -1] - best[:, -2]).min())
            if margin >= least_margin and (prompts or len(set(rows.argmax(-1).tolist())) >= DISTINCT):
                break
            assert not prompts, f"{path}: greedy steps of this prompt are too close, {margin}"
        else:
            raise SystemExit(f"{path}: no prompt of {length} tokens has {DISTINCT} greedy tokens that are {least_margin} apart")
        if witness:
            others, other_rows = witness.run(prompt)
            distance = max(np.abs(others - logits).max(), np.abs(other_rows - rows).max())
            assert distance < tolerance, f"{path}: the oracles are {distance} apart"
            assert (other_rows.argmax(-1) == rows.argmax(-1)).all(), path
            notes["f32_disagreement"] = max(notes["f32_disagreement"], float(distance))
        notes["least_margin"] = min(margin, notes["least_margin"] or margin)
        runs[length] = (prompt, logits)
        keep = logits if length == 12 else logits[-LONG_ROWS:]
        tensors[f"prompt_{length}"] = np.array(prompt, np.uint32)
        tensors[f"greedy_{length}"] = rows.argmax(-1).astype(np.uint32)
        tensors[f"logits_{length}"] = keep.astype(np.float32)

    torch_oracle = oracle if isinstance(oracle, Transformers) else witness
    if torch_oracle:
        half = torch_oracle.bfloat16()
        for length, (prompt, logits) in runs.items():
            distance = half.run(prompt, steps=0)[0] - logits
            distance = distance if length == 12 else distance[-LONG_ROWS:]
            notes["bf16"][str(length)] = {
                "max": float(np.abs(distance).max()),
                "rms": float(np.sqrt((distance.astype(np.float64) ** 2).mean())),
            }
    save_tensors(path, tensors, {"expected": json.dumps(notes, sort_keys=True)})
    return notes
