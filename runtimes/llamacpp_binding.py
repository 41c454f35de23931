"""llama.cpp's C API as we use it, through the ctypes declarations of llama-cpp-python.

Only the worker process uses this module: importing `llama_cpp` loads the library.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.protocol import WorkerError

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama_model_params": {
        "split_mode": 1,  # LLAMA_SPLIT_MODE_LAYER
        "main_gpu": 0,
        "tensor_split": None,
        "kv_overrides": None,
        "vocab_only": False,
        "check_tensors": False,
        "use_extra_bufts": True,
        "no_host": False,
    },
    "llama_context_params": {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "n_threads": 4,  # GGML_DEFAULT_N_THREADS
        "n_threads_batch": 4,
        "rope_scaling_type": -1,
        "pooling_type": -1,
        "attention_type": -1,
        "rope_freq_base": 0.0,
        "rope_freq_scale": 0.0,
        "yarn_ext_factor": -1.0,
        "yarn_orig_ctx": 0,
        "type_k": 1,  # GGML_TYPE_F16
        "type_v": 1,
        "embeddings": False,
        "offload_kqv": True,
        "no_perf": True,
    },
}
"""Documented defaults (llama.cpp, src/llama-model.cpp and src/llama-context.cpp): a library whose
structures are laid out otherwise than the binding declares them shows other values here."""

ERROR, CONTINUED = 4, 5  # enum ggml_log_level: the latter goes on with the line before
SPARE = 256  # bytes after a structure, for fields that a newer library has appended


@dataclass(slots=True)
class Log:
    """Keeps llama.cpp's errors for our messages; warnings and errors go to standard error."""

    lines: list[str]
    _level: int = 0

    def write(self, level: int, text: bytes, _: Any) -> None:
        self._level = self._level if level == CONTINUED else level
        if self._level >= ERROR - 1:
            os.write(2, text)
        if self._level == ERROR:
            self.lines.append(text.decode("utf-8", "replace").strip())

    def last(self, default: str) -> str:
        return "; ".join([line for line in self.lines if line][-3:]) or default


class Library:
    """The loaded library, checked; `WorkerError("missing")` says why when it does not fit."""

    def __init__(self) -> None:
        self.api = _import()
        self.log = Log([])
        self._callback = self.api.llama_log_callback(self.log.write)
        self.api.llama_log_set(self._callback, None)
        self._check_layout()
        self.api.llama_backend_init()

    def describe(self) -> str:
        """Version of llama.cpp, its folder when it is not the package's own, and the binding's."""
        theirs = os.environ.get("LLAMA_CPP_LIB_PATH")
        where = f" from {theirs}" if theirs else ""
        llama = self.api.llama_version().decode()
        return f"llama.cpp {llama}{where} (llama-cpp-python {version('llama-cpp-python')})"

    def defaults(self, structure: str) -> Any:
        """The library's default parameters, with room for fields that the binding lacks."""
        plain = getattr(self.api, structure)
        default = self.api._lib[f"{structure.replace('_params', '_default_params')}"]
        default.argtypes, default.restype = [], _padded(plain)
        return default()

    def load(self, path: str, params: Any) -> Any:
        """`llama_model_load_from_file`; `WorkerError("refused")` with llama.cpp's own words."""
        function = self.api._lib["llama_model_load_from_file"]
        function.argtypes = [ctypes.c_char_p, type(params)]
        function.restype = self.api.llama_model_p_ctypes
        model = function(os.fsencode(path), params)
        if not model:
            reason = self.log.last("no reason given")
            raise WorkerError("refused", f"llama.cpp does not load {Path(path).name}: {reason}")
        return model

    def context(self, model: Any, params: Any) -> Any:
        """`llama_init_from_model`, and a look at whether the parameters arrived."""
        function = self.api._lib["llama_init_from_model"]
        function.argtypes = [self.api.llama_model_p_ctypes, type(params)]
        function.restype = self.api.llama_context_p_ctypes
        context = function(model, params)
        if not context:
            reason = self.log.last("no reason given")
            raise WorkerError("refused", f"llama.cpp makes no context for this file: {reason}")
        asked = params.plain
        got = {
            "n_ubatch": self.api.llama_n_ubatch(context) <= asked.n_ubatch,
            "n_ctx": self.api.llama_n_ctx(context) >= asked.n_ctx,
            "n_threads": self.api.llama_n_threads(context) == asked.n_threads,
            "n_threads_batch": self.api.llama_n_threads_batch(context) == asked.n_threads_batch,
        }
        wrong = [name for name, right in got.items() if not right]
        if wrong:
            raise WorkerError("missing", _mismatch(f"it did not take {', '.join(wrong)}"))
        return context

    def _check_layout(self) -> None:
        wrong = []
        for structure, expected in DEFAULTS.items():
            params = self.defaults(structure).plain
            for name, value in expected.items():
                found = getattr(params, name)
                if bool(found) if value is None else found != value:
                    wrong.append(f"{name} is {found!r} and not {value!r}")
        batch = self.api.llama_batch_init(4, 0, 1)
        if batch.n_tokens != 0 or batch.embd or not (batch.token and batch.pos and batch.logits):
            wrong.append("llama_batch is laid out otherwise")
        if wrong:
            raise WorkerError("missing", _mismatch("; ".join(wrong[:4])))
        self.api.llama_batch_free(batch)


def _import() -> Any:
    try:
        import llama_cpp.llama_cpp as api
    except ModuleNotFoundError as error:
        raise WorkerError("missing", f"Python has no module {error.name}") from None
    except (OSError, RuntimeError) as error:  # the binding wraps OSError
        raise WorkerError("missing", f"the library does not load: {error}") from None
    except AttributeError as error:  # a symbol that the binding declares is not in the library
        raise WorkerError("missing", _mismatch(str(error))) from None
    return api


