"""Rows by index, running sums, sorting, reductions, comparisons, choices and fills: mlx's answers, beside numpy's and torch's."""

import mlx.core as mx
import numpy as np
import torch

from common import Cases, random

FLOATS = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}
EDGES = np.array([0.0, -0.0, 1e-30, 1.0, -1.0, 5.5, -5.5, 80.0, 3e4, -3e4, np.inf, -np.inf, np.nan], np.float32)
INTEGERS = np.array([0, 1, 2, 7, -1, -5, 46341, 65536, 2**31 - 1, -(2**31)], np.int64)


def main():
    gather()
    cumsum()
    sort()
    reduce()
    compare()
    select()
    fill()


def typed(x, name):
    """The values as an mlx array of a type."""
    if name in FLOATS:
        return mx.array(x.astype(np.float32)).astype(FLOATS[name])
    return mx.array(x.astype({"i32": "int32", "u32": "uint32", "i64": "int64", "u8": "uint8", "bool": "bool"}[name]))


def wide(x):
    """As numpy has it, floats in f64."""
    return np.array(x.astype(mx.float32)).astype(np.float64) if x.dtype in FLOATS.values() else np.array(x)


def same(a, b, message):
    np.testing.assert_array_equal(wide(a) if isinstance(a, mx.array) else a, b, message)


def gather():
    """`kind` rows: take along axis 0. Otherwise one element for each index along `axis`, other axes broadcast."""
    cases = Cases("gather")
    generator = np.random.default_rng(70)
    for i, name in enumerate(("f32", "f16", "bf16", "i64", "u8", "bool")):
        x = typed(np.abs(random(71 + i, 9, 3, 5, scale=40)), name)
        ids = mx.array(generator.integers(0, 9, (4, 2)).astype(np.uint32 if i % 2 else np.int32))
        out = mx.take(x, ids, axis=0)
        same(out, wide(x)[np.array(ids)], name)
        cases.add(f"rows_{name}", {"kind": "rows"}, x=x, indices=ids, out=out)
        for axis, shape in enumerate(((4, 3, 5), (9, 7, 1), (1, 3, 11))):
            ids = mx.array(generator.integers(0, x.shape[axis], shape).astype(np.int32 if i % 2 else np.uint32))
            out = mx.take_along_axis(x, ids, axis=axis)
            same(out, np.take_along_axis(wide(x), np.array(ids).astype(np.int64), axis), name)
            cases.add(f"axis_{axis}_{name}", {"kind": "axis", "axis": axis}, x=x, indices=ids, out=out)
    cases.save()


def cumsum():
    """Of `shared.x` by its name; `out` is mlx's, in the type of x; of f16 and bf16 there is `exact` alone, as mlx rounds every step. `every`: of a long
    row only each so-manieth sum is kept."""
    cases = Cases("cumsum")
    inf, nan = np.inf, np.nan
    edges = np.array([[1, inf, 2, -1, 3], [1, -inf, 2, inf, 3], [nan, 1, 2, 3, 4], [-0.0, -0.0, 1e-30, -1e-30, 5]], np.float32)
    rows = {"random": random(80, 3, 2, 65), "one": random(81, 4, 1), "edges": edges, "long": random(82, 1, 20011)}
    for case, x in rows.items():
        for name in FLOATS if case == "random" else ("f32",):
            a = typed(x, name)
            cases.share(f"{case}_{name}", a)
            for exclusive in (False, True):
                for reverse in (False, True):
                    every = 97 if case == "long" else 1
                    with np.errstate(invalid="ignore"):
                        exact = summed(wide(a), exclusive, reverse)[..., ::every]
                    size = np.where(np.isfinite(wide(a)), np.abs(wide(a)), 0).sum(-1, keepdims=True)
                    out = mx.cumsum(a, axis=-1, reverse=reverse, inclusive=not exclusive)[..., ::every]
                    with np.errstate(invalid="ignore"):
                        close = np.abs(wide(out) - exact) <= {"f32": 2e-6, "f16": 4e-3, "bf16": 4e-2}[name] * size
                    assert (close | ~np.isfinite(exact)).all(), (case, name)
                    same(wide(out)[~np.isfinite(exact)], exact[~np.isfinite(exact)], case)
                    outs = {"out": mx.contiguous(out)} if name == "f32" else {}
                    params = {"x": f"{case}_{name}", "exclusive": exclusive, "reverse": reverse, "every": every}
                    key = f"{case}_{name}_{'exclusive' if exclusive else 'inclusive'}_{'reverse' if reverse else 'forward'}"
                    cases.add(key, params, exact=exact.astype(np.float32), **outs)
    for name in ("i32", "u32"):
        a = typed(np.concatenate([INTEGERS, INTEGERS[::-1], np.arange(13) * 400000007]), name)
        cases.share(name, a)
        for exclusive in (False, True):
            for reverse in (False, True):
                out = mx.cumsum(a, axis=-1, reverse=reverse, inclusive=not exclusive)
                same(np.array(out), summed(wide(a).astype(np.int64), exclusive, reverse).astype(np.array(a).dtype), name)
                params = {"x": name, "exclusive": exclusive, "reverse": reverse, "every": 1}
                key = f"{name}_{'exclusive' if exclusive else 'inclusive'}_{'reverse' if reverse else 'forward'}"
                cases.add(key, params, out=out)
    cases.save()


