"""A case: one operation on one shape, what it is held against, and what it must give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    device: torch.device
    tiny: bool

    def sizes(self, real: Any, tiny: Any) -> Any:
        return tiny if self.tiny else real

    def normal(self, *shape: int, seed: int = 0) -> torch.Tensor:
        """float32, heavy-tailed as weights are, the same on every device."""
        made = torch.Generator().manual_seed(seed)
        size = [min(one, 4096) for one in shape]  # repeated beyond: a processor draws slowly
        x = torch.randn(size, generator=made) * torch.randn(size, generator=made).abs().sqrt()
        x = x.to(self.device)
        for axis, (have, wanted) in enumerate(zip(size, shape, strict=True)):
            parts = [x] * -(-wanted // have)
            x = torch.cat(parts, axis).narrow(axis, 0, wanted) if len(parts) > 1 else x
        return x.contiguous()

    def bytes(self, *shape: int, below: int = 256, seed: int = 0) -> torch.Tensor:
        made = torch.Generator(self.device).manual_seed(seed)
        return torch.randint(below, shape, dtype=torch.uint8, generator=made, device=self.device)


@dataclass(frozen=True)
class Case:
    """`run` is timed. `moved`: bytes that it must read and write once; `flops`: products and sums
    that it must compute. `baseline` does the same otherwise and is timed beside it.

    `wanted`: of the ceiling `limit` ("copy", "matmul"), or times as fast as the baseline
    ("baseline"); None: reported, not judged. `deviation` from the truth, of what `run` gives the
    first time, is 0 where bits must be equal, else at most `bound`. `more` and `more_baseline`: the
    same on copies of the data, where one run is too short to be timed alone.
    """

    operation: str
    of: str
    run: Callable[[], Any]
    deviation: Callable[[Any], float]
    bound: float = 0.0
    moved: int = 0
    flops: int = 0
    baseline: Callable[[], Any] | None = None
    limit: str = ""
    wanted: float | None = None
    more: tuple[Callable[[], Any], ...] = ()
    more_baseline: tuple[Callable[[], Any], ...] = ()


Group = Callable[[], Iterator[Case]]
"""Cases of the same data, which is made when the group is called. A family is a function `groups`
of a `Setting` and a `Clock`: when one cannot be made, the others still run."""


def nbytes(*tensors: torch.Tensor | None) -> int:
    return sum(one.nbytes for one in tensors if one is not None)


def unlike(found: Any, wanted: Any) -> float:
    """Share of the elements whose bits differ, of tensors, tuples and mappings of them."""
    if isinstance(wanted, Mapping):
        return max(unlike(found[name], one) for name, one in wanted.items())
    if isinstance(wanted, tuple | list):
        return max(unlike(one, other) for one, other in zip(found, wanted, strict=True))
    if wanted is None:
        return float(found is not None)
    if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
        return 1.0
    mine, theirs = (one.cpu().reshape(-1).contiguous().view(torch.uint8) for one in (found, wanted))
    return int((mine != theirs).count_nonzero()) / max(1, len(mine))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; `wanted` is float64."""
    return float((found.double() - wanted).abs().max() / wanted.abs().max())


def rows_of(found: Any, count: int) -> Any:
    """The first rows, of everything: rows do not depend on each other."""
    if isinstance(found, Mapping):
        return {name: rows_of(one, count) for name, one in found.items()}
    if isinstance(found, tuple | list):
        return tuple(rows_of(one, count) for one in found)
    return None if found is None else found[:count].cpu()
