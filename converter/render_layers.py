"""Tables of what the engine found in each layer, from the dictionary of `layer_report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvert.layer_report import gain_cell, worst_linears
from qconvert.render import add, table
from qconvert.units import share

WORST = 10  # linears that the command line lists; --report and --json have all


def layer_tables(result: Mapping[str, Any]) -> list[Any]:
    """The mean errors by role, the worst linears, and the inputs, of `facts.of_conversion`."""
    result = result["calibrated"]
    if not result or not result["linears"]:
        return []
    told = "error of the output on held-out rows, relative to the output"
    return [_roles(result, told), _worst(result), *_inputs(result)]


def _roles(result: Mapping[str, Any], told: str) -> Any:
    made = table(f"layers: {told}", "role", "type", "count", "plain fit", "kept", "gain", "worst",
                 right=("count", "plain fit", "kept", "gain", "worst"))  # fmt: skip
    for one in result["by_role"]:
        worst = f"{share(one['worst_error'])} in block {one['worst_block']}"
        worst = share(one["worst_error"]) if one["worst_block"] is None else worst
        add(made, one["role"], ", ".join(one["grids"]), one["count"], share(one["plain_error"]),
            share(one["error"]), gain_cell(one["gain"]), worst)  # fmt: skip
    return made


def _worst(result: Mapping[str, Any]) -> Any:
    shown = worst_linears(result, WORST)
    title = f"the {len(shown)} linears with the largest error, of {len(result['linears'])}"
    made = table(title, "name", "type", "plain fit", "kept", "gain", "steps",
                 right=("plain fit", "kept", "gain"))  # fmt: skip
    for one in shown:
        add(made, one["name"], one["grid"], share(one["plain_error"]), share(one["error"]),
            gain_cell(one["gain"]), ", ".join(one["steps"]))  # fmt: skip
    return made


def _inputs(result: Mapping[str, Any]) -> list[Any]:
    if not result["by_input"]:
        return []
    made = table("inputs of the blocks: their extremes", "input", "read by", "outlier", "in block",
                 "kurtosis", "in block", "dead channels",
                 right=("outlier", "in block", "kurtosis", "dead channels"))  # fmt: skip
    for one in result["by_input"]:
        add(made, one["name"], one["read_by"], f"{one['outlier']:,.1f}", one["outlier_block"],
            f"{one['kurtosis']:,.1f}", one["kurtosis_block"],
            f"{one['dead']:,} of {one['channels']:,}")  # fmt: skip
    return [made]
