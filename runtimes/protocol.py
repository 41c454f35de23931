"""How a worker process and its parent talk: over two pipes, in turns, one request, one reply.

A message is one line of JSON and then raw array bytes, C order, back to back:

    {"call": "logits", "arguments": {}, "arrays": [{"dtype": "<i4", "shape": [512]}]}\\n<2048 bytes>
    {"result": null, "arrays": [{"dtype": "<f4", "shape": [512, 49152]}]}\\n<100663296 bytes>
    {"error": "refused", "message": "...", "remedy": "..."}\\n

A reply holds `result`, or `error` (one of `ERRORS`) with `message` and `remedy`. The worker leaves
when its standard input ends. Its standard output carries replies and nothing else; whatever the
runtime prints goes to standard error, which the parent keeps for error messages.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Buffer

Array = NDArray[np.generic]

ERRORS = ("refused", "missing", "failed")
"""The input cannot be served; the runtime cannot be used here; the runtime failed at its work."""


@dataclass(frozen=True, slots=True)
class Message:
    head: Mapping[str, Any]
    arrays: tuple[Array, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a handler gives back."""

    result: Any = None
    arrays: Sequence[Array] = ()


@dataclass(slots=True)
class WorkerError(Exception):
    """Raised by a handler: becomes the parent's `Refused`, `MissingRuntime` or `RuntimeFailed`."""

    kind: str  # one of ERRORS
    message: str
    remedy: str = ""


Handler = Callable[..., Answer]  # handler(*arrays, **arguments)


def send(stream: BinaryIO, head: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Write one message."""
    described = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    stream.write(json.dumps({**head, "arrays": described}).encode() + b"\n")
    for array in arrays:
        stream.write(_bytes(np.ascontiguousarray(array)))
    stream.flush()


def receive(stream: BinaryIO) -> Message:
    """Read one message; `EOFError` when the other side is gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    head = json.loads(line)
    arrays = tuple(_receive_array(stream, **described) for described in head.pop("arrays"))
    return Message(head, arrays)


def _receive_array(stream: BinaryIO, dtype: str, shape: Sequence[int]) -> Array:
    array = np.empty(tuple(shape), np.dtype(dtype))
    rest = _bytes(array)
    while rest:
        got = stream.readinto(rest)  # type: ignore[attr-defined]
        if not got:
            raise EOFError
        rest = rest[got:]
    return array


def _bytes(array: Array) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(cast("Buffer", array.reshape(-1).view(np.uint8)))


@dataclass(slots=True)
class Service:
    """The worker's side: named handlers, called one at a time until the parent is gone."""

    handlers: Mapping[str, Handler]
    parent: int = field(default_factory=os.getppid)

    def run(self) -> None:
        """Over standard input and output, as `Worker` starts it."""
        requests, replies = _take_pipes()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the parent
        self.serve(requests, replies)  # is the one to decide

    def serve(self, requests: BinaryIO, replies: BinaryIO) -> None:
        """Until `requests` ends, or the parent is gone."""
        threading.Thread(target=self._watch_parent, daemon=True).start()
        while True:
            try:
                request = receive(requests)
            except EOFError:
                return
            try:
                answer = self._answer(request)
            except WorkerError as error:
                told = {"error": error.kind, "message": error.message, "remedy": error.remedy}
                send(replies, told)
            else:
                send(replies, {"result": answer.result}, answer.arrays)

    def _answer(self, request: Message) -> Answer:
        handler = self.handlers[request.head["call"]]
        return handler(*request.arrays, **request.head["arguments"])

    def _watch_parent(self) -> None:
        """Leave when the parent was killed in the middle of a long call, with all that was started
        here where the process leads its own group."""
        while os.getppid() == self.parent:
            time.sleep(1.0)
        if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)


def _take_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Own the two pipes; afterwards a library that prints writes to standard error."""
    requests = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, sys.stdin.fileno())
    os.close(null)
    return requests, replies
