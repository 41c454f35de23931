"""Products on packed weights beside torch's float16 product of the same shape."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernel_cases.case import Case, Setting, nbytes, relative, unlike
from qconvert.kernels import products, word_layouts, words
from qconvert.kernels.word_layouts import Scales

GROUP = 128
SHAPES = ((4096, 4096), (6144, 4096), (14336, 4096), (4096, 14336))  # [N, K] of an 8B model
FEW = (1, 2, 4, 8, 16)
MANY = (64, 512, 2048)
ROUNDED = 2e-3
"""Of a result that is rounded to float16 once, relative to the largest."""


def cases(setting: Setting) -> Iterator[Case]:
    few, many = setting.sizes((FEW, MANY), ((1, 3), (20,)))
    for n, k in setting.sizes(SHAPES, ((48, 256),)):
        for tokens in (*few, *many):
            yield from _four_bits(setting, tokens, n, k, judged=tokens in few)
            if tokens not in few[1:-1]:
                yield _eight_bits(setting, tokens, n, k)


def _four_bits(setting: Setting, tokens: int, n: int, k: int, judged: bool) -> Iterator[Case]:
    layout, shape = word_layouts.along_inputs(4, 0), (n, k)
    x = setting.normal(tokens, k, seed=1).half()
    codes = setting.bytes(n, k, below=16)
    scale = (setting.normal(n, k // GROUP).abs() / 64 + 1e-3).half()
    zero = setting.bytes(n, k // GROUP, below=16)
    packed = words.pack(codes, layout, body="plain")
    zeros = words.pack(zero, word_layouts.along_outputs(4), body="plain")
    for name, given, at in (("symmetric", None, torch.full_like(zero, 8)), ("zeros", zeros, zero)):
        if given is not None and not judged:
            continue
        half = words.dequantize(
            packed, Scales(scale, GROUP, zero=at), layout, shape, torch.float16, body="plain"
        )
        step = scale.double().repeat_interleave(GROUP, 1)
        exact = x.double() @ ((codes.double() - at.repeat_interleave(GROUP, 1)) * step).T
        yield Case(
            "products.w4a16", f"{tokens} tokens, {n} x {k}, {name}",
            lambda given=given: products.w4a16(x, packed, scale, given, body="gpu"),
            lambda found, exact=exact: relative(found, exact), ROUNDED,
            moved=nbytes(x, packed, scale, given) + 2 * tokens * n, flops=2 * tokens * n * k,
            baseline=lambda half=half: torch.matmul(x, half.T),
            limit="baseline", wanted=2.5 if judged else None,
        )  # fmt: skip


def _eight_bits(setting: Setting, tokens: int, n: int, k: int) -> Case:
    x = setting.normal(tokens, k, seed=1).half()
    weight = setting.bytes(n, k).view(torch.int8)
    scale = setting.normal(n).abs() / 64 + 1e-3
    half = (weight * scale[:, None]).half()
    rows = slice(0, min(n, 64))
    wanted = products.w8a8(x.cpu(), weight[rows].cpu(), scale[rows].cpu(), body="plain")
    return Case(
        "products.w8a8", f"{tokens} tokens, {n} x {k}",
        lambda: products.w8a8(x, weight, scale, body="gpu"),
        lambda found: unlike(found[:, rows].cpu(), wanted),
        moved=nbytes(x, weight, scale) + 2 * tokens * n, flops=2 * tokens * n * k,
        baseline=lambda: torch.matmul(x, half.T), limit="baseline",
    )  # fmt: skip
