"""A sink that is misused says so; row order and `add` are applied before anything is stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qconvert.formats.integer import IntegerGrid
from qconvert.formats.ordered import OrderedSink, Rows
from qconvert.formats.target import OutputTensor, Plan

GRID = IntegerGrid(4, 32)
VECTOR = OutputTensor("norm", (4,), None, "F32", 16, None, add=1.0)
MATRIX = OutputTensor("linear", (4, 32), GRID, "int4", 0, None)
PLAN = Plan("any", "int4", (VECTOR, MATRIX), "out")


class Kept:
    def __init__(self, plan: Plan = PLAN) -> None:
        self.found: list[tuple[str, Rows, int]] = []
        self.sink = OrderedSink(
            plan, lambda tensor, rows, start: self.found.append((tensor.name, rows, start))
        )


@pytest.fixture
def codes():  # noqa: ANN201
    return GRID.quantize(np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32))


def test_rows_arrive_with_the_number_of_their_first(codes) -> None:  # noqa: ANN001
    kept = Kept()
    kept.sink.write(VECTOR, np.zeros(4, np.float32))
    kept.sink.write(MATRIX, codes.take_rows(slice(0, 3)))
    kept.sink.write(MATRIX, codes.take_rows(slice(3, 4)))
    kept.sink.finish()
    assert [(name, start) for name, _, start in kept.found] == [
        ("norm", 0), ("linear", 0), ("linear", 3),
    ]  # fmt: skip
    assert (np.asarray(kept.found[0][1]) == 1).all()


def test_row_order_is_applied_to_a_whole_tensor(codes) -> None:  # noqa: ANN001
    order = np.array([2, 0, 3, 1])
    tensor = replace(MATRIX, row_order=order)
    kept = Kept(replace(PLAN, tensors=(tensor,)))
    with pytest.raises(ValueError, match="rows 0"):
        kept.sink.write(tensor, codes.take_rows(slice(0, 2)))
    kept.sink.write(tensor, codes)
    rows = kept.found[0][1]
    assert (rows.codes == codes.codes[order]).all()  # type: ignore[union-attr]


def test_misuse_is_told(codes) -> None:  # noqa: ANN001
    with pytest.raises(ValueError, match="linear was written where norm is due"):
        Kept().sink.write(MATRIX, codes)
    kept = Kept()
    kept.sink.write(VECTOR, np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="wants codes of int4_g32"):
        kept.sink.write(MATRIX, np.zeros((4, 32), np.float32))
    with pytest.raises(ValueError, match="1 tensors were not written, the first is linear"):
        kept.sink.finish()
    kept.sink.write(MATRIX, codes)
    with pytest.raises(ValueError, match="all tensors have been written"):
        kept.sink.write(MATRIX, codes)
    with pytest.raises(ValueError, match="wants float values"):
        Kept().sink.write(VECTOR, replace(codes, codes=codes.codes[:1]))
