"""What vision towers do before their first layer: patches of images and frames in the order of transformers' Qwen2-VL
processors, and grids of position embeddings resized by torch and by transformers' Qwen3-VL, beside an f64 evaluation."""

import ast
import importlib.util
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers.vision_utils import get_vision_interpolation_indices_and_weights

from common import Cases, random


def main():
    patches()
    resize()


def patches():
    """`x` is [frames, channels, height, width] of one image or a video; `out` is [patches, elements of a patch]."""
    cases = Cases("patches")
    sizes = {"patch": 3, "merge": 2, "frames": 2}
    arguments = {"patch_size": 3, "merge_size": 2, "temporal_patch_size": 2}
    image = np.arange(3 * 12 * 18, dtype=np.int32).reshape(1, 3, 12, 18)
    out = patchify("image")(None, torch.from_numpy(image), **arguments)[0][0]
    cases.add("image", sizes, x=image, out=out.contiguous())
    video = np.arange(4 * 3 * 12 * 18, dtype=np.int32).reshape(4, 3, 12, 18)
    out = patchify("video")(None, torch.from_numpy(video)[None], **arguments)[0][0]
    cases.add("video", sizes, x=video, out=out.contiguous())
    cases.save()


def patchify(kind):
    """The method of a processor whose module wants torchvision, which the method does not."""
    spec = importlib.util.find_spec("transformers.models.qwen2_vl")
    path = Path(spec.submodule_search_locations[0]) / f"{kind}_processing_qwen2_vl.py"
    nodes = ast.walk(ast.parse(path.read_text()))
    method = next(n for n in nodes if isinstance(n, ast.FunctionDef) and n.name == "patchify")
    names = {"torch": torch}
    exec(compile(ast.Module([method], []), str(path), "exec"), names)
    return names["patchify"]


def resize():
    """`x` is [height, width, dim], `out` and `exact` (f64) those of another height and width."""
    cases = Cases("resize")
    grid, image = random(40, 7, 5, 6), random(41, 40, 33, 3)
    cases.share("grid", grid)
    cases.share("image", image)
    runs = [("grid", size) for size in [(4, 9), (14, 3), (1, 1), (7, 5), (13, 11)]]
    runs += [("image", size) for size in [(9, 8), (50, 2)]]
    for name, size in runs:
        for mode in ("bilinear", "bicubic"):
            for kind in ("centers", "corners", "antialias"):
                x = {"grid": grid, "image": image}[name]
                options = {"align_corners": kind == "corners", "antialias": kind == "antialias"}
                planes = torch.from_numpy(x).permute(2, 0, 1)[None]
                out = F.interpolate(planes, size, mode=mode, **options)[0].permute(1, 2, 0)
                exact = evaluate(x, size, mode, **options)
                assert np.abs(out.numpy() - exact).max() < 1e-5, (name, size, mode, kind)
                params = {"x": name, "filter": mode, **options}
                cases.add(f"{name}_{size[0]}x{size[1]}_{mode}_{kind}", params, out=out.contiguous(), exact=exact)
    qwen3_vl_case(cases)
    cases.save()


def qwen3_vl_case(cases):
    """A learnt grid of 8 by 8 for an image of 6 by 10 patches, `out` in the order of 2x2 blocks: [60, dim]."""
    table = random(42, 64, 5)
    grid = torch.tensor([[1, 6, 10]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid, num_grid_per_side=8, mode="bilinear", align_corners=True, spatial_merge_size=2
    )
    out = (torch.from_numpy(table)[indices] * weights[:, :, None]).sum(1)
    exact = evaluate(table.reshape(8, 8, 5), (6, 10), "bilinear", align_corners=True, antialias=False)
    exact = exact.reshape(3, 2, 5, 2, 5).transpose(0, 2, 1, 3, 4).reshape(60, 5)
    assert np.abs(out.numpy() - exact).max() < 1e-5
    params = {"filter": "bilinear", "align_corners": True, "antialias": False}
    cases.add("qwen3_vl", params, x=table.reshape(8, 8, 5), out=out.contiguous(), exact=np.ascontiguousarray(exact))


def evaluate(x, size, mode, align_corners, antialias):
    """The mathematics in f64: a matrix of weights an axis."""
    rows = weights(x.shape[0], size[0], mode, align_corners, antialias)
    columns = weights(x.shape[1], size[1], mode, align_corners, antialias)
    return np.einsum("yh,xw,hwd->yxd", rows, columns, x.astype(np.float64))


def weights(n, m, mode, align_corners, antialias):
    """The weights of n elements in each of m."""
    matrix = np.zeros((m, n))
    cubic = mode == "bicubic"
    stretch = max(1.0, n / m) if antialias else 1.0
    for i in range(m):
        at = i * (n - 1) / max(m - 1, 1) if align_corners else (i + 0.5) * n / m - 0.5
        reach = (2 if cubic else 1) * stretch
        for tap in range(int(np.floor(at - reach)), int(np.ceil(at + reach)) + 1):
            d = abs(tap - at) / stretch
            weight = keys(d, -0.5 if antialias else -0.75) if cubic else max(0.0, 1 - d)
            if antialias:
                # What is beyond an edge is left out; without it the edge stands for it.
                if 0 <= tap < n:
                    matrix[i, tap] += weight
            else:
                matrix[i, min(max(tap, 0), n - 1)] += weight
        matrix[i] /= matrix[i].sum()
    return matrix


def keys(d, a):
    """Cubic convolution: Keys, 1981."""
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


main()
