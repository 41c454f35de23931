"""The protocol of the accuracy figures: the rows that calibrate, the windows that judge, the judge.

Tokens without BOS. Calibration: the first `rows` x `length` tokens of a text. Judging: consecutive
windows of other texts; float32 logits in transformers; KL(source || quantized) in nats, the mean
over all positions that predict a token of their window.
"""

from __future__ import annotations

import argparse
import gc
import sysconfig
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qconvert.checkpoint import Checkpoint
from qconvert.formats.refusal import refuse
from qconvert.formats.source import Source
from qconvert.runtimes import reference
from qconvert.runtimes.measure import compare, summarise
from qconvert.runtimes.noise import Rounding, rounded
from qconvert.runtimes.spool import Spool
from qconvert.runtimes.text import Text, Windows, cut, encoder, read_text, read_tokenizer

CODE = ("argparse", "tarfile", "statistics")
"""Modules of Python's standard library whose sources are the text of another kind."""

Weights = Mapping[str, NDArray[np.float32]]
"""By name in the checkpoint, in its stored orientation; may be lazy."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark of this protocol is asked."""
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True, help="text to calibrate with")
    parser.add_argument("--calib-rows", type=int, default=32)
    parser.add_argument("--calib-length", type=int, default=512)
    parser.add_argument("--text", type=Path, help="to judge; default: the excerpt of the package")
    parser.add_argument("--skip", type=int, default=0, help="characters of --text to skip")
    parser.add_argument("--no-code", action="store_true", help="judge on --text alone")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)


def calibration_rows(source: Checkpoint, text: Path, rows: int, length: int) -> Windows:
    """The first `rows` x `length` tokens of `text`."""
    return _windows(source, read_text(text), rows, length)


def texts(options: argparse.Namespace) -> dict[str, Text]:
    """What is judged on: prose, and code unless it was left out."""
    prose = read_text(options.text)
    found = {"text": replace(prose, content=prose.content[options.skip :])}
    return found if options.no_code else {**found, "code": code_text()}


def code_text() -> Text:
    """Sources of the standard library that runs this."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts = [(folder / f"{name}.py").read_text("utf-8") for name in CODE]
    return Text("code", "".join(parts))


def _windows(source: Checkpoint, text: Text, count: int, length: int) -> Windows:
    tokenizer = read_tokenizer(source.folder)
    if tokenizer is None:
        raise refuse(f"{source.folder} has no tokenizer.json")
    return cut(text, encoder(tokenizer), count=count, length=length)


@dataclass(frozen=True)
class _Case:
    windows: Windows
    logits: Spool  # of the source


class Judge:
    """Compares weights with their source on each text. Holds the source's logits on disk."""

    def __init__(
        self, source: Checkpoint, given: Mapping[str, Text], count: int, length: int, threads: int
    ) -> None:
        self.source, self._threads = source, threads
        model = reference.from_folder(source.folder, threads=threads)
        self._cases: dict[str, _Case] = {}
        for name, text in given.items():
            windows = _windows(source, text, count, length)
            spool = Spool(count, length, model.vocab)
            for number, tokens in enumerate(windows.tokens):
                spool.put(number, model.logits(tokens))
            self._cases[name] = _Case(windows, spool)

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of what is judged on."""
        return tuple(self._cases)

    def __call__(
        self, weights: Weights, facts: Source | None = None, rounding: Rounding | None = None
    ) -> dict[str, dict[str, Any]]:
        """Text -> the fields of `runtimes.measure.Distance`. `facts`: of the model as it was
        quantized, where a rotation has changed them; `rounding`: of activations, by a runtime."""
        model = reference.from_weights(facts or self.source, weights, threads=self._threads)
        found = {}
        with nullcontext() if rounding is None else rounded(model, rounding):
            for name, case in self._cases.items():
                parts = [
                    compare(case.logits.get(number), model.logits(tokens), tokens)
                    for number, tokens in enumerate(case.windows.tokens)
                ]
                found[name] = asdict(summarise(parts))
        del model
        gc.collect()  # modules refer to each other; the next model needs the room
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for case in self._cases.values():
            case.logits.close()


def judge_of(source: Checkpoint, options: argparse.Namespace) -> Judge:
    """A judge by the options of `add_options`."""
    return Judge(source, texts(options), options.windows, options.length, options.threads)


def brief(found: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures that a person looks at first."""
    return "; ".join(
        f"{name}: KL {one['kl_mean']:.4f} perplexity {one['perplexity_q']:.2f}"
        f" top-1 {100 * one['top1']:.1f}%"
        for name, one in found.items()
    )
