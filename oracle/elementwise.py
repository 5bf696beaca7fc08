"""Activations, gated units, softmax, arg max and top k: mlx's and torch's answers, edges included."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch

from common import Cases, random

EDGES = np.array([0.0, -0.0, 1e-30, -1e-30, 1.0, -1.0, 5.0, -5.0, 12.0, -12.0, 80.0, -80.0, 1e4, -1e4, np.inf, -np.inf, np.nan], np.float32)


def main():
    unary()
    softmax()
    argmax()


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
