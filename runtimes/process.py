"""The parent's side of a worker process: start it, ask it, and survive whatever becomes of it."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.runtimes.protocol import Array, Message, receive, send

TAIL_LINES = 12
STACK = re.compile(r"frame #\d+:|<omitting python frames>")
"""Lines by which libraries of torch name their own functions after an error."""
WATCH_SECONDS = 0.2


class RuntimeFailed(Exception):
    """A runtime crashed, hung or failed at its work: one message, with the end of its stderr."""

    def __init__(
        self, runtime: str, problem: str, tail: str = "", *, crashed: bool = False
    ) -> None:
        self.runtime, self.problem, self.tail, self.crashed = runtime, problem, tail, crashed
        said = "\n    ".join(["\n  the last lines it wrote:", *tail.splitlines()]) if tail else ""
        super().__init__(f"{runtime} {problem}{said}")


BOOTSTRAP = Path(__file__).with_name("bootstrap.py")


@dataclass(frozen=True, slots=True)
class Launch:
    """How to start a worker: `python -P bootstrap.py module`, in an empty folder.

    `python` may be any interpreter that has numpy: see `bootstrap`.
    """

    runtime: str  # as messages call it: "llama.cpp"
    module: str  # speaks `protocol` on its standard streams
    install: str  # for MissingRuntime
    environment: Mapping[str, str]  # added to ours
    timeout: float = 900.0  # seconds that one call may take
    python: str = sys.executable


class Worker:
    """One running worker. Not to be shared between threads; close it, or use it in a `with`."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._folder = tempfile.TemporaryDirectory(prefix="qconvert-worker-")
        self._stderr = Path(self._folder.name) / "stderr.txt"
        self._timed_out = False
        self._deadline = math.inf  # of the call in progress, by the monotonic clock
        self._closed = threading.Event()
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [launch.python, "-P", str(BOOTSTRAP), launch.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=self._folder.name,
                env={**os.environ, **launch.environment},
                start_new_session=True,  # a group of its own: what it starts ends with it
            )
        threading.Thread(target=self._watch_clock, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(
        self,
        name: str,
        arrays: Sequence[Array] = (),
        *,
        timeout: float | None = None,
        **arguments: Any,
    ) -> Message:
        """One request and its reply: `head["result"]` and arrays.

        `Refused`, `MissingRuntime` or `RuntimeFailed` (also for a crash, and for a call that takes
        longer than `timeout` seconds). Ctrl-C, or any other error here, ends the worker.
        """
        limit = self._launch.timeout if timeout is None else timeout
        self._deadline = time.monotonic() + limit
        try:
            reply = self._exchange(name, arguments, arrays)
        except (EOFError, OSError, ValueError):
            self._lost(name, limit)
        except BaseException:
            self.close()
            raise
        finally:
            self._deadline = math.inf
        if "error" in reply.head:
            self._raise(reply.head)
        return reply

    def close(self) -> None:
        """End the worker and forget its folder. Does nothing the second time."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._stop()
        self._folder.cleanup()

    def _exchange(
        self, name: str, arguments: Mapping[str, Any], arrays: Sequence[Array]
    ) -> Message:
        stdin = cast(BinaryIO, self._process.stdin)
        stdout = cast(BinaryIO, self._process.stdout)
        send(stdin, {"call": name, "arguments": arguments}, arrays)
        return receive(stdout)

    def _watch_clock(self) -> None:
        """Kill the worker when a call overruns: the pending read then ends."""
        while not self._closed.wait(WATCH_SECONDS):
            if time.monotonic() > self._deadline:
                self._timed_out = True
                self._kill()
                return

    def _lost(self, name: str, limit: float) -> NoReturn:
        """The pipe broke: say why, with what the worker last wrote."""
        try:
            self._process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            self._kill()
        how = (
            f"took longer than {limit:g} s and was stopped"
            if self._timed_out
            else _death(self._process.wait())
        )
        tail = self._tail()
        self.close()
        problem = f"{how} (during '{name}')"
        raise RuntimeFailed(self._launch.runtime, problem, tail, crashed=not self._timed_out)

    def _raise(self, head: Mapping[str, Any]) -> NoReturn:
        kind, message, remedy = head["error"], head["message"], head["remedy"]
        if kind == "refused":
            raise refuse(message, remedy)
        if kind == "missing":
            raise MissingRuntime(self._launch.runtime, message, remedy or self._launch.install)
        raise RuntimeFailed(self._launch.runtime, message, self._tail())

    def _tail(self) -> str:
        if not self._stderr.exists():
            return ""
        lines = self._stderr.read_text("utf-8", errors="replace").splitlines()
        said = [line.strip() for line in lines if line.strip()]
        return "\n".join([line for line in said if not STACK.match(line)][-TAIL_LINES:])

    def _kill(self) -> None:
        """End the worker and all that it has started, also where it has gone before them."""
        if not hasattr(os, "killpg"):
            self._process.kill()
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: only zombies left
            os.killpg(self._process.pid, signal.SIGKILL)

    def _stop(self) -> None:
        process = self._process
        self._kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:  # unsent bytes of a request to a worker that is gone
                    pass


def _death(code: int) -> str:
    if code < 0:
        try:
            return f"crashed ({signal.Signals(-code).name})"
        except ValueError:
            return f"crashed (signal {-code})"
    return f"ended unexpectedly (exit code {code})"
