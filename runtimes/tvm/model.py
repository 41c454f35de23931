"""A folder's tensors, read by TVM's own loader, under our compiled graph."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tvm  # type: ignore[import-not-found,unused-ignore]
from numpy.typing import NDArray
from tvm import relax

from qconvert.runtimes.tvm.folder import Facts, Unfit, stored, transposed
from qconvert.runtimes.tvm.graph import build
from qconvert.runtimes.tvm.rotary import tables

CPU = (1, 0)  # of the loader: kDLCPU, the first


class Model:
    """One sequence. `step` and `advance` go on from where the last one ended."""

    def __init__(self, folder: Path, facts: Facts, *, threads: int, context: int) -> None:
        tvm.get_global_func("runtime.config_threadpool")(1, threads)
        started = time.perf_counter()
        tensors = loaded(folder, stored(facts))
        exact = products_are_exact(facts, tensors)
        room = -(-max(context, 2) // 16) * 16
        middle = time.perf_counter()
        executable, names = build(facts, exact=exact, room=room)
        ended = time.perf_counter()
        self._functions = relax.VirtualMachine(executable, tvm.cpu())
        self._facts, self._exact, self._names = facts, exact, names
        self._watched: Any = None  # the graph that shows its blocks, compiled when asked for
        self._parameters = [
            tensor(tensors[name].numpy().T) if transposed(facts, name) else tensors[name]
            for name in names
        ]
        turns = tables(room, facts.head_dim, facts.theta, facts.scaling)
        self._cos, self._sin = (tensor(one) for one in turns)
        shape = (facts.kv_heads, facts.head_dim, room)
        self._keys = [tensor(np.zeros(shape, np.float32)) for _ in range(facts.layers)]
        swapped = (shape[0], shape[2], shape[1])
        self._values = [tensor(np.zeros(swapped, np.float32)) for _ in range(facts.layers)]
        self._past, self.room = 0, room
        decoded = "no product needs rounding" if exact else f"rounded to {facts.scheme.dtype}"
        self.notes = [
            f"TVM read the folder in {middle - started:.1f} s and compiled our graph in"
            f" {ended - middle:.1f} s; weights are decoded as (code - middle) * scale, {decoded},"
            " and all arithmetic is float32",
            "tokens are those of Hugging Face's tokenizers: MLC's tokenizer is not packaged",
        ]

    def reset(self) -> None:
        """Forget the context."""
        self._past = 0

    def step(self, tokens: NDArray[np.int32]) -> Any:
        """Hidden states of the next tokens, in TVM's memory: for `head`."""
        return self._run("prefill", tokens)

    def advance(self, token: int) -> NDArray[np.float32]:
        """[1, vocab] after one more token."""
        return self._run("decode", np.array([token], np.int32)).numpy()  # type: ignore[no-any-return]

    def blocks(self, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
        """[blocks, len(tokens), hidden]: what each block gives of the next tokens."""
        if self._watched is None:
            made, names = build(self._facts, exact=self._exact, room=self.room, wanted=("blocks",))
            if names != self._names:
                raise ValueError("our graph of blocks has other parameters")
            self._watched = relax.VirtualMachine(made, tvm.cpu())
        found = self._run("blocks", tokens, self._watched)
        return np.stack([one.numpy() for one in found])

    def head(self, hidden: Any, *, last: bool = False) -> NDArray[np.float32]:
        """[tokens, vocab], or of the last token alone."""
        if last:
            hidden = tensor(hidden.numpy()[-1:])
        return self._functions["head"](hidden, self._parameters).numpy()  # type: ignore[no-any-return]

    def _run(self, name: str, tokens: NDArray[np.int32], functions: Any = None) -> Any:
        if self._past + len(tokens) > self.room:  # kernels would write beyond
            raise ValueError(f"{self._past + len(tokens)} tokens do not fit {self.room} positions")
        past = tensor(np.array([self._past], np.int32))
        found, *_ = (functions or self._functions)[name](
            tensor(tokens), self._cos, self._sin, past, self._keys, self._values, self._parameters
        )
        self._past += len(tokens)
        return found


def loaded(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """The tensors of a folder, by TVM's C++ loader, whose cache is one of the whole process.
    `Unfit` where it does not read the folder."""
    wanted = list(names)
    load, clear = (
        tvm.get_global_func(f"vm.builtin.tensor_cache.{one}") for one in ("load", "clear")
    )
    clear()
    try:
        load(str(folder), *CPU)
        found = tvm.get_global_func("vm.builtin.param_array_from_cache_by_name")(wanted)
        return dict(zip(wanted, found, strict=True))
    except Exception as error:
        said = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise Unfit(f"TVM does not read {folder}: {said.strip()}") from error
    finally:
        clear()


def products_are_exact(facts: Facts, tensors: Mapping[str, Any]) -> bool:
    """Whether the dtype holds every code times every scale: scales of few significant bits."""
    scheme = facts.scheme
    codes = [code - scheme.middle for code in range(scheme.mask + 1)] if scheme.bits else []
    for name, one in tensors.items():
        if not name.endswith(".q_scale"):
            continue
        scales = one.numpy()
        for code in codes:
            exact = scales.astype(np.float64) * code
            if (exact.astype(scales.dtype).astype(np.float64) != exact).any():
                return False
    return True


def tensor(array: NDArray[Any]) -> Any:
    """In TVM's memory."""
    return tvm.runtime.tensor(np.ascontiguousarray(array))
