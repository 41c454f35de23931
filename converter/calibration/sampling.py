"""Text from the model itself, where there is no other: data-free calibration in the manner of
LLM-QAT (Liu et al. 2023, arXiv:2305.17888, section 3.1).

Each row begins with a token drawn from the vocabulary; the next few are the most probable ones, so
that the text finds its footing; the rest are drawn from the model's distribution, which keeps what
it would rarely say in the calibration too. After an end-of-text token a row begins anew.

A row's draws depend on the seed and the row alone, in float64, so they are the same however rows
are batched. They follow logits, though, and no margin guards a draw against another order of sums:
a `Sampler` must compute its logits in one order, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qconvert.calibration.vocabulary import Vocabulary
from qconvert.formats.refusal import refuse

GREEDY = 4  # tokens after the first that are not drawn: LLM-QAT takes 3 to 5

Tokens = NDArray[np.int32]
Choose = Callable[[NDArray[np.int64], int, NDArray[np.float32]], Tokens]
"""(rows [n], position, logits [n, vocab]) -> the tokens [n] at that position of those rows."""


class Sampler(Protocol):
    """A model that can go on from tokens."""

    def generate(self, start: Tokens, length: int, choose: Choose) -> Tokens:
        """Rows [rows, length] that begin with `start` [rows, k], k >= 1.

        Each further token is what `choose` says of the logits at the position before it. Rows may
        go in any batches; positions of a row come in order.
        """
        ...


def sample_rows(
    sampler: Sampler,
    vocabulary: Vocabulary,
    config: Mapping[str, Any],
    rows: int,
    length: int,
    seed: int,
) -> Tokens:
    """[rows, length] tokens of the model's own; the same for the same seed and logits."""
    chooser = _Chooser(_ordinary(vocabulary, config), _ends(config), rows, seed)
    front = np.tile(np.array(vocabulary.prefix, np.int32), (rows, 1))
    first = np.array([[chooser.first(row)] for row in range(rows)], np.int32)
    return sampler.generate(np.hstack([front, first]), length, chooser)


class _Chooser:
    """Holds a generator for each row, and how many tokens the row is still greedy for."""

    def __init__(self, ordinary: Tokens, ends: frozenset[int], rows: int, seed: int) -> None:
        self.ordinary, self.ends = ordinary, ends
        self.draws = [np.random.Generator(np.random.Philox([seed, row])) for row in range(rows)]
        self.greedy = np.zeros(rows, np.int64)
        self.ended = np.zeros(rows, bool)

    def first(self, row: int) -> int:
        """A token to begin with: any that is not special."""
        self.greedy[row] = GREEDY
        return int(self.ordinary[int(self.draws[row].random() * len(self.ordinary))])

    def __call__(
        self, rows: NDArray[np.int64], position: int, logits: NDArray[np.float32]
    ) -> Tokens:
        if not np.isfinite(logits.max(1)).all():  # the largest of anything with a NaN is a NaN
            raise refuse(
                f"the model's logits are not finite at position {position}, so no text can be"
                " sampled from it",
                "look for non-finite weights, or take --calib default",
            )
        return np.array(
            [self._next(int(row), one) for row, one in zip(rows, logits, strict=True)], np.int32
        )

    def _next(self, row: int, logits: NDArray[np.float32]) -> int:
        if self.ended[row]:
            self.ended[row] = False
            return self.first(row)
        if self.greedy[row]:
            self.greedy[row] -= 1
            token = int(logits.argmax())
        else:
            token = drawn(logits, float(self.draws[row].random()))
        self.ended[row] = token in self.ends
        return token


def drawn(logits: NDArray[np.float32], at: float) -> int:
    """The token that a uniform draw `at` in [0, 1) falls on, by the softmax of `logits`."""
    wide = logits.astype(np.float64)
    sums = np.cumsum(np.exp(wide - wide.max()))
    return min(int(np.searchsorted(sums, at * sums[-1], side="right")), len(sums) - 1)


def _ordinary(vocabulary: Vocabulary, config: Mapping[str, Any]) -> Tokens:
    """Tokens that the model knows and that are not special."""
    tokenizer = vocabulary.tokenizer
    special = {
        number for number, one in tokenizer.get_added_tokens_decoder().items() if one.special
    }
    size = min(tokenizer.get_vocab_size(), int(config.get("vocab_size", 1 << 31)))
    return np.array([number for number in range(size) if number not in special], np.int32)


def _ends(config: Mapping[str, Any]) -> frozenset[int]:
    found = config.get("eos_token_id")
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])
