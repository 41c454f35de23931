"""Opens a served folder with care, decodes its tensors, and gives a checkpoint's weights back."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.checkpoint_files import INDEX, read_json_object, stored_tensors
from qconvert.formats.floats import decode_floats
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.formats.safetensors_header import Entry as Found
from qconvert.formats.serving.container import (
    SIZES,
    Array,
    CacheType,
    Container,
    Entry,
    Linear,
    containers,
)
from qconvert.formats.serving.folder.writer import STORED
from qconvert.formats.serving.layouts.numbers import floats
from qconvert.formats.serving.told import told_of
from qconvert.formats.source import DTYPES, Source
from qconvert.formats.target import CacheRounding, InputRounding, StoredTensor
from qconvert.formats.tensor import QuantizedTensor
from qconvert.formats.told import Told

CONFIG = "config.json"
WEIGHT = ".weight"
HEAD = "lm_head.weight"
"""A head that the model ties to its embedding, where the folder has one of its own."""
_CACHE = re.compile(r"\.(?P<block>\d+)\..*\.(?P<which>[kv])_scale$")


@dataclass(frozen=True, slots=True)
class FolderReader:
    """`formats.target.Reader` of a folder. Quantized linears go by the name of their weight, with
    all that is stored of them."""

    files: tuple[Path, ...]
    metadata: Mapping[str, Any]  # config.json
    tensors: Mapping[str, StoredTensor]
    container: Container | None  # None: nothing is quantized
    linears: Mapping[str, Linear]  # by the name of the weight
    kv: CacheType | None = None  # type of the KV cache that the configuration switches on
    contradictions: tuple[Reason, ...] = ()
    """Linears that the configuration says are float and are not, or the other way round."""
    _views: Mapping[str, Array] = field(default_factory=dict, repr=False)  # of the mapped files

    def array(self, name: str) -> Array:
        """A stored tensor as it is: BF16 as uint16, F8_E4M3 as uint8."""
        return self._views[name]

    def codes(self, name: str) -> QuantizedTensor:
        """The neutral form of a quantized linear, by the name of its weight."""
        assert self.container is not None
        return self.container.unpack(self.linears[name], self._views)

    def decode(self, name: str) -> NDArray[np.float32]:
        """The float32 values of a tensor; those of a linear take in its `column_scales`."""
        linear = self.linears.get(name)
        if linear is not None:
            values = linear.scheme.grid.decode(self.codes(name))
            columns = self._columns(name)
            return values if columns is None else values * columns
        stored = self.tensors[name]
        if stored.dtype not in DTYPES:
            raise refuse(f"{name} is stored as {stored.dtype}, and nothing says what it stands for")
        return decode_floats(self._views[name], stored.dtype)

    def weights(self, source: Source) -> Mapping[str, NDArray[np.float32]]:
        """Checkpoint name -> values, decoded one at a time; `Refused` where the folder is of
        another model."""
        reasons = []
        for tensor in source.tensors:
            stored = self.tensors.get(tensor.name)
            if stored is None:
                reasons.append(
                    Reason(f"the folder has no {tensor.name}", "was it made of another model?")
                )
            elif stored.shape != tensor.shape:
                reasons.append(
                    Reason(
                        f"{tensor.name} is {stored.shape} in the folder, {tensor.shape} in the"
                        " model"
                    )
                )
        raise_if_any(reasons)
        own = (HEAD,) if source.tied and HEAD in self.tensors else ()
        return _Weights(self, (*(tensor.name for tensor in source.tensors), *own))

    def told(self, source: Source) -> Told:
        """What its small files say of the model."""
        return told_of(self)

    @property
    def input_rounding(self) -> Mapping[str, InputRounding]:
        """Name of a weight -> how a runtime rounds what it is multiplied with."""
        if self.container is None:
            return {}
        found = {
            name: self.container.input_rounding(linear, self.array)
            for name, linear in self.linears.items()
        }
        return {name: one for name, one in found.items() if one is not None}

    @property
    def column_scales(self) -> Mapping[str, NDArray[np.float32]]:
        """Name of a weight -> the vector [in] by which a runtime multiplies what it reads."""
        found = {name: self._columns(name) for name in self.linears}
        return {name: one for name, one in found.items() if one is not None}

    def _columns(self, name: str) -> NDArray[np.float32] | None:
        linear = self.linears[name]
        part = None if self.container is None else self.container.column_part(linear)
        if part is None:
            return None
        found = floats(self._views[f"{linear.module}.{part}"])
        if not np.isfinite(found).all():
            raise refuse(f"{linear.module}.{part} holds NaN or Inf", "the folder is damaged")
        return found

    @property
    def cache_rounding(self) -> Mapping[int, CacheRounding]:
        """Block -> scales of its KV cache, where the configuration switches them on. 1 where none
        is stored, as runtimes take it."""
        if self.kv is None:
            return {}
        found: dict[int, dict[str, float]] = {}
        for name, view in self._views.items():
            match = _CACHE.search(name)
            if match is not None and view.size == 1:
                found.setdefault(int(match["block"]), {})[match["which"]] = view.item()
        return {
            block: CacheRounding(scales.get("k", 1.0), scales.get("v", 1.0), self.kv)
            for block, scales in found.items()
        }


class _Weights(Mapping[str, NDArray[np.float32]]):
    def __init__(self, reader: FolderReader, names: tuple[str, ...]) -> None:
        self._reader, self._names = reader, dict.fromkeys(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._names:
            raise KeyError(name)
        return self._reader.decode(name)


def open_reader(path: Path) -> FolderReader:
    """Open the folder `path`; `Refused`, naming the file, when one is damaged or they contradict
    each other."""
    if not path.is_dir():
        raise refuse(f"no such folder: {path}")
    config = read_json_object(path / CONFIG, "a served folder holds config.json and safetensors")
    found = stored_tensors(path)
    _known_types(found)
    entries = {one.name: Entry(one.name, one.dtype, one.shape) for one in found.values()}
    container = next((one for one in containers().values() if one.recognises(config, path)), None)
    if container is None and config.get("quantization_config"):
        told = config["quantization_config"]
        method = told.get("quant_method") if isinstance(told, dict) else told
        raise refuse(f"{path} is quantized with {method!r}",
                     f"qconvert reads {', '.join(containers())}")  # fmt: skip
    wrong: list[Reason] = []
    linears = [] if container is None else container.linears(config, entries, path, wrong)
    shards = list(dict.fromkeys(one.path for one in found.values()))
    index = [path / INDEX] if (path / INDEX).is_file() and len(shards) > 1 else []
    return FolderReader(
        files=tuple([*shards, *index, path / CONFIG]),
        metadata=config,
        tensors=_by_weight(entries, linears),
        container=container,
        linears={f"{one.module}{WEIGHT}": one for one in linears},
        kv=None if container is None else container.kv(config, path),
        contradictions=tuple(wrong),
        _views=_map(shards, found),
    )


def _known_types(found: Mapping[str, Found]) -> None:
    raise_if_any(
        [
            Reason(f"{one.path.name}: {one.name} is {one.dtype}, which no scheme stores")
            for one in found.values()
            if one.dtype not in SIZES
        ][:5]
    )


def _by_weight(entries: Mapping[str, Entry], linears: Any) -> dict[str, StoredTensor]:
    """What is found, each linear as one: its shape [out, in], the scheme, the bytes it takes."""
    by_module = {one.module: one for one in linears}
    tensors: dict[str, StoredTensor] = {}
    parts: dict[str, int] = {}
    for name, entry in entries.items():
        module, _, part = name.rpartition(".")
        if module in by_module and part not in ("bias", "k_scale", "v_scale"):
            parts[module] = parts.get(module, 0) + entry.nbytes
            linear, weight = by_module[module], f"{module}{WEIGHT}"
            tensors[weight] = StoredTensor(weight, linear.shape, linear.scheme.name, parts[module])
        else:
            tensors[name] = StoredTensor(name, entry.shape, entry.dtype, entry.nbytes)
    return tensors


def _map(shards: list[Path], found: Mapping[str, Found]) -> dict[str, Array]:
    """Views of the files by tensor: nothing is read yet."""
    maps = {}
    for path in shards:
        try:
            maps[path] = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
        except OSError as fault:
            raise refuse(f"{path} cannot be read: {fault.strerror or fault}") from fault
    return {
        name: maps[one.path][one.offset : one.offset + one.nbytes]
        .view(STORED[one.dtype])
        .reshape(one.shape)
        for name, one in found.items()
    }
