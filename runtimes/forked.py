"""A worker that loads each model in a fork of itself.

Some runtimes take a quarter of a minute to import and cannot give back what a model took. Here the
library is imported once, in a process that never computes; `load` forks it, and the fork answers
all further calls until the next `load` ends it. Its death is ours: the parent sees one crash.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from qconvert.runtimes.protocol import Answer, Array, Handler, Service, WorkerError, receive, send


@dataclass(slots=True)
class Fork:
    """A running child and the two pipes to it."""

    pid: int
    requests: BinaryIO
    replies: BinaryIO

    def call(self, name: str, arrays: tuple[Array, ...], arguments: Mapping[str, Any]) -> Answer:
        """As `Worker.call`; a child that died takes this process with it, in the same way."""
        try:
            send(self.requests, {"call": name, "arguments": arguments}, arrays)
            reply = receive(self.replies)
        except (EOFError, OSError):
            self._follow()
        if "error" in reply.head:
            raise WorkerError(reply.head["error"], reply.head["message"], reply.head["remedy"])
        return Answer(reply.head["result"], reply.arrays)

    def end(self) -> None:
        for stream in (self.requests, self.replies):
            stream.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _follow(self) -> NoReturn:
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if code < 0:
            if -code != signal.SIGKILL:  # which has no handler to take away
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        os._exit(code or 1)


def fork(handlers: Callable[[], Mapping[str, Handler]]) -> Fork:
    """A child that answers with `handlers`, which are made in it."""
    (there_in, here_out), (here_in, there_out) = os.pipe(), os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(here_out)
        os.close(here_in)
        service = Service(handlers(), parent)
        try:
            service.serve(os.fdopen(there_in, "rb"), os.fdopen(there_out, "wb"))
        except BaseException:  # its traceback goes to standard error; nothing of ours runs on
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(there_in)
    os.close(there_out)
    return Fork(pid, os.fdopen(here_out, "wb"), os.fdopen(here_in, "rb"))


@dataclass(slots=True)
class ForkingWorker:
    """Handlers of a worker: `version` is answered here, `load` and all else by a child."""

    version: Callable[[], Answer]
    prepare: Callable[[], None]  # imports the library; `WorkerError("missing")` where there is none
    child: Callable[[], Mapping[str, Handler]]  # `load` among them
    _fork: Fork | None = field(default=None, init=False)

    def handlers(self, *names: str) -> Mapping[str, Handler]:
        """`names`: the calls that a loaded model answers."""
        forwarded = {name: self._forward(name) for name in names}
        return {"version": self.version, "load": self.load, **forwarded}

    def load(self, **arguments: Any) -> Answer:
        """In a new child, which takes the place of the one before."""
        self.prepare()
        if self._fork is not None:
            self._fork.end()
        self._fork = fork(self.child)
        return self._fork.call("load", (), arguments)

    def _forward(self, name: str) -> Handler:
        def forwarded(*arrays: Array, **arguments: Any) -> Answer:
            if self._fork is None:
                raise WorkerError("failed", "was asked to work before a model was loaded")
            return self._fork.call(name, arrays, arguments)

        return forwarded
