"""What every layout of this package offers, and the steps they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.minifloat import Element
from qconvert.formats.refusal import refuse
from qconvert.formats.serving.container import Array, Entry, Linear
from qconvert.formats.serving.layouts.numbers import Floats
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.source import Dtype
from qconvert.formats.tensor import QuantizedTensor

Shape = Callable[[int, int], tuple[int, ...]]
"""[rows of scales, scales in a row] -> the shape in which a container stores them."""


class Layout(Protocol):
    """The arrays of one linear. N: outputs, K: inputs."""

    @property
    def marker(self) -> str:
        """Last part of the name of the tensor that holds the codes: "weight_packed"."""
        ...

    def entries(self, linear: Linear, float_type: Dtype) -> tuple[Entry, ...]:
        """What is stored; `Refused` where the shape has no such form."""
        ...

    def pack(
        self, linear: Linear, tensor: QuantizedTensor, float_type: Dtype
    ) -> Mapping[str, Array]:
        """The arrays of `entries`; `ValueError` where a scale is not exact in its stored type, or
        the tensor is not of the linear."""
        ...

    def unpack(self, linear: Linear, arrays: Mapping[str, Array]) -> QuantizedTensor:
        """The inverse; `Refused` where the arrays hold what no runtime reads as meant."""
        ...

    def shape(self, stored: Mapping[str, Entry], scheme: Scheme) -> tuple[int, int]:
        """[N, K] of a linear, from the entries of its module by the last part of their names.
        `KeyError`, `ValueError` or `IndexError` where they are not of this layout."""
        ...


def name(linear: Linear, part: str) -> str:
    return f"{linear.module}.{part}"


def groups_of(linear: Linear) -> int:
    """Groups in a row; `Refused` where the last is not whole."""
    cols = linear.shape[1]
    size = linear.scheme.group or cols
    if cols % size:
        raise refuse(
            f"{linear.module}: {cols} inputs are not whole groups of {size}",
            "take a group that divides it, or leave it in float",
        )
    return cols // size


def checked(linear: Linear, tensor: QuantizedTensor) -> QuantizedTensor:
    """`tensor`, if it is what the linear's scheme says."""
    if (tensor.grid, tensor.shape) != (linear.scheme.grid_name, linear.shape):
        raise ValueError(
            f"{linear.module} wants {linear.scheme.grid_name} {linear.shape}, "
            f"not {tensor.grid} {tensor.shape}"
        )
    return tensor


def element(linear: Linear) -> Element:
    """How the codes of a linear in FP8 or FP4 are stored: its grid says it."""
    grid: Any = linear.scheme.grid
    found: Element = grid.element
    return found


def signed(linear: Linear, codes: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The whole numbers that the codes of an integer grid stand for."""
    return (codes + _lowest(linear).view(np.uint8)).view(np.int8)


def of_signed(linear: Linear, values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The inverse; `Refused` where the grid has no such number."""
    codes = values.view(np.uint8) - _lowest(linear).view(np.uint8)
    if codes.size and codes.max() >= len(linear.scheme.grid.levels):
        raise refuse(f"{linear.module} holds numbers that {linear.scheme.name} has not")
    return codes


def _lowest(linear: Linear) -> NDArray[np.int8]:
    return np.asarray(linear.scheme.grid.levels[:1], np.int8)


def neutral(
    linear: Linear, codes: NDArray[np.uint8], params: Mapping[str, NDArray[Any]]
) -> QuantizedTensor:
    """A tensor of the linear's grid, float parameters in the type that the grid keeps them in.

    A scale that is not exact there (files of other writers) stays float32.
    """
    kept = {key: _kept(linear, key, values) for key, values in params.items()}
    return QuantizedTensor(linear.scheme.grid_name, np.ascontiguousarray(codes), kept)


def _kept(linear: Linear, key: str, values: NDArray[Any]) -> NDArray[Any]:
    if not np.issubdtype(values.dtype, np.floating):
        return np.ascontiguousarray(values)
    grid, cols = linear.scheme.grid, linear.scheme.group or linear.shape[1]
    probe = grid.unpack(np.zeros((1, grid.row_bytes(cols)), np.uint8), cols)
    with np.errstate(over="ignore"):
        cast = values.astype(probe.params[key].dtype)
    return cast if np.array_equal(cast, values) else values.astype(np.float32)


def rows_alike(values: NDArray[Any], rows: int, what: str) -> NDArray[Any]:
    """One row of each `rows` equal ones (0: of all); `ValueError` where they differ."""
    rows = rows or len(values)
    first = values[::rows]
    if not np.array_equal(np.repeat(first, rows, axis=0)[: len(values)], values):
        raise ValueError(f"{what} differs between rows that share it")
    return first


def repeated(values: Floats, rows: int, total: int) -> Floats:
    """The inverse of `rows_alike`."""
    return np.repeat(values, rows or total, axis=0)[:total]
