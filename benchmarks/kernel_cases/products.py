"""Products on packed weights beside torch's float16 product of the same shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from kernel_cases.case import Case, Group, Setting, nbytes, relative, unlike
from kernel_cases.clock import Clock
from qconvert.kernels import products, word_layouts, words
from qconvert.kernels.word_layouts import Scales

GROUP = 128
SHAPES = ((4096, 4096), (6144, 4096), (14336, 4096), (4096, 14336))  # [N, K] of an 8B model
FEW = (1, 2, 4, 8, 16)
MANY = (64, 512, 2048)
ROUNDED = 2e-3
"""Of a result that is rounded to float16 once, relative to the largest."""


def groups(setting: Setting, clock: Clock) -> Iterator[Group]:
    for n, k in setting.sizes(SHAPES, ((48, 256),)):
        yield partial(_four_bits, setting, clock, n, k)
        yield partial(_eight_bits, setting, clock, n, k)


def _four_bits(setting: Setting, clock: Clock, n: int, k: int) -> Iterator[Case]:
    few, many = setting.sizes((FEW, MANY), ((1, 3), (20,)))
    layout, shape = word_layouts.along_inputs(4, 0), (n, k)
    codes = setting.bytes(n, k, below=16)
    scale = (setting.normal(n, k // GROUP).abs() / 64 + 1e-3).half()
    zero = setting.bytes(n, k // GROUP, below=16)
    packed = words.pack(codes, layout, body="plain")
    zeros = words.pack(zero, word_layouts.along_outputs(4), body="plain")
    copies = [packed.clone() for _ in range(clock.copies(packed.nbytes))]
    for name, given, at in (("symmetric", None, torch.full_like(zero, 8)), ("zeros", zeros, zero)):
        half = words.dequantize(
            packed, Scales(scale, GROUP, zero=at), layout, shape, torch.float16, body="plain"
        )
        halves = [half.clone() for _ in range(clock.copies(half.nbytes))]
        step = scale.double().repeat_interleave(GROUP, 1)
        weights = (codes.double() - at.repeat_interleave(GROUP, 1)) * step
        for tokens in (*few, *many) if given is None else few:
            x = setting.normal(tokens, k, seed=1).half()
            exact = x.double() @ weights.T
            runs = [partial(products.w4a16, x, one, scale, given, body="gpu") for one in copies]
            others = [partial(torch.matmul, x, one.T) for one in halves]
            yield Case(
                "products.w4a16", f"{tokens} tokens, {n} x {k}, {name}", runs[0],
                lambda found, exact=exact: relative(found, exact), ROUNDED,
                moved=nbytes(x, packed, scale, given) + 2 * tokens * n, flops=2 * tokens * n * k,
                baseline=others[0], limit="baseline", wanted=2.5 if tokens in few else None,
                more=tuple(runs[1:]), more_baseline=tuple(others[1:]),
            )  # fmt: skip


def _eight_bits(setting: Setting, clock: Clock, n: int, k: int) -> Iterator[Case]:
    few, many = setting.sizes((FEW, MANY), ((1, 3), (20,)))
    weight = setting.bytes(n, k).view(torch.int8)
    scale = setting.normal(n).abs() / 64 + 1e-3
    half = (weight * scale[:, None]).half()
    copies = [weight.clone() for _ in range(clock.copies(weight.nbytes))]
    halves = [half.clone() for _ in range(clock.copies(half.nbytes))]
    rows = slice(0, min(n, 64))
    for tokens in (few[0], few[-1], *many):
        x = setting.normal(tokens, k, seed=1).half()
        wanted = products.w8a8(x.cpu(), weight[rows].cpu(), scale[rows].cpu(), body="plain")
        runs = [partial(products.w8a8, x, one, scale, body="gpu") for one in copies]
        others = [partial(torch.matmul, x, one.T) for one in halves]
        yield Case(
            "products.w8a8", f"{tokens} tokens, {n} x {k}", runs[0],
            lambda found, wanted=wanted: unlike(found[:, rows].cpu(), wanted),
            moved=nbytes(x, weight, scale) + 2 * tokens * n, flops=2 * tokens * n * k,
            baseline=others[0], limit="baseline",
            more=tuple(runs[1:]), more_baseline=tuple(others[1:]),
        )  # fmt: skip
