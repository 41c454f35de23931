"""Rounding to small floats, and the search for their scales, on tensors of any device.

What `formats.minifloat` does on arrays, bit for bit, errors of groups included: they are summed in
the order of numpy's pairwise sums. Every body gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from qconvert.kernels.bodies import Body, body_for, module
from qconvert.kernels.minifloat import MiniFloat

if TYPE_CHECKING:
    import torch

WEIGHTS_AT_ONCE = 1 << 26  # of the search: bounds what it holds beside them


@dataclass(frozen=True, slots=True)
class FloatSearch:
    """x ~ scale * level, levels those of `kind`; how the scale of a group is stored and searched.

    | scale | parameters | `steps` away from the one that covers the largest magnitude |
    |---|---|---|
    | "float" | d float32 | factors |
    | "shared" | d float32, `largest` / top | - |
    | "e4m3" | scale uint8, amax float32 [rows, 1] | neighbours; scale * (amax / (6 * 448)) |
    | "e8m0" | exponent uint8 | powers of two |
    """

    kind: MiniFloat
    group: int  # columns that share a scale; 0: the whole row
    scale: Literal["float", "shared", "e4m3", "e8m0"] = "float"
    steps: tuple[float, ...] = ()
    together: int = 1  # rows that share a scale
    largest: float | None = None  # magnitude, of all that shares a scale with it


def rounded(v: torch.Tensor, kind: MiniFloat, *, body: Body | None = None) -> torch.Tensor:
    """Codes uint8 of the values of `kind` nearest to v, float32; ties to the even mantissa, and
    what lies beyond to the largest."""
    codes: torch.Tensor = module(body_for(v.device, body), "small_floats").rounded(v, kind)
    return codes


def nearest(
    w: torch.Tensor, scale: torch.Tensor, kind: MiniFloat, *, body: Body | None = None
) -> torch.Tensor:
    """Codes uint8 [rows, cols] of w / scale, a true division; w [rows, cols], scale [rows,
    groups], float32."""
    run = module(body_for(w.device, body), "small_floats")
    codes: torch.Tensor = run.nearest(w.contiguous(), scale.contiguous(), kind)
    return codes


def errors(
    w: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    kind: MiniFloat,
    *,
    body: Body | None = None,
) -> torch.Tensor:
    """The weighted squared error of each group on its nearest levels, float32 [rows, groups]; w
    [rows, cols], weight [cols], scale [rows, groups], float32."""
    run = module(body_for(w.device, body), "small_floats")
    given = (w.contiguous(), weight.contiguous(), scale.contiguous())
    found: torch.Tensor = run.errors(*given, kind)
    return found


def fit(
    w: torch.Tensor,
    weight: torch.Tensor | None,
    search: FloatSearch,
    *,
    body: Body | None = None,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Codes [rows, cols] and parameters as the grid keeps them, by the least weighted squared error
    of the scales that `search` looks at; the first of equals.

    w float32 [rows, cols] of whole groups; weight float32 [cols], as `fit.usable` makes it; None:
    all columns alike. A scale beyond its type comes out infinite: the caller looks for it.
    """
    import torch

    from qconvert.kernels.plain import multipliers

    body, cols = body_for(w.device, body), max(w.shape[1], 1)
    known = torch.ones(w.shape[1], device=w.device) if weight is None else weight
    step = search.together * max(1, WEIGHTS_AT_ONCE // (search.together * cols))
    parts: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for start in range(0, max(len(w), 1), step):
        part = w[start : start + step].contiguous()

        def error(scale: torch.Tensor, part: torch.Tensor = part) -> torch.Tensor:
            return errors(part, known, scale, search.kind, body=body)

        params = multipliers.searched(part, search, error)
        scale = multipliers.scale_of(params, search)
        parts.append((nearest(part, scale, search.kind, body=body), params))
    codes = torch.cat([codes for codes, _ in parts])
    return codes, {name: torch.cat([one[name] for _, one in parts]) for name in parts[0][1]}


def scale_of(params: dict[str, Any], search: FloatSearch) -> torch.Tensor:
    """What the parameters stand for: float32 [rows, groups]."""
    from qconvert.kernels.plain import multipliers

    return multipliers.scale_of(params, search)
