"""A Session in a worker process: the calls of the protocol under the names of `Session`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.process import Launch, Worker
from qconvert.runtimes.runtime import Throughput


class WorkerSession:
    """A `Session` whose model lives in a worker that answers `load`, `tokenize`, `logits`,
    `generate`, `throughput` and `memory`; see `protocol`. It has `blocks` where the worker says of
    a loaded model that it answers that, too."""

    def __init__(
        self,
        launch: Launch,
        path: Path,
        *,
        threads: int,
        context: int,
        notes: Sequence[str] = (),
        worker: Worker | None = None,  # one that runs already, and goes on; None: of our own
        **options: Any,  # the runtime's own, for its `load`
    ) -> None:
        self._own = worker is None
        self._worker = Worker(launch) if worker is None else worker
        asked = {"path": str(path.absolute()), "threads": threads, "context": context, **options}
        try:
            told = self._worker.call("load", **asked).head["result"]
        except BaseException:
            self.close()
            raise
        # What a reader of figures should know, one line each: kernels that the log names, ...
        self.notes = (*notes, *told.get("notes", ()))
        self.dtype: str | None = told.get("dtype")  # in which it computes, where it says so
        if told.get("blocks", False):
            self.blocks = self._blocks

    @property
    def pid(self) -> int:
        """Of the worker process."""
        return self._worker.pid

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        reply = self._worker.call("tokenize", text=text, special=special)
        return [int(token) for token in cast(NDArray[np.int32], reply.arrays[0])]

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        reply = self._worker.call("logits", [np.asarray(tokens, np.int32)])
        return cast(NDArray[np.float32], reply.arrays[0])

    def _blocks(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        reply = self._worker.call("blocks", [np.asarray(tokens, np.int32)])
        return cast(NDArray[np.float32], reply.arrays[0])

    def generate(self, tokens: Sequence[int], n: int) -> list[int]:
        reply = self._worker.call("generate", [np.asarray(tokens, np.int32)], n=n)
        return [int(token) for token in cast(NDArray[np.int32], reply.arrays[0])]

    def throughput(
        self,
        prompt: int,
        generate: int,
        repetitions: int,
        sequences: int = 1,
        *,
        warm: bool = True,
    ) -> Throughput:
        reply = self._worker.call(
            "throughput",
            prompt=prompt,
            generate=generate,
            repetitions=repetitions,
            sequences=sequences,
            warm=warm,
        )
        told: dict[str, Any] = {
            key: tuple(one) if isinstance(one, list) else one
            for key, one in reply.head["result"].items()
        }
        return Throughput(**told)

    def peak_bytes(self) -> int:
        return int(self._worker.call("memory").head["result"])

    def close(self) -> None:
        if self._own:
            self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
