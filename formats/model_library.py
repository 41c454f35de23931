"""What transformers makes of a configuration: it checks it late, with exceptions of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, Refused, refuse


@contextmanager
def made_of(folder: Path) -> Iterator[None]:
    """`Refused` where transformers cannot make a model of the files in `folder`."""
    try:
        yield
    except (Refused, MissingRuntime, ImportError, MemoryError):
        raise
    except Exception as error:  # KeyError, AssertionError, AttributeError, its own, torch's
        said = f"{type(error).__name__}: {error}"
        raise refuse(f"transformers makes no model of {folder}: {said}",
                     "correct config.json, or take an undamaged copy") from error  # fmt: skip