def _mismatch(detail: str) -> str:
    ours = version("llama-cpp-python")
    return f"this build of llama.cpp does not fit llama-cpp-python {ours}: {detail}"


def _padded(plain: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """`plain` with spare bytes behind it.

    Both structures travel by value, in memory: a library that has appended fields writes its
    defaults into the spare bytes, and finds them there again when we hand the structure back.
    """
    fields = [("plain", plain), ("spare", ctypes.c_uint8 * SPARE)]
    return type(f"padded_{plain.__name__}", (ctypes.Structure,), {"_fields_": fields})


class Model:
    """A model and its context. All calls start from an empty context."""

    def __init__(
        self, library: Library, path: str, *, threads: int, context: int, repack: bool
    ) -> None:
        api = library.api
        self._library, self._api = library, api
        loading = library.defaults("llama_model_params")
        loading.plain.use_extra_bufts = repack and loading.plain.use_extra_bufts
        self._handle = library.load(path, loading)
        self._vocab = api.llama_model_get_vocab(self._handle)
        self.vocab = int(api.llama_vocab_n_tokens(self._vocab))
        self.threads, self._asked = threads, context
        self._context = self._new_context()
        self.capacity = int(api.llama_n_ctx(self._context))
        self.step = int(api.llama_n_batch(self._context))
        self.ubatch = int(api.llama_n_ubatch(self._context))
        self._batch = api.llama_batch_init(self.step, 0, 1)

    def _new_context(self, callback: Any = None) -> Any:
        params = self._library.defaults("llama_context_params")
        params.plain.n_ctx = self._asked
        params.plain.n_threads = params.plain.n_threads_batch = self.threads
        if callback is not None:
            params.plain.cb_eval = callback
        return self._library.context(self._handle, params)

    @contextmanager
    def watched(self, callback: Any) -> Iterator[None]:
        """Within: all is computed in a context of its own, which shows its tensors to `callback`, a
        `ggml_backend_sched_eval_callback`."""
        plain, self._context = self._context, self._new_context(callback)
        try:
            yield
        finally:
            watching, self._context = self._context, plain
            self._api.llama_free(watching)

    def tokenize(self, text: str, special: bool) -> NDArray[np.int32]:
        """Tokens of `text`, no BOS or EOS added."""
        data = text.encode("utf-8", "surrogatepass")
        room = len(data) + 8
        tokens = (self._api.llama_token * room)()
        n = self._api.llama_tokenize(self._vocab, data, len(data), tokens, room, False, special)
        if n < 0:
            tokens = (self._api.llama_token * -n)()
            n = self._api.llama_tokenize(self._vocab, data, len(data), tokens, -n, False, special)
        if n < 0:
            raise WorkerError("failed", f"llama.cpp does not tokenize a text of {len(data)} bytes")
        return np.array(tokens[:n], np.int32)

    def logits(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """[n, vocab]; a view of llama.cpp's own memory when `n` fits one batch."""
        self.reset()
        self._require(len(tokens))
        if len(tokens) <= self.step:
            return self._step(tokens, 0, every=True)
        whole = np.empty((len(tokens), self.vocab), np.float32)
        for part, at in self._parts(tokens):
            whole[at : at + len(part)] = self._step(part, at, every=True)
        return whole

    def generate(self, tokens: NDArray[np.int32], n: int) -> NDArray[np.int32]:
        """Up to `n` greedy tokens; an end token is the last."""
        self.reset()
        self._require(len(tokens) + n - 1)
        logits = self.prefill(tokens)
        made: list[int] = []
        while len(made) < n:
            made.append(int(np.argmax(logits)))
            if len(made) == n or self._api.llama_vocab_is_eog(self._vocab, made[-1]):
                break
            logits = self.advance(made[-1], len(tokens) + len(made) - 1)
        return np.array(made, np.int32)

    def prefill(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """Logits [vocab] after the last token."""
        self._require(len(tokens))
        *before, (last, start) = self._parts(tokens)
        for part, at in before:
            self._step(part, at, every=False)
        logits: NDArray[np.float32] = self._step(last, start, every=False)[0]
        return logits

    def advance(self, token: int, position: int) -> NDArray[np.float32]:
        """Logits [vocab] after one more token."""
        first: NDArray[np.float32] = self._step(np.array([token], np.int32), position, every=False)[
            0
        ]
        return first

    def reset(self) -> None:
        self._api.llama_memory_clear(self._api.llama_get_memory(self._context), True)

    def _parts(self, tokens: NDArray[np.int32]) -> Iterator[tuple[NDArray[np.int32], int]]:
        for start in range(0, len(tokens), self.step):
            yield tokens[start : start + self.step], start

    def _step(self, tokens: NDArray[np.int32], start: int, *, every: bool) -> NDArray[np.float32]:
        """Decode at most one batch; logits [n, vocab], or [1, vocab] of the last token: a view of
        memory that the next step overwrites."""
        n, batch = len(tokens), self._batch
        batch.n_tokens = n
        for i in range(n):
            batch.token[i] = int(tokens[i])
            batch.pos[i] = start + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or i == n - 1
        status = self._api.llama_decode(self._context, batch)
        if status != 0:
            reason = self._library.log.last(f"status {status}")
            raise WorkerError("failed", f"could not decode {n} tokens: {reason}")
        self._api.llama_synchronize(self._context)
        found = self._api.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, shape=(n if every else 1, self.vocab))

    def _require(self, n: int) -> None:
        if not 0 < n <= self.capacity:
            raise WorkerError(
                "failed", f"was asked for {n} positions with a context of {self.capacity}"
            )
