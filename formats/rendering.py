"""Chat templates are programs of others: rendered in a process with a bound on time and memory.

jinja2's sandbox keeps a template from objects that it should not see, not from loops within loops
nor from a text that doubles forty times.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import weakref
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError

from qconvert.formats.refusal import Refused, refuse

PATIENCE = 10.0  # seconds for one rendering, which takes a millisecond
LONGEST = 64 << 20  # bytes of an answer
LONGEST_TEMPLATE = 1 << 20  # characters; long ones with tools have 20,000


class Renderer:
    """One template in a process of its own, which starts with the first rendering and ends with
    this object, or with a template that does not end."""

    def __init__(self, template: str, dates: Mapping[str, str] | str | None = None) -> None:
        self._first = {"template": template, "dates": dates}
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def parse(self) -> None:
        """`TemplateError` where the template does not parse; `Refused` where that takes forever."""
        if self._process is not None:
            return
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "qconvert.formats.rendering_worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        weakref.finalize(self, _end, self._process)
        self._asked(self._first)

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text; `TemplateError` with what the template raised, `Refused` where it takes too
        long or too much."""
        self.parse()
        return str(self._asked(variables)["text"])

    def _asked(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(fields).encode() + b"\n")
            process.stdin.flush()
            reply: Mapping[str, Any] = json.loads(self._line(process))
        except TimeoutError as fault:
            raise self._given_up(f"is not done after {PATIENCE:.0f} seconds") from fault
        except (OSError, EOFError) as fault:
            raise self._given_up("crashes") from fault
        if "error" in reply:
            raise TemplateError(reply["error"])
        return reply

    def _line(self, process: subprocess.Popen[bytes]) -> bytes:
        """The next line of the worker, which writes it at once: waited for at most `PATIENCE`."""
        assert process.stdout is not None
        pieces, size = [self._rest], 0
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while b"\n" not in pieces[-1]:
                if not selector.select(PATIENCE):
                    raise TimeoutError
                piece = os.read(process.stdout.fileno(), 1 << 16)
                size += len(piece)
                if not piece or size > LONGEST:
                    raise EOFError
                pieces.append(piece)
        line, _, self._rest = b"".join(pieces).partition(b"\n")
        return line

    def _given_up(self, what: str) -> Refused:
        if self._process is not None:
            _end(self._process)
            self._process = None
        return refuse(f"the chat template {what}", "correct it, or remove it")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.wait()
