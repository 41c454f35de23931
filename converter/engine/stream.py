"""Calibration rows through one block at a time, and what its linears read on the way.

Work is cut into pieces of a size that depends on the model alone, each piece is computed by one
thread, and sums are taken in the order of the pieces: so the bits do not depend on the number of
threads. Hidden states and sums are float32; matrix products inside a block run in the type that
`compute_type` names.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch

from qconvert.engine import attention
from qconvert.engine.block import Block
from qconvert.engine.rounding import Inputs, rounding
from qconvert.engine.skeleton import Call, Skeleton

WAVE_BYTES = {"cpu": 1 << 26, "cuda": 1 << 29}
"""Captured inputs that are held at once, by the type of the device: sums over them read and write a
matrix of moments once for each wave."""


class Workers:
    """Threads that each compute with one thread of their own. On a CUDA device there is one."""

    def __init__(self, threads: int, device: torch.device) -> None:
        self.count = threads if device.type == "cpu" else 1
        self._pool = ThreadPoolExecutor(
            self.count, initializer=torch.set_num_threads, initargs=(1,)
        )

    def map(self, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """Results in the order of `items`."""
        return list(self._pool.map(work, items))

    def close(self) -> None:
        self._pool.shutdown()


@contextmanager
def workers(threads: int, device: torch.device) -> Iterator[Workers]:
    """A pool; outside of it, too, torch computes with one thread until it is closed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    pool = Workers(threads, device)
    try:
        yield pool
    finally:
        pool.close()
        torch.set_num_threads(before)
        torch.backends.cuda.matmul.allow_tf32 = tf32


@dataclass(frozen=True, slots=True)
class Wave:
    """What was read in a block by the tokens of some rows."""

    inputs: Mapping[str, torch.Tensor]  # by the names of READS, each [tokens, cols]
    mixed: torch.Tensor | None  # M x [tokens, cols], x: "attn_in", M: `attention.mixing`


class Seen:
    """One row on its way through a block, in one thread."""

    def __init__(self, local: threading.local, mixed: bool) -> None:
        self._local, self._listens = local, mixed
        self.inputs: dict[str, torch.Tensor] = {}
        self.mixed = torch.empty(0)

    def hear(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scaling: float | None,
    ) -> None:
        """Called by attention, after its inputs were seen."""
        if not self._listens:
            return
        found = attention.mixing(query, key, mask, scaling)
        with torch.autocast(query.device.type, enabled=False):
            self.mixed = found @ self._local.seen["attn_in"]


class _Enough(Exception):
    """Raised in a block when all its inputs have been seen: the rest need not be computed."""


def compute_type(asked: str, device: torch.device) -> torch.dtype:
    """ "float32", "bfloat16", or "auto": bfloat16 where the device multiplies it in hardware."""
    if asked != "auto":
        found: torch.dtype = getattr(torch, asked)
        return found
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.bfloat16 if fast else torch.float32


