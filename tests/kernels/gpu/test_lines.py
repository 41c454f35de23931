"""Codes to values and back in Triton: the bits of the plain body."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from qconvert.kernels import lines
from qconvert.kernels.levels import IQ4_LEVELS

WHOLE = np.arange(-8, 8, dtype=np.float32)
E2M1 = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


@pytest.mark.parametrize("levels", [WHOLE, IQ4_LEVELS, E2M1], ids=["whole", "iq4", "e2m1"])
@pytest.mark.parametrize(("groups", "size"), [(16, 32), (3, 20), (1, 1), (1, 1030)])
@pytest.mark.parametrize("shifted", [False, True])
def test_as_the_plain_body(
    levels: np.ndarray, groups: int, size: int, shifted: bool, device: torch.device
) -> None:
    made = torch.Generator().manual_seed(3)
    w = torch.randn(5, groups * size, generator=made) * 8
    w[3] *= 1e30
    w[4] = w[4].round() + 0.5  # ties
    scale = torch.randn(5, groups, generator=made)
    scale[0], scale[4] = 0, 1
    offset = torch.randn(5, groups, generator=made) if shifted else None
    codes = lines.nearest_codes(w, scale, offset, levels, body="plain")
    values = lines.decoded(codes, scale, offset, levels, body="plain")
    there = None if offset is None else offset.to(device)
    found = lines.nearest_codes(w.to(device), scale.to(device), there, levels, body="gpu")
    assert torch.equal(found.cpu(), codes)
    again = lines.decoded(found, scale.to(device), there, levels, body="gpu")
    assert torch.equal(again.cpu().view(torch.int32), values.view(torch.int32))


def test_no_rows(device: torch.device) -> None:
    w, scale = torch.empty(0, 32, device=device), torch.empty(0, 2, device=device)
    codes = lines.nearest_codes(w, scale, None, WHOLE, body="gpu")
    assert codes.shape == (0, 32)
    assert lines.decoded(codes, scale, None, WHOLE, body="gpu").shape == (0, 32)
