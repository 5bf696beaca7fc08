"""Prefill and decode speed of mlx-lm on the CPU, for the reports beside compare.py's figures.

    python benches/mlx_lm_speed.py MODEL [--prompt 512] [--answer 128]

The model runs as mlx-lm loads it, in the checkpoint's own types and with as many threads as mlx takes. The prompt is fed whole into
an empty cache; the answer is decoded greedily from an empty context, as llama-bench and compare.py do it. 0 leaves a part out.
"""

import argparse
import time
from pathlib import Path

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def prefill(model, count):
    prompt = mx.array([[i * 7919 % 40_000 + 10 for i in range(count)]])
    begun = time.perf_counter()
    mx.eval(model(prompt, cache=make_prompt_cache(model))[0, -1])
    return count / (time.perf_counter() - begun)


def decode(model, count):
    cache = make_prompt_cache(model)
    token = model(mx.array([[10]]), cache=cache)[0, -1].argmax()
    mx.eval(token)
    begun = time.perf_counter()
    for _ in range(count):
        token = model(token.reshape(1, 1), cache=cache)[0, -1].argmax()
        mx.eval(token)
    return count / (time.perf_counter() - begun)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--answer", type=int, default=128)
    args = parser.parse_args()
    mx.set_default_device(mx.cpu)
    model, _ = load_model(args.model)
    decode(model, 2)  # the first calls compile
    for name, measure, count in (("prefill", prefill, args.prompt), ("decode", decode, args.answer)):
        if count:
            print(f"{args.model.name}: {name} {count} tokens at {measure(model, count):.2f} tok/s", flush=True)


if __name__ == "__main__":
    main()
