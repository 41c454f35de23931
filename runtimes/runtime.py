"""Runtime and Session: one real program that loads an output and computes with it.

A module of `qconvert.runtimes`, or the module `runtime` of a package in it, that has an attribute
`RUNTIME` is a runtime: nothing is registered anywhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.discovery import offered


@dataclass(frozen=True, slots=True)
class Throughput:
    """Median rates of one run, tokens per second, with what they depend on. The prompt is read
    until the first token behind it is chosen."""

    prompt_tokens_per_s: float
    generate_tokens_per_s: float
    prompt_tokens: int
    generate_tokens: int
    threads: int
    batch: int
    repetitions: int
    prompt_spread: tuple[float, float]  # slowest and fastest repetition
    generate_spread: tuple[float, float]
    cpu_share: float | None = None  # CPU time over wall time and threads; below 0.9: a busy machine
    sequences: int = 1  # at once: the rates are of all of them together
    first_token_s: float | None = None  # seconds from the prompt to the first token behind it
    first_token_spread: tuple[float, float] | None = None  # fastest and slowest repetition
    prompt_interval: tuple[float, float] | None = None  # of the median, 95 %: see `timed`
    generate_interval: tuple[float, float] | None = None
    first_token_interval: tuple[float, float] | None = None
    prompt_rates: tuple[float, ...] = ()  # of each repetition, in their order
    generate_rates: tuple[float, ...] = ()


class Session(Protocol):
    """A loaded model. Close it, or use it as a context manager.

    One more method is looked for, of runtimes that let their blocks be seen: `blocks(tokens)`,
    float32 [blocks, len(tokens), hidden], what each block gives to the next, from an empty context;
    `RuntimeFailed` where those of this model cannot be seen.
    """

    def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The runtime's own tokens of `text`, without BOS; `special` parses control tokens."""
        ...

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """[len(tokens), vocab]: logits at every position, from an empty context."""
        ...

    def generate(self, tokens: Sequence[int], n: int) -> list[int]:
        """Up to `n` tokens, greedy; stops after an end token, which is included."""
        ...

    def throughput(
        self,
        prompt: int,
        generate: int,
        repetitions: int,
        sequences: int = 1,
        *,
        warm: bool = True,
    ) -> Throughput:
        """After a run that does not count, if `warm`. `Refused` when it does not compute with so
        many sequences at once."""
        ...

    def peak_bytes(self) -> int:
        """Largest resident size so far of the process that holds the model."""
        ...

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Runtime(Protocol):
    """More attributes are looked for: `recipes` (see `environments`; the first is of the machine at
    hand), `activation_blocks`, `float_type` and `plain_inputs` (see `noise`), `served`: the runtime
    as users run it, for timing, where checking asks for something else; `misreads`: characters that
    its tokenizer is known to read otherwise than models' do, each with a line about it;
    `also_checked`: the runtime in another way, whose logits `check` compares and judges as well,
    under its `label`; and `on_request`: whether it is taken only where it is named, because what it
    shows is not what users of the target run."""

    @property
    def name(self) -> str: ...
    @property
    def target(self) -> str:
        """Name of the target whose outputs it loads."""
        ...

    @property
    def install(self) -> str:
        """The one line that makes it usable."""
        ...

    def unavailable(self) -> str | None:
        """None when usable here, else the reason in one line."""
        ...

    def version(self) -> str: ...
    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load an output; `MissingRuntime` when not usable, `Refused` when it does not load."""
        ...


def runtimes() -> dict[str, Runtime]:
    """Every runtime, by name."""
    return offered("qconvert.runtimes", "RUNTIME", inside="runtime")