@dataclass(frozen=True, slots=True)
class Stream:
    """Runs blocks of one skeleton."""

    skeleton: Skeleton
    calls: Sequence[Call]  # how each block is called, for one row
    pool: Workers
    compute: torch.dtype = torch.float32  # of matrix products inside a block

    def forward(
        self,
        block: Block,
        rows: torch.Tensor,
        out: torch.Tensor | None,
        inputs: Inputs | None = None,
    ) -> Mapping[str, float]:
        """Fill `out`, if there is one, with the hidden states [rows, length, hidden] behind
        `block`, whose linears read what `inputs` makes of it. The largest magnitude, over all rows,
        of each input by its name in `READS`, before that, and of "key" (after RoPE) and "value" as
        they enter a cache."""
        loaded = self.skeleton.loaded(block, self.compute)
        with (
            loaded as module,
            self._largest(module, block) as local,
            rounding(module, self.skeleton.source, block, inputs or {}),
        ):

            def work(index: int) -> dict[str, float]:
                local.largest = found = dict[str, float]()

                def hear(_: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: Any) -> None:
                    found.update(key=_magnitude(key), value=_magnitude(value))

                with attention.listening(hear):
                    behind = self._call(module, block, rows[index : index + 1])[0]
                if out is not None:
                    out[index] = behind
                return found

            found = self.pool.map(work, range(len(rows)))
        return {name: max(one[name] for one in found) for name in found[0]}

    def captured(
        self,
        block: Block,
        rows: torch.Tensor,
        names: Sequence[str],
        *,
        chosen: Sequence[int] | None = None,
        mixed: bool = False,
    ) -> Iterator[Wave]:
        """The inputs `names` of `block`, of wave after wave of the `chosen` rows (None: all), which
        are taken from the map of their file one by one; `mixed`: also how attention
        mixes the inputs of v."""
        step = wave_rows(block, rows.shape[1], self.skeleton.device, mixed=mixed)
        loaded = self.skeleton.loaded(block, self.compute)
        with loaded as module, self._taps(module, block, names) as local:

            def work(row: torch.Tensor) -> Seen:
                local.seen, found = {}, Seen(local, mixed)
                with suppress(_Enough), attention.listening(found.hear):
                    self._call(module, block, row)
                found.inputs = dict(local.seen)
                return found

            indices = range(len(rows)) if chosen is None else chosen
            for start in range(0, len(indices), step):
                wave = [rows[index : index + 1] for index in indices[start : start + step]]
                seen = self.pool.map(work, wave)
                inputs = {name: torch.cat([one.inputs[name] for one in seen]) for name in names}
                products = torch.cat([one.mixed for one in seen]) if mixed else None
                yield Wave(inputs, products)

    @contextmanager
    def _taps(
        self, module: torch.nn.Module, block: Block, names: Sequence[str]
    ) -> Iterator[threading.local]:
        """While it is open, each thread that runs `module` finds its inputs in `.seen`."""
        local = threading.local()

        def see(name: str, x: torch.Tensor) -> None:
            local.seen[name] = x.flatten(0, 1).float()
            if len(local.seen) == len(names):
                raise _Enough

        with self._told(module, block, names, see):
            yield local

    @contextmanager
    def _largest(self, module: torch.nn.Module, block: Block) -> Iterator[threading.local]:
        """While it is open, each thread that runs `module` finds the largest magnitudes of its
        inputs in `.largest`."""
        local = threading.local()

        def see(name: str, x: torch.Tensor) -> None:
            local.largest[name] = _magnitude(x)

        with self._told(module, block, list(block.inputs), see):
            yield local

    @contextmanager
    def _told(
        self,
        module: torch.nn.Module,
        block: Block,
        names: Sequence[str],
        see: Callable[[str, torch.Tensor], None],
    ) -> Iterator[None]:
        """While it is open, whoever runs `module` calls `see` with the inputs `names`."""

        def tap(name: str) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
            return lambda _, args: see(name, args[0])

        hooks = [
            self.skeleton.reader(module, block, name).register_forward_pre_hook(tap(name))
            for name in names
        ]
        try:
            yield
        finally:
            for one in hooks:
                one.remove()

    def _call(self, module: torch.nn.Module, block: Block, row: torch.Tensor) -> torch.Tensor:
        call = self.calls[block.index]
        device, narrow = self.skeleton.device, self.compute != torch.float32
        with torch.inference_mode(), torch.autocast(device.type, self.compute, enabled=narrow):
            out = module(row.to(device), *call.args, **call.kwargs)
        found: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return found.float()


def _magnitude(x: torch.Tensor) -> float:
    low, high = x.aminmax()
    return max(-float(low), float(high))


def wave_rows(block: Block, length: int, device: torch.device, *, mixed: bool = False) -> int:
    """Rows that are captured at once, from sizes and device alone."""
    cols = sum(block.inputs.values()) + mixed * block.inputs.get("attn_in", 0)
    return rows_of_wave(cols, length, device)


def rows_of_wave(cols: int, length: int, device: torch.device) -> int:
    """Rows of `length` tokens whose `cols` channels are held at once."""
    most = WAVE_BYTES.get(device.type, WAVE_BYTES["cpu"])
    return max(1, most // (4 * length * cols))
