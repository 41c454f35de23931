"""Whatever is wrong with a file: it is read, or refused in words, quickly and in bounded memory."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from qconvert.formats.refusal import Refused

KINDS = ("model", "gguf", "gptq", "ct", "onnx", "mlc")
HANGS = 30  # seconds, of a machine that does other things too


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", KINDS)
def test_every_case_is_refused(
    kind: str,
    builders: ModuleType,
    good: Callable[[str], Path],
    use: Callable[[Path], None],
    tmp_path: Path,
) -> None:
    """All cases of a kind in one test: each takes milliseconds."""
    wrong = []
    use(good(kind))
    for number, (name, damage) in enumerate(builders.CASES[kind].items()):
        path = copied(good(kind), tmp_path / str(number))
        damage(path)
        try:
            with deadline(HANGS):
                use(path)
            wrong.append(f"{name}: read as if nothing were wrong")
        except Refused as refused:
            told = str(refused)
            if not told.strip() or len(told) > 250_000 or "\x1b" in told:
                wrong.append(f"{name}: told as {told[:200]!r}")
        except Exception as fault:
            wrong.append(f"{name}: {type(fault).__name__}: {fault}"[:300])
    assert not wrong, "\n".join(wrong)


def copied(source: Path, folder: Path) -> Path:
    """A copy whose large files are links, until they are replaced."""
    folder.mkdir()
    if source.is_file():
        path = folder / source.name
        path.write_bytes(source.read_bytes())
        return path
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder
