"""What llama.cpp's blocks give to each other, copied while it computes.

A context may have a callback that is asked of every tensor of the graph whether it wants to see
it, and is shown it once it is computed (`ggml_backend_sched_set_eval_callback` in
ggml/include/ggml-backend.h). llama.cpp names what block N gives "l_out-N" (src/models). A graph
that is watched is computed in pieces: hence a context of its own.
"""

from __future__ import annotations

import ctypes
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.llamacpp_binding import Library, Model
from qconvert.runtimes.protocol import WorkerError

OUTPUT = re.compile(rb"l_out-(\d+)")
FLOAT_BYTES = 4


def blocks(library: Library, model: Model, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """[blocks, len(tokens), hidden]; `WorkerError("failed")` where they cannot be seen."""
    seen = Seen(library)
    with model.watched(seen.callback):
        model.logits(tokens)  # at all positions: the last block computes no others
    if seen.failure:
        raise WorkerError("failed", f"does not show its blocks: {seen.failure}")
    numbers = sorted(seen.parts)
    outputs = [np.concatenate(seen.parts[number]) for number in numbers]
    if (
        not numbers
        or numbers != list(range(len(numbers)))
        or any(one.shape != (len(tokens), outputs[0].shape[1]) for one in outputs)
    ):
        shapes = sorted({one.shape for one in outputs})
        raise WorkerError("failed", f"shows blocks {numbers} of the shapes {shapes}")
    return np.stack(outputs)


class Seen:
    """Outputs of blocks, one part for each step of the computation."""

    def __init__(self, library: Library) -> None:
        self.parts: dict[int, list[NDArray[np.float32]]] = {}
        self.failure = ""
        try:
            self._ggml = _functions(library.api._lib)
        except AttributeError as error:
            raise WorkerError("failed", f"does not show its blocks: {error}") from None
        self.callback = library.api.ggml_backend_sched_eval_callback(self._called)

    def _called(self, tensor: Any, asking: bool, _: Any) -> bool:
        """Whether it is wanted; then, when it is there, to go on. Nothing may be raised in here."""
        try:
            named = OUTPUT.fullmatch(self._ggml["ggml_get_name"](tensor))
            if named is not None and not asking:
                self.parts.setdefault(int(named[1]), []).append(self._copy(tensor))
            return named is not None or not asking
        except Exception as error:
            self.failure = self.failure or repr(error)
            return not asking

    def _copy(self, tensor: Any) -> NDArray[np.float32]:
        size = self._ggml["ggml_nbytes"](tensor)
        count, rows = (self._ggml[f"ggml_{one}"](tensor) for one in ("nelements", "nrows"))
        if size != count * FLOAT_BYTES or not self._ggml["ggml_is_contiguous"](tensor):
            raise ValueError(f"{size} bytes for {count} values")
        found = np.empty((rows, count // rows), np.float32)
        self._ggml["ggml_backend_tensor_get"](tensor, found.ctypes.data, 0, size)
        return found


def _functions(library: ctypes.CDLL) -> dict[str, Any]:
    """Those of ggml that we call, as `ggml.h` and `ggml-backend.h` declare them: the layout of a
    tensor need not be known. They are found behind llama.cpp's library, which needs ggml's."""
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    declared: dict[str, tuple[Any, list[Any]]] = {
        "ggml_get_name": (ctypes.c_char_p, [pointer]),
        "ggml_nbytes": (size, [pointer]),
        "ggml_nelements": (ctypes.c_int64, [pointer]),
        "ggml_nrows": (ctypes.c_int64, [pointer]),
        "ggml_is_contiguous": (ctypes.c_bool, [pointer]),
        "ggml_backend_tensor_get": (None, [pointer, pointer, size, size]),
    }
    found = {}
    for name, (result, arguments) in declared.items():
        function = library[name]
        function.restype, function.argtypes = result, arguments
        found[name] = function
    return found
