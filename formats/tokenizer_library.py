"""tokenizer.json in the library `tokenizers`, which may panic, or abort, on what is none.

tokenizers 0.22 ends the whole process on some files (a `continuing_subword_prefix` that merges do
not have makes an error message that is no UTF-8, and a panic within a panic): so a child tries it
first.
"""

from __future__ import annotations

import faulthandler
import os
import signal
from pathlib import Path

from tokenizers import Tokenizer

from qconvert.formats.careful import read_file
from qconvert.formats.refusal import refuse

PATIENCE = 60  # seconds: the largest tokenizers take two
_LOADS, _RAISES = 0, 1


def load_tokenizer(path: Path, remedy: str) -> Tokenizer:
    """The tokenizer; `Refused` where the library cannot read the file, whatever it does then."""
    content = read_file(path)
    if not _survives(content):
        raise refuse(f"tokenizers crashes or hangs on {path.name}", remedy)
    try:
        return Tokenizer.from_buffer(content)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of Rust is no Exception
        raise refuse(f"tokenizers does not load {path.name}: {error}", remedy) from None


def _survives(content: bytes) -> bool:
    """Whether a process that loads `content` goes on. What it says is not shown."""
    if not hasattr(os, "fork"):
        return True
    child = os.fork()
    if child == 0:
        _try(content)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) in (_LOADS, _RAISES)


def _try(content: bytes) -> None:
    """Of the child: never returns, and runs nothing of what the parent would at its end."""
    found = _RAISES
    try:
        import resource

        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(PATIENCE)
        Tokenizer.from_buffer(content)
        found = _LOADS
    finally:
        os._exit(found)
