"""Progress is for a person at a terminal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from qconvert.engine.record import BlockRecord, LinearRecord
from qconvert.progress import RECENT, bar, bars, block_error, seconds_left, silent

SHOW_BLOCKS = """
from qconvert.engine.record import BlockRecord, LinearRecord
from qconvert.progress import bars
linear = LinearRecord("a", "attn_q", "Q4_K", 0.5, 0.0123, ())
with bars() as (progress, blocks):
    blocks("block 4: calibrating", 4, 30, None)
    blocks("block 4", 5, 30, BlockRecord(4, (linear,), (), 60.0, 1_500_000_000))
    blocks("block 29", 30, 30, BlockRecord(29, (linear,), (), 60.0, 1_700_000_000))
    progress("blk.0.attn_q.weight", 100 * 10**6, 100 * 10**6)
"""
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
    with bars() as (progress, blocks):
        progress("anything", 1, 2)
        blocks("block 0", 1, 2, BlockRecord(0, (), (), 1.0, 1))
    assert capsys.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_shown_share_and_amount() -> None:
    shown = on_terminal(SHOW)
    for word in (b"blk.0.attn_q.weight", b"100%", b"100.0/100.0 MB"):
        assert word in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_is_shown_error_time_and_memory_of_blocks() -> None:
    shown = on_terminal(SHOW_BLOCKS)
    for word in (b"block 4", b"5/30", b"error 1.23 %, peak 1.5 GB, 25 min 00 s left",
                 b"30/30", b"peak 1.7 GB", b"100.0/100.0 MB"):  # fmt: skip
        assert word in shown
    assert shown.index(b"30/30") < shown.index(b"100.0/100.0 MB")
    assert b"left" not in shown[shown.rindex(b"30/30") :]


def on_terminal(code: str) -> bytes:
    """What `code` shows on a terminal; nothing may go to standard output."""
    import pty

    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stderr=theirs, stdout=subprocess.PIPE, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while piece := _read(ours):
            shown += piece
        assert process.stdout is not None
        assert process.stdout.read() == b""
    os.close(ours)
    assert process.returncode == 0
    return shown


@pytest.mark.parametrize(
    ("seconds", "left", "found"),
    [([], 5, None), ([2.0], 5, 10.0), ([1000.0, *[3.0] * RECENT], 2, 6.0), ([4.0], 0, 0.0)],
)
def test_time_left_is_that_of_the_last_blocks(
    seconds: list[float], left: int, found: float | None
) -> None:
    assert seconds_left(seconds, left) == found


def test_a_block_without_linears_has_no_error() -> None:
    assert block_error(BlockRecord(0, (), (), 1.0, 1)) is None
    linears = tuple(LinearRecord("a", "attn_q", "Q4_K", 1.0, error, ()) for error in (0.1, 0.3))
    assert block_error(BlockRecord(0, linears, (), 1.0, 1)) == pytest.approx(0.2)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other side has closed
        return b""
