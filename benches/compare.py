"""Prefill and decode speed beside llama.cpp, in the same minutes.

    python benches/compare.py --silicide target/release/silicide --llama-bench PATH \\
        NAME=OUR_MODEL=THEIR_GGUF [NAME=OUR_MODEL=THEIR_GGUF ...]

Rounds alternate between the two, so that what else the machine does falls on both; the median of the rounds is printed,
with the least and the greatest. Prompts are 512 tokens, answers 128, threads 2.
"""

import argparse
import json
import statistics
import subprocess

PROMPT, ANSWER = 512, 128


def run(binary, model, threads, prompt, answer):
    ids = ",".join(str(i * 7919 % 40_000 + 10) for i in range(prompt))
    command = [binary, "generate", "--model", model, "--prompt-tokens", ids, "--max-tokens", str(answer), "--temp", "0"]
    command += ["--ignore-eos", "--json", "--device", "cpu", "--threads", str(threads)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])["timings"]


def ours(binary, model, threads):
    prefill = run(binary, model, threads, PROMPT, 1)
    # llama-bench decodes from an empty context, so this does too.
    decode = run(binary, model, threads, 1, ANSWER)
    return prefill["prompt_tokens_per_second"], decode["generation_tokens_per_second"], prefill["load_seconds"]


def theirs(binary, model, threads):
    command = [binary, "-m", model, "-t", str(threads), "-p", str(PROMPT), "-n", str(ANSWER), "-r", "1", "-o", "json"]
    runs = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    speed = {run["n_prompt"] > 0: run["avg_ts"] for run in runs}
    return speed[True], speed[False]


def cell(values):
    return f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--silicide", required=True)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("models", nargs="+")
    args = parser.parse_args()
    print("| weights | prefill 512: silicide | llama.cpp | ratio | decode 128: silicide | llama.cpp | ratio | load, s |")
    print("|---|---|---|---|---|---|---|---|")
    for entry in args.models:
        name, our_model, their_model = entry.split("=")
        us, them = [], []
        for _ in range(args.rounds):
            us.append(ours(args.silicide, our_model, args.threads))
            them.append(theirs(args.llama_bench, their_model, args.threads))
        cells = [name]
        for i in range(2):
            mine, other = [u[i] for u in us], [t[i] for t in them]
            cells += [cell(mine), cell(other), f"{statistics.median(mine) / statistics.median(other):.2f}"]
        cells.append(f"{statistics.median(u[2] for u in us):.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
