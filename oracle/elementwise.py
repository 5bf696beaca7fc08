"""Arithmetic, casts, copies, activations, gated units, softmax, arg max and top k: mlx's and torch's answers, edges included."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch

from common import Cases, random

EDGES = np.array([0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 5.0, -5.0, 12.0, -12.0, 80.0, -80.0, 1e4, -1e4, np.inf, -np.inf, np.nan], np.float32)


FLOATS = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
INTEGERS = {"u8": mx.uint8, "i8": mx.int8, "u16": mx.uint16, "u32": mx.uint32, "i32": mx.int32, "i64": mx.int64}
TORCH = {
    "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "u8": torch.uint8, "i8": torch.int8,
    "u16": torch.uint16, "u32": torch.uint32, "i32": torch.int32, "i64": torch.int64, "bool": torch.bool,
}


def main():
    cast()
    binary()
    copy()
    unary()
    softmax()
    argmax()


def cast():
    """Every type to every other; to integers only what they hold, since mlx leaves the rest to the processor."""
    cases = Cases("cast")
    # Halfway between two f16, between two bf16 (to even, up and down), at the ends of their ranges, and denormals.
    ties = [1 + n * 2.0**-e for e in (8, 11) for n in (1, 3, 1.0001, 0.9999)]
    ends = [65504, 65519.996, 65520, 65536, 3.3961775e38, 3.4e38, 2.0**-24, 2.0**-25, 1.5 * 2.0**-24, 2.0**-133, 1.5 * 2.0**-133, 1e-45]
    whole = [0.5, 0.99, 1.5, 2.5, 100.25, 126.9, 127, 254.9, 255, 32767, 65535, 8388609, 2147483520, 4294967040, 9.2233715e18]
    values = np.array(ties + ends + whole, np.float32)
    floats = np.concatenate([EDGES, values, -values, random(40, 25, scale=50)])
    bits = [1 << n for n in (0, 6, 7, 8, 11, 12, 15, 16, 24, 25, 31, 32, 53, 62)]
    near = [b + d for b in bits for d in (-1, 0, 1, 3)] + [2**63 - 1, 2049, 2051, 257, 259]
    wide = np.array(near + [-n for n in near] + [-(2**63)], np.int64)
    types = FLOATS | INTEGERS | {"bool": mx.bool_}
    for a, from_type in types.items():
        if a in FLOATS:
            x = mx.array(floats).astype(from_type)
        elif a == "bool":
            x = mx.array([True, False, True])
        else:
            # Each value once, as many bits of it as the type has.
            x = mx.array(np.unique(wide.astype(np.array(mx.zeros(1, from_type)).dtype)))
        for b, to_type in types.items():
            y = x
            if a in FLOATS and b in INTEGERS:
                low, high = mx.iinfo(to_type).min, mx.iinfo(to_type).max
                exact = np.trunc(f64(x))
                y = mx.array(f64(x)[(exact >= low) & (exact <= high) & (exact < 2.0**63)].astype(np.float32)).astype(from_type)
            out = y.astype(to_type)
            theirs = torch.from_numpy(np.array(y.astype(mx.float32) if a in FLOATS else y)).to(TORCH[a]).to(TORCH[b])
            theirs = theirs.float().numpy() if b in FLOATS else theirs.numpy()
            np.testing.assert_array_equal(np.array(out.astype(mx.float32) if b in FLOATS else out), theirs, f"{a} to {b}")
            cases.add(f"{a}_to_{b}", {"from": a, "to": b}, x=y, out=out)
    cases.save()


def binary():
    """Every edge with every other, by broadcasting; then random pairs. mlx rounds once, so results are equal to the bit."""
    cases = Cases("binary")
    edges = np.concatenate([EDGES, np.array([65504, 2.0**-24, 3.4e38, 1 + 2.0**-10, 1 + 2.0**-7], np.float32)])
    integers = np.array([0, 1, 2, 3, 7, -1, -5, 46341, 65536, 2**31 - 1, -(2**31)], np.int64)
    functions = {"add": mx.add, "sub": mx.subtract, "mul": mx.multiply, "div": mx.divide, "max": mx.maximum, "min": mx.minimum}
    for name, dtype in (FLOATS | {"i32": mx.int32, "u32": mx.uint32}).items():
        for kind, (a, b) in {
            "edges": (edges[:, None], edges) if name in FLOATS else (integers[:, None], integers),
            "random": (random(50, 31), random(51, 31)) if name in FLOATS else (integers, integers[::-1]),
        }.items():
            a, b = (mx.array(np.ascontiguousarray(t if name in FLOATS else t.astype("int32" if name == "i32" else "uint32"))).astype(dtype) for t in (a, b))
            outs = {f: function(a, b) for f, function in functions.items() if name in FLOATS or f != "div"}
            for f, out in outs.items():
                if name not in FLOATS:
                    continue
                x, y = (torch.from_numpy(np.array(t.astype(mx.float32))).to(TORCH[name]) for t in (a, b))
                theirs = {"add": x + y, "sub": x - y, "mul": x * y, "div": x / y, "max": torch.maximum(x, y), "min": torch.minimum(x, y)}[f]
                np.testing.assert_array_equal(np.array(out.astype(mx.float32)), theirs.float().numpy(), f"{name} {f}")
            cases.add(f"{name}_{kind}", {}, a=a, b=b, **outs)
    cases.save()


def copy():
    """Views as mlx copies them: axes in another order, then a slice of each, then axes of size 1 repeated."""
    cases = Cases("copy")
    views = {
        "turned": ((5, 33), (1, 0), [(0, 33), (0, 5)], (33, 5)),
        "sliced": ((4, 3, 31), (0, 1, 2), [(1, 4), (0, 3), (2, 31)], (3, 3, 29)),
        "turned_and_sliced": ((3, 5, 7, 2), (2, 0, 3, 1), [(1, 6), (0, 2), (1, 2), (0, 5)], (5, 2, 1, 5)),
        "repeated": ((3, 1, 17), (0, 1, 2), [(0, 3), (0, 1), (1, 16)], (2, 3, 4, 15)),
        "empty": ((3, 4), (0, 1), [(1, 1), (0, 4)], (0, 4)),
    }
    for i, (name, (shape, order, slices, wide)) in enumerate(views.items()):
        for kind, dtype in (FLOATS | INTEGERS | {"bool": mx.bool_}).items():
            x = random(60 + i, *shape, scale=3)
            # Any bits of a 64-bit type.
            x = mx.array((x * 1e17).astype(np.int64)) if kind == "i64" else mx.array(np.abs(x) if kind[0] == "u" else x).astype(dtype)
            view = x.transpose(order)[tuple(slice(*s) for s in slices)]
            out = mx.contiguous(mx.broadcast_to(view, wide))
            cases.add(f"{name}_{kind}", {"order": order, "slices": slices, "shape": wide}, x=x, out=out)
    cases.save()


def f64(x):
    return np.array(x.astype(mx.float32)).astype(np.float64)


def unary():
    """Beside each unary function of x, the gated units f(gate) * x of the language models."""
    cases = Cases("activations")
    x = np.concatenate([EDGES, np.linspace(-10, 10, 81, dtype=np.float32), random(1, 31)])
    up = random(2, len(x))
    cases.share("x", x)
    cases.share("up", up)
    t, a = torch.from_numpy(x), mx.array(x)
    exact = {
        "gelu_erf": torch.nn.functional.gelu(t.double()),
        "gelu_tanh": torch.nn.functional.gelu(t.double(), approximate="tanh"),
        "silu": torch.nn.functional.silu(t.double()),
        "sigmoid": torch.sigmoid(t.double()),
        "softplus": torch.nn.functional.softplus(t.double()),
        "tanh": torch.tanh(t.double()),
        "exp": torch.exp(t.double()),
        "relu": torch.relu(t.double()),
    }
    ours = {
        "gelu_erf": nn.gelu(a),
        "gelu_tanh": nn.gelu_approx(a),
        "silu": nn.silu(a),
        "sigmoid": mx.sigmoid(a),
        "softplus": mx.logaddexp(a, 0),
        "tanh": mx.tanh(a),
        "exp": mx.exp(a),
        "relu": nn.relu(a),
    }
    finite = np.isfinite(x)
    for name, values in exact.items():
        values = values.numpy()
        out = np.array(ours[name])
        ok = finite & (np.abs(values) < 1e30)
        error = (np.abs(out[ok] - values[ok]) / np.maximum(1, np.abs(values[ok]))).max()
        assert error < 1e-5, (name, error)
        with np.errstate(over="ignore"):
            cases.add(name, {}, exact=values.astype(np.float32), out=out)
    with np.errstate(invalid="ignore"):
        for name in ("silu", "gelu_tanh", "gelu_erf", "sigmoid"):
            cases.add(f"glu_{name}", {"of": name}, exact=(exact[name].numpy() * up).astype(np.float32))
    cases.save()


def softmax():
    cases = Cases("softmax")
    inf = np.float32(np.inf)
    rows = {
        "plain": random(10, 3, 5, 37, scale=4),
        "long": random(11, 2, 1025, scale=3),
        "one": random(12, 4, 1),
        "large": random(13, 3, 17, scale=5000),
        "masked": np.where(random(14, 6, 33) > 0, random(15, 6, 33), -inf).astype(np.float32),
    }
    for name, x in rows.items():
        out = mx.softmax(mx.array(x), axis=-1, precise=True)
        wide = x.astype(np.float64)
        exact = np.exp(wide - wide.max(-1, keepdims=True))
        exact /= exact.sum(-1, keepdims=True)
        assert np.abs(np.array(out) - exact).max() < 1e-6, name
        cases.add(name, {"scale": 1.0}, x=x, out=out, exact=exact.astype(np.float32))
    for dtype, name in ((mx.float16, "f16"), (mx.bfloat16, "bf16")):
        x = mx.array(random(16, 3, 41, scale=3)).astype(dtype)
        wide = np.array(x.astype(mx.float32)).astype(np.float64)
        exact = np.exp(wide - wide.max(-1, keepdims=True))
        exact /= exact.sum(-1, keepdims=True)
        out = mx.softmax(x, axis=-1, precise=True)
        cases.add(name, {"scale": 1.0}, x=x, out=out, exact=exact.astype(np.float32))
    cases.save()


def argmax():
    """Of equals the lowest index wins; top k is in falling order, of equals the lowest index first."""
    cases = Cases("argmax")
    ties = np.zeros((4, 70), np.float32)
    ties[1, [3, 69]] = 2.0
    ties[2] = -1.0
    ties[2, 68:] = -0.5
    ties[3] = -np.inf
    ties[3, 41] = -1e30
    rows = {"random": random(20, 5, 1003), "ties": ties, "one": random(21, 2, 1), "coarse": np.round(random(22, 3, 257))}
    for name, x in rows.items():
        index = mx.argmax(mx.array(x), axis=-1)
        assert (np.array(index) == torch.argmax(torch.from_numpy(x), -1).numpy()).all(), name
        k = min(7, x.shape[-1])
        top = torch.sort(torch.from_numpy(x), dim=-1, descending=True, stable=True).indices[:, :k].numpy().astype(np.uint32)
        values = np.take_along_axis(x, top.astype(np.int64), -1)
        assert (np.sort(np.array(mx.topk(mx.array(x), k, axis=-1)), -1)[:, ::-1] == values).all(), name
        cases.add(name, {"k": k}, x=x, argmax=np.array(index), top_indices=top, top_values=values)
    cases.save()


main()
