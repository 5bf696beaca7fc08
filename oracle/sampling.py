"""What mlx-lm samples from: the golden distributions of crates/silicide-lm's sampler tests.

    python oracle/sampling.py

Needs mlx[cpu] 0.32 and mlx-lm 0.32. mlx-lm's processors and filters run on random logits; instead of a draw, the softmax of what
they leave is kept.
"""

import json
import pathlib

import mlx.core as mx
import numpy as np
from mlx_lm import sample_utils

OUT = pathlib.Path(__file__).parent / "vectors" / "sampling.json"
SIZE = 96

SAMPLERS = [
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.3, "top_p": 0.35},
    {"temperature": 0.7, "top_k": 1},
    {"temperature": 0.7, "top_k": 12},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 2.0, "min_p": 0.4},
    {"temperature": 0.9, "top_p": 0.95, "min_p": 0.02, "top_k": 20},
    {"temperature": 0.5, "top_p": 0.6, "top_k": 3},
    {"temperature": 0.8, "top_p": 0.8, "min_p": 0.2, "top_k": 50},
]
PENALTIES = [
    {},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": -0.2},
    {"repetition_penalty": 0.8, "presence_penalty": -0.4, "frequency_penalty": 0.35, "logit_bias": {"3": 2.5, "40": -100.0, "95": 0.5}},
]


def distribution(logits, history, sampler, penalties):
    context = {name: 20 for name in ["repetition_context_size", "presence_context_size", "frequency_context_size"]}
    penalties = {**penalties, **context}
    if "logit_bias" in penalties:
        penalties["logit_bias"] = {int(token): bias for token, bias in penalties["logit_bias"].items()}
    x = mx.array(logits)[None]
    for process in sample_utils.make_logits_processors(**penalties):
        x = process(mx.array(history), x)
    seen = []
    # The draw, put off: it is the last step.
    sample_utils.categorical_sampling = lambda logprobs, temperature: seen.append(mx.softmax(logprobs * (1 / temperature), axis=-1))
    options = dict(sampler)
    sample_utils.make_sampler(options.pop("temperature"), **options)(x - mx.logsumexp(x, axis=-1, keepdims=True))
    return np.array(seen[0][0], dtype=np.float64)


def main():
    mx.set_default_device(mx.cpu)
    rng = np.random.default_rng(5)
    rows = []
    for spread in [0.5, 3.0, 9.0]:
        rows.append((rng.normal(0, spread, SIZE).astype(np.float32), rng.integers(0, SIZE, 30).tolist()))
    cases = []
    for row, (logits, history) in enumerate(rows):
        for sampler in SAMPLERS:
            for penalties in PENALTIES:
                probabilities = distribution(logits, history, sampler, penalties)
                kept = [[int(token), float(f"{probabilities[token]:.8g}")] for token in np.flatnonzero(probabilities)]
                cases.append({"row": row, "options": {**sampler, **penalties}, "kept": kept})
    out = {"rows": [{"logits": [float(x) for x in logits], "history": history} for logits, history in rows], "cases": cases}
    OUT.write_text(json.dumps(out, separators=(",", ":")) + "\n")
    print(len(cases), "cases,", OUT.stat().st_size, "bytes")


main()
