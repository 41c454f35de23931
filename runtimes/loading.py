"""The loaders of an output, one after the other: what each made of it, or why it was not asked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.formats.source import Source
from qconvert.runtimes.findings import LoaderFacts
from qconvert.runtimes.loader import Loaded, Loader
from qconvert.runtimes.process import RuntimeFailed


def read_by(
    loaders: Iterable[Loader], out: Path, source: Source
) -> tuple[list[LoaderFacts], list[str]]:
    """What those that are usable here made of `out`, and notes: theirs, and about the others.

    A loader that refuses the output, crashes or hangs has found a problem.
    """
    found: list[LoaderFacts] = []
    notes: list[str] = []
    for one in loaders:
        reason = one.unavailable()
        if reason is not None:
            notes.append(f"not asked: {one.name}, {reason} ({one.install})")
            continue
        passed_over = one.passes_over(out)
        if passed_over:
            notes.append(f"not asked: {one.name}, {passed_over}")
            continue
        try:
            loaded = one.load(out, source)
        except MissingRuntime as missing:
            notes.append(f"not asked: {one.name}, {missing.reason.partition(chr(10))[0]}")
            continue
        except (Refused, RuntimeFailed) as error:
            loaded = Loaded((str(error),))
        notes.extend(f"{one.name}: {note}" for note in loaded.notes)
        found.append(_facts(one, loaded))
    return found, notes


def _facts(loader: Loader, loaded: Loaded) -> LoaderFacts:
    return LoaderFacts(
        loader.name,
        loader.label,
        loaded.version,
        loaded.tensors,
        loaded.skipped,
        dict(loaded.layers),
        loaded.problems,
    )
