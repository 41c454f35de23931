"""How far one decoded tensor is from its source, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TensorError:
    """Distance of one tensor from the source, relative to the source (root of summed squares)."""

    name: str
    error: float  # over the whole tensor
    worst_row: float  # the largest over its rows
    row: int  # which one that is
    limit: float  # what `worst_row` may be at the output's bits

    @property
    def ok(self) -> bool:
        return self.worst_row <= self.limit  # False for NaN