def summed(x, exclusive, reverse):
    x = x[..., ::-1] if reverse else x
    sums = np.cumsum(x, -1)
    if exclusive:
        sums = np.concatenate([np.zeros_like(sums[..., :1]), sums[..., :-1]], -1)
    return sums[..., ::-1] if reverse else sums


def sort():
    """Stable, and NaN the greatest: rising as mlx has it, falling as torch."""
    cases = Cases("sort")
    ties = np.round(random(90, 4, 257, scale=2))
    edges = np.concatenate([EDGES, EDGES, -EDGES, random(91, 26)])[np.random.default_rng(92).permutation(65)]
    rows = {
        "random": (random(93, 2, 3, 1025), ("f32",)),
        "ties": (ties, ("f32", "f16", "bf16", "i32")),
        "edges": (edges, ("f32", "f16", "bf16")),
        "one": (random(94, 3, 1), ("f32",)),
        "integers": (np.concatenate([INTEGERS, INTEGERS[::-1]]), ("i32", "u32")),
        "long": (np.round(random(95, 5003, scale=300)), ("f16",)),
    }
    for case, (x, names) in rows.items():
        for name in names:
            with np.errstate(over="ignore"):
                a = typed(x, name)
            rising = mx.argsort(a, axis=-1)
            same(rising, np.argsort(wide(a), -1, kind="stable"), f"{case} {name}")
            out = mx.sort(a, axis=-1)
            same(out, np.sort(wide(a), -1), f"{case} {name}")
            falling = torch.sort(torch.from_numpy(wide(a).astype(np.float64)), dim=-1, descending=True, stable=True).indices
            falling = falling.numpy().astype(np.uint32)
            outs = {"sorted": out} if case != "long" else {}
            cases.add(f"{case}_{name}", {}, x=a, rising=np.array(rising).astype(np.uint32), falling=falling, **outs)
    cases.save()


