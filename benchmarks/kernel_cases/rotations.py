"""Rotations of activations by Hadamard matrices, beside a product with the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from kernel_cases.case import Case, Group, Setting, relative
from kernel_cases.clock import Clock
from qconvert.algorithms.hadamard import rotation
from qconvert.kernels.rotation import rotate

ROUNDED = 1e-3
"""Of a result that is rounded to float16 once, relative to the largest."""


def groups(setting: Setting, _: Clock) -> Iterator[Group]:
    for n in setting.sizes((4096, 14336, 5120), (64, 96)):
        yield partial(_of, setting, n)


def _of(setting: Setting, n: int) -> Iterator[Case]:
    tokens = setting.sizes(8192, 3)
    made = rotation(n, 1)
    signs, small = (torch.from_numpy(one).to(setting.device) for one in (made.signs, made.small))
    whole = rotate(torch.eye(n, device=setting.device, dtype=torch.float64), signs, small)
    for dtype, bound in ((torch.float16, ROUNDED), (torch.float32, 1e-6)):
        x = setting.normal(tokens, n).to(dtype)
        exact = rotate(x.double(), signs, small, body="plain")
        turned = whole.to(dtype)
        yield Case(
            "rotation.rotate", f"{tokens} x {n} {str(dtype).removeprefix('torch.')}",
            lambda x=x: rotate(x, signs, small, body="gpu"),
            lambda found, exact=exact: relative(found, exact), bound, moved=2 * x.nbytes,
            baseline=lambda x=x, turned=turned: x @ turned, limit="copy",
        )  # fmt: skip
