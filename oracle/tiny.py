"""Tiny checkpoints with random weights: every language-model family, every storage and quantisation format.

    python tiny.py            the committed set, in tiny/
    python tiny.py --large    the full product of families and formats, in .large/

A Hugging Face folder is written from numpy; mlx_lm.convert makes the MLX folders from it and gguf-py the
GGUF files. Each checkpoint gets `expected.safetensors`, which reference.py describes.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import zlib
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from mlx_lm.convert import convert
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging

from common import save_tensors
from gguf_blocks import random_blocks
from reference import Mlx, Transformers, save_expected

HERE = Path(__file__).parent
VOCAB = 288
TEXT = """The quick brown fox jumps over the lazy dog. A rotary position embedding turns pairs of numbers by an angle
that grows with the position, so that the product of a query and a key depends on how far apart they are. What is the
answer to this question, and where is the rest of the text that was there in the house of the other one?"""

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # So short that every band of the scaling has frequencies at this size.
    "original_max_position_embeddings": 64,
}
FAMILIES = {
    "llama": {"model_type": "llama", "head_dim": 16, "rope_scaling": LLAMA3},
    "llama-tied": {"model_type": "llama", "head_dim": 32, "tie_word_embeddings": True},
    "llama-bias": {"model_type": "llama", "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "mistral": {"model_type": "mistral", "head_dim": 16, "sliding_window": None, "rope_theta": 1e6},
    "qwen2": {"model_type": "qwen2", "rope_theta": 1e6, "rms_norm_eps": 1e-6, "tie_word_embeddings": True},
    "qwen3": {
        "model_type": "qwen3",
        "head_dim": 32,
        "num_key_value_heads": 1,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "tie_word_embeddings": True,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 24,
        "rope_theta": 1e6,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 16,
        "sliding_window_pattern": 2,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
    },
}
# mlx-lm's mistral has no window, and its gemma3 does not read the nested rope parameters of transformers 5:
# of these, transformers is the only oracle.
TRANSFORMERS_ONLY = {
    "mistral-window": FAMILIES["mistral"] | {"sliding_window": 16, "intermediate_size": 64},
    "gemma3-nested": {k: v for k, v in FAMILIES["gemma3"].items() if k not in ("rope_local_base_freq", "sliding_window_pattern")}
    | {
        "num_hidden_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_theta": None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    },
}
# GGUF names no pattern for gemma3: each sixth layer is global, and the score scale is that of the head dim.
GEMMA3_GGUF = FAMILIES["gemma3"] | {"num_hidden_layers": 7, "sliding_window_pattern": 6, "query_pre_attn_scalar": 16}
GGUF_FAMILIES = ("llama", "qwen2", "qwen3", "gemma3-gguf")
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
AFFINE = [(bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)]
FP = ["mxfp4", "mxfp8", "nvfp4"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="make the full set in .large/")
    parser.add_argument("--only", default="", help="make only the checkpoints whose name contains this")
    args = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    build = Build(HERE / (".large" if args.large else "tiny"), args.only)
    large(build) if args.large else committed(build)
    shutil.rmtree(build.scratch, ignore_errors=True)


def committed(build):
    """Each family and each format at least once, small enough to commit."""
    for family, dtype in (
        ("llama", "f16"),
        ("gemma3-nested", "f16"),
        ("mistral-window", "bf16"),
    ):
        build.hugging_face(family, dtype)
    build.mlx("llama-tied", "bf16")
    for family, bits, group_size, dtype in (
        ("llama", 4, 64, "bf16"),
        ("llama-tied", 4, 32, "f16"),
        ("mistral", 3, 32, "bf16"),
        ("qwen2", 8, 64, "bf16"),
        ("qwen2", 2, 32, "bf16"),
        ("qwen3", 6, 64, "f16"),
        ("gemma3", 5, 32, "bf16"),
    ):
        build.mlx(family, dtype, bits=bits, group_size=group_size)
    build.mlx("llama-bias-128", "bf16", bits=4, group_size=128, layers=1)
    for family, mode in zip(("llama", "qwen3", "gemma3"), FP):
        build.mlx(family, "bf16", mode=mode)
    build.mixed("llama-tied", "bf16")
    for family in GGUF_FAMILIES:
        build.gguf(family, {"": Type.Q8_0})
    build.gguf("llama-256", EVERY_TYPE, "every-type")


def large(build):
    """The product of families and formats, wide enough for groups of 128."""
    for family in FAMILIES | TRANSFORMERS_ONLY:
        for dtype in ("f32", "f16", "bf16"):
            build.hugging_face(family, dtype)
    for family in FAMILIES:
        wide = f"{family}-128"
        build.mlx(wide, "bf16")
        for bits, group_size in AFFINE:
            build.mlx(wide, "bf16", bits=bits, group_size=group_size)
        for dtype in ("f16", "f32"):
            build.mlx(wide, dtype, bits=4, group_size=64)
        for mode in FP:
            build.mlx(wide, "bf16", mode=mode)
        build.mixed(family, "bf16")
        build.mixed(family, "bf16", inferred=True)
    for type in (Type.F32, Type.F16, Type.BF16, *BLOCK_TYPES):
        # The attention's output has rows of 64.
        build.gguf("llama-256", {"attn_output.weight": Type.Q8_0, "": type}, type.name.lower())
    for family in GGUF_FAMILIES:
        for type in (Type.F16, Type.Q8_0, Type.Q4_0):
            build.gguf(family, {"": type})
    build.gguf("llama-256", EVERY_TYPE, "every-type")


class Build:
    def __init__(self, root, only):
        self.root, self.only = root, only
        self.scratch = root / "scratch"

    def wanted(self, name):
        folder = self.root / name
        if self.only not in name:
            return None
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def hugging_face(self, family, dtype):
        if folder := self.wanted(f"{family}-hf-{dtype}"):
            write_folder(folder, config(family), dtype)
            both = family not in TRANSFORMERS_ONLY
            report(folder, Transformers(folder), Mlx(folder) if both else None)

    def mlx(self, family, dtype, bits=None, group_size=None, mode="affine", predicate=None, label=None, layers=None):
        if bits:
            label = label or f"{bits}bit-gs{group_size}"
        elif mode != "affine":
            label = mode
        name = "-".join(filter(None, (family, "mlx", label, dtype)))
        if folder := self.wanted(name):
            self.convert(folder, config(family, layers), dtype, bits, group_size, mode, predicate)
            expect_mlx(folder)

    def convert(self, folder, config, dtype, bits=None, group_size=None, mode="affine", predicate=None):
        shutil.rmtree(self.scratch, ignore_errors=True)
        write_folder(self.scratch, config, dtype)
        quantize = bool(bits) or mode != "affine"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            convert(
                str(self.scratch),
                str(folder),
                quantize=quantize,
                q_bits=bits,
                q_group_size=group_size,
                q_mode=mode,
                dtype={"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[dtype],
                quant_predicate=predicate,
            )
        for extra in ("README.md", "chat_template.jinja", "model.safetensors.index.json"):
            (folder / extra).unlink(missing_ok=True)

    def mixed(self, family, dtype, inferred=False):
        """Overrides by layer: other widths, another mode, dense layers, and one with no `mode`, which means affine.

        With `inferred`, an override is left out: mlx-lm then reads width, group and mode from the tensors.
        """
        folder = self.wanted(f"{family}-mlx-{'inferred' if inferred else 'mixed'}-{dtype}")
        if not folder:
            return

        def predicate(path, module):
            if path.endswith("v_proj"):
                return {"group_size": 32, "bits": 8}
            if path.endswith("layers.0.mlp.down_proj"):
                return {"group_size": 64, "bits": 6, "mode": "affine"}
            if path.endswith("layers.1.mlp.up_proj"):
                return {"group_size": 16, "bits": 4, "mode": "nvfp4"}
            return not path.endswith("o_proj")

        self.convert(folder, config(family), dtype, 4, 32, "mxfp4", predicate)
        path = folder / "config.json"
        written = json.loads(path.read_text())
        for key in ("quantization", "quantization_config"):
            for layer in range(written["num_hidden_layers"]):
                written[key][f"model.layers.{layer}.self_attn.o_proj"] = False
            if inferred:
                del written[key]["model.layers.1.self_attn.v_proj"]
        path.write_text(json.dumps(written, indent=4, sort_keys=True) + "\n")
        expect_mlx(folder)

    def gguf(self, family, types, label=None):
        label = label or next(iter(types.values())).name.lower()
        if folder := self.wanted(f"{family.removesuffix('-gguf')}-gguf-{label}"):
            folder.mkdir(parents=True)
            shutil.rmtree(self.scratch, ignore_errors=True)
            shape = config(family)
            stored = write_gguf(folder / "model.gguf", shape, types)
            write_folder(self.scratch, shape, "f32", stored)
            # transformers' own reader of GGUF knows no table of rotary factors and no head dim of qwen3.
            if shape["model_type"] != "qwen3" and "rope_scaling" not in shape:
                read = Transformers(folder, gguf="model.gguf").model.state_dict()
                assert all(torch.allclose(read[name], w, rtol=0, atol=1e-6) for name, w in stored.items()), family
            report(folder, Transformers(self.scratch), Mlx(self.scratch))


def expect_mlx(folder):
    oracle = Mlx(folder)
    weights = Mlx(folder).weights()
    report(folder, oracle, Transformers(config=folder, weights=weights))


def report(folder, oracle, witness):
    notes = save_expected(folder / "expected.safetensors", oracle, witness, VOCAB)
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{folder.name}: {size} bytes, {json.dumps(notes)}", flush=True)


def config(family, layers=None):
    """A family's configuration; a suffix -128 or -256 widens it, so that groups of 128 or blocks of 256 fit."""
    base, _, width = family.rpartition("-")
    wide = {}
    if width == "128":
        family, wide = base, {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}
        if family == "gemma3":
            # mlx-lm rounds the root of the hidden size to bf16: this one is exact.
            wide["hidden_size"] = 256
    elif width == "256":
        # Rows of 256, which the K types need.
        family, wide = base, {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1}
        wide["tie_word_embeddings"] = True
        wide["rope_scaling"] = None
    own = (FAMILIES | TRANSFORMERS_ONLY | {"gemma3-gguf": GEMMA3_GGUF})[family]
    out = COMMON | own | wide | {"architectures": [ARCHITECTURES[own["model_type"]]]}
    if layers:
        out["num_hidden_layers"] = layers
    return {k: v for k, v in out.items() if v is not None or k == "sliding_window"}


