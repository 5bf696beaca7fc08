"""Hold the program's f32 logits and greedy tokens against the `expected.safetensors` of checkpoints.

    python compare.py --silicide BIN [--device DEVICE] MODEL...

MODEL is a folder with `expected.safetensors`, or CHECKPOINT=FOLDER where the checkpoint lies elsewhere, as a GGUF file
beside the answers of its dequantised folder. Exits with 1 where logits are 1e-3 apart or a token differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silicide", required=True, help="the program")
    parser.add_argument("--device", default="cpu", help="the device it runs on")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    args = parser.parse_args()
    sound = True
    for model in args.models:
        checkpoint, _, folder = model.partition("=")
        expected = load_file(Path(folder or checkpoint) / "expected.safetensors")
        gguf = Path(checkpoint) / "model.gguf"
        for length in (12, 100):
            logits, tokens = run(args.silicide, args.device, gguf if gguf.exists() else checkpoint, expected[f"prompt_{length}"])
            wanted = expected[f"logits_{length}"]
            distance = np.abs(logits[:length][-len(wanted) :] - wanted).max()
            # Before this many, all tokens are the same.
            same = int(np.cumprod(tokens == expected[f"greedy_{length}"]).sum())
            good = distance < TOLERANCE and same == len(tokens)
            sound &= bool(good)
            print(f"{Path(checkpoint).name:32} {length:4} max {distance:.2e}, {same}/{len(tokens)} tokens {'' if good else 'DIFFERS'}", flush=True)
    sys.exit(not sound)


def run(silicide, device, checkpoint, prompt):
    """The logits of every position, and 32 greedy tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.safetensors"
        command = [silicide, "generate", "--model", checkpoint, "--prompt-tokens", ",".join(map(str, prompt))]
        command += ["--device", device, "--dtype", "f32", "--temp", "0", "--repetition-penalty", "1", "--max-tokens", "32"]
        command += ["--ignore-eos", "--save-logits", file, "--json"]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        return load_file(file)["logits"], np.array(json.loads(out.splitlines()[-1])["tokens"])


if __name__ == "__main__":
    main()
