"""Second moments of activations, and their sums by channel in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from kernel_cases.case import Case, Group, Setting
from kernel_cases.clock import Clock
from qconvert.kernels import moments

LONG_SUM = 1e-4
"""Of float32 sums over thousands of tokens, relative to what Cauchy and Schwarz allow. Sums inside
matrix instructions are cut, not rounded."""
CHECKED = 256  # columns that are computed in float64


def groups(setting: Setting, _: Clock) -> Iterator[Group]:
    for tokens, cols in setting.sizes([(8192, 4096), (8192, 14336)], [(48, 80)]):
        yield partial(_of, setting, tokens, cols)


def _of(setting: Setting, tokens: int, cols: int) -> Iterator[Case]:
    # bfloat16 is garbage under Triton's interpreter
    x = setting.normal(tokens, cols).to(torch.float16 if setting.tiny else torch.bfloat16)
    of = f"{tokens} tokens x {cols}"
    stop = min(CHECKED, cols)
    exact = (x[:, :stop].double().T @ x.double()).triu()
    length = x.double().square().sum(0).sqrt()
    scale = length[:stop, None] * length[None, :]

    total = torch.zeros((cols, cols), device=x.device)
    right = torch.zeros((cols, cols - cols // 2), device=x.device)

    def products() -> torch.Tensor:
        moments.add_products(total, x, body="gpu")
        return total

    def half() -> torch.Tensor:
        """The right half of the columns, as for a matrix that does not fit."""
        moments.add_products(right, x, columns=(cols // 2, cols), body="gpu")
        return right

    def far(found: torch.Tensor, first: int = 0) -> float:
        part = found[:stop].double()
        wanted, most = exact[:, first:], scale[:, first:]
        kept = torch.ones((stop, cols), device=x.device).triu()[:, first:]
        return float(((part - wanted).abs() / most * kept).max())

    flops = tokens * cols * (cols + 1)
    yield Case("moments.add_products", of, products, far, LONG_SUM, flops=flops,
               baseline=lambda: x.T @ x, limit="matmul", wanted=0.7)  # fmt: skip
    rest = flops - tokens * (cols // 2) * (cols // 2 + 1)
    yield Case(
        "moments.add_products", f"{of}, the right half", half,
        lambda found: far(found, cols // 2), LONG_SUM, flops=rest, limit="matmul",
    )  # fmt: skip
    sums = {name: torch.zeros(cols, device=x.device) for name in moments.VECTORS}
    sums["lowest"] += torch.inf
    sums["highest"] -= torch.inf

    def vectors() -> dict[str, torch.Tensor]:
        moments.add_vectors(sums, x, body="gpu")
        return sums

    def apart(found: dict[str, torch.Tensor]) -> float:
        wide = x.double()
        exact = {"mean": wide.sum(0), "mean_abs": wide.abs().sum(0), "fourth": (wide**4).sum(0)}
        most = {"mean": exact["mean_abs"]}
        ends = {"lowest": wide.amin(0), "highest": wide.amax(0)}
        if any((found[name] != one).any() for name, one in ends.items()):
            return 1.0
        return max(
            float(((found[name] - one).abs() / most.get(name, one)).max())
            for name, one in exact.items()
        )

    yield Case("moments.add_vectors", of, vectors, apart, LONG_SUM, moved=x.nbytes, limit="copy")