def weights(config):
    """Random f32 weights whose activations stay near one and whose logits spread over several units.

    A tied embedding is small: else a token's own row would win every step, and greedy tokens would show nothing.
    """
    hidden, heads, kv_heads = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or hidden // heads
    inner, kind = config["intermediate_size"], config["model_type"]
    gemma = kind == "gemma3_text"
    out = {}

    def normal(name, *shape, scale, mean=0.0):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        out[name] = (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    def linear(name, rows, columns, bias=False):
        normal(f"{name}.weight", rows, columns, scale=columns**-0.5)
        if bias:
            normal(f"{name}.bias", rows, scale=0.3)

    def norm(name, size, mean=1.0):
        normal(f"{name}.weight", size, scale=0.15, mean=mean - gemma)

    tied = config["tie_word_embeddings"]
    embedding = (0.3 * hidden**-0.5 if gemma else 0.1) if tied else 0.4
    normal("model.embed_tokens.weight", config["vocab_size"], hidden, scale=embedding)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        attention_bias = kind == "qwen2" or config.get("attention_bias", False)
        for name, rows in (("q_proj", heads * dim), ("k_proj", kv_heads * dim), ("v_proj", kv_heads * dim)):
            linear(f"{layer}.self_attn.{name}", rows, hidden, attention_bias)
        linear(f"{layer}.self_attn.o_proj", hidden, heads * dim, config.get("attention_bias", False))
        if kind in ("qwen3", "gemma3_text"):
            norm(f"{layer}.self_attn.q_norm", dim, mean=1.5)
            norm(f"{layer}.self_attn.k_norm", dim, mean=1.5)
        for name, rows, columns in (("gate_proj", inner, hidden), ("up_proj", inner, hidden), ("down_proj", hidden, inner)):
            linear(f"{layer}.mlp.{name}", rows, columns, config.get("mlp_bias", False))
        norm(f"{layer}.input_layernorm", hidden)
        norm(f"{layer}.post_attention_layernorm", hidden)
        if gemma:
            norm(f"{layer}.pre_feedforward_layernorm", hidden)
            norm(f"{layer}.post_feedforward_layernorm", hidden)
    norm("model.norm", hidden, mean=3 / (embedding * hidden**0.5) if tied else 1.5)
    if not tied:
        normal("lm_head.weight", config["vocab_size"], hidden, scale=2 * hidden**-0.5)
    return out


def write_folder(folder, config, dtype, tensors=None):
    folder.mkdir(parents=True)
    torch_dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    # `dtype` is the key of transformers 5, `torch_dtype` that of most published folders.
    names = {"dtype": str(torch_dtype).split(".")[1], "torch_dtype": str(torch_dtype).split(".")[1]}
    (folder / "config.json").write_text(json.dumps(config | names, indent=2, sort_keys=True) + "\n")
    tensors = tensors or {name: torch.from_numpy(w).to(torch_dtype) for name, w in weights(config).items()}
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    tokenizer().save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def tokenizer():
    """Byte-level pairs, learnt from a few lines: ids 0 to 2 are special, all of the vocabulary is used."""
    out = Tokenizer(models.BPE())
    out.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    out.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    out.train_from_iterator(TEXT.splitlines(), trainer)
    assert out.get_vocab_size() == VOCAB
    return out


BLOCK_TYPES = [
    Type.Q4_0,
    Type.Q4_1,
    Type.Q5_0,
    Type.Q5_1,
    Type.Q8_0,
    Type.Q2_K,
    Type.Q3_K,
    Type.Q4_K,
    Type.Q5_K,
    Type.Q6_K,
    Type.IQ4_NL,
    Type.IQ4_XS,
]
# By the ends of GGUF tensor names; the first that matches counts.
EVERY_TYPE = {
    "token_embd.weight": Type.Q6_K,
    "0.attn_q.weight": Type.Q4_0,
    "0.attn_k.weight": Type.Q4_1,
    "0.attn_v.weight": Type.Q5_0,
    "0.attn_output.weight": Type.Q5_1,
    "0.ffn_gate.weight": Type.Q2_K,
    "0.ffn_up.weight": Type.Q3_K,
    "0.ffn_down.weight": Type.Q4_K,
    "1.attn_q.weight": Type.Q5_K,
    "1.attn_k.weight": Type.F16,
    "1.attn_v.weight": Type.BF16,
    "1.attn_output.weight": Type.IQ4_NL,
    "1.ffn_gate.weight": Type.IQ4_XS,
    "1.ffn_up.weight": Type.Q8_0,
    "1.ffn_down.weight": Type.Q6_K,
}


def write_gguf(path, config, types):
    """Write the file; return the stored values by their Hugging Face names."""
    kind = config["model_type"]
    arch = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}[kind]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config.get("head_dim") or config["hidden_size"] // heads
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name("tiny")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    if arch == "llama":
        writer.add_rope_dimension_count(dim)
    if arch == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
    add_tokenizer(writer)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config["num_hidden_layers"])
    stored = {}
    for name, w in weights(config).items():
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if w.ndim == 1:
            stored[name] = w
            # gemma3 files hold 1 + w.
            writer.add_tensor(gguf_name, w + 1 if arch == "gemma3" else w)
            continue
        # llama files hold the rows of q and k in the order that pairs neighbours.
        n = heads if "q_proj" in name else kv_heads if "k_proj" in name else None
        paired = arch == "llama" and n
        rows = w.reshape(n, 2, dim // 2, -1).swapaxes(1, 2).reshape(w.shape) if paired else w
        type = next(t for end, t in types.items() if gguf_name.endswith(end))
        data = pack(rows, type, zlib.crc32(name.encode()))
        writer.add_tensor(gguf_name, data, raw_dtype=type)
        rows = gguf.quants.dequantize(data, type).astype(np.float32)
        stored[name] = rows.reshape(n, dim // 2, 2, -1).swapaxes(1, 2).reshape(w.shape) if paired else rows
    if "rope_scaling" in config:
        writer.add_tensor("rope_freqs.weight", rope_factors(config, dim))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(w.copy()) for name, w in stored.items()}


def rope_factors(config, dim):
    """What divides each inverse frequency: GGUF's form of the llama3 scaling."""
    shape = LlamaConfig(**{k: v for k, v in config.items() if k not in ("model_type", "architectures")})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](shape, torch.device("cpu"))
    plain = config["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
    return (plain / scaled.numpy()).astype(np.float32)


# Where a block has d and then dmin, and the mean of its codes.
MINIMA = {Type.Q2_K: (80, 1.5), Type.Q4_K: (0, 7.5), Type.Q5_K: (0, 15.5)}


def pack(w, type, seed):
    """Quantised by gguf-py where it can, else random blocks of the same spread."""
    try:
        return gguf.quants.quantize(w, type)
    except NotImplementedError:
        spread = np.sqrt((gguf.quants.dequantize(centred_blocks(type, w.shape, seed, 1.0), type) ** 2).mean())
        return centred_blocks(type, w.shape, seed, float(w.std() / spread))


def centred_blocks(type, shape, seed, scale):
    """Random blocks whose minima take away what the codes are on average: a mean in every row would drown the rest."""
    blocks = random_blocks(type, *shape, seed=seed, scale=scale)
    if type in MINIMA:
        at, mean = MINIMA[type]
        each = blocks.reshape(-1, gguf.GGML_QUANT_SIZES[type][1])
        d = each[:, at : at + 2].copy().view(np.float16)
        each[:, at + 2 : at + 4] = (d * np.float16(mean)).view(np.uint8)
    return blocks


def add_tokenizer(writer, vocab=VOCAB):
    """The tokenizer's tables, filled up to `vocab` with tokens that no text gives."""
    model = json.loads(tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    tokens += [f"<unused{i}>" for i in range(len(tokens), vocab)]
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (VOCAB - 3) + [gguf.TokenType.UNUSED] * (vocab - VOCAB)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    main()
