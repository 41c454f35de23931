"""Feedback on a GPU: the same codes and errors as the plain body, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from qconvert.kernels.descent import feed_back
from qconvert.kernels.levels import IQ4_LEVELS

TABLES = {
    "whole": np.arange(16, dtype=np.float32),
    "signed": np.arange(-4, 4, dtype=np.float32),
    "two": np.array([-1, 1], np.float32),
    "iq4": IQ4_LEVELS,
    "uneven": np.array([-6, -3, -0.5, 0, 0.5, 3, 4.25], np.float32),
}


def problem(
    cols: int, rows: int, groups: int, levels: np.ndarray, device: torch.device, seed: int = 0
) -> tuple[torch.Tensor, ...]:
    """w, factor, scale, offset: some scales are zero, some negative."""
    random = np.random.default_rng(seed)
    w = random.standard_normal((cols, rows))
    factor = np.triu(random.standard_normal((cols, cols)) * 0.3, 1) + np.diag(
        random.uniform(0.5, 2, cols)
    )
    scale = random.uniform(-1, 3, (groups, rows)) / np.abs(levels).max()
    scale[random.random(scale.shape) < 0.05] = 0
    offset = random.standard_normal((groups, rows)) * 0.2
    found: Sequence[np.ndarray] = (w, factor, scale, offset)
    return tuple(torch.from_numpy(one.astype(np.float32)).to(device) for one in found)


@pytest.mark.parametrize(
    ("cols", "rows", "groups", "kind", "shifted"),
    [
        (64, 40, 2, "whole", True),  # more rows than a program has, and groups of two blocks
        (48, 3, 48, "signed", False),  # a scale for each column, as an order of columns asks for
        (40, 20, 1, "iq4", True),  # a last block that is half empty
        (16, 5, 4, "uneven", False),
        (3, 1, 1, "two", True),  # less than a block
        (1, 33, 1, "iq4", False),
    ],
)
def test_the_same_bits_as_the_plain_body(
    device: torch.device, cols: int, rows: int, groups: int, kind: str, shifted: bool
) -> None:
    levels = TABLES[kind]
    w, factor, scale, offset = problem(cols, rows, groups, levels, device)
    given = (w, factor, scale, offset if shifted else None, levels)
    codes, errors = feed_back(*given, body="plain")
    found, its = feed_back(*given, body="gpu")
    assert torch.equal(found, codes)
    assert torch.equal(its, errors)
    assert len(codes.unique()) == len(levels) or codes.numel() < 64


def test_halves_round_to_even_and_huge_values_to_the_ends(device: torch.device) -> None:
    levels = TABLES["whole"]
    w = torch.tensor([[0.5, 1.5, 2.5, 14.5, -0.5, 1e30, -1e30, 15.5, 3e9]], device=device)
    one = torch.ones(1, 9, device=device)
    codes, _ = feed_back(w, one[:, :1], one, None, levels, body="gpu")
    assert codes.tolist() == [[0, 2, 2, 14, 0, 15, 0, 15, 15]]
