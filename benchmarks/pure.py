"""One grid on every linear of the blocks and float32 for the rest, as a target of qconvert.

No runtime reads it. It lets any grid be judged by itself, those that no format has yet as well: the
file is a safetensors of the decoded values, under the names of the checkpoint.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from weights import block_linears

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.grid import Grid
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import OutputTensor, Plan, Request
from qconvert.formats.tensor import QuantizedTensor
from qconvert.job import job_of_checkpoint
from qconvert.pipeline import Conversion, run
from qconvert.recipe import parse

FILE = "decoded.safetensors"


@dataclass(frozen=True)
class PureTarget:
    """`formats.target.Target`, but for its reader: see `Decoded`."""

    grid: Grid

    @property
    def name(self) -> str:
        return "pure"

    @property
    def summary(self) -> str:
        return f"{self.grid.name} on the linears of the blocks"

    @property
    def types(self) -> Sequence[tuple[str, str]]:
        return ((self.grid.name, self.summary),)

    @property
    def takes(self) -> frozenset[str]:
        return frozenset()

    @property
    def folder(self) -> bool:
        return False

    def plan(self, source: Source, request: Request) -> Plan:
        linears = block_linears(source)
        raise_if_any(
            [
                Reason(f"{name}: rows of {one.shape[1]} are not whole blocks of {self.grid.block}")
                for name, one in linears.items()
                if self.grid.block and one.shape[1] % self.grid.block
            ]
        )
        tensors = tuple(_output(one, self.grid if one.name in linears else None)
                        for one in source.tensors)  # fmt: skip
        return Plan(self.name, self.grid.name, tensors, FILE)

    @contextmanager
    def writer(self, plan: Plan, path: Path) -> Iterator[_Sink]:
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(_header(plan))
                yield _Sink(file)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)

    def outputs(self, plan: Plan, path: Path) -> tuple[Path, ...]:
        return (path,)

    def recognises(self, path: Path) -> bool:
        return False

    def reader(self, path: Path) -> NoReturn:
        raise refuse(f"{path}: only `Decoded` reads it")


class _Sink:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, tensor: OutputTensor, rows: QuantizedTensor | NDArray[np.float32]) -> None:
        if isinstance(rows, QuantizedTensor):
            assert tensor.grid is not None
            rows = tensor.grid.decode(rows)
        self._file.write(np.ascontiguousarray(rows, np.float32).tobytes())


def _output(tensor: SourceTensor, grid: Grid | None) -> OutputTensor:
    cols = tensor.shape[-1]
    size = 4 * cols if grid is None else grid.row_bytes(cols)
    return OutputTensor(
        name=tensor.name,
        shape=tensor.shape,
        grid=grid,
        dtype="F32" if grid is None else grid.name,
        nbytes=size * (math.prod(tensor.shape) // cols),
        source=tensor,
    )


def _header(plan: Plan) -> bytes:
    """Of a safetensors file that holds every tensor in float32, canonical orientation."""
    fields, end = {}, 0
    for tensor in plan.tensors:
        start, end = end, end + 4 * math.prod(tensor.shape)
        fields[tensor.name] = {
            "dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class Decoded(Mapping[str, NDArray[np.float32]]):
    """What `PureTarget` wrote, in the orientation in which the checkpoint stores each tensor."""

    def __init__(self, path: Path, source: Source) -> None:
        self._file = safe_open(path, framework="numpy")
        self._turned = {one.name: one.transposed for one in source.tensors}

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __len__(self) -> int:
        return len(self._file.keys())

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._file.get_tensor(name)
        return np.ascontiguousarray(values.T) if self._turned[name] else values


def convert_pure(model: Path, grid: Grid, out: Path, asked: Asked, threads: int) -> Conversion:
    """Quantize the linears of the blocks as `asked` and write them to the file `out`."""
    assert asked.method is not None
    recipe = parse(asked.method)
    target, request = PureTarget(grid), Request()
    job = job_of_checkpoint(open_checkpoint(model), target, request, out, recipe, asked)
    return run(job, threads=threads, force=True, asked=asked)
