"""`kernels.lines` in torch: the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from qconvert.kernels.plain.scales import inverse
from qconvert.kernels.searches import (
    Affine,
    Fit,
    SuperAffine,
    SuperSymmetric,
    Symmetric,
    ZeroPoint,
)

Params = Mapping[str, Tensor]
Levels = tuple[float, ...]


def lines_of(search: Fit, params: Params) -> tuple[Tensor, Tensor | None]:
    if type(search) not in _LINES:
        raise TypeError(f"{type(search).__name__}: only its grid knows what the parameters mean")
    return _LINES[type(search)](params)


def _product(d: Tensor, whole: Tensor) -> Tensor:
    """[rows, groups]: the super-block's d times the whole number of each group."""
    each = whole.shape[1] // max(d.shape[1], 1)
    return d.float().repeat_interleave(each, 1) * whole.float()


def _scale(params: Params) -> tuple[Tensor, None]:
    return params["d"].float(), None


def _scale_and_offset(params: Params) -> tuple[Tensor, Tensor]:
    return params["d"].float(), params["m"].float()


def _scale_and_zero(params: Params) -> tuple[Tensor, Tensor]:
    scale = params["d"].float()
    return scale, -(scale * params["zero"].float())


def _super_scale(params: Params) -> tuple[Tensor, None]:
    return _product(params["d"], params["scales"]), None


def _super_scale_and_offset(params: Params) -> tuple[Tensor, Tensor]:
    scale = _product(params["d"], params["scales"])
    return scale, -_product(params["dmin"], params["mins"])


_LINES: Mapping[type, Callable[[Params], tuple[Tensor, Tensor | None]]] = {
    Symmetric: _scale,
    Affine: _scale_and_offset,
    ZeroPoint: _scale_and_zero,
    SuperSymmetric: _super_scale,
    SuperAffine: _super_scale_and_offset,
}


def whole(levels: Levels) -> bool:
    """Whether the levels are whole numbers in a row."""
    return all(b - a == 1 for a, b in pairwise(levels))


def middles(levels: Levels, device: torch.device) -> Tensor:
    """A value above middle k is nearer to level k + 1 than to level k."""
    known = torch.tensor(levels, dtype=torch.float32)
    return ((known[1:] + known[:-1]) / 2).to(device)


def decoded(codes: Tensor, scale: Tensor, offset: Tensor | None, levels: Levels) -> Tensor:
    rows, cols = codes.shape
    if whole(levels):
        flat = codes.float() + levels[0]
    else:
        flat = torch.tensor(levels, dtype=torch.float32, device=codes.device)[codes.int()]
    groups = scale.shape[1]
    found = flat.reshape(rows, groups, cols // groups) * scale[..., None]
    if offset is not None:
        found = found + offset[..., None]
    return found.reshape(rows, cols)


def nearest_codes(w: Tensor, scale: Tensor, offset: Tensor | None, levels: Levels) -> Tensor:
    (rows, cols), groups = w.shape, scale.shape[1]
    v = w.reshape(rows, groups, cols // groups)
    if offset is not None:
        v = v - offset[..., None]
    v = v * inverse(scale)[..., None]
    if whole(levels):
        found = (v.round().clamp(levels[0], levels[-1]) - levels[0]).to(torch.uint8)
    else:
        found = torch.bucketize(v, middles(levels, w.device)).to(torch.uint8)
    return found.reshape(rows, cols)
