"""Hold the program's logits and greedy tokens against the `expected.safetensors` of checkpoints.

    python compare.py --silicide BIN [--device DEVICE] [--dtype TYPE] MODEL...

MODEL is a folder with `expected.safetensors`, or CHECKPOINT=FOLDER where the checkpoint lies elsewhere, as a GGUF file
beside the answers of its dequantised folder. In f32, exits with 1 where logits are 1e-3 apart or a token differs. In bf16,
where they are further from f32 than transformers' own bf16 run: by root mean square 1.25 times, at most 1.5 times.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

TOLERANCE = 1e-3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silicide", required=True, help="the program")
    parser.add_argument("--device", default="cpu", help="the device it runs on")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"], help="the type of activations")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    args = parser.parse_args()
    sound = True
    for model in args.models:
        checkpoint, _, folder = model.partition("=")
        answers = Path(folder or checkpoint) / "expected.safetensors"
        expected = load_file(answers)
        with safe_open(answers, "numpy") as file:
            notes = json.loads(file.metadata()["expected"])
        gguf = Path(checkpoint) / "model.gguf"
        path = gguf if gguf.exists() else checkpoint
        for length in (12, 100):
            logits, tokens = run(args.silicide, args.device, args.dtype, path, expected[f"prompt_{length}"])
            wanted = expected[f"logits_{length}"]
            distance = (logits[:length][-len(wanted) :] - wanted).astype(np.float64)
            most, rms = np.abs(distance).max(), np.sqrt((distance**2).mean())
            # Before this many, all tokens are the same.
            same = int(np.cumprod(tokens == expected[f"greedy_{length}"]).sum())
            line = f"{Path(checkpoint).name:32} {length:4} max {most:.2e}, rms {rms:.2e}, {same}/{len(tokens)} tokens"
            if args.dtype == "f32":
                good = most < TOLERANCE and same == len(tokens)
            else:
                other = notes["bf16"][str(length)]
                good = most <= 1.5 * other["max"] and rms <= 1.25 * other["rms"]
                line += f"; transformers max {other['max']:.2e}, rms {other['rms']:.2e}"
            sound &= bool(good)
            print(line + ("" if good else " DIFFERS"), flush=True)
    sys.exit(not sound)


def run(silicide, device, dtype, checkpoint, prompt):
    """The logits of every position, and 32 greedy tokens."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "logits.safetensors"
        command = [silicide, "generate", "--model", checkpoint, "--prompt-tokens", ",".join(map(str, prompt))]
        command += ["--device", device, "--dtype", dtype, "--temp", "0", "--repetition-penalty", "1", "--max-tokens", "32"]
        command += ["--ignore-eos", "--save-logits", file, "--json"]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
        return load_file(file)["logits"], np.array(json.loads(out.splitlines()[-1])["tokens"])


if __name__ == "__main__":
    main()
