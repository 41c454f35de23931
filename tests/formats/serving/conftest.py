"""Every scheme in every container that holds it, with tensors that use all codes."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from qconvert.formats.serving.container import Container, Linear, containers
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import schemes
from qconvert.formats.tensor import QuantizedTensor

MODULE = "model.layers.0.mlp.down_proj"


@dataclass(frozen=True)
class Case:
    """A scheme in a container."""

    container: Container
    scheme: Scheme

    @property
    def name(self) -> str:
        return f"{self.container.name}-{self.scheme.name}"

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The smallest and odd ones that the layout has room for."""
        per = 32 // self.scheme.bits
        rows = {"gptq": per, "awq": 8}.get(self.container.name, 1)
        cols = self.scheme.group or (per if self.container.name == "gptq" else 1)
        if self.container.name == "modelopt" and (self.scheme.form, self.scheme.bits) == ("int", 4):
            rows = 2
        shapes = [(rows, cols), (3 * rows, 3 * cols), (5 * rows, 2 * cols)]
        if self.scheme.grid.together > 1:
            return [(1, cols), (129, 2 * cols), (128, 3 * cols)]
        if self.container.name == "compressed-tensors" and not self.scheme.symmetric:
            shapes += [(9, 2 * cols), (17, cols)]
        if not self.scheme.group and self.scheme.activations is None:
            shapes.append((2 * rows, 5 * cols))
        return shapes

    def linear(self, shape: tuple[int, int], module: str = MODULE) -> Linear:
        return Linear(module, shape, self.scheme)

    def tensor(self, shape: tuple[int, int], seed: int = 0) -> QuantizedTensor:
        return sample(self.scheme, shape, seed)


def cases() -> Iterator[Case]:
    for container in containers().values():
        for scheme in schemes().values():
            if not container.problems(scheme):
                yield Case(container, scheme)


def sample(scheme: Scheme, shape: tuple[int, int], seed: int = 0) -> QuantizedTensor:
    """Random codes from the lowest to the highest, parameters of every sign that the grid has."""
    rng = np.random.default_rng(seed)
    rows, cols = shape
    groups = cols // (scheme.group or cols)
    codes = rng.integers(0, len(scheme.grid.levels), shape, dtype=np.uint8)
    codes.reshape(-1)[:1], codes.reshape(-1)[-1:] = len(scheme.grid.levels) - 1, 0
    probe = scheme.grid.unpack(np.zeros((1, scheme.grid.row_bytes(cols)), np.uint8), cols).params
    params: dict[str, Any] = {}
    if "d" in probe:  # at most 8 significant bits: exact in every type of scale
        d = rng.integers(128, 256, (rows, groups)) * 2.0 ** rng.integers(-14, -6, (rows, groups))
        if scheme.form == "int" and scheme.symmetric:
            d *= rng.choice([-1.0, 1.0], (rows, groups))
        if scheme.shared:
            d[:] = d[0]
        if scheme.grid.together > 1:
            starts = np.arange(0, rows, scheme.grid.together)
            d = np.repeat(d[starts], scheme.grid.together, axis=0)[:rows]
        params["d"] = d.astype(probe["d"].dtype)
    if "zero" in probe:
        params["zero"] = rng.integers(0, 2**scheme.bits, (rows, groups), dtype=np.uint8)
    if "scale" in probe:
        params["scale"] = rng.integers(1, 0x7F, (rows, groups), dtype=np.uint8)
        params["amax"] = np.full((rows, 1), 3.25, np.float32)
    if "exponent" in probe:
        params["exponent"] = rng.integers(100, 140, (rows, groups), dtype=np.uint8)
    assert params.keys() == probe.keys()
    return QuantizedTensor(scheme.grid_name, codes, params)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`case`: every `Case`."""
    if "case" in metafunc.fixturenames:
        found = list(cases())
        metafunc.parametrize("case", found, ids=[case.name for case in found])


@pytest.fixture(scope="session")
def transcribed() -> ModuleType:
    """`transcribed.py` beside this file: tests are no package."""
    path = Path(__file__).with_name("transcribed.py")
    spec = importlib.util.spec_from_file_location("qconvert_tests_transcribed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def same(a: QuantizedTensor, b: QuantizedTensor) -> bool:
    """Bit for bit, parameters and their types too."""
    return (
        a.grid == b.grid
        and np.array_equal(a.codes, b.codes)
        and a.params.keys() == b.params.keys()
        and all(
            a.params[key].dtype == b.params[key].dtype
            and np.array_equal(a.params[key], b.params[key])
            for key in a.params
        )
    )


@pytest.fixture(scope="session")
def alike() -> Any:
    return same


@pytest.fixture(scope="session")
def make() -> Any:
    """`make(scheme, shape, seed=0) -> QuantizedTensor`."""
    return sample
