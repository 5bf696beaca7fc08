"""Checkpoint files as other libraries write them, with what those libraries read back.

Writes vectors/formats/: safetensors by mlx and by the safetensors package, an MLX folder by mlx-lm, GGUF files by
gguf-py, and expected.json, in which every tensor has its type, its shape and its bytes in hexadecimal.

    python oracle/formats.py
"""

import json
import shutil
from pathlib import Path

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import safetensors
import safetensors.torch
import torch
from gguf import GGMLQuantizationType as Type
from mlx_lm.utils import quantize_model, save_config, save_model

HERE = Path(__file__).parent / "vectors" / "formats"


def mlx_bytes(x):
    """An mlx array's bytes; numpy has no bfloat16."""
    return np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x).tobytes()


def mlx_safetensors():
    """Every dtype that mlx has. Tensors come in hash order after a header of any length, so most are unaligned."""
    names = "float32 float16 bfloat16 uint8 int8 uint16 uint32 int32 int64 bool_ int16 uint64 complex64"
    arrays = {f"t.{n}": mx.array([[0, 1, 2], [3, 100, 5]]).astype(getattr(mx, n)) for n in names.split()}
    arrays["empty"] = mx.zeros((2, 0, 3))
    arrays["scalar"] = mx.array(2.5)
    mx.save_safetensors(str(HERE / "mlx.safetensors"), arrays, {"format": "mlx", "quote": 'a "b" \u00e4'})
    loaded, metadata = mx.load(str(HERE / "mlx.safetensors"), return_metadata=True)
    tensors = {k: [str(v.dtype).split(".")[-1], list(v.shape), mlx_bytes(v).hex()] for k, v in loaded.items()}
    return {"tensors": tensors, "metadata": metadata}


def torch_safetensors():
    """Types that mlx does not write."""
    names = "float8_e4m3fn float8_e5m2 float8_e8m0fnu float64 uint64 int16 bool bfloat16"
    x = torch.tensor([[0.5, 1.0], [2.0, 4.0]])
    tensors = {f"t.{n}": x.to(getattr(torch, n)) for n in names.split()}
    path = HERE / "torch.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    expected = {}
    with safetensors.safe_open(path, "pt") as file:
        for name in file.keys():
            slice_, tensor = file.get_slice(name), file.get_tensor(name)
            data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
            expected[name] = [slice_.get_dtype(), slice_.get_shape(), data.hex()]
        metadata = file.metadata()
    return {"tensors": expected, "metadata": metadata}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(128, 8)
        self.gate = nn.Linear(128, 4, bias=False)
        self.router = nn.Linear(128, 4, bias=False)
        self.experts = nn.Linear(128, 8, bias=False)
        self.norm = nn.RMSNorm(128)


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(16, 128)
        self.layers = [Block(), Block()]


def mlx_folder():
    """A folder that mlx-lm quantised with a recipe of its own for each kind of layer."""

    def recipe(path, module):
        if not hasattr(module, "to_quantized") or path.endswith("router"):
            return False
        if path.endswith("gate"):
            return {"group_size": 32, "bits": 8}
        if path.endswith("experts"):
            return {"group_size": 32, "bits": 4, "mode": "mxfp4"}
        return True

    mx.random.seed(0)
    model, config = quantize_model(Tiny(), {"model_type": "tiny", "hidden_size": 128}, 64, 4, quant_predicate=recipe)
    folder = HERE / "mlx-folder"
    folder.mkdir()
    save_model(folder, model)
    save_config(config, folder / "config.json")
    formats = {}
    for path, module in model.named_modules():
        if hasattr(module, "bits"):
            formats[path] = [module.mode, module.bits, module.group_size]
        elif "weight" in module:
            formats[path] = None
    return {"formats": formats}


def kinds_gguf():
    """Every kind of metadata, arrays of each, and tensors of many types."""
    path = HERE / "kinds.gguf"
    w = gguf.GGUFWriter(path, "tiny")
    w.add_custom_alignment(64)
    for kind, low, high in [("uint8", 0, 255), ("int8", -128, 127), ("uint16", 0, 65535), ("int16", -32768, 32767),
                            ("uint32", 0, 2**32 - 1), ("int32", -(2**31), 2**31 - 1), ("uint64", 0, 2**64 - 1),
                            ("int64", -(2**63), 2**63 - 1)]:
        for name, value in [("low", low), ("high", high)]:
            getattr(w, f"add_{kind}")(f"{kind}.{name}", value)
        vtype = gguf.GGUFValueType[kind.upper()]
        w.add_key_value(f"{kind}.array", [low, 1, high], gguf.GGUFValueType.ARRAY, vtype)
    w.add_float32("float32", 0.1)
    w.add_float64("float64", 0.1)
    w.add_bool("bool.true", True)
    w.add_bool("bool.false", False)
    w.add_string("string", "gr\u00fc\u00df \u4f60\u597d \U0001f600")
    w.add_array("strings", ["a", "", "\u0120the", "x" * 300])
    w.add_array("floats", [0.5, -1.5, 3.0e38])
    w.add_array("bools", [True, False, True])
    w.add_array("nested", [[1, 2], [3]])

    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 256)).astype(np.float32)
    data = {}
    for qtype in [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.TQ1_0]:
        data[f"t.{qtype.name}"] = (gguf.quants.quantize(x, qtype), qtype)
    for qtype in [Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.IQ4_NL, Type.IQ4_XS, Type.IQ2_XXS, Type.MXFP4]:
        block, size = gguf.GGML_QUANT_SIZES[qtype]
        data[f"t.{qtype.name}"] = (rng.integers(0, 256, (2, 256 // block * size), np.uint8), qtype)
    for dtype in ["int8", "int16", "int32", "int64", "float64"]:
        data[f"t.{dtype}"] = (np.arange(6).reshape(1, 2, 3).astype(dtype), None)
    for name, (array, qtype) in data.items():
        w.add_tensor(name, array, raw_dtype=qtype)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return read_gguf(path)


def read_gguf(path):
    reader = gguf.GGUFReader(path)
    metadata = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.") and k != "nested"}
    tensors = {
        t.name: [t.tensor_type.name, [int(d) for d in reversed(t.shape)], t.data.tobytes().hex()] for t in reader.tensors
    }
    return {"tensors": tensors, "metadata": metadata}


def split_gguf():
    w = gguf.GGUFWriter(HERE / "split.gguf", "tiny", split_max_tensors=2)
    w.add_uint32("tiny.block_count", 5)
    for i in range(5):
        w.add_tensor(f"blk.{i}.weight", np.full((2, 2), i, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    parts = sorted(HERE.glob("split-*.gguf"))
    tensors = {}
    for part in parts:
        tensors |= read_gguf(part)["tensors"]
    return {"tensors": tensors, "files": [p.name for p in parts]}


def big_endian_gguf():
    w = gguf.GGUFWriter(HERE / "big-endian.gguf", "tiny", endianess=gguf.GGUFEndian.BIG)
    w.add_tensor("t", np.zeros(4, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    expected = {
        "mlx.safetensors": mlx_safetensors(),
        "torch.safetensors": torch_safetensors(),
        "mlx-folder": mlx_folder(),
        "kinds.gguf": kinds_gguf(),
        "split": split_gguf(),
    }
    big_endian_gguf()
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    print(f"{sum(p.stat().st_size for p in HERE.rglob('*') if p.is_file())} bytes in {HERE}")
