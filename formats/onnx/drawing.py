"""Drawing: a graph while it is put together, and what it says of the data file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from qconvert.formats.onnx.rope import Rope
from qconvert.formats.onnx.stores import Part, Store

MICROSOFT = "com.microsoft"
DATA = "model.onnx.data"
SMALL, LARGE = 64, 4096
"""Where regions begin: those of at least a page at one, so that they can be mapped."""
PAGED = 1 << 16

BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.UINT8: 8, TensorProto.INT8: 8,
    getattr(TensorProto, "INT4", -1): 4, getattr(TensorProto, "UINT4", -2): 4,
}  # fmt: skip
"""Of the elements of what is stored."""


@dataclass(frozen=True, slots=True)
class Initializer:
    """A view of a region."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    region: str


@dataclass(slots=True)
class Drawing:
    """Nodes in order of computation. Every node has one name; its first output is named after it,
    unless it is an output of the graph."""

    nodes: list[NodeProto] = field(default_factory=list)
    initializers: list[Initializer] = field(default_factory=list)
    regions: dict[str, int] = field(default_factory=dict)  # name -> bytes
    stores: dict[str, list[Store]] = field(default_factory=dict)  # by output tensor
    constants: dict[str, TensorProto] = field(default_factory=dict)  # small, within model.onnx
    tables: dict[tuple[str, str], Rope] = field(default_factory=dict)  # by cosines, sines
    kept: dict[tuple[Part, ...], tuple[str, str, str]] = field(default_factory=dict)
    """Where rows are stored that more than one node may read."""
    _names: set[str] = field(default_factory=set)

    def node(
        self,
        operator: str,
        inputs: Sequence[str],
        name: str,
        *,
        outputs: Sequence[str] = (),
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node; the name of its first output."""
        if name in self._names:
            raise ValueError(f"two nodes are called {name}")
        self._names.add(name)
        named = list(outputs) or [f"{name}/output_0"]
        made = helper.make_node(operator, list(inputs), named, name=name, domain=domain,
                                **attributes)  # fmt: skip
        self.nodes.append(made)
        return named[0]

    def region(self, name: str, nbytes: int) -> str:
        if name in self.regions:
            raise ValueError(f"{name} is planned twice")
        self.regions[name] = nbytes
        return name

    def view(self, name: str, dtype: int, shape: Sequence[int], region: str) -> str:
        """An initializer that shows a region."""
        bits = math.prod(shape) * BITS[dtype]
        if -(-bits // 8) != self.regions[region]:
            raise ValueError(f"{name}: {list(shape)} in {self.regions[region]} bytes")
        self.initializers.append(Initializer(name, dtype, tuple(shape), region))
        return name

    def store(self, tensor: str, store: Store) -> None:
        self.stores.setdefault(tensor, []).append(store)

    def constant(self, value: NDArray[Any] | Iterable[int] | int) -> str:
        """The name of a small tensor: int64 of whole numbers."""
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        shown = str(array.tolist()).replace(" ", "")
        name = f"/model/constants/{array.dtype.name.upper()}/{shown}"
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(array, name)
        return name


def offsets(regions: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each region begins in the data file, in their order, and where the last one ends."""
    places, end = {}, 0
    for name, nbytes in regions.items():
        step = LARGE if nbytes >= PAGED else SMALL
        end += -end % step
        places[name] = end
        end += nbytes
    return places, end


def external(one: Initializer, offset: int, nbytes: int) -> TensorProto:
    """The initializer as model.onnx holds it: a shape, and where its bytes are."""
    tensor = TensorProto(name=one.name, data_type=one.dtype, dims=one.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor
