"""Linears whose weights stay packed, made of what a folder stores of them.

What they give is a product of `kernels.products` in the type of what they read, plus the bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from qconvert.formats.refusal import Reason, refuse
from qconvert.formats.serving.scheme import Activations, Form, Scheme
from qconvert.kernels import products
from qconvert.kernels.bodies import Body

Read = Callable[[str], torch.Tensor]
"""A stored tensor of a linear by the last part of its name, on the device that computes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What one linear is made of."""

    shape: tuple[int, int]  # [out, in]
    symmetric: bool
    fixed: float | None  # scale of what it reads, where the file has one
    read: Read


class FourBit(torch.nn.Module):
    """W4A16: `weight_packed`, `weight_scale`, perhaps `weight_zero_point` of compressed-tensors."""

    def __init__(self, stored: Stored, bias: torch.Tensor | None, body: Body | None) -> None:
        super().__init__()
        told = tuple(stored.read("weight_shape").tolist())
        if told != stored.shape:
            raise refuse(f"weight_shape is {told}, and the tensors are {stored.shape}")
        self.body = body
        self.register_buffer("packed", stored.read("weight_packed"))
        self.register_buffer("scale", stored.read("weight_scale"))
        self.register_buffer("zero", None if stored.symmetric else stored.read("weight_zero_point"))
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = products.w4a16(
            x, self.get_buffer("packed"), self.get_buffer("scale"), self._buffers["zero"],
            body=self.body,
        )  # fmt: skip
        return _plus(found, self._buffers["bias"])


class EightBit(torch.nn.Module):
    """W8A8 in int8: `weight`, `weight_scale`; what it reads is rounded for each token, or by the
    one scale that the file holds."""

    def __init__(self, stored: Stored, bias: torch.Tensor | None, body: Body | None) -> None:
        super().__init__()
        self.body, self.fixed = body, stored.fixed
        self.register_buffer("weight", stored.read("weight"))
        self.register_buffer("scale", stored.read("weight_scale").float().reshape(-1))
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = products.w8a8(
            x, self.get_buffer("weight"), self.get_buffer("scale"), self.fixed, body=self.body
        )
        return _plus(found, self._buffers["bias"])


def _plus(found: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return found if bias is None else found + bias


Make = Callable[[Stored, torch.Tensor | None, Body | None], torch.nn.Module]

PRODUCTS: Mapping[tuple[Form, int, Activations | None], Make] = {
    ("int", 4, None): FourBit,
    ("int", 8, "int8"): EightBit,
}
"""Form, bits and rounding of the inputs of a scheme -> the linear that computes with it."""


def module_of(scheme: Scheme) -> Make | None:
    """None where there is no product for such weights."""
    return PRODUCTS.get((scheme.form, scheme.bits, scheme.activations))


def problems(schemes: Sequence[Scheme]) -> list[Reason]:
    """Why linears of `schemes` cannot be computed with; empty when all can."""
    return [
        Reason(
            f"there is no product on packed weights of {scheme.name}",
            "w4a16, in any groups and with zero points or without, and w8a8 have one",
        )
        for scheme in dict.fromkeys(schemes)
        if module_of(scheme) is None
    ]
