"""The right values in another order: of rows, of columns, or of both (transposed)."""

from __future__ import annotations

import math

import numpy as np

from qconvert.runtimes.diagnosis.case import Case, Explanation
from qconvert.runtimes.diagnosis.orders import named
from qconvert.runtimes.diagnosis.prints import Match, match_columns, match_rows

KNOWN = 0.7  # share of the lines that must be known again
MOVED = 0.001  # share of them that must have moved
SURE = 0.7  # correlation from which a tensor is known again
HEADED = {"attn_q": "rows", "attn_k": "rows", "attn_v": "rows", "attn_o": "columns"}
"""Roles whose rows or columns belong to heads."""


def head_size(case: Case) -> int | None:
    config = case.source.config
    heads = config.get("num_attention_heads") or config.get("n_head")
    width = config.get("hidden_size") or config.get("n_embd")
    size = config.get("head_dim") or (width // heads if heads and width else None)
    return int(size) if size else None


def _explained(match: Match, case: Case, what: str) -> Explanation | None:
    if match.known < KNOWN or match.elsewhere < MOVED:
        return None
    head = head_size(case) if HEADED.get(case.tensor.role) == what else None
    return Explanation(named(match, what, head), match.left)


def rows_moved(case: Case) -> Explanation | None:
    return _explained(match_rows(case), case, "rows")


def columns_moved(case: Case) -> Explanation | None:
    return _explained(match_columns(case), case, "columns")


def transposed(case: Case) -> Explanation | None:
    """The bytes of a matrix [in, out] taken for one of [out, in]."""
    rows, columns = case.here.shape
    turned = case.here.reshape(columns, rows).T
    cross = own = size = 0.0
    for at, _, there in case.pieces():
        part = turned[at]
        cross += float(np.multiply(part, there).sum(dtype=np.float64))
        own += float(np.square(part).sum(dtype=np.float64))
        size += float(np.square(there).sum(dtype=np.float64))
    cosine = cross / max(math.sqrt(own * size), 1e-30)
    if cosine < SURE:
        return None
    return Explanation("is transposed", math.sqrt(max(1 - cosine**2, 0)))
