"""What the scripts share: how a vector file is laid out, and how its tensors are written.

A vector file holds cases. Tensor `CASE.NAME` belongs to case CASE; the metadata has one entry, `cases`,
a JSON object from case name to that case's parameters. A tensor that several cases use stands once,
as `shared.NAME`.
"""

import json
from pathlib import Path

import numpy as np

VECTORS = Path(__file__).parent / "vectors"

DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "int8": "I8",
    "bool": "BOOL",
}


class Cases:
    """Collects the cases of one vector file."""

    def __init__(self, name):
        self.name = name
        self.tensors = {}
        self.cases = {}

    def share(self, name, x):
        self.tensors[f"shared.{name}"] = x

    def add(self, case, params, **tensors):
        assert case not in self.cases, case
        self.cases[case] = params
        for name, x in tensors.items():
            self.tensors[f"{case}.{name}"] = x

    def save(self):
        path = VECTORS / f"{self.name}.safetensors"
        save_tensors(path, self.tensors, {"cases": json.dumps(self.cases, sort_keys=True)})
        print(f"{path.name}: {len(self.cases)} cases, {path.stat().st_size} bytes")


def random(seed, *shape, scale=1.0):
    """Standard normal values in f32, the same on every machine."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def save_tensors(path, tensors, metadata=None):
    """Write numpy, torch and mlx arrays as safetensors, the same bytes on each run."""
    tensors = {name: raw(x) for name, x in tensors.items()}
    # Widest elements first keeps every tensor aligned.
    order = sorted(tensors, key=lambda name: (-len(tensors[name][2]) // max(1, int(np.prod(tensors[name][1]))), name))
    header, offset = {"__metadata__": metadata} if metadata else {}, 0
    for name in order:
        dtype, shape, data = tensors[name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors[name][2] for name in order))


def raw(x):
    """(safetensors dtype, shape, bytes) of an array of any of the three libraries."""
    dtype, shape = DTYPES[str(x.dtype).split(".")[-1]], list(x.shape)
    library = type(x).__module__.split(".")[0]
    if library == "mlx":
        import mlx.core as mx

        x = np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)
    elif library == "torch":
        import torch

        x = x.detach().contiguous()
        x = (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()
    return dtype, shape, np.ascontiguousarray(x).tobytes()
