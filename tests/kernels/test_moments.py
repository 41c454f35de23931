"""Sums over tokens: the bodies against float64, in blocks as whole, and as the engine sums them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qconvert.engine.stream import workers
from qconvert.engine.sums import Sums
from qconvert.kernels.moments import VECTORS, add_products, add_vectors

BODIES = ("plain", "cpu")


def begun(cols: int) -> dict[str, torch.Tensor]:
    vectors = {name: torch.zeros(cols) for name in VECTORS}
    vectors["lowest"].fill_(torch.inf)
    vectors["highest"].fill_(-torch.inf)
    return vectors


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "cols"), [(1, 1), (7, 5), (40, 300)])
def test_products_are_those_of_float64(body: Any, kind: torch.dtype, n: int, cols: int) -> None:
    x = torch.randn(n, cols, generator=torch.Generator().manual_seed(n)).to(kind)
    total = torch.ones(cols, cols)
    add_products(total, x, body=body)
    wide = x.double()
    bound = (n + 1) * 2.0**-24 * (1 + wide.abs().t() @ wide.abs())
    assert bool(((total - 1 - wide.t() @ wide).abs() <= bound).triu().equal(
        torch.ones(cols, cols, dtype=torch.bool).triu()
    ))  # fmt: skip


@pytest.mark.parametrize("body", BODIES)
def test_columns_of_the_matrix_alone_are_the_same(body: Any) -> None:
    x = torch.randn(9, 700, generator=torch.Generator().manual_seed(0))
    total = torch.zeros(700, 700)
    add_products(total, x, body=body)
    for start, stop in ((0, 256), (256, 512), (512, 700)):
        part = torch.zeros(stop, stop - start)
        add_products(part, x, columns=(start, stop), body=body)
        torch.testing.assert_close(
            part.triu(-start), total[:stop, start:stop].triu(-start), rtol=0, atol=1e-5
        )


def test_a_total_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="columns 0 to 4"):
        add_products(torch.zeros(3, 3), torch.ones(2, 4))


@pytest.mark.parametrize("narrow", [False, True])
def test_the_cpu_body_is_what_the_engine_sums(narrow: bool) -> None:
    x = torch.randn(3000, 520, generator=torch.Generator().manual_seed(1)) * 3
    total, vectors = torch.zeros(520, 520), begun(520)
    sums = Sums(520, x.device, narrow)
    with workers(1, x.device) as pool:
        add_products(total, x, narrow=narrow)
        add_vectors(vectors, x, narrow=narrow)
        sums.add(x, pool)
    found = sums.moments("here")
    upper = total.triu() / 3000
    assert found.second.triu().equal(upper)
    assert found.mean.equal(vectors["mean"] / 3000)
    assert found.fourth.equal(vectors["fourth"] / 3000)
    assert found.lowest.equal(vectors["lowest"])
    assert found.highest.equal(vectors["highest"])


@pytest.mark.parametrize("body", BODIES)
def test_vectors_are_those_of_float64_in_parts_as_whole(body: Any) -> None:
    x = torch.randn(50, 33, generator=torch.Generator().manual_seed(2)).bfloat16()
    vectors = begun(33)
    for part in x.split(20):
        add_vectors(vectors, part, body=body)
    wide = x.double()
    for name, want in (
        ("mean", wide.sum(0)), ("mean_abs", wide.abs().sum(0)), ("fourth", (wide**4).sum(0)),
    ):  # fmt: skip
        torch.testing.assert_close(vectors[name].double(), want, rtol=1e-5, atol=1e-5)
    assert vectors["lowest"].equal(x.float().amin(0))
    assert vectors["highest"].equal(x.float().amax(0))


@pytest.mark.parametrize("body", BODIES)
def test_a_nan_stays_in_every_vector_of_its_channel(body: Any) -> None:
    x = torch.ones(6, 3)
    x[2, 1] = torch.nan
    vectors = begun(3)
    add_vectors(vectors, x, body=body)
    add_vectors(vectors, torch.ones(2, 3), body=body)
    for name in VECTORS:
        assert vectors[name].isnan().tolist() == [False, True, False]
