"""ggml's own quantizer, called through the shared library that a Python package carries."""

from __future__ import annotations

import ctypes
import importlib.metadata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray


class Ggml:
    """`ggml_quantize_chunk` of the shared library inside libggml-python or llama-cpp-python."""

    def __init__(self) -> None:
        self.package, path = library()
        loaded = ctypes.CDLL(str(path))
        self.quantize_init, self.quantize_chunk = (
            loaded.ggml_quantize_init,
            loaded.ggml_quantize_chunk,
        )
        self.quantize_chunk.restype = ctypes.c_size_t
        self.quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
            ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
        ]  # fmt: skip

    def quantize(
        self,
        name: str,
        w: NDArray[np.float32],
        weight: NDArray[np.float32] | None,
        threads: int = 1,
    ) -> NDArray[np.uint8]:
        """Packed bytes [rows, bytes per row]; threads take equal shares of the rows."""
        kind = gguf.GGMLQuantizationType[name]
        rows, cols = w.shape
        block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.empty((rows, cols // block * size), np.uint8)
        self.quantize_init(int(kind))
        importance = None if weight is None else weight.ctypes.data

        def part(start: int, stop: int) -> None:
            source, target = w[start:stop], out[start:stop]
            self.quantize_chunk(
                int(kind), source.ctypes.data, target.ctypes.data, 0, stop - start, cols, importance
            )

        edges = np.linspace(0, rows, threads + 1).astype(int)
        if threads == 1:
            part(0, rows)
        else:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(part, edges[:-1], edges[1:]))
        return out


def library() -> tuple[str, Path]:
    """The package that has it, with its version, and the file; `LookupError` when none has."""
    for package, folder in (("llama-cpp-python", "llama_cpp/lib"), ("libggml-python", "libggml")):
        try:
            root = Path(str(importlib.metadata.distribution(package).locate_file(folder)))
        except importlib.metadata.PackageNotFoundError:
            continue
        for path in sorted(root.rglob("libggml-base.*")):
            return f"{package} {importlib.metadata.version(package)}", path
    raise LookupError("needs llama-cpp-python or libggml-python: pip install libggml-python")
