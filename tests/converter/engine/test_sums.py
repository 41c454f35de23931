"""Moments that are summed wave by wave, with factors in float32 or in bfloat16."""

from __future__ import annotations

import pytest
import torch

from qconvert.engine.stream import workers
from qconvert.engine.sums import Sums
from qconvert.kernels.cpu.moments import AT_ONCE

CPU = torch.device("cpu")


def tokens(cols: int) -> torch.Tensor:
    """More than pass through the sums at once, in uneven waves."""
    made = torch.randn(AT_ONCE // cols * 2 + 7, cols, generator=torch.Generator().manual_seed(1))
    return made * torch.linspace(0.1, 3.0, cols)


@pytest.mark.parametrize("narrow", [False, True])
def test_moments_are_those_of_float64(narrow: bool) -> None:
    x = tokens(320).bfloat16().float()  # what linears read when they multiply in bfloat16
    sums = Sums(320, CPU, narrow)
    with workers(2, CPU) as pool:
        for wave in x.split(500):
            sums.add(wave, pool)
    found, wide = sums.moments("here"), x.double()
    torch.testing.assert_close(
        found.second.double(), wide.t() @ wide / len(x), rtol=2e-5, atol=2e-5
    )
    for name, wanted in (
        ("mean", wide.mean(0)),
        ("mean_abs", wide.abs().mean(0)),
        ("fourth", wide.pow(4).mean(0)),
        ("lowest", wide.amin(0)),
        ("highest", wide.amax(0)),
    ):
        torch.testing.assert_close(getattr(found, name).double(), wanted, rtol=2e-5, atol=2e-5)


def test_wide_sums_do_not_round_factors() -> None:
    x = tokens(64)
    sums = Sums(64, CPU)
    with workers(1, CPU) as pool:
        sums.add(x, pool)
    wide = x.double()
    torch.testing.assert_close(
        sums.moments("here").second.double(), wide.t() @ wide / len(x), rtol=1e-5, atol=1e-5
    )
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("narrow", [False, True])
def test_sums_do_not_depend_on_threads(narrow: bool) -> None:
    found = []
    for threads in (1, 2):
        sums = Sums(600, CPU, narrow)
        with workers(threads, CPU) as pool:
            for wave in tokens(600).split(300):
                sums.add(wave, pool)
        found.append(sums.moments("here"))
    assert torch.equal(found[0].second, found[1].second)
    assert torch.equal(found[0].fourth, found[1].fourth)
