"""Filters and penalties of mlx-lm's sampler, and transformers' forms of the filters that both have.

`x` is logits [vocab]. A filter's `out` is the log probabilities that are left (the others are -inf), and `probabilities`
what tokens are then drawn from at a temperature of one; a penalty's `out` is logits after the tokens `history`.
"""

import mlx.core as mx
import numpy as np
import torch
from mlx_lm import sample_utils as mlx
from transformers.generation import logits_process as transformers

from common import Cases, random

VOCAB = 53


def main():
    cases = Cases("sampling")
    x = random(1, VOCAB, scale=2.0)
    cases.share("x", x)
    logprobs = mx.array(x)[None] - mx.logsumexp(mx.array(x))

    filters = []
    filters += [("top_k", k, mlx.apply_top_k, transformers.TopKLogitsWarper) for k in (1, 5, 40)]
    filters += [("top_p", p, mlx.apply_top_p, transformers.TopPLogitsWarper) for p in (0.05, 0.5, 0.9, 0.999)]
    filters += [("min_p", p, mlx.apply_min_p, transformers.MinPLogitsWarper) for p in (0.02, 0.1, 0.7)]
    for name, value, apply, warper in filters:
        out = np.array(apply(logprobs, value)[0])
        other = warper(value)(None, torch.from_numpy(np.array(logprobs))).numpy()[0]
        assert (np.isfinite(out) == np.isfinite(other)).all(), (name, value)
        cases.add(f"{name}_{value}", {name: value}, out=out, probabilities=normal(out))

    # mlx-lm applies top p, then min p, then top k, each to the log probabilities that the last one left.
    chain = {"top_p": 0.9, "min_p": 0.03, "top_k": 6}
    out = logprobs
    for name, apply in (("top_p", mlx.apply_top_p), ("min_p", mlx.apply_min_p), ("top_k", mlx.apply_top_k)):
        out = apply(out, chain[name])
    cases.add("chain", chain, out=np.array(out[0]), probabilities=normal(np.array(out[0])))

    history = np.array([3, 7, 7, 50, 3, 3, 12, 0], np.uint32)
    for name, options in {
        "repetition": {"repetition_penalty": 1.3},
        "repetition_context": {"repetition_penalty": 1.3, "repetition_context_size": 3},
        "presence": {"presence_penalty": 0.7},
        "frequency": {"frequency_penalty": 0.4},
        "bias": {"logit_bias": {5: 10.0, 52: -100.0}},
    }.items():
        logits = mx.array(x)[None]
        for process in mlx.make_logits_processors(**options):
            logits = process(mx.array(history), logits)
        params = {k: {str(i): b for i, b in v.items()} if isinstance(v, dict) else v for k, v in options.items()}
        cases.add(name, params, history=history, out=np.array(logits[0]))
    cases.save()


def normal(logprobs):
    p = np.exp(logprobs.astype(np.float64) - logprobs.max())
    return (p / p.sum()).astype(np.float32)


main()
