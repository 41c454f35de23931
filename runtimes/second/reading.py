"""Weights of an output, read a second time by code that shares nothing with what wrote it.

A reader that shares its tables with the writer finds its own mistakes right. Those of this package
know each format by what its other implementations say, and import none of ours: no grid, layout,
packing, name or row order. A module here with an attribute `SECOND` is one; nothing is registered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.discovery import offered
from qconvert.formats.source import Source

Floats = NDArray[np.float32]


class Second(Protocol):
    """Reads outputs of some targets."""

    @property
    def name(self) -> str: ...
    @property
    def targets(self) -> frozenset[str]:
        """The targets whose outputs it reads."""
        ...

    def weights(self, path: Path, source: Source) -> Mapping[str, Floats]:
        """As `second_weights`."""
        ...


HEAD = "lm_head.weight"
"""The head of a model that ties it to its embedding, where a file has one of its own."""


class Lazy(Mapping[str, Floats]):
    """Names -> values, each read when it is asked for, and not kept."""

    def __init__(self, reads: Mapping[str, Callable[[], Floats]]) -> None:
        self._reads = reads

    def __iter__(self) -> Iterator[str]:
        return iter(self._reads)

    def __len__(self) -> int:
        return len(self._reads)

    def __contains__(self, name: object) -> bool:
        return name in self._reads

    def __getitem__(self, name: str) -> Floats:
        return self._reads[name]()


def second_weights(target: str, path: Path, source: Source) -> Mapping[str, Floats] | None:
    """Checkpoint name -> float32 values as the checkpoint stores them, lazily; what the file lacks
    is left out. None where there is no second reader for outputs of `target`.

    For files that the target's own reader has accepted: damage of headers and JSON is its to
    refuse. Values are those of `Reader.weights` to the bit, but for NVFP4, whose two scales are
    multiplied in another order: four units in the last place (`agreement.ULPS`).
    """
    for one in offered(__package__, "SECOND").values():
        reader: Second = one
        if target in reader.targets:
            return reader.weights(path, source)
    return None
