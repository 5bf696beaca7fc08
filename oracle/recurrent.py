"""What recurrent layers are made of, by transformers' Qwen3-Next and mlx-lm's gated_delta, beside f64 evaluations."""

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models import gated_delta, qwen3_next
from transformers.models.qwen3_next import modeling_qwen3_next as hf

from common import Cases, random

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Relative to the greatest element.
TOLERANCE = {"f32": 3e-6, "f16": 2e-3, "bf16": 2e-2}


def main():
    mx.set_default_device(mx.cpu)
    gated_delta_gates()
    l2_norm()
    rms_norm_gated()
    causal_conv1d()
    gated_delta_rule()
    triangular_solve()


def gated_delta_gates():
    """`g` is the decay of mlx-lm, `log_g` the one of transformers."""
    cases = Cases("gated_delta_gates")
    edges = [-100, -60, -21, -20, -19.5, -10, -3, -1, -0.1, -1e-3, 0, 1e-3, 0.5, 2, 10, 20, 20.5, 40, 90, 100]
    edges = np.array(edges, np.float32).reshape(4, 5)
    for i, (name, a, b) in enumerate(
        [("f32", edges, edges[::-1].copy()), ("f16", edges / 4, edges / 8), ("bf16", edges, edges[::-1].copy())]
        + [(name, random(10 + i, 7, 6, scale=3.0), random(20 + i, 7, 6, scale=3.0)) for i, name in enumerate(DTYPES)]
    ):
        a, b = (torch.from_numpy(x).to(DTYPES[name]) for x in (a, b))
        heads = a.shape[1]
        a_log = torch.from_numpy(np.log(np.random.default_rng(30 + i).uniform(0.01, 16, heads)).astype(np.float32))
        # Without a bias the edges of a are those of softplus.
        dt_bias = torch.from_numpy(random(40 + i, heads) if i > 2 else np.zeros(heads, np.float32))
        x = f64(a) + f64(dt_bias)
        exact_log = -np.exp(f64(a_log)) * np.logaddexp(x, 0)
        exact_beta = 1 / (1 + np.exp(-f64(b)))
        # As the models have it, in f32.
        log_g = -a_log.exp() * torch.nn.functional.softplus(a.float() + dt_bias)
        g = gated_delta.compute_g(to_mx(a_log), to_mx(a.float()), to_mx(dt_bias))
        beta = b.float().sigmoid()
        close(name, "f32", log_g, exact_log)
        close(name, "f32", g, np.exp(exact_log))
        close(name, "f32", beta, exact_beta)
        cases.add(f"{name}_{i}", {}, a=a, b=b, a_log=a_log, dt_bias=dt_bias, log_g=exact_log, g=np.exp(exact_log), beta=exact_beta)
    cases.save()


def l2_norm():
    cases = Cases("l2_norm")
    for i, shape in enumerate([(3, 2, 128), (2, 1, 33), (2, 256), (5, 1)]):
        for name, dtype in DTYPES.items():
            x = torch.from_numpy(random(50 + i, *shape)).to(dtype)
            exact = f64(x) / np.sqrt((f64(x) ** 2).sum(-1, keepdims=True) + 1e-6)
            out = hf.l2norm(x.float(), eps=1e-6).to(dtype)
            close((name, i), name, out, exact)
            # mlx-lm folds the scale of the query in.
            scale = shape[-1] ** -0.5
            q, k = gated_delta.normalize_qk(to_mx(x.float()), to_mx(x.float()), inv_scale=scale, eps=1e-6)
            close((name, i), "f32", q, exact * scale)
            close((name, i), "f32", k, exact)
            cases.add(f"{name}_{i}", {"eps": 1e-6}, x=x, out=out, exact=exact.astype(np.float32))
    cases.save()


