"""The windows of a text through the decoded file and the runtime, each beside the source; and
block by block, where they part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qconvert.formats.target import Reader
from qconvert.runtimes.judged import Found, Way
from qconvert.runtimes.layers import culprit_block, layer_errors
from qconvert.runtimes.measure import compare
from qconvert.runtimes.noise import Rounding, rounded, rounding_of, rounding_told
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.reference import Reference
from qconvert.runtimes.yardstick import SEEN, Progress, Yardstick

NOISE_WINDOWS = 2  # the expected noise is measured on this many: each costs one more forward pass


def roundings_of(ways: Sequence[Way], reader: Reader, ruler: Yardstick) -> list[Rounding]:
    """What each way of running the file rounds."""
    return [rounding_of(way.runtime, way.session.session, reader, ruler.source) for way in ways]


def cache_notes(ways: Sequence[Way], roundings: Sequence[Rounding]) -> list[str]:
    return [
        str(getattr(way.runtime, "cuts_cache", ""))
        for way, rounding in zip(ways, roundings, strict=True)
        if rounding.cache and rounding.cache_cut
    ]


def measure_windows(
    model: Reference,
    reader: Reader,
    ways: Sequence[Way],
    roundings: Sequence[Rounding],
    ruler: Yardstick,
    found: Found,
    progress: Progress,
) -> None:
    """The decoded file beside the source, and the runtime, in each way, beside both; without one,
    the decoded file with activations rounded as it says."""
    told = rounding_told(reader, ruler.source)
    costs = not ways and bool(told.inputs or told.cache)
    count = len(ruler.pieces.tokens)
    for number, tokens in enumerate(ruler.pieces.tokens):
        progress("file and runtime", number, count)
        original, decoded = ruler.spool.get(number), model.logits(tokens)
        found.quantization.append(compare(original, decoded, tokens))
        if costs:
            with rounded(model, told):
                found.as_told.append(compare(original, model.logits(tokens), tokens))
        for way, rounding in zip(ways, roundings, strict=True):
            there = way.session.logits(tokens, model.vocab)
            if there is None:
                continue
            way.adds.append(compare(decoded, there, tokens))
            way.total.append(compare(original, there, tokens))
            if number < NOISE_WINDOWS:
                with rounded(model, rounding):
                    explained = model.logits(tokens)
                way.expected.append(compare(decoded, explained, tokens))
                way.beyond.append(compare(explained, there, tokens))
    progress("file and runtime", count, count)


def measure_layers(
    model: Reference,
    ways: Sequence[Way],
    roundings: Sequence[Rounding],
    ruler: Yardstick,
    found: Found,
) -> None:
    """How far each block's output is from the source's, and in the runtime from the decoded file's,
    beside what its rounding of activations explains."""
    tokens = ruler.pieces.tokens[0][:SEEN]
    decoded = model.blocks(tokens)
    there = _seen(ways[0], tokens) if ways else None
    explained = None
    if there is not None and there.shape == decoded.shape:
        with rounded(model, roundings[0]):
            explained = model.blocks(tokens)
    else:
        there = None
    found.layers = layer_errors(ruler.blocks, decoded, there, explained)
    found.block = culprit_block(found.layers)


def _seen(way: Way, tokens: Sequence[int]) -> NDArray[np.float32] | None:
    """What the runtime's blocks give, where it lets them be seen; a failure is a note."""
    show = getattr(way.session.session, "blocks", None)
    if show is None:
        return None
    try:
        blocks: NDArray[np.float32] = show(tokens)
    except RuntimeFailed as failed:
        way.session.notes = (*way.session.notes, f"its blocks were not seen: {failed.problem}")
        return None
    return blocks