def reduce():
    """Over the last axis, and `all_` over all: `out` in the type of x, and for sums, means and products `exact`."""
    cases = Cases("reduce")
    ours = {"sum": mx.sum, "mean": mx.mean, "max": mx.max, "min": mx.min, "prod": mx.prod}
    exact = {"sum": np.sum, "mean": np.mean, "max": np.max, "min": np.min, "prod": np.prod}
    inf, nan = np.inf, np.nan
    edges = np.array([[1, inf, 2], [inf, -inf, 1], [2, nan, -inf], [nan, nan, nan], [-0.0, 0.0, -0.0], [-inf, -inf, -inf]], np.float32)
    rows = {
        "random": (random(100, 4, 3, 65), FLOATS),
        "small": (1 + 0.1 * random(101, 5, 33), FLOATS),
        "one": (random(102, 7, 1), FLOATS),
        "edges": (edges, ("f32",)),
        "long": (random(103, 2, 17003), ("f16",)),
        "integers": (np.stack([INTEGERS, INTEGERS[::-1] + 3]), ("i32", "u32")),
    }
    for case, (x, names) in rows.items():
        for name in names:
            a = typed(x, name)
            tensors = {}
            for op, function in ours.items():
                if name not in FLOATS and op == "mean":
                    continue
                for kind, axis in (("", -1), ("all_", None)):
                    with np.errstate(all="ignore"):
                        want = exact[op](wide(a), axis=axis)
                        size = np.maximum(np.abs(want), exact[op](np.abs(wide(a)), axis=axis))
                    out = function(a, axis=axis)
                    if name not in FLOATS:
                        tensors[f"{kind}{op}"] = out
                        continue
                    tensors[f"{kind}{op}_exact"] = np.asarray(want).astype(np.float32)
                    unit = {"f32": 4e-6, "f16": 1e-2, "bf16": 6e-2}[name]
                    # mlx accumulates in f16 and bf16, whose long sums and products drift.
                    if case != "long" and not (op == "prod" and case == "random"):
                        with np.errstate(invalid="ignore"):
                            close = np.abs(wide(out) - want) <= unit * size + 1e-30
                        assert (close | ~np.isfinite(want)).all(), (case, name, op, kind)
                        if not (kind and case == "edges"):
                            same(np.isnan(wide(out)), np.isnan(want), f"{case} {op}")
                    if name == "f32" or op in ("max", "min"):
                        tensors[f"{kind}{op}"] = out
            cases.add(f"{case}_{name}", {}, x=a, **tensors)
    cases.save()


def compare():
    """Every edge with every other, by broadcasting."""
    cases = Cases("compare")
    functions = {
        "equal": mx.equal, "not_equal": mx.not_equal, "less": mx.less, "less_equal": mx.less_equal,
        "greater": mx.greater, "greater_equal": mx.greater_equal,
    }
    for name in list(FLOATS) + ["i32", "u32", "i64", "u8"]:
        values = EDGES if name in FLOATS else INTEGERS
        values = np.concatenate([values, [2**31 + 1, 2**62, 2**62 + 1, -(2**62)]]) if name == "i64" else values
        a, b = typed(values[:, None], name), typed(values, name)
        outs = {f: function(a, b) for f, function in functions.items()}
        for f, out in outs.items():
            with np.errstate(invalid="ignore"):
                same(np.array(out), getattr(np, f)(wide(a), wide(b)), f"{name} {f}")
        cases.add(name, {}, a=a, b=b, **outs)
    cases.save()


def select():
    cases = Cases("select")
    for i, name in enumerate(("f32", "f16", "bf16", "i64", "u32", "u8", "bool")):
        condition = mx.array(random(110 + i, 3, 1, 17) > 0)
        a = typed(np.abs(random(120 + i, 3, 5, 17, scale=40)), name)
        b = typed(np.abs(random(130 + i, 5, 1, scale=40)), name)
        out = mx.where(condition, a, b)
        same(out, np.where(np.array(condition), wide(a), wide(b)), name)
        cases.add(name, {}, condition=condition, a=a, b=b, out=out)
    cases.save()


def fill():
    """`arange` and `full` with these numbers; `clip` of the edges."""
    cases = Cases("fill")
    for name in list(FLOATS) + ["i32", "u32", "i64", "u8"]:
        dtype = FLOATS.get(name) or {"i32": mx.int32, "u32": mx.uint32, "i64": mx.int64, "u8": mx.uint8}[name]
        for kind, (start, step, count) in {"rising": (3, 7, 33), "falling": (100, -3, 31)}.items():
            out = mx.arange(start, start + step * count, step, dtype=dtype)
            same(out, start + step * np.arange(count), f"{name} {kind}")
            cases.add(f"arange_{kind}_{name}", {"start": start, "step": step, "count": count}, out=out)
        value = 2.7182818 if name in FLOATS else 200
        cases.add(f"full_{name}", {"value": value}, out=mx.full((3, 5), value, dtype=dtype))
    for name, dtype in FLOATS.items():
        x = mx.array(EDGES).astype(dtype)
        for kind, (low, high) in {"both": (-1.5, 5.0), "low": (0.0, np.inf), "high": (-np.inf, 2.0)}.items():
            out = mx.clip(x, low, high)
            same(out, np.clip(wide(x), low, high), f"{name} {kind}")
            cases.add(f"clip_{kind}_{name}", {"min": str(low), "max": str(high)}, x=x, out=out)
    cases.save()


main()
