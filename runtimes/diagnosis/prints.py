"""Rows and columns told apart by short prints: products with fixed random signs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qconvert.runtimes.diagnosis.case import Case, Floats

LENGTH = 96  # of a print: two that have nothing in common have a cosine of 0.1, at worst 0.5
PICKED = 1024  # lines that are looked for, spread evenly over the tensor
WORST = 256  # lines that are furthest off are looked for besides
SURE = 0.75  # cosine from which a line is known again
NO_WORSE = 0.05  # a line that is this nearly as like in its own place is there


@dataclass(frozen=True, slots=True)
class Match:
    """Where lines (rows or columns) of the source are found in the decoded tensor."""

    count: int  # lines of the tensor
    at: NDArray[np.intp]  # lines that were looked at and known again
    holds: NDArray[np.intp]  # the source's line that each of them holds
    known: float  # share of those looked at that were known again
    left: float  # what the match leaves open, relative to the decoded lines

    @property
    def elsewhere(self) -> float:
        """Share of the known lines that are not in their own place."""
        return float((self.at != self.holds).mean()) if len(self.at) else 0.0


def _signs(size: int) -> Floats:
    drawn = np.random.default_rng(size).integers(0, 2, (size, LENGTH), np.int8)
    return (2 * drawn - 1).astype(np.float32)


def _unit(prints: Floats) -> Floats:
    size = np.linalg.norm(prints, axis=1, keepdims=True)
    return np.asarray(prints / np.maximum(size, 1e-30), np.float32)


def _match(here: Floats, there: Floats) -> Match:
    """Prints of the decoded lines beside those of the source's, [lines, LENGTH] each. Those that
    are furthest off are always looked for."""
    count = len(here)
    picked = np.arange(0, count, max(1, -(-count // PICKED)))
    off = np.linalg.norm(here - there, axis=1)
    picked = np.union1d(picked, np.argsort(-off, kind="stable")[:WORST])
    alive = picked[np.abs(here[picked]).max(-1) > 0]
    one, other = _unit(here[alive]), _unit(there)
    best, cosine = np.empty(len(alive), np.intp), np.empty(len(alive), np.float32)
    for start in range(0, len(alive), 64):
        part = slice(start, start + 64)
        likeness = one[part] @ other.T
        best[part], cosine[part] = likeness.argmax(-1), likeness.max(-1)
    own = np.einsum("ij,ij->i", one, other[alive])
    stays = own >= cosine - NO_WORSE
    best[stays], cosine[stays] = alive[stays], own[stays]
    known = cosine > SURE
    left = (
        float(np.sqrt(np.maximum(1 - np.square(cosine[known]), 0).mean())) if known.any() else 1.0
    )
    return Match(count, alive[known], best[known], float(known.sum() / max(len(picked), 1)), left)


def match_rows(case: Case) -> Match:
    signs = _signs(case.here.shape[1])
    here, there = np.empty((2, len(case.here), LENGTH), np.float32)
    for at, decoded, original in case.pieces():
        here[at], there[at] = decoded @ signs, original @ signs
    return _match(here, there)


def match_columns(case: Case) -> Match:
    rows, columns = case.here.shape
    signs = _signs(rows)
    here, there = np.zeros((2, columns, LENGTH), np.float32)
    for at, decoded, original in case.pieces():
        here += decoded.T @ signs[at]
        there += original.T @ signs[at]
    return _match(here, there)
