"""The GPTQ sweep over a matrix and descents on a panel, beside the loops of plain torch.

A sweep is panels of columns, each followed by a matrix product for all columns after it, as
`converter/algorithms/rounds/gptq.py` does it; both bodies take the same product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch

from kernel_cases.case import Case, Group, Setting, nbytes, unlike
from kernel_cases.clock import Clock
from qconvert.formats.gguf.grids import GRIDS
from qconvert.kernels.bodies import Body
from qconvert.kernels.descent import State, descend, feed_back
from qconvert.kernels.fit import fit as search_scales
from qconvert.kernels.levels import IQ4_LEVELS
from qconvert.kernels.searches import (
    Fit,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
    ZeroPoint,
)

LEVELS = {"int4": np.arange(-8, 8, dtype=np.float32), "IQ4": IQ4_LEVELS}
GROUP = 128
CHECKED = 64  # rows that are computed on the processor, too


def groups(setting: Setting, _: Clock) -> Iterator[Group]:
    shapes = setting.sizes([(4096, 4096), (14336, 4096), (4096, 14336)], [(20, 64)])
    for rows, cols in shapes:
        for panel in setting.sizes((128, 256), (32,)):
            yield partial(_sweep, setting, rows, cols, panel)
    for name in LEVELS:
        yield partial(_feedback, setting, name)
    for name, search in _searches(setting):
        yield partial(_descent, setting, name, search)


def _sweep(setting: Setting, rows: int, cols: int, panel: int) -> Iterator[Case]:
    w = setting.normal(cols, rows) * 0.02
    factor = _factor(setting, cols)
    scale = w.abs().reshape(-1, min(GROUP, panel), rows).amax(1) / 8

    def run(body: Body) -> torch.Tensor:
        rest, codes = w.clone(), torch.empty(w.shape, dtype=torch.uint8, device=w.device)
        column = torch.arange(cols, device=w.device) // (cols // len(scale))
        for start in range(0, cols, panel):
            now, after = slice(start, start + panel), slice(start + panel, cols)
            codes[now], errors = feed_back(
                rest[now], factor[now, now], scale[column[now]], None, LEVELS["int4"], body=body
            )
            rest[after] -= factor[now, after].t() @ errors
        return codes

    yield Case(
        "descent.feed_back, a whole sweep", f"int4 {rows} x {cols}, panels of {panel}",
        lambda: run("gpu"), lambda found: unlike(found, run("plain")),
        flops=rows * cols * cols, baseline=lambda: run("plain"), limit="baseline", wanted=5.0,
    )  # fmt: skip


def _feedback(setting: Setting, name: str) -> Iterator[Case]:
    cols, rows = setting.sizes((256, 14336), (32, 20))
    w, factor = setting.normal(cols, rows) * 0.02, _factor(setting, cols)
    scale = w.abs().amax(0, keepdim=True) / float(LEVELS[name].max())
    few = [one[:, :CHECKED].cpu() for one in (w, scale)]

    def run(body: Body, w: torch.Tensor, scale: torch.Tensor) -> Any:
        return feed_back(w, factor.to(w.device), scale, None, LEVELS[name], body=body)

    yield Case(
        "descent.feed_back", f"{name} panel of {cols} x {rows} rows",
        lambda: run("gpu", w, scale),
        lambda found: unlike([one[:, :CHECKED] for one in found], run("cpu", *few)),
        moved=9 * w.numel(), baseline=lambda: run("plain", w, scale), limit="baseline",
    )  # fmt: skip


def _searches(setting: Setting) -> Iterator[tuple[str, Fit]]:
    yield "int4", Symmetric(32, -8, 7, (-8.0, 7.5))
    if not setting.tiny:
        yield "int4 zeros", ZeroPoint(32, 15, ((0.0, 0.0), (-1.0, 0.5)))
        yield "Q4_K", GRIDS["Q4_K"].search
        yield "IQ4_XS", GRIDS["IQ4_XS"].search


def _descent(setting: Setting, name: str, search: Fit) -> Iterator[Case]:
    rows = setting.sizes(14336, 5)
    cols = setting.sizes(256, 64)
    w = setting.normal(rows, cols) * 0.02
    codes, params = search_scales(w, None, search, body="plain")
    fields = [one.t().contiguous() for one in params.values()]
    chosen = torch.from_numpy(search.levels).to(w.device)[codes.t().long()].contiguous()
    moments = _moments(setting, cols)
    gradient = setting.normal(cols, rows, seed=3) * 0.01

    def run(body: Body, part: Callable[[torch.Tensor], torch.Tensor] = torch.clone) -> Any:
        now = part(chosen)
        state = State(*(part(one) for one in _placed(search, fields)))
        change = descend(part(gradient), moments.to(now.device), now, state, search, body=body)
        used = [one for one in (state.scale, state.offset, state.d, state.dmin) if len(one)]
        return [now, change, *used]

    def few(one: torch.Tensor) -> torch.Tensor:
        return one[..., :CHECKED].cpu().clone()

    yield Case(
        "descent.descend", f"{name} panel of {cols} x {rows} rows", lambda: run("gpu"),
        lambda found: unlike([one[..., :CHECKED] for one in found], run("cpu", few)),
        moved=nbytes(chosen, gradient) * 2, baseline=lambda: run("plain"), limit="baseline",
    )  # fmt: skip


def _placed(search: Fit, fields: list[torch.Tensor]) -> list[torch.Tensor]:
    """As `State` has them: scale, offset, and what 256 columns share, of the outputs' order."""
    if isinstance(search, SuperSymmetric):
        return [fields[0], fields[1][:0], fields[1][0]]
    shared = isinstance(search, SuperAffine)
    return [one[0] if shared and at > 1 else one for at, one in enumerate(fields)]


def _moments(setting: Setting, cols: int) -> torch.Tensor:
    x = setting.normal(2 * cols, cols, seed=4)
    return x.t() @ x / (2 * cols)


def _factor(setting: Setting, cols: int) -> torch.Tensor:
    """An upper factor as moments have them: a strong diagonal, the rest fading."""
    upper = setting.normal(cols, cols, seed=5).triu(1) * (0.3 / cols**0.5)
    return upper + torch.eye(cols, device=upper.device)
