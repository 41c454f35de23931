"""Searches for scales, and codes on lines, beside the same in plain torch on the same device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kernel_cases.case import Case, Group, Setting, nbytes, rows_of, unlike
from kernel_cases.clock import Clock
from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.minifloat import GRIDS as SMALL
from qconvert.formats.minifloat import float_search
from qconvert.kernels import fit, lines, small_floats
from qconvert.kernels.searches import (
    Fit,
    Symmetric,
    ZeroPoint,
)

CHECKED = 128  # rows that are computed on the processor, too
SPANS = ((0.0, 0.0), (-0.5, 0.25), (-1.0, 0.5))


def searches(setting: Setting) -> Iterator[tuple[str, Fit]]:
    """Of each kind, from one format."""
    if setting.tiny:
        yield "Q4_0", GRIDS["Q4_0"].search
        return
    yield "int4", Symmetric(128, -8, 7, (-8.0, -7.5, 7.0, -8.5), scale="float16")
    yield "int4 zeros", ZeroPoint(32, 15, SPANS)
    for name in ("Q4_0", "Q4_1", "Q6_K", "Q4_K", "IQ4_XS", "Q2_K"):
        yield name, GRIDS[name].search


def groups(setting: Setting, _: Clock) -> Iterator[Group]:
    rows, cols = setting.sizes((14336, 4096), (5, 256))
    w = setting.normal(rows, cols) * 0.02
    weight = setting.normal(cols, seed=2).exp()
    for name, search in searches(setting):
        yield partial(_search, setting, name, search, w, weight)
    for name in setting.sizes(SMALL, ("nvfp4",)):
        yield partial(_small_floats, name, w, weight)


def _search(
    setting: Setting, name: str, search: Fit, w: torch.Tensor, weight: torch.Tensor
) -> Iterator[Case]:
    of = f"{name} {w.shape[0]} x {w.shape[1]}"
    wanted = fit.fit(w[:CHECKED].cpu(), weight.cpu(), search, body="cpu")
    yield Case(
        "fit", of, lambda: fit.fit(w, weight, search, body="gpu"),
        lambda found: unlike(rows_of(found, CHECKED), wanted), moved=5 * w.numel(),
        baseline=lambda: [fit.fit(part, weight, search, body="plain") for part in w.split(1024)],
        limit="baseline",
    )  # fmt: skip
    yield from _on_lines(setting, of, w, search)


def _small_floats(name: str, w: torch.Tensor, weight: torch.Tensor) -> Iterator[Case]:
    grid: Any = SMALL[name]
    search = float_search(grid.bound(float(w.abs().max())) if hasattr(grid, "bound") else grid)
    assert search is not None
    wanted = small_floats.fit(w[:CHECKED].cpu(), weight.cpu(), search, body="cpu")
    yield Case(
        "small_floats.fit", f"{name} {w.shape[0]} x {w.shape[1]}",
        lambda: small_floats.fit(w, weight, search, body="gpu"),
        lambda found: unlike(rows_of(found, CHECKED), wanted), moved=5 * w.numel(),
        baseline=lambda: small_floats.fit(w, weight, search, body="plain"), limit="baseline",
    )  # fmt: skip


def _on_lines(setting: Setting, of: str, w: torch.Tensor, search: Fit) -> Iterator[Case]:
    codes, params = fit.fit(w, None, search, body="plain" if setting.tiny else "gpu")
    scale, offset = lines.lines_of(search, params, body="plain")
    few = rows_of((w, codes, scale, offset), CHECKED)
    values = lines.decoded(few[1], *few[2:], search.levels, body="cpu")
    wanted = lines.nearest_codes(few[0], *few[2:], search.levels, body="cpu")
    moved = nbytes(w, codes, scale, offset)
    yield Case(
        "lines.decoded", of,
        lambda: lines.decoded(codes, scale, offset, search.levels, body="gpu"),
        lambda found: unlike(rows_of(found, CHECKED), values), moved=moved, limit="copy",
    )  # fmt: skip
    yield Case(
        "lines.nearest_codes", of,
        lambda: lines.nearest_codes(w, scale, offset, search.levels, body="gpu"),
        lambda found: unlike(rows_of(found, CHECKED), wanted), moved=moved, limit="copy",
    )  # fmt: skip
