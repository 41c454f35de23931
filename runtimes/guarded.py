"""A session whose failure is a finding, not the end of the check."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qconvert.formats.refusal import Refused
from qconvert.runtimes.findings import TokenParity
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.runtime import Runtime, Session
from qconvert.runtimes.tokens import check_tokens


@dataclass(slots=True)
class Guarded:
    """Answers None from the first failure on, and keeps its message."""

    session: Session | None
    failure: str = ""
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def open(cls, runtime: Runtime, path: Path, *, threads: int, context: int) -> Guarded:
        """Load `path`; `MissingRuntime` alone is raised."""
        try:
            session = runtime.open(path, threads=threads, context=context)
        except (Refused, RuntimeFailed) as error:
            return cls(None, str(error))
        return cls(session, notes=tuple(getattr(session, "notes", ())))

    def logits(self, tokens: Sequence[int], vocab: int) -> NDArray[np.float32] | None:
        """[len(tokens), vocab]; another vocabulary is a failure."""
        if self.session is None:
            return None
        try:
            found = self.session.logits(tokens)
        except RuntimeFailed as error:
            self._fail(str(error))
            return None
        if found.shape[1] != vocab:
            self._fail(f"it has {found.shape[1]} tokens, the model has {vocab}")
            return None
        return found

    def tokens(self, tokenizer: Tokenizer, misread: str = "") -> TokenParity | None:
        if self.session is None:
            return None
        try:
            return check_tokens(tokenizer, self.session, misread)
        except RuntimeFailed as error:
            self._fail(str(error))
            return None

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

    def _fail(self, message: str) -> None:
        self.failure = message
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
