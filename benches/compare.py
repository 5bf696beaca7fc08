"""Prefill and decode speed beside llama.cpp, in the same minutes.

    python benches/compare.py --silicide target/release/silicide --llama-bench PATH \\
        NAME=OUR_MODEL=THEIR_GGUF [NAME=OUR_MODEL=THEIR_GGUF ...]

Rounds alternate between the two, so that what else the machine does falls on both; the median of the rounds is printed,
with the least and the greatest. The ratio is the median of each round's, which outlives a machine that grows slower or
quicker meanwhile. Prompts are 512 tokens, answers 128, threads 2.
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
    behind = run(binary, model, threads, PROMPT, ANSWER)
    empty = run(binary, model, threads, 1, ANSWER)
    key = "generation_tokens_per_second"
    return behind["prompt_tokens_per_second"], empty[key], behind[key], behind["load_seconds"]


def theirs(binary, model, threads):
    command = [binary, "-m", model, "-t", str(threads), "-r", "1", "-o", "json"]

    def speed(*options):
        output = subprocess.run(command + list(options), check=True, capture_output=True, text=True).stdout
        return json.loads(output)[0]["avg_ts"]

    prompt, answer = str(PROMPT), str(ANSWER)
    return (
        speed("-p", prompt, "-n", "0"),
        speed("-p", "0", "-n", answer),
        speed("-p", "0", "-n", answer, "-d", prompt),
    )


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
    kinds = [f"prefill {PROMPT}", f"decode {ANSWER}", f"decode {ANSWER} behind {PROMPT}"]
    print("| weights | " + " | ".join(f"{kind}: silicide | llama.cpp | ratio" for kind in kinds) + " | load, s |")
    print("|---" * (2 + 3 * len(kinds)) + "|")
    for entry in args.models:
        name, our_model, their_model = entry.split("=")
        us, them = [], []
        programs = [
            lambda: us.append(ours(args.silicide, our_model, args.threads)),
            lambda: them.append(theirs(args.llama_bench, their_model, args.threads)),
        ]
        for _ in range(args.rounds):
            for measure in programs:
                measure()
            programs.reverse()
        cells = [name]
        for i in range(len(kinds)):
            mine, other = [u[i] for u in us], [t[i] for t in them]
            ratio = statistics.median(a / b for a, b in zip(mine, other))
            cells += [cell(mine), cell(other), f"{ratio:.2f}"]
        cells.append(f"{statistics.median(u[-1] for u in us):.2f}")
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
