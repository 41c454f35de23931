"""Progress is for a person at a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qconvert.progress import bar, silent

SHOW = """
from qconvert.progress import bar
with bar() as progress:
    for done in range(0, 101, 20):
        progress("blk.0.attn_q.weight", done * 10**6, 100 * 10**6)
"""


def test_a_pipe_is_shown_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with bar() as progress:
        assert progress is silent
        progress("anything", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_shown_share_and_amount() -> None:
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", SHOW], stderr=theirs, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(ours)
    assert process.returncode == 0
    for word in (b"blk.0.attn_q.weight", b"100%", b"100.0/100.0 MB"):
        assert word in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side has closed
        return b""
