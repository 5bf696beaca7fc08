"""Mixture of experts: routers of transformers and mlx-lm, and mlx's expert-routed products, beside an f64 evaluation."""

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.models import bailing_moe, deepseek_v3, gemma4_text, mixtral, qwen3_moe

from common import Cases, random
from matmul_epilogues import ACTIVATIONS, agreed


def main():
    routers()
    products()
    gated_products()
    combinations()


def f64(x):
    return np.asarray(x, np.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def route(logits, top_k, score, bias=None, groups=None, renormalize=True, routed_scale=1.0, expert_scale=None):
    """The definition, in f64: experts in falling order of what they are chosen by, of equals the lowest first."""
    logits = f64(logits)
    scores = {
        "softmax": softmax,
        "sigmoid": sigmoid,
        "sqrtsoftplus": lambda x: np.sqrt(np.log1p(np.exp(x))),
    }[score](logits)
    choice = scores if bias is None else scores + f64(bias)
    if groups:
        n_group, topk_group, kind = groups
        members = np.sort(choice.reshape(len(logits), n_group, -1), -1)
        group_scores = members[..., -1] if kind == "max" else members[..., -2:].sum(-1)
        best = np.argsort(-group_scores, -1, kind="stable")[:, :topk_group]
        allowed = np.zeros(group_scores.shape, bool)
        np.put_along_axis(allowed, best, True, -1)
        choice = np.where(np.repeat(allowed, choice.shape[1] // n_group, -1), choice, -np.inf)
    ids = np.argsort(-choice, -1, kind="stable")[:, :top_k]
    weights = np.take_along_axis(scores, ids, -1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    weights = weights * routed_scale
    if expert_scale is not None:
        weights = weights * f64(expert_scale)[ids]
    return ids, weights


def routers():
    from transformers import models as m

    cases = Cases("router")
    tokens = 6

    def torch_router(cls, config, logits, fields, **buffers):
        """(weights, ids) that a router module gives for these logits: its weight is the identity."""
        experts = logits.shape[1]
        config = config()
        for name in ["hidden_size", "num_experts", "num_local_experts"]:
            setattr(config, name, experts)
        for name, value in fields.items():
            assert hasattr(config, name), name
            setattr(config, name, value)
        with torch.no_grad():
            router = cls(config)
            router.weight.copy_(torch.eye(experts))
            for name, value in buffers.items():
                module, _, leaf = name.rpartition(".")
                getattr(router.get_submodule(module), leaf).copy_(torch.from_numpy(value))
            _, weights, ids = router(torch.from_numpy(logits))
        return weights.numpy(), ids.numpy()

    def add(case, params, logits, answers, bias=None, expert_scale=None):
        groups = params.get("groups")
        exact_ids, exact = route(
            logits,
            params["top_k"],
            params["score"],
            bias,
            groups,
            params["renormalize"],
            params["routed_scale"],
            expert_scale,
        )
        # Sorted by id, since some leave the order open.
        order = np.argsort(exact_ids, -1)
        for weights, ids in answers:
            other = np.argsort(ids, -1)
            np.testing.assert_array_equal(np.take_along_axis(ids, other, -1), np.take_along_axis(exact_ids, order, -1))
            weights, wanted = np.take_along_axis(weights, other, -1), np.take_along_axis(exact, order, -1)
            assert np.abs(weights - wanted).max() < 1e-6 * max(1, np.abs(wanted).max()), case
        tensors = {"logits": logits, "ids": exact_ids.astype(np.uint32), "exact": exact}
        if bias is not None:
            tensors["bias"] = bias
        if expert_scale is not None:
            tensors["expert_scale"] = expert_scale
        cases.add(case, params, **tensors)

    def params(top_k, score, renormalize=True, routed_scale=1.0, groups=None):
        p = {"top_k": top_k, "score": score, "renormalize": renormalize, "routed_scale": routed_scale}
        return p | ({"groups": groups} if groups else {})

    # Numbers of experts that are no powers of two among them (20, 40 and 60).
    for i, (experts, top_k) in enumerate([(60, 4), (128, 8), (20, 3), (512, 10)]):
        logits = random(i, tokens, experts, scale=2.0)
        for renormalize in [True, False]:
            config, router = m.qwen3_moe.Qwen3MoeConfig, m.qwen3_moe.modeling_qwen3_moe.Qwen3MoeTopKRouter
            fields = {"num_experts_per_tok": top_k, "norm_topk_prob": renormalize}
            add(
                f"qwen3_{experts}_{'renormalized' if renormalize else 'plain'}",
                params(top_k, "softmax", renormalize),
                logits,
                [torch_router(router, config, logits, fields), mlx_qwen3(logits, top_k, renormalize)],
            )
    logits = random(10, tokens, 8, scale=2.0)
    config, router = m.mixtral.MixtralConfig, m.mixtral.modeling_mixtral.MixtralTopKRouter
    answer = torch_router(router, config, logits, {"num_experts_per_tok": 2})
    add("mixtral", params(2, "softmax"), logits, [answer, mlx_softmax_of_chosen(logits, 2)])

    # gpt-oss: a softmax of the chosen; the layer's bias is part of the logits.
    logits = random(11, tokens, 32, scale=3.0)
    config, router = m.gpt_oss.GptOssConfig, m.gpt_oss.modeling_gpt_oss.GptOssTopKRouter
    answer = torch_router(router, config, logits, {"num_experts_per_tok": 4})
    add("gpt_oss", params(4, "softmax"), logits, [answer, mlx_softmax_of_chosen(logits, 4)])

    # Gemma 4: a scale for each expert, after the renormalisation and not before.
    logits, scale = random(12, tokens, 40, scale=2.0), random(13, 40, scale=0.3) + 1
    answers = [gemma4_torch(logits, scale, 8), gemma4_mlx(logits, scale, 8)]
    add("gemma4", params(8, "softmax"), logits, answers, expert_scale=scale)

    # DeepSeek-V2: groups by their best expert.
    logits = random(14, tokens, 48, scale=2.0)
    config, router = m.deepseek_v2.DeepseekV2Config, m.deepseek_v2.modeling_deepseek_v2.DeepseekV2TopkRouter
    fields = {"n_group": 8, "topk_group": 3, "topk_method": "group_limited_greedy"}
    fields |= {"num_experts_per_tok": 6, "routed_scaling_factor": 16.0}
    answer = torch_router(router, config, logits, fields)
    add("deepseek_v2", params(6, "softmax", False, 16.0, [8, 3, "max"]), logits, [answer])

    # DeepSeek-V3 and GLM 4.5: sigmoids, a bias for the choice, groups by the sum of their best two.
    for i, (name, experts, top_k, n_group, topk_group, scale) in enumerate(
        [("deepseek_v3", 256, 8, 8, 4, 2.5), ("deepseek_v3_one_group", 64, 6, 1, 1, 2.446), ("glm4_moe", 30, 4, 5, 2, 1.0)]
    ):
        logits, bias = random(20 + i, tokens, experts, scale=2.0), np.abs(random(30 + i, experts, scale=0.2))
        if name == "glm4_moe":
            config, router = m.glm4_moe.Glm4MoeConfig, m.glm4_moe.modeling_glm4_moe.Glm4MoeTopkRouter
        else:
            config, router = m.deepseek_v3.DeepseekV3Config, m.deepseek_v3.modeling_deepseek_v3.DeepseekV3TopkRouter
        fields = {"n_group": n_group, "topk_group": topk_group, "norm_topk_prob": True}
        fields |= {"num_experts_per_tok": top_k, "routed_scaling_factor": scale}
        answer = torch_router(router, config, logits, fields, e_score_correction_bias=bias)
        ids, weights = deepseek_v3.group_expert_select(
            mx.array(logits), mx.array(bias), top_k, n_group, topk_group, scale, True
        )
        groups = [n_group, topk_group, "sum of top two"] if n_group > 1 else None
        p = params(top_k, "sigmoid", True, scale, groups)
        add(name, p, logits, [answer, (np.array(weights), np.array(ids))], bias=bias)

    # Ling: the same by softmax.
    logits, bias = random(40, tokens, 64, scale=2.0), np.abs(random(41, 64, scale=0.01))
    ids, weights = bailing_moe.group_expert_select(
        mx.array(logits), mx.array(bias), 6, 4, 2, 2.5, True, "softmax"
    )
    p = params(6, "softmax", True, 2.5, [4, 2, "sum of top two"])
    add("bailing", p, logits, [(np.array(weights), np.array(ids))], bias=bias)

    # DeepSeek-V4: sqrt(softplus).
    logits, bias = random(42, tokens, 36, scale=3.0), random(43, 36, scale=0.2)
    config, router = m.deepseek_v4.DeepseekV4Config, m.deepseek_v4.modeling_deepseek_v4.DeepseekV4TopKRouter
    fields = {"num_experts_per_tok": 6, "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus"}
    answer = torch_router(router, config, logits, fields, e_score_correction_bias=bias)
    add("deepseek_v4", params(6, "sqrtsoftplus", True, 1.5), logits, [answer], bias=bias)

    # Llama 4: sigmoids as they are; its module gives a row of all experts' scores.
    logits = random(44, tokens, 16, scale=2.0)
    config = m.llama4.Llama4TextConfig(hidden_size=16, num_local_experts=16, num_experts_per_tok=2)
    with torch.no_grad():
        router = m.llama4.modeling_llama4.Llama4Router(config)
        router.weight.copy_(torch.eye(16))
        scores = router(torch.from_numpy(logits))[0].numpy()
    ids = np.argsort(-scores, -1)[:, :2]
    answer = (np.take_along_axis(scores, ids, -1), ids)
    add("llama4", params(2, "sigmoid", False), logits, [answer])
    cases.save()


def mlx_qwen3(logits, top_k, renormalize):
    return mlx_block(qwen3_moe.Qwen3MoeSparseMoeBlock, logits, top_k=top_k, norm_topk_prob=renormalize)


def mlx_softmax_of_chosen(logits, top_k):
    return mlx_block(mixtral.MixtralSparseMoeBlock, logits, num_experts_per_tok=top_k)


def mlx_block(cls, logits, **attributes):
    """(weights, ids) of an mlx-lm block: its experts note their ids, and give each expert's own unit vector."""
    chosen = []

    def experts(_, ids):
        chosen.append(np.array(ids))
        return mx.eye(logits.shape[1])[ids]

    class Block(cls):
        def __init__(self):
            pass

        gate = staticmethod(lambda x: x)
        switch_mlp = staticmethod(experts)
        sharding_group = None

    for name, value in attributes.items():
        setattr(Block, name, value)
    y = np.array(cls.__call__(Block(), mx.array(logits)))
    return np.take_along_axis(y, chosen[0], -1), chosen[0]


def gemma4_torch(logits, scale, top_k):
    from transformers.models.gemma4 import Gemma4TextConfig, modeling_gemma4

    experts = logits.shape[1]
    config = Gemma4TextConfig(hidden_size=experts, num_experts=experts, top_k_experts=top_k)
    with torch.no_grad():
        router = modeling_gemma4.Gemma4TextRouter(config)
        router.per_expert_scale.copy_(torch.from_numpy(scale))
        router.proj.forward = lambda _: torch.from_numpy(logits)
        _, weights, ids = router(torch.from_numpy(logits))
    return weights.numpy(), ids.numpy()


def gemma4_mlx(logits, scale, top_k):
    class Router(gemma4_text.Router):
        def __init__(self):
            pass

        class config:
            top_k_experts = top_k

        eps, _root_size = 1e-6, 1.0
        proj = staticmethod(lambda _: mx.array(logits))

    Router.scale, Router.per_expert_scale = mx.ones(logits.shape[1]), mx.array(scale)
    ids, weights = gemma4_text.Router.__call__(Router(), mx.array(logits))
    return np.array(weights), np.array(ids)


DTYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


def products():
    """mlx's gather_mm and gather_qmm, with scales and biases widened to f32; sums in f64 of mlx's own elements.

    `out` is of `x`, which the slots of a token share, `out_slots` of `x_slots`.
    """
    experts, n, k, tokens, slots = 5, 7, 128, 6, 3
    cases = Cases("expert_matmul")
    ids = np.stack([np.random.default_rng(i).permutation(experts)[:slots] for i in range(tokens)]).astype(np.uint32)
    ids[1] = ids[0]
    x, x_slots = random(50, tokens, k), random(51, tokens, slots, k)
    w = random(52, experts, n, k, scale=0.05) + random(53, experts, n, 1, scale=0.02)

    def outputs(elements, product):
        """Both products, f64 sums that mlx's agree with."""
        elements = f64(elements)[ids]
        for name, inputs, each in [("out", x, x[:, None]), ("out_slots", x_slots, x_slots)]:
            exact = np.einsum("tsnk,tsk->tsn", elements, np.broadcast_to(f64(each), (tokens, slots, k)))
            inputs = mx.array(inputs)
            inputs = inputs[:, None, None] if name == "out" else inputs[:, :, None]
            ours = np.array(product(inputs)).squeeze(-2)
            assert ours.shape == exact.shape and np.abs(ours - exact).max() < 2e-5, np.abs(ours - exact).max()
            yield name, exact.astype(np.float32)

    cases.share("ids", ids)
    cases.share("x", x)
    cases.share("x_slots", x_slots)
    cases.share("weight", w)
    dense = outputs(w, lambda x: mx.gather_mm(x, mx.array(w).swapaxes(-1, -2), rhs_indices=mx.array(ids)))
    for name, out in dense:
        cases.share(name, out)

    formats = [("affine", bits, 64, "f32") for bits in (2, 3, 4, 5, 6, 8)]
    formats += [("affine", 4, 32, "f16"), ("affine", 4, 128, "bf16"), ("affine", 8, 64, "bf16")]
    formats += [("mxfp4", 4, 32, "f32"), ("mxfp8", 8, 32, "f32"), ("nvfp4", 4, 16, "f32")]
    for mode, bits, group_size, dtype in formats:
        q, *parts = mx.quantize(mx.array(w).astype(DTYPES[dtype]), group_size=group_size, bits=bits, mode=mode)
        wide = [t.astype(mx.float32) if mode == "affine" else t for t in parts]
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
        elements = mx.dequantize(q, *wide, **settings, dtype=mx.float32)
        tensors = {"q": q, "scales": parts[0]} | ({"biases": parts[1]} if len(parts) > 1 else {})
        tensors |= outputs(
            elements,
            lambda x: mx.gather_qmm(x, q, *wide, rhs_indices=mx.array(ids), transpose=True, **settings),
        )
        case = f"{mode}_{bits}_{group_size}_{dtype}" if mode == "affine" else mode
        cases.add(case, settings, **tensors)
    cases.save()


def gated_products():
    """mlx's gather_qmm of two stacks, the first through an activation, times the second."""
    experts, n, k, tokens, slots = 5, 7, 128, 6, 3
    cases = Cases("expert_matmul_glu")
    ids = np.stack([np.random.default_rng(i).permutation(experts)[:slots] for i in range(tokens)]).astype(np.uint32)
    x = random(60, tokens, k)
    cases.share("ids", ids)
    cases.share("x", x)
    for mode, bits, group_size in (("affine", 4, 64), ("affine", 8, 32), ("mxfp4", 4, 32)):
        settings = {"group_size": group_size, "bits": bits, "mode": mode}
        ours, exact = [], []
        for seed, role in enumerate(("gate", "up")):
            stored = mx.quantize(mx.array(random(61 + seed, experts, n, k, scale=0.2)), **settings)
            elements = f64(mx.dequantize(*stored, **settings, dtype=mx.float32))[ids]
            each = mx.array(x)[:, None, None]
            ours.append(mx.gather_qmm(each, *stored, rhs_indices=mx.array(ids), transpose=True, **settings).squeeze(-2))
            exact.append(np.einsum("tsnk,tk->tsn", elements, f64(x)))
            tensors = dict(zip(("q", "scales", "biases"), stored))
            if role == "up":
                for name, (activation, definition) in ACTIVATIONS.items():
                    tensors[name] = agreed(activation(ours[0]) * ours[1], definition(exact[0]) * exact[1])
            cases.add(f"{mode}_{bits}_{role}", settings, **tensors)
    cases.save()


def combinations():
    """Weighted sums of experts' outputs as mlx-lm's blocks take them: qwen3_next with its shared expert's gate."""
    from mlx_lm.models import qwen3_next

    cases = Cases("weighted_reduce")
    for i, (tokens, slots, n, dtype) in enumerate(
        [(3, 4, 33, "f32"), (1, 8, 64, "f32"), (5, 2, 65, "f16"), (4, 10, 31, "bf16")]
    ):
        y = mx.array(random(60 + i, tokens, slots, n)).astype(DTYPES[dtype])
        logits = mx.array(random(70 + i, tokens, slots))
        shared = mx.array(random(80 + i, tokens, n)).astype(DTYPES[dtype])
        # Far from zero and from one: the sigmoid of a sigmoid would show.
        gate = mx.array(random(90 + i, tokens, 1, scale=2.0)).astype(DTYPES[dtype])
        weights = softmax(f64(logits)).astype(np.float32)

        class Block(qwen3_next.Qwen3NextSparseMoeBlock):
            def __init__(self):
                pass

            # The router's own weights are a softmax of these logits, all of them chosen, in some order.
            top_k, norm_topk_prob, sharding_group = slots, True, None
            gate = staticmethod(lambda _: logits)
            switch_mlp = staticmethod(lambda _, ids: mx.take_along_axis(y, ids[..., None], axis=-2))
            shared_expert = staticmethod(lambda _: shared)

        Block.shared_expert_gate = staticmethod(lambda _: gate)
        out = qwen3_next.Qwen3NextSparseMoeBlock.__call__(Block(), y)
        wide = lambda t: f64(np.array(t.astype(mx.float32)))
        exact = (f64(weights)[..., None] * wide(y)).sum(-2) + sigmoid(wide(gate)) * wide(shared)
        error = np.abs(wide(out) - exact).max()
        assert error < {"f32": 1e-6, "f16": 4e-3, "bf16": 4e-2}[dtype], (i, error)
        tensors = {"y": y, "weights": weights, "shared": shared, "shared_gate_logit": gate}
        cases.add(f"{dtype}_{tokens}_{slots}_{n}", {}, **tensors, exact=exact)
    cases.save()


if __name__ == "__main__":
    main()
