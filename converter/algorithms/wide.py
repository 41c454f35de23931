"""Scales (and zero points) of groups that are wider than a panel, a whole row for one: re-fitted in
closed form with the full second moments, while the codes stay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.kernels.descent import State, limits_of, low_bits_of
from qconvert.kernels.scales import stored
from qconvert.kernels.searches import (
    Fit,
)

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def refit(
    gradient: torch.Tensor,  # [cols, rows]: moments @ (values - targets); changed in place
    moments: torch.Tensor,  # [cols, cols], symmetric
    chosen: torch.Tensor,  # [cols, rows]: the level of each weight
    state: State,  # of whole rows: scale and, where there are zero points, offset [groups, rows]
    search: Fit,
) -> None:
    """Move each group's scale and zero point to the pair with the least error among those that the
    file can hold, in `state`; where none is better, they stay. Group after group, rows apart.

    With codes L and moments H, the error of values a (L - z) is quadratic in a: every z has its own
    best a. Sums over columns are float64.
    """
    groups = len(state.scale)
    size = len(chosen) // groups
    device, shifted = gradient.device, len(state.offset) > 0
    zeros = _zeros(search) if shifted else [0]
    for k in range(groups):
        columns = slice(k * size, (k + 1) * size)
        levels = chosen[columns]
        pushed = moments[:, columns] @ levels  # H L
        ones = moments[:, columns].double().sum(1)  # H 1
        inside, wide = pushed[columns].double(), levels.double()
        slopes = gradient[columns].double()
        sums = _Sums(
            *(
                one.cpu().numpy()
                for one in (
                    (wide * slopes).sum(0),
                    slopes.sum(0),
                    (wide * inside).sum(0),
                    inside.sum(0),
                    ones[columns].sum().expand(wide.shape[1]),
                )
            )
        )
        scale = state.scale[k].cpu().numpy()
        zero = state.offset[k].cpu().numpy() if shifted else np.zeros_like(scale)
        new, at = sums.best(scale, zero, zeros, low_bits_of(search))
        by_level = torch.from_numpy(new - scale).to(device)
        shift = torch.from_numpy(scale * zero - new * at).to(device)
        gradient += pushed * by_level + ones.float()[:, None] * shift
        state.scale[k].copy_(torch.from_numpy(new))
        if shifted:
            state.offset[k].copy_(torch.from_numpy(at))


class _Sums:
    """Of one group, each [rows]: products of levels L and ones with the gradient and with H."""

    def __init__(self, gl: Doubles, g1: Doubles, ll: Doubles, l1: Doubles, oo: Doubles) -> None:
        self.gl, self.g1, self.ll, self.l1, self.oo = gl, g1, ll, l1, oo

    def best(
        self, scale: Floats, zero: Floats, zeros: Sequence[int], low_bits: int
    ) -> tuple[Floats, Floats]:
        """The scale and zero point with the least error; those there are where none is better."""
        least = np.zeros(len(scale))
        best, at = scale.copy(), zero.copy()
        for z in zeros:
            curve = self.ll - 2 * z * self.l1 + z * z * self.oo
            slope = self.gl - z * self.g1
            cross = self.ll - (z + zero) * self.l1 + z * zero * self.oo
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                wanted = np.where(curve > 0, (scale * cross - slope) / curve, 0)
                new = stored(wanted.astype(np.float32), low_bits)
            usable = np.isfinite(new) & ((new > 0) if len(zeros) > 1 else (new != 0))
            new = np.where(usable, new, scale)
            error = np.where(usable, self.change(new, np.float64(z), scale, zero), 0)
            better = error < least
            least = np.where(better, error, least)
            best, at = np.where(better, new, best), np.where(better, np.float32(z), at)
        return best, at

    def change(self, new: Floats, z: np.float64, scale: Floats, zero: Floats) -> Doubles:
        """Of the error, when values scale (L - zero) become new (L - z)."""
        by_level = new.astype(np.float64) - scale
        shift = scale.astype(np.float64) * zero - new * z
        found: Doubles = 2 * (by_level * self.gl + shift * self.g1) + by_level**2 * self.ll
        return found + 2 * by_level * shift * self.l1 + shift**2 * self.oo


def _zeros(search: Fit) -> Sequence[int]:
    low, high = limits_of(search)
    return range(int(low), int(high) + 1)
