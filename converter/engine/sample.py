"""Some of the tokens that reach an input, as they are: what moments cannot tell."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

VALUES = 1 << 21
"""Numbers of one input that are kept: 8 MB."""
_GOLDEN = 40503  # of 65536: its multiples spread evenly


class Sample:
    """Whole tokens of one input, evenly spread over all of them; the same whatever the waves."""

    def __init__(self, tokens: int, cols: int) -> None:
        """`tokens`: how many there will be."""
        self._chosen = spread(tokens, max(1, VALUES // cols))
        self._passed = 0
        self._parts: list[torch.Tensor] = []

    def add(self, x: torch.Tensor) -> None:
        """The next tokens x [n, cols]."""
        start, self._passed = self._passed, self._passed + len(x)
        first, last = np.searchsorted(self._chosen, [start, self._passed])
        self._parts.append(x[torch.from_numpy(self._chosen[first:last] - start).to(x.device)])

    @property
    def tokens(self) -> torch.Tensor:
        """[tokens, cols] float32."""
        return torch.cat(self._parts)


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `count` indices, one from each of as many equal stretches. Their places in
    the stretches go round: at even distances, they could all be first tokens of a row, or none."""
    size = min(count, most)
    index = np.arange(size, dtype=np.int64)
    edges = np.arange(size + 1, dtype=np.int64) * count // size
    turn = index * _GOLDEN % 65536
    return edges[:-1] + (turn * np.diff(edges) >> 16)
