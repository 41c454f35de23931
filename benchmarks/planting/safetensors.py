"""Tensors in safetensors files, found by the header alone and changed where they lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from planting.files import Files, Inapplicable

INDEX = "model.safetensors.index.json"
TYPES: dict[str, Any] = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn, "I64": np.int64, "I32": np.int32, "I8": np.int8,
    "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
Header = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    file: str
    offset: int  # in the file
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def header_of(path: Path) -> tuple[Header, int]:
    """The header, and where the tensors begin."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length)), 8 + length


class Tensors:
    """Every tensor of the safetensors files of a copy."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.places: dict[str, Place] = {}
        for name in self.data_files():
            header, start = header_of(files.read(name))
            for tensor, told in header.items():
                if tensor != "__metadata__":
                    begin, end = told["data_offsets"]
                    shape = tuple(told["shape"])
                    place = Place(name, start + begin, told["dtype"], shape, end - begin)
                    self.places[tensor] = place

    def data_files(self) -> list[str]:
        return [name for name in self._files.names() if name.endswith(".safetensors")]

    def has(self, name: str) -> bool:
        return name in self.places

    def get(self, name: str) -> NDArray[Any]:
        if name not in self.places:
            raise Inapplicable(f"there is no {name}")
        place = self.places[name]
        with self._files.read(place.file).open("rb") as stream:
            stream.seek(place.offset)
            data = stream.read(place.nbytes)
        return np.frombuffer(data, TYPES[place.dtype]).reshape(place.shape).copy()

    def put(self, name: str, array: NDArray[Any]) -> None:
        place = self.places[name]
        data = np.ascontiguousarray(array).tobytes()
        if len(data) != place.nbytes:
            raise ValueError(f"{name} has {place.nbytes} bytes, not {len(data)}")
        with self._files.own(place.file).open("r+b") as stream:
            stream.seek(place.offset)
            stream.write(data)

    def rewrite(self, file: str, change: Callable[[dict[str, tuple[str, Any]]], None]) -> None:
        """Write `file` again with what `change` does to name -> (dtype, array)."""
        header, _ = header_of(self._files.read(file))
        held = {
            name: (told["dtype"], self.get(name))
            for name, told in header.items()
            if name != "__metadata__"
        }
        change(held)
        told: Header = {"__metadata__": header.get("__metadata__", {"format": "pt"})}
        at = 0
        for name, (dtype, array) in held.items():
            size = array.nbytes
            told[name] = {"dtype": dtype, "shape": list(array.shape),
                          "data_offsets": [at, at + size]}  # fmt: skip
            at += size
        text = json.dumps(told, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        body = b"".join(np.ascontiguousarray(array).tobytes() for _, array in held.values())
        self._files.write(file, struct.pack("<Q", len(text)) + text + body)
        self.__init__(self._files)  # type: ignore[misc]  # offsets have moved

    def retype(self, name: str, dtype: str) -> None:
        """The same bytes under another type of the same width."""
        place = self.places[name]

        def change(held: dict[str, tuple[str, Any]]) -> None:
            held[name] = (dtype, held[name][1].view(TYPES[dtype]))

        self.rewrite(place.file, change)

    def remove(self, name: str) -> None:
        place = self.places[name]
        self.rewrite(place.file, lambda held: held.pop(name) and None)
        self._index(lambda weights: weights.pop(name, None))

    def add(self, name: str, dtype: str, array: NDArray[Any]) -> None:
        last = self.data_files()[-1]
        self.rewrite(last, lambda held: held.update({name: (dtype, array)}))
        self._index(lambda weights: weights.update({name: last}))

    def _index(self, change: Callable[[dict[str, str]], Any]) -> None:
        if self._files.has(INDEX):
            self._files.edit_json(INDEX, lambda content: change(content["weight_map"]))
