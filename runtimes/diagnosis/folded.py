"""Norms that are scaled against the linears that read them (AWQ, SmoothQuant), or are not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case, Floats
from qconvert.runtimes.diagnosis.sums import TINY

Values = NDArray[np.float64]

READ_BY: Mapping[str, tuple[str, ...]] = {
    "attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "ffn_norm": ("ffn_gate", "ffn_up", "ffn_gate_up"),
    "final_norm": ("head",),
}
"""A norm -> the linears of its block that read what it gives."""

NORM_OFFSETS = (0.0, 1.0)  # what a norm multiplies by: its weight, or that plus one (Gemma's)
ONLY_BY_NORM = ("attn_q", "attn_k", "ffn_gate")
"""Linears that nothing but their norm is scaled against: no smoothing scales their rows."""
LEVEL = 0.05
"""By which their columns may be larger or smaller than their norm makes expected, beside twice the
squared error, which rounding takes from every slope. AWQ in 4 bits: 0.012 with an error of 0.1."""

LEVEL_NORM = 1e-3  # by which its columns may differ

ALIKE = 0.7  # correlation of a norm's factors with those of the columns that read it
SHARE_OFF = 0.4  # by which one may have grown less or more than the other, in shares
LEVEL_OFF = 0.06  # and by which their means may differ


@dataclass(slots=True)
class Norm:
    """A norm that is not the source's: what its readers would be multiplied with in return."""

    at: int  # which of the tensors it is
    factors: Sequence[Values]  # by column; one for each way to store a norm
    level: bool  # whether it is the same for all columns: a rotation goes through no other norm
    explained: bool = False

    def explains(self, columns: Values) -> bool:
        """Whether the columns of a linear that reads it have changed in return."""
        return any(_explains(factor, columns) for factor in self.factors)


def norm_of(at: int, there: Values, here: Floats) -> Norm:
    """`here` in the place of the source's `there`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = [(there + offset) / (here + offset) for offset in NORM_OFFSETS]
    level = bool(np.ptp(here) <= LEVEL_NORM * np.abs(here).max())
    return Norm(at, [factor for factor in factors if np.isfinite(factor).all()], level)


def column_factors(case: Case) -> Values:
    """By column: the factor from the source that fits best, by least squares."""
    cross, own = np.zeros(case.here.shape[1]), np.zeros(case.here.shape[1])
    for _, here, there in case.pieces():
        cross += np.multiply(here, there, dtype=np.float64).sum(0)
        own += np.square(there, dtype=np.float64).sum(0)
    return np.asarray(cross / np.maximum(own, TINY))


def _explains(factor: Values, columns: Values) -> bool:
    """Whether a linear's columns have grown by `factor` rather than not at all: a norm that was
    changed alone is a fault. Of small factors most is noise: there, that they go together decides.
    """
    off = float(np.square(columns / factor - 1).mean())
    still = float(np.square(columns - 1).mean())
    if off < 0.25 * still:
        return True
    spread, grown = factor - factor.mean(), columns - columns.mean()
    share = float(spread @ grown) / max(float(spread @ spread), TINY)
    alike = float(spread @ grown) / max(math.sqrt(float(spread @ spread) * (grown @ grown)), TINY)
    level = float((columns / factor).mean())
    return alike > ALIKE and abs(share - 1) < SHARE_OFF and abs(level - 1) < LEVEL_OFF


def level_off(norms: Sequence[Norm], columns: Values, error: float) -> str:
    """What is wrong with the size of a linear beside that of its norm; empty: nothing."""
    levels = [float(columns @ one / (one @ one)) for norm in norms for one in norm.factors]
    level = min(levels, key=lambda one: abs(one - 1), default=1.0)
    if abs(level - 1) <= LEVEL + 2 * error**2:
        return ""
    return f"is {level:.3f} times what its norm makes expected: a wrong scale"
