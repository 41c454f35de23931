"""Codes to values and back on tensors, once the parameters of every group are fixed.

The twins of `formats.nearest`, which does the same on arrays, bit for bit. Arguments may be on any
device; without `body`, the fastest that runs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from qconvert.kernels.bodies import Body, body_for, module
from qconvert.kernels.searches import (
    Fit,
)

if TYPE_CHECKING:
    import torch


def lines_of(
    search: Fit, params: Mapping[str, torch.Tensor], *, body: Body | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scale and offset of each group, float32 [rows, groups], exactly as decoders compute them.

    `params` as a grid keeps them, [rows, groups] or [rows, super-blocks], whole numbers in any
    type. `TypeError` for parameters that only their grid can read (`Table`).
    """
    (first, *_) = params.values()
    found: tuple[torch.Tensor, torch.Tensor | None]
    found = module(body_for(first.device, body), "lines").lines_of(search, params)
    return found


def decoded(
    codes: torch.Tensor,  # uint8 [rows, cols]
    scale: torch.Tensor,  # float32 [rows, groups]
    offset: torch.Tensor | None,
    levels: Any,  # ascending: an array, or a tensor on any device
    *,
    body: Body | None = None,
) -> torch.Tensor:
    """scale * levels[code] + offset, float32 [rows, cols]: what every decoder computes."""
    run = module(body_for(codes.device, body), "lines").decoded
    values: torch.Tensor = run(codes, scale, offset, _host(levels))
    return values


def nearest_codes(
    w: torch.Tensor,  # float32 [rows, cols]
    scale: torch.Tensor,
    offset: torch.Tensor | None,
    levels: Any,
    *,
    body: Body | None = None,
) -> torch.Tensor:
    """Codes uint8 [rows, cols] of the values scale * levels[code] + offset that are nearest to w.

    Where a scale is 0, the level nearest to 0. Ties of whole levels go to the even one, of others
    to the lower one.
    """
    run = module(body_for(w.device, body), "lines").nearest_codes
    codes: torch.Tensor = run(w, scale, offset, _host(levels))
    return codes


def _host(levels: Any) -> tuple[float, ...]:
    return tuple(levels.tolist())
