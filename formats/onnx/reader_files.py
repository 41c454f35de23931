"""model.onnx and the files beside it, opened with care: every tensor's bytes, mapped.

Nothing is read but the graph; ONNX's own loader of external data would read all of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from qconvert.formats.careful import read_file
from qconvert.formats.onnx.reader_sound import check_graph
from qconvert.formats.onnx.reader_wire import check_fields
from qconvert.formats.refusal import Reason, Refused, collecting, raise_if_any, refuse

Array = NDArray[np.generic]

BITS: Mapping[int, int] = {
    TensorProto.FLOAT: 32, TensorProto.FLOAT16: 16, TensorProto.BFLOAT16: 16,
    TensorProto.INT64: 64, TensorProto.INT32: 32, TensorProto.INT8: 8, TensorProto.UINT8: 8,
    TensorProto.BOOL: 8, TensorProto.INT4: 4, TensorProto.UINT4: 4,
    **{getattr(TensorProto, name): 2 for name in ("INT2", "UINT2") if hasattr(TensorProto, name)},
}  # fmt: skip
"""Types that a weight, or a constant beside one, is stored in -> bits of an element."""
VIEWS: Mapping[int, str] = {
    TensorProto.FLOAT: "<f4", TensorProto.FLOAT16: "<f2", TensorProto.BFLOAT16: "<u2",
    TensorProto.INT64: "<i8", TensorProto.INT32: "<i4", TensorProto.INT8: "i1",
}  # fmt: skip
"""How bytes are seen; all else as uint8, elements of less than a byte packed, low bits first."""
MOST_SIZES = 32  # in a shape: what numpy holds
LARGEST_SIZE = 1 << 48  # of one dimension: products stay computable
LARGEST_GRAPH = (1 << 31) - 1  # bytes: what protobuf itself holds
FIELDS: Mapping[str, str] = {"float_data": "<f4", "int64_data": "<i8", "int32_data": "<i4"}


@dataclass(frozen=True, slots=True)
class Initializer:
    """One stored tensor. `array`: its shape for whole bytes; flat bytes where elements are less."""

    name: str
    dtype: int  # TensorProto's
    shape: tuple[int, ...]
    array: Array = field(repr=False)
    place: tuple[str, int]  # file and offset: the same for views of the same bytes
    nbytes: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The graph, and all that is stored for it by name."""

    model: ModelProto
    stored: Mapping[str, Initializer]
    files: tuple[Path, ...]


def open_graph(path: Path) -> Opened:
    """Open `path`, a model.onnx; `Refused`, with every fault, when it or a file beside it is
    missing, cut off, or not what it should be."""
    try:
        content = read_file(path, LARGEST_GRAPH)
        check_fields(content, ModelProto.DESCRIPTOR)
        model = ModelProto.FromString(content)
        del content
    except FileNotFoundError:
        raise refuse(f"no {path.name} in {path.parent}") from None
    except Refused:
        raise
    except Exception as fault:  # protobuf's DecodeError has no public place
        raise refuse(f"{path} is not an ONNX model: {fault}", "write or copy it again") from None
    if not model.graph.node:
        raise refuse(f"{path} holds no graph", "write or copy it again")
    try:
        check_graph(model)
    except Refused as refused:
        raise Refused(*(Reason(f"{path}: {one.problem}", "write or copy it again")
                        for one in refused.reasons)) from None  # fmt: skip
    maps: dict[str, NDArray[np.uint8] | None] = {}
    stored: dict[str, Initializer] = {}
    reasons: list[Reason] = []
    for tensor in _tensors(model):
        with collecting(reasons):
            stored[tensor.name] = _open(path, tensor, maps)
    raise_if_any(list(dict.fromkeys(reasons))[:8])
    files = [path.parent / location for location in maps]
    return Opened(model, stored, (path, *files))


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Initializers, and what nodes of the kind Constant hold, under the names of their values."""
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            held = TensorProto()
            held.CopyFrom(node.attribute[0].t)
            held.name = node.output[0]
            yield held


def _open(
    path: Path, tensor: TensorProto, maps: dict[str, NDArray[np.uint8] | None]
) -> Initializer:
    name, shape = tensor.name, tuple(tensor.dims)
    if tensor.data_type not in BITS:
        names = TensorProto.DataType.items()
        known = next((one for one, number in names if number == tensor.data_type), "of no type")
        raise refuse(f"{path}: {name} is stored as {known}, which qconvert does not read")
    if len(shape) > MOST_SIZES or any(not 0 <= size <= LARGEST_SIZE for size in shape):
        raise refuse(f"{path}: {name} has the shape {list(shape[:MOST_SIZES])}")
    nbytes = -(-math.prod(shape) * BITS[tensor.data_type] // 8)
    if tensor.data_location == TensorProto.EXTERNAL:
        raw, place = _external(path, tensor, nbytes, maps)
    else:
        raw, place = _inline(tensor), (f"#{name}", 0)
    if len(raw) != nbytes:
        raise refuse(f"{path}: {name} has {len(raw)} bytes, and its shape takes {nbytes}")
    seen: Array = raw.view(VIEWS.get(tensor.data_type, "u1"))
    array = seen.reshape(shape) if BITS[tensor.data_type] >= 8 else seen
    return Initializer(name, tensor.data_type, shape, array, place, nbytes)


def _inline(tensor: TensorProto) -> NDArray[np.uint8]:
    for name, dtype in FIELDS.items():
        values = getattr(tensor, name)
        if values:
            return np.array(values, dtype).view(np.uint8)
    return np.frombuffer(tensor.raw_data, np.uint8)


def _external(
    path: Path, tensor: TensorProto, nbytes: int, maps: dict[str, NDArray[np.uint8] | None]
) -> tuple[NDArray[np.uint8], tuple[str, int]]:
    told = {one.key: one.value for one in tensor.external_data}
    location = told.get("location", "")
    plain = isinstance(location, str) and not set(location) & {"\\", "\0"}
    if not plain or not location or location != Path(location).name:
        raise refuse(f"{path}: {tensor.name} lies outside the folder: {location!r}")
    try:
        offset = int(told.get("offset", 0))
        length = int(told.get("length", nbytes))
    except ValueError:
        raise refuse(f"{path}: {tensor.name} has no place in {location}") from None
    if length != nbytes or offset < 0:
        raise refuse(
            f"{path}: {tensor.name} is said to have {length} bytes at {offset}, and its shape takes"
            f" {nbytes}"
        )
    data = _mapped(path.parent / location, maps)
    if offset + length > len(data):
        raise refuse(
            f"{path.parent / location} is cut off: {tensor.name} ends at byte {offset + length:,},"
            f" and the file has {len(data):,}",
            "write or copy it again",
        )
    return data[offset : offset + length], (location, offset)


def _mapped(path: Path, maps: dict[str, NDArray[np.uint8] | None]) -> NDArray[np.uint8]:
    """The bytes of a data file, by its name in `maps`; None there where it cannot be opened."""
    if path.name not in maps:
        maps[path.name] = None
        try:
            empty = not path.stat().st_size
            data = np.empty(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")
            maps[path.name] = data.view(np.ndarray)
        except OSError as fault:
            raise refuse(f"{path} cannot be read: {fault.strerror or fault}",
                         "copy it from where model.onnx comes from") from None  # fmt: skip
    found = maps[path.name]
    if found is None:  # told once, for the first tensor in it
        raise refuse(f"{path} cannot be read: No such file or directory",
                     "copy it from where model.onnx comes from")  # fmt: skip
    return found
