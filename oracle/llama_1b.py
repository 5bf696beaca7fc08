"""Random weights in the shape of Llama-3.2-1B, packed, for measuring speed: their text means nothing.

    python llama_1b.py OUT

OUT receives two MLX folders (4 and 8 bits, groups of 64) and two GGUF files (Q4_0 with a Q6_K embedding, as
llama-quantize makes it, and Q8_0), about 4 GB. The packed words are drawn directly, with scales that keep
activations near one.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

from common import save_tensors
from gguf_blocks import random_blocks
from tiny import LLAMA3, add_tokenizer, rope_factors, tokenizer

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3 | {"factor": 32.0, "original_max_position_embeddings": 8192},
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GROUP = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    for bits in (4, 8):
        mlx_folder(out / f"llama-1b-mlx-{bits}bit", bits)
    gguf_file(out / "llama-1b-q4_0.gguf", Type.Q4_0, Type.Q6_K)
    gguf_file(out / "llama-1b-q8_0.gguf", Type.Q8_0, Type.Q8_0)


def matrices():
    """(name, rows, columns, spread) of every matrix."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    kv = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    yield "model.embed_tokens.weight", CONFIG["vocab_size"], hidden, 0.05
    for i in range(CONFIG["num_hidden_layers"]):
        for name, rows, columns in (
            ("self_attn.q_proj", hidden, hidden),
            ("self_attn.k_proj", kv, hidden),
            ("self_attn.v_proj", kv, hidden),
            ("self_attn.o_proj", hidden, hidden),
            ("mlp.gate_proj", inner, hidden),
            ("mlp.up_proj", inner, hidden),
            ("mlp.down_proj", hidden, inner),
        ):
            yield f"model.layers.{i}.{name}.weight", rows, columns, columns**-0.5


def norms():
    for i in range(CONFIG["num_hidden_layers"]):
        yield f"model.layers.{i}.input_layernorm.weight"
        yield f"model.layers.{i}.post_attention_layernorm.weight"
    yield "model.norm.weight"


def mlx_folder(folder, bits):
    import torch

    rng = np.random.default_rng(bits)
    tensors = {name: torch.ones(CONFIG["hidden_size"], dtype=torch.bfloat16) for name in norms()}
    for name, rows, columns, spread in matrices():
        base = name.removesuffix(".weight")
        # A code drawn evenly from n values has a spread of sqrt((n^2 - 1) / 12).
        scale = spread / np.sqrt((4**bits - 1) / 12)
        scales = torch.from_numpy(rng.uniform(0.8, 1.2, (rows, columns // GROUP)).astype(np.float32) * np.float32(scale))
        words = rng.integers(0, 1 << 32, (rows, columns * bits // 32), dtype=np.uint32)
        tensors[f"{base}.weight"] = words
        tensors[f"{base}.scales"] = scales.to(torch.bfloat16)
        tensors[f"{base}.biases"] = (scales * (-(2**bits - 1) / 2)).to(torch.bfloat16)
    save_tensors(folder / "model.safetensors", tensors, {"format": "mlx"})
    quantization = {"group_size": GROUP, "bits": bits, "mode": "affine"}
    config = CONFIG | {"quantization": quantization, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config, indent=4, sort_keys=True) + "\n")
    tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}\n')
    print(folder)


def gguf_file(path, type, embedding_type):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("llama-1b-random")
    writer.add_context_length(CONFIG["max_position_embeddings"])
    writer.add_embedding_length(CONFIG["hidden_size"])
    writer.add_block_count(CONFIG["num_hidden_layers"])
    writer.add_feed_forward_length(CONFIG["intermediate_size"])
    writer.add_head_count(CONFIG["num_attention_heads"])
    writer.add_head_count_kv(CONFIG["num_key_value_heads"])
    writer.add_key_length(CONFIG["head_dim"])
    writer.add_value_length(CONFIG["head_dim"])
    writer.add_rope_dimension_count(CONFIG["head_dim"])
    writer.add_rope_freq_base(CONFIG["rope_theta"])
    writer.add_layer_norm_rms_eps(CONFIG["rms_norm_eps"])
    writer.add_vocab_size(CONFIG["vocab_size"])
    add_tokenizer(writer, CONFIG["vocab_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, CONFIG["num_hidden_layers"])
    for name in norms():
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), np.ones(CONFIG["hidden_size"], np.float32))
    for i, (name, rows, columns, spread) in enumerate(matrices()):
        kind = embedding_type if i == 0 else type
        unit = gguf.quants.dequantize(random_blocks(kind, 64, columns, seed=0, scale=1.0), kind).std()
        blocks = random_blocks(kind, rows, columns, seed=i, scale=float(spread / unit))
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), blocks, raw_dtype=kind)
    writer.add_tensor("rope_freqs.weight", rope_factors(CONFIG, CONFIG["head_dim"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    print(path)


main()
