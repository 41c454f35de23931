"""What a plan says of the linears of one block, by role."""

from __future__ import annotations

from collections.abc import Iterator

from qconvert.engine.reads import READS
from qconvert.engine.rounding import is_fixed
from qconvert.formats.grid import Grid
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import InputRounding, OutputTensor, Plan


def _quantized(plan: Plan, index: int) -> Iterator[tuple[str, OutputTensor, Grid]]:
    for one in plan.tensors:
        if one.source is not None and one.source.block == index and one.grid is not None:
            yield one.source.role, one, one.grid


def grids_of(plan: Plan, index: int) -> dict[str, Grid]:
    """Of the linears that do not stay float."""
    return {role: grid for role, _, grid in _quantized(plan, index)}


def shares_of(plan: Plan, source: Source, index: int) -> dict[str, tuple[str, ...]]:
    """The roles whose grids have one scale with this one's."""
    roles = {tensor.name: tensor.role for tensor in source.tensors}
    return {
        role: tuple(roles[name] for name in one.shares) for role, one, _ in _quantized(plan, index)
    }


def roundings_of(plan: Plan, index: int) -> dict[str, InputRounding]:
    """How a runtime rounds what a linear reads, where it does."""
    return {
        role: one.input_rounding
        for role, one, _ in _quantized(plan, index)
        if one.input_rounding is not None
    }


def fixed_of(plan: Plan, index: int) -> dict[str, list[InputRounding]]:
    """By the names of inputs: the ways in which a scale that calibration fixes rounds them."""
    found: dict[str, list[InputRounding]] = {}
    for role, how in roundings_of(plan, index).items():
        ways = found.setdefault(READS[role], [])
        if is_fixed(how) and how not in ways:
            ways.append(how)
    return {name: ways for name, ways in found.items() if ways}


def columns_of(plan: Plan, source: Source, index: int) -> tuple[str, ...]:
    """The inputs of which the output holds a scale of each column, with all that read them."""
    held = {one.column_scale for one in plan.tensors if one.column_scale}
    readers: dict[str, list[bool]] = {}
    for tensor in source.tensors:
        if tensor.block == index and tensor.part == "weight" and tensor.role in READS:
            readers.setdefault(READS[tensor.role], []).append(tensor.name in held)
    return tuple(name for name, places in readers.items() if all(places))


def weight_of(source: Source, index: int, role: str) -> SourceTensor:
    return next(
        tensor
        for tensor in source.tensors
        if (tensor.block, tensor.role, tensor.part) == (index, role, "weight")
    )
