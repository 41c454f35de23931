"""What is planted in a matrix is what its diagnosis names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qconvert.formats.source import SourceTensor
from qconvert.runtimes.diagnosis.case import Case
from qconvert.runtimes.diagnosis.diagnose import diagnosed
from qconvert.runtimes.diagnosis.hypotheses.vectors import vector_problem

Floats = NDArray[np.float32]
ROWS, COLUMNS, HEAD = 256, 256, 64


def tensor(name: str, role: str, shape: tuple[int, ...], block: int | None = 0) -> SourceTensor:
    return SourceTensor(name, role, "weight", block, shape, "F32")


@dataclass(frozen=True)
class Model:
    """`formats.source.Source` of arrays."""

    values: dict[str, Floats]
    tensors: tuple[SourceTensor, ...]
    folder: Path = Path()
    config: dict[str, Any] = field(default_factory=lambda: {"head_dim": HEAD})
    model_type: str = "llama"
    tied: bool = False

    def rows(self, tensor: SourceTensor, start: int, stop: int) -> Floats:
        value = self.values[tensor.name]
        return value if value.ndim == 1 else value[start:stop]


def rounded(value: Floats, group: int = 32) -> Floats:
    """To 15 levels, by groups of columns."""
    grouped = value.reshape(len(value), -1, group)
    scale = np.abs(grouped).max(-1, keepdims=True) / 7
    return np.asarray((np.round(grouped / scale) * scale).reshape(value.shape), np.float32)


@pytest.fixture(scope="module")
def model() -> Model:
    random = np.random.default_rng(0)
    tensors = [
        tensor(f"{block}.{name}", role, (ROWS, COLUMNS), block)
        for block in (0, 1)
        for name, role in (("q", "attn_q"), ("o", "attn_o"), ("gate", "ffn_gate"))
    ]
    vectors = [tensor(f"{block}.norm", "attn_norm", (COLUMNS,), block) for block in (0, 1)]
    values = {
        one.name: random.standard_normal(one.shape).astype(np.float32) for one in tensors + vectors
    }
    return Model(values, (*tensors, *vectors))


def problem(model: Model, name: str, here: Floats) -> str:
    one = next(one for one in model.tensors if one.name == name)
    found = diagnosed(Case(model, one, name, here))
    return "" if found is None else found.problem


def in_groups(order: list[int]) -> NDArray[np.intp]:
    size = len(order)
    return (np.arange(COLUMNS).reshape(-1, size)[:, order]).ravel()


def halves_to_pairs() -> NDArray[np.intp]:
    return np.arange(ROWS).reshape(-1, 2, HEAD // 2).swapaxes(1, 2).ravel()


def pairs_to_halves() -> NDArray[np.intp]:
    return np.arange(ROWS).reshape(-1, HEAD // 2, 2).swapaxes(1, 2).ravel()


def rows_of_first_and_last(value: Floats) -> Floats:
    found = value.copy()
    found[[0, -1]] = found[[-1, 0]]
    return found


def some_scales(value: Floats) -> Floats:
    factors = np.random.default_rng(1).uniform(0.3, 2.5, (ROWS, COLUMNS // 32))
    return np.asarray(value * np.repeat(factors, 32, axis=1), np.float32)


def offsets(value: Floats) -> Floats:
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (ROWS, COLUMNS // 32))
    return np.asarray(value + np.repeat(signs, 32, axis=1), np.float32)


def at(row: int, value: float) -> Callable[[Floats], Floats]:
    def change(values: Floats) -> Floats:
        found = values.copy()
        found[row, 5] = value
        return found

    return change


def cut(value: Floats) -> Floats:
    return np.concatenate([value[:200], np.zeros_like(value[200:])])


CASES: dict[str, tuple[Callable[[Floats], Floats], str]] = {
    "rope order": (lambda v: v[halves_to_pairs()], "rows in interleaved rotary order"),
    "rope order, back": (lambda v: v[pairs_to_halves()], "rows in half-split rotary order"),
    "heads": (lambda v: np.roll(v, HEAD, 0).copy(), "rows shifted by +64"),
    "heads moved": (
        lambda v: v.reshape(4, HEAD, -1)[[0, 2, 1, 3]].reshape(ROWS, -1),
        "has its heads in another order: 1 holds 2",
    ),
    "two rows": (rows_of_first_and_last, "row 0 holds row 255 of the source"),
    "reverse": (lambda v: v[::-1].copy(), "rows in reverse order"),
    "halves": (lambda v: np.roll(v, ROWS // 2, 0), "halves of its rows exchanged"),
    "nibbles": (lambda v: v[:, in_groups([1, 0])], "neighbouring columns exchanged"),
    "nibbles of 32": (
        lambda v: v[:, in_groups([*range(16, 32), *range(16)])],
        "within groups of 32 (the halves exchanged",
    ),
    "nibbles as neighbours": (
        lambda v: v[:, in_groups([i % 2 * 16 + i // 2 for i in range(32)])],
        "within groups of 32 (nibbles taken as neighbours",
    ),
    "AWQ": (lambda v: v[:, in_groups([0, 2, 4, 6, 1, 3, 5, 7])], "groups of 8"),
    "transposed": (lambda v: v.T.copy(), "is transposed"),
    "sign": (lambda v: -v, "sign turned"),
    "twice": (lambda v: 2 * v, "is 2.0"),
    "zero": (np.zeros_like, "is zero throughout"),
    "cut": (cut, "rows 200 to 255 are zero"),
    "NaN": (at(3, np.nan), "1 values that are not finite (1 NaN), in 1 of 256 rows"),
    "infinite": (at(3, -np.inf), "(1 infinite)"),
    "clamped": (at(3, 65504.0), "cut to 65504"),
    "scales": (some_scales, "has wrong scales: "),
    "zero points": (offsets, "has wrong zero points"),
    "chance": (
        lambda v: np.random.default_rng(2).standard_normal(v.shape).astype(np.float32),
        "nothing of the source in it",
    ),
}


@pytest.mark.parametrize("fault", CASES)
def test_the_fault_is_named(fault: str, model: Model) -> None:
    change, words = CASES[fault]
    found = problem(model, "0.q", change(rounded(model.values["0.q"])))
    assert words in found


def test_another_tensor_is_named(model: Model) -> None:
    assert problem(model, "0.q", rounded(model.values["1.q"])) == "holds 1.q"
    moved = np.roll(rounded(model.values["0.gate"]), 3, axis=0)
    assert problem(model, "0.q", moved) == "holds 0.gate, with its rows in another order"


def test_the_owner_of_stale_scales_is_named(model: Model) -> None:
    own, other = (
        np.abs(model.values[name].reshape(ROWS, -1, 32)).max(-1) for name in ("0.gate", "1.gate")
    )
    wrong = rounded(model.values["0.gate"]) * np.repeat(other / own, 32, axis=1)
    assert problem(model, "0.gate", wrong).endswith("; they go with 1.gate")


def test_what_is_right_is_not_explained(model: Model) -> None:
    assert problem(model, "0.q", rounded(model.values["0.q"])) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (np.ones_like, "is 1 throughout"),
        (np.zeros_like, "is zero throughout"),
        (lambda value: value + 1, "is 1 more than the source"),
        (lambda value: value - 1, "is missing"),
        (lambda value: 1.5 * value, "is 1.5 times the source"),
        (lambda value: np.roll(value, 1), "values in another order (256 of 256 moved)"),
        (lambda value: np.where(np.arange(256) < 250, value, 0), "last 6 of 256 values are zero"),
        (lambda value: np.where(np.arange(256) == 7, np.nan, value), "1 of 256 values"),
        (lambda value: np.where(np.arange(256) == 7, 9, value), "1 of 256 values, most at 7"),
    ],
)
def test_a_vector_that_is_wrong(
    change: Callable[[Floats], Floats], words: str, model: Model
) -> None:
    one = next(one for one in model.tensors if one.name == "0.norm")
    here = np.asarray(change(model.values["0.norm"]), np.float32)
    assert words in vector_problem(model, one, here)
    assert vector_problem(model, one, model.values["1.norm"]) == "holds 1.norm"
