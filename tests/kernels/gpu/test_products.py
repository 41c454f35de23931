"""Products on packed weights in Triton: w4a16 against float64, w8a8 the bits of the plain body."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qconvert.formats.serving.layouts import words
from qconvert.kernels.gpu.products import WORDS, cut
from qconvert.kernels.products import quantize_rows, w4a16, w8a8

KINDS = [torch.float16]
if torch.cuda.is_available():  # the interpreter computes wrongly with bfloat16
    KINDS.append(torch.bfloat16)
STEPS = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


def four_bits(
    rows: int, cols: int, groups: int, *, zeros: bool, kind: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    rng = np.random.default_rng(rows * cols)
    codes = rng.integers(0, 16, (rows, cols), np.uint8)
    zero = np.ascontiguousarray(words.pack(rng.integers(0, 16, (groups, rows), np.uint8), 4).T)
    scale = torch.from_numpy(rng.uniform(0.5, 2, (rows, groups)) / 16).to(kind).to(device)
    packed = torch.from_numpy(words.pack(codes, 4)).to(device)
    return packed, scale, torch.from_numpy(zero).to(device) if zeros else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(
    ("n", "rows", "cols", "groups"),
    [
        (1, 9, 8, 1),  # one word
        (3, 70, 256, 2),  # rows off the tile, groups of 128
        (16, 5, 1024, 8),  # two splits
        (2, 3, 20, 1),  # half a word left over
        (2, 20, 160, 5),  # groups of 32, columns off the tile
        (1, 4, 1056, 1),  # a split that is shorter, one scale for each row
        (2, 6, 24, 6),  # groups that cut a word
        (17, 130, 128, 1),  # tiles of tokens
        (20, 7, 192, 3),  # tiles of tokens, groups of 64
        (70, 9, 48, 1),
    ],
)
def test_four_bits_are_the_product_in_float64(
    device: torch.device, kind: torch.dtype, zeros: bool, n: int, rows: int, cols: int, groups: int
) -> None:
    packed, scale, zero = four_bits(rows, cols, groups, zeros=zeros, kind=kind, device=device)
    x = torch.randn(n, cols, generator=torch.Generator().manual_seed(rows)).to(device).to(kind)
    found = w4a16(x, packed, scale, zero, body="gpu")
    assert found.dtype == kind
    one = torch.eye(cols, device=device)
    weights = w4a16(one, packed, scale, zero, body="plain").double().t()
    want = x.double() @ weights.t()
    products = x.double().abs() @ weights.abs().t()
    rounded = 0.0 if groups == 1 or (cols // groups) % 128 == 0 else STEPS[kind]
    bound = ((cols + 8) * 2.0**-23 + rounded) * products + STEPS[kind] * want.abs()
    assert bool(((found - want).abs() <= bound + 1e-7).all())
    assert found.equal(w4a16(x, packed, scale, zero, body="gpu"))


@pytest.mark.parametrize(
    ("rows", "cols"), [(1, 8), (64, 4096), (4096, 4096), (14336, 4096), (4096, 14336), (1024, 8200)]
)
def test_splits_hold_every_word_once(rows: int, cols: int) -> None:
    count = cols // 8
    span, splits, together = cut(rows, count)
    assert span % WORDS == 0
    assert (splits - 1) * span < count <= splits * span
    if rows * cols >= 1 << 24:
        assert -(-rows // together) * splits >= 400


@pytest.mark.parametrize("fixed", [None, 0.03])
@pytest.mark.parametrize("kind", [torch.float32, *KINDS])
@pytest.mark.parametrize(("n", "cols"), [(1, 1), (5, 33), (2, 2100)])
def test_tokens_are_rounded_as_by_the_plain_body(
    device: torch.device, kind: torch.dtype, fixed: float | None, n: int, cols: int
) -> None:
    x = torch.randn(n, cols, generator=torch.Generator().manual_seed(cols)).to(device).to(kind)
    x[0, : cols // 2] = 0.0
    x[-1] *= 3
    codes, scale = quantize_rows(x, fixed, body="gpu")
    wanted, scales = quantize_rows(x, fixed, body="plain")
    assert codes.equal(wanted)
    assert scale.equal(scales)


def test_halves_are_rounded_to_even(device: torch.device) -> None:
    x = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.0, -1000.0]], device=device)
    codes, _ = quantize_rows(x, 1.0, body="gpu")
    assert codes.tolist() == [[0, 2, 2, 0, -2, 126, 127, -128]]


@pytest.mark.parametrize("fixed", [None, 0.03])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "rows", "cols"), [(1, 1, 1), (5, 40, 33), (3, 4, 1300), (17, 130, 128), (30, 3, 200)]
)
def test_eight_bits_are_those_of_the_plain_body(
    device: torch.device, kind: torch.dtype, fixed: float | None, n: int, rows: int, cols: int
) -> None:
    source = torch.Generator().manual_seed(cols)
    x = torch.randn(n, cols, generator=source).to(device).to(kind)
    weight = torch.randint(-128, 128, (rows, cols), generator=source, dtype=torch.int8).to(device)
    scale = torch.rand(rows, generator=source).to(device)
    found = w8a8(x, weight, scale, fixed, body="gpu")
    assert found.equal(w8a8(x, weight, scale, fixed, body="plain"))


@pytest.mark.parametrize("n", [0, 2])
def test_activations_may_begin_anywhere_and_be_none(device: torch.device, n: int) -> None:
    packed, scale, _ = four_bits(5, 64, 1, zeros=False, kind=torch.float16, device=device)
    beside = torch.randn(n * 64 + 1, generator=torch.Generator().manual_seed(1)).half().to(device)
    x = beside[1:].view(n, 64)
    assert w4a16(x, packed, scale, body="gpu").equal(w4a16(x.clone(), packed, scale, body="gpu"))
    weight = torch.ones(5, 64, dtype=torch.int8, device=device)
    found = w8a8(x, weight, scale[:, 0], body="gpu")  # scales as they are in files, too
    assert found.equal(w8a8(x, weight, scale[:, 0], body="plain"))


def test_other_types_are_refused(device: torch.device) -> None:
    packed, scale, zero = four_bits(5, 64, 1, zeros=True, kind=torch.float16, device=device)
    x = torch.ones(2, 64, dtype=torch.float16, device=device)
    with pytest.raises(ValueError, match="int32"):
        w4a16(x, packed.long(), scale, zero, body="gpu")
    with pytest.raises(ValueError, match="int32"):
        w4a16(x, packed, scale, packed[:1, :1].long(), body="gpu")
    with pytest.raises(ValueError, match="float64"):
        w4a16(x, packed, scale.double(), body="gpu")
    with pytest.raises(ValueError, match="int8"):
        w8a8(x, packed.new_ones(5, 64), scale[:, 0], body="gpu")
    with pytest.raises(ValueError, match="float64"):
        quantize_rows(x.double(), body="gpu")