def rms_norm_gated():
    cases = Cases("rms_norm_gated")
    for i, shape in enumerate([(3, 2, 128), (2, 1, 33), (4, 65)]):
        for name, dtype in DTYPES.items():
            x = torch.from_numpy(random(60 + i, *shape, scale=2.0)).to(dtype)
            gate = torch.from_numpy(random(70 + i, *shape, scale=4.0)).to(dtype)
            weight = torch.from_numpy(random(80 + i, shape[-1], scale=0.3) + 1).to(dtype)
            exact = f64(x) / np.sqrt((f64(x) ** 2).mean(-1, keepdims=True) + 1e-6) * f64(weight)
            exact = exact * f64(gate) / (1 + np.exp(-f64(gate)))
            module = hf.Qwen3NextRMSNormGated(shape[-1], eps=1e-6)
            module.weight = torch.nn.Parameter(weight)
            with torch.no_grad():
                out = module(x, gate)
            close((name, i), name, out, exact)
            mlx = qwen3_next.Qwen3NextRMSNormGated(shape[-1], eps=1e-6)
            mlx.weight = to_mx(weight)
            close((name, i), name, mlx(to_mx(x), to_mx(gate)), exact)
            cases.add(f"{name}_{i}", {"eps": 1e-6}, x=x, gate=gate, weight=weight, out=out, exact=exact.astype(np.float32))
    cases.save()


def causal_conv1d():
    """`state` and `final_state` are the last width - 1 inputs, [width - 1, channels]; `weight` is [channels, width]."""
    cases = Cases("causal_conv1d")
    for i, (tokens, channels, width, bias, silu, state) in enumerate(
        [(9, 40, 4, False, True, True), (1, 65, 4, False, True, True), (2, 33, 4, True, False, True)]
        + [(5, 31, 2, True, True, False), (11, 7, 8, False, True, True), (3, 16, 3, False, False, False)]
    ):
        for name, dtype in DTYPES.items():
            x = torch.from_numpy(random(100 + i, tokens, channels)).to(dtype)
            w = torch.from_numpy(random(110 + i, channels, width, scale=0.5)).to(dtype)
            b = torch.from_numpy(random(120 + i, channels)).to(dtype) if bias else None
            s = torch.from_numpy(random(130 + i, width - 1, channels) * state).to(dtype)
            final = s.T[None].clone()
            out = hf.causal_conv1d_update(x.T[None], final, w, b, "silu" if silu else None)[0].T
            extended = np.concatenate([f64(s), f64(x)])
            exact = sum(extended[k : k + tokens] * f64(w)[:, k] for k in range(width)) + (f64(b) if bias else 0)
            exact = exact / (1 + np.exp(-exact)) if silu else exact
            close((name, i), name, out, exact)
            if not state:
                other = hf.causal_conv1d_fn(x.T[None], w, b, activation="silu" if silu else None)
                close((name, i), name, other[0].T, exact)
            if not bias and name == "f32":
                other = mx.conv1d(to_mx(torch.cat([s, x]))[None], to_mx(w)[..., None], groups=channels)[0]
                close((name, i), name, other * mx.sigmoid(other) if silu else other, exact)
            final = final[0].T.contiguous()
            assert np.array_equal(f64(final), extended[tokens:])
            parts = {"bias": b, "state": s if state else None}
            parts = {k: v for k, v in parts.items() if v is not None}
            cases.add(
                f"{name}_{i}", {"silu": silu}, x=x, weight=w, out=out, exact=exact.astype(np.float32), final_state=final, **parts
            )
    cases.save()


