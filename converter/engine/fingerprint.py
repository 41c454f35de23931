"""What a work folder was begun with, so that it is only ever continued with the same."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert import __version__
from qconvert.formats.source import Source, SourceTensor
from qconvert.models import pattern

SAMPLES = 5  # rows that are read of each matrix
_SHOWN = 60  # characters of a value


def fingerprint(
    source: Source,
    forms: Mapping[str, tuple[str, ...]],
    recipe: Mapping[str, Any],
    tokens: NDArray[np.int32],
    *,
    seed: int,
    **others: Any,
) -> dict[str, Any]:
    """All that the result depends on: no clock, no path, no host.

    `forms`: source tensor -> the grids, or float types, that it is stored in. `others`: what else
    changes results, such as the device.
    """
    return {
        "qconvert": __version__,
        "config": dict(source.config),
        "weights": {"tensors": _shapes(source), "sampled": _sampled(source)},
        "plan": {name: " and ".join(kinds) for name, kinds in forms.items()},
        "recipe": dict(recipe),
        "calibration": {"rows": list(tokens.shape), "tokens": tokens_digest(tokens)},
        "seed": seed,
        **others,
    }


def tokens_digest(tokens: NDArray[np.int32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(tokens, "<i4").tobytes()).hexdigest()


def digest(fields: Mapping[str, Any]) -> str:
    """sha256 of plain values, whatever the order of their keys."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _shapes(source: Source) -> str:
    told = [(one.name, list(one.shape), one.dtype) for one in source.tensors]
    return hashlib.sha256(json.dumps(told).encode("ascii")).hexdigest()


def _sampled(source: Source) -> str:
    """Digest of every vector and of a few rows of every matrix, evenly spread.

    It tells another model, or another training of this one, whatever files it is cut into. It does
    not notice an edit of single weights between the sampled rows.
    """
    found = hashlib.sha256()
    for tensor in source.tensors:
        for row in _sample(tensor):
            found.update(np.ascontiguousarray(source.rows(tensor, row, row + 1)).data)
    return found.hexdigest()


def _sample(tensor: SourceTensor) -> list[int]:
    if len(tensor.shape) == 1:
        return [0]
    rows = tensor.shape[0]
    if tensor.transposed:  # one row costs as much as all
        return [rows // 2]
    return sorted({index * (rows - 1) // (SAMPLES - 1) for index in range(SAMPLES)})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Every field that is not the same, one line each, like fields of all blocks together."""
    was, now = dict(_flat(old)), dict(_flat(new))
    names = [*was, *(name for name in now if name not in was)]
    found = Counter(
        (pattern(name), _shown(was, name), _shown(now, name))
        for name in names
        if was.get(name, _ABSENT) != now.get(name, _ABSENT)
    )
    return [
        f"{name}{f' ({count} of them)' if count > 1 else ''}: {before} then, {after} now"
        for (name, before, after), count in found.items()
    ]


_ABSENT = object()


def _flat(fields: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{front}{name}.")
        else:
            yield f"{front}{name}", value


def _shown(fields: Mapping[str, Any], name: str) -> str:
    if name not in fields:
        return "nothing"
    text = json.dumps(fields[name])
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
