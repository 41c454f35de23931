"""Whole files by llama.cpp's own conversion (`llama-quantize`), with importance or without."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from qconvert.formats.gguf.model import read_model
from qconvert.formats.source import Source
from qconvert.formats.target import Reader


def llama_quantize(
    original: Path,
    out: Path,
    type: str,
    *,
    threads: int = 1,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    types: Mapping[str, str] | None = None,
) -> None:
    """Convert a GGUF of 16 bits to the mix `type` ("Q4_K_M").

    `importance` and `types` by the file's tensor names: the importance of each column, and the
    types that some tensors are to get whatever the mix says. `RuntimeError` when it fails.
    """
    import llama_cpp.llama_cpp as binding

    api: Any = binding

    @api.llama_log_callback
    def silent(level: int, text: bytes, data: Any) -> None:
        pass

    api.llama_log_set(silent, None)
    params = api.llama_model_quantize_default_params()
    params.ftype = getattr(api, f"LLAMA_FTYPE_MOSTLY_{type}")
    params.nthread = threads
    table = _importance_table(api, importance or {})
    if importance:
        params.imatrix = ctypes.cast(table, ctypes.POINTER(api.llama_model_imatrix_data))
    overrides = _override_table(api, types or {})
    if types:
        pointer = ctypes.POINTER(api.llama_model_tensor_override)
        params.tt_overrides = ctypes.cast(overrides, pointer)
    if api.llama_model_quantize(bytes(original), bytes(out), ctypes.byref(params)) != 0:
        raise RuntimeError(f"llama.cpp does not make {type} of {original}")


def _importance_table(api: Any, importance: Mapping[str, NDArray[np.float32]]) -> Any:
    """An array that a nameless entry ends. ctypes keeps what it points to alive."""
    table = (api.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(table, importance.items(), strict=False):
        data = (ctypes.c_float * len(values))(*values.tolist())
        entry.name, entry.data, entry.size = name.encode(), data, len(values)
    return table


def _override_table(api: Any, types: Mapping[str, str]) -> Any:
    table = (api.llama_model_tensor_override * (len(types) + 1))()
    for entry, (name, kind) in zip(table, types.items(), strict=False):
        entry.pattern = f"^{re.escape(name)}$".encode()
        entry.type = int(gguf.GGMLQuantizationType[kind])
    return table


def by_file_name(
    source: Source, values: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Values of columns by checkpoint name -> by name in a GGUF, which keeps their order."""
    return {
        placed.name: values[placed.source.name]
        for placed in read_model(source).tensors
        if placed.source is not None and placed.source.name in values
    }


def quantized_types(reader: Reader) -> dict[str, str]:
    """Tensor -> storage type, of the matrices."""
    return {name: one.dtype for name, one in reader.tensors.items() if len(one.shape) > 1}
