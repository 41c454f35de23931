"""Some of the tokens that reach an input, as they are: what moments cannot tell."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from qconvert.engine.moments import Change

VALUES, TOKENS = 1 << 20, 256
"""Numbers of one input that are kept (4 MB), and tokens at least, where they are wide."""
LOUD = 4
"""One of so many is among the loudest of all: a few tokens, such as the first of a row, can be
hundreds of times as large as the others, and a sample that lacks them tells nothing of them."""
_GOLDEN = 40503  # of 65536: its multiples spread evenly


@dataclass(frozen=True, slots=True)
class Tokens:
    """A sample of many tokens."""

    x: torch.Tensor  # [n, cols] float32
    count: torch.Tensor  # [n] float64: how many tokens each stands for

    def after(self, change: Change) -> Tokens:
        return replace(self, x=change.of(self.x))


class Sample:
    """The loudest tokens of one input, and others evenly spread over the rest; the same whatever
    the waves."""

    def __init__(self, tokens: int, cols: int) -> None:
        """`tokens`: how many there will be."""
        most = sampled_tokens(cols)
        self._count, self._loud = tokens, most // LOUD
        self._spread = spread(tokens, most - self._loud)
        self._passed = 0
        self._even: list[torch.Tensor] = []
        self._index: list[int] = []  # of the loudest, loudest first
        self._loudness = torch.empty(0)
        self._loudest = torch.empty(0, cols)

    def add(self, x: torch.Tensor) -> None:
        """The next tokens x [n, cols]."""
        start, self._passed = self._passed, self._passed + len(x)
        first, last = np.searchsorted(self._spread, [start, self._passed])
        self._even.append(x[torch.from_numpy(self._spread[first:last] - start).to(x.device)])
        loudness = torch.linalg.vector_norm(x, torch.inf, dim=1)
        mine = _largest_first(loudness)[: self._loud]
        index = [*self._index, *(start + place for place in mine.tolist())]
        loudness = torch.cat([self._loudness.to(x.device), loudness[mine]])
        order = _largest_first(loudness)[: self._loud]
        self._index = [index[place] for place in order.tolist()]
        self._loudest = torch.cat([self._loudest.to(x.device), x[mine]])[order]
        self._loudness = loudness[order]

    @property
    def tokens(self) -> Tokens:
        others = np.isin(self._spread, self._index, invert=True)
        even = torch.cat(self._even)[torch.from_numpy(others).to(self._loudest.device)]
        loud = len(self._index)
        each = (self._count - loud) / max(1, len(even))
        count = torch.full((loud + len(even),), each, dtype=torch.float64, device=even.device)
        count[:loud] = 1
        return Tokens(torch.cat([self._loudest, even]), count)


def sampled_tokens(cols: int) -> int:
    """How many are kept of an input of `cols` channels, at most."""
    return max(TOKENS, VALUES // cols)


def _largest_first(values: torch.Tensor) -> torch.Tensor:
    """Where they are; of equals, the first first."""
    return values.sort(descending=True, stable=True).indices


def spread(count: int, most: int) -> NDArray[np.int64]:
    """At most `most` of `count` indices, one from each of as many equal stretches. Their places in
    the stretches go round: at even distances, they could all be first tokens of a row, or none."""
    size = min(count, most)
    index = np.arange(size, dtype=np.int64)
    edges = np.arange(size + 1, dtype=np.int64) * count // size
    turn = index * _GOLDEN % 65536
    return edges[:-1] + (turn * np.diff(edges) >> 16)