def gated_delta_rule():
    """`log_g` is the decay's logarithm, `state` [value_heads, dv, dk]; `heads` is how value heads share key heads."""
    cases = Cases("gated_delta_rule")
    for i, (tokens, key_heads, value_heads, dk, dv, heads, name) in enumerate(
        [(37, 2, 4, 32, 16, "grouped", "f32"), (37, 2, 4, 32, 16, "tiled", "f32"), (1, 2, 6, 32, 33, "grouped", "bf16")]
        + [(21, 1, 2, 128, 31, "grouped", "f32"), (18, 1, 1, 256, 8, "grouped", "f32"), (20, 2, 2, 65, 7, "tiled", "f16")]
    ):
        q, k = (torch.nn.functional.normalize(torch.from_numpy(random(s + i, tokens, key_heads, dk)), dim=-1) for s in (200, 210))
        q, k, v = (x.to(DTYPES[name]) for x in (q, k, torch.from_numpy(random(220 + i, tokens, value_heads, dv))))
        log_g = -np.exp(random(230 + i, tokens, value_heads, scale=2.0) - 2)
        # A decay that forgets all and one that forgets nothing.
        log_g[tokens // 2, 0], log_g[tokens // 3, -1] = -200, 0
        log_g = torch.from_numpy(log_g)
        beta = torch.from_numpy(random(240 + i, tokens, value_heads)).sigmoid()
        state = torch.from_numpy(random(250 + i, value_heads, dv, dk, scale=0.5))
        scale = dk**-0.5
        ratio = value_heads // key_heads
        owner = np.arange(value_heads) // ratio if heads == "grouped" else np.arange(value_heads) % key_heads
        exact, exact_state = delta_rule(*(f64(x) for x in (q[:, owner], k[:, owner], v, log_g, beta, state)), scale)

        # transformers' state is [key dim, value dim], and its key heads serve groups of value heads.
        qh, kh = (q, k) if heads == "grouped" else (q[:, owner], k[:, owner])
        inputs = dict(g=log_g[None], beta=beta[None], initial_state=state.mT[None], output_final_state=True)
        out, final = hf.torch_recurrent_gated_delta_rule(qh[None].float(), kh[None].float(), v[None].float(), **inputs)
        chunked, chunked_final = hf.torch_chunk_gated_delta_rule(qh[None].float(), kh[None].float(), v[None].float(), **inputs)
        for o, s in [(out, final), (chunked, chunked_final)]:
            # Sums of logarithms cancel where a decay forgets all.
            close(i, "f32", o[0], exact, 10)
            close(i, "f32", s[0].mT, exact_state, 10)
        o, s = gated_delta.gated_delta_ops(
            to_mx(qh.float())[None] * scale, to_mx(kh.float())[None], to_mx(v.float())[None],
            mx.exp(to_mx(log_g))[None], to_mx(beta)[None], to_mx(state)[None],
        )  # fmt: skip
        close(i, "f32", o[0], exact)
        close(i, "f32", s[0], exact_state)
        cases.add(
            f"{name}_{i}", {"heads": heads, "scale": scale}, q=q, k=k, v=v, log_g=log_g, beta=beta, state=state,
            out=out[0].to(DTYPES[name]), exact=exact.astype(np.float32), final_state=exact_state.astype(np.float32),
        )  # fmt: skip
    cases.save()


def delta_rule(q, k, v, log_g, beta, state, scale):
    """The definition, token by token."""
    out, state = [], state.copy()
    for q, k, v, log_g, beta in zip(q, k, v, log_g, beta):
        state *= np.exp(log_g)[:, None, None]
        delta = (v - np.einsum("hvk,hk->hv", state, k)) * beta[:, None]
        state += delta[:, :, None] * k[:, None]
        out.append(np.einsum("hvk,hk->hv", state, q) * scale)
    return np.stack(out), state


def triangular_solve():
    """`l` is unit lower triangular; what is on and above its diagonal is not to be read."""
    cases = Cases("triangular_solve")
    for i, (batch, n, m) in enumerate([(2, 16, 5), (1, 33, 31), (3, 1, 4), (1, 64, 33)]):
        for name, dtype in DTYPES.items():
            low = np.tril(random(300 + i, batch, n, n, scale=0.3), -1)
            low = torch.from_numpy(low + np.triu(np.full((n, n), 9.0, np.float32))).to(dtype)
            b = torch.from_numpy(random(310 + i, batch, n, m)).to(dtype)
            exact = np.linalg.solve(np.tril(f64(low), -1) + np.eye(n), f64(b))
            out = torch.linalg.solve_triangular(low.float(), b.float(), upper=False, unitriangular=True).to(dtype)
            close((name, i), name, out, exact)
            cases.add(f"{name}_{i}", {}, l=low, b=b, out=out, exact=exact.astype(np.float32))
    cases.save()


def close(case, dtype, got, exact, factor=1):
    error = np.abs(f64(got) - exact).max() / max(1e-3, np.abs(exact).max())
    assert error < TOLERANCE[dtype] * factor, (case, error)


def f64(x):
    if isinstance(x, torch.Tensor):
        return x.detach().double().numpy()
    return np.array(x.astype(mx.float32) if isinstance(x, mx.array) else x).astype(np.float64)


def to_mx(x):
    """mlx takes no bf16 from torch."""
    x = x.detach()
    if x.dtype == torch.bfloat16:
        return mx.array(x.float().numpy()).astype(mx.bfloat16)
    return mx.array(x.contiguous().numpy())


main()
