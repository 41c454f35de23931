"""The facts of each layer, and their tables."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from qconvert import render, render_layers
from qconvert.asked import Calibrated
from qconvert.engine.record import BlockRecord, InputRecord, LinearRecord
from qconvert.facts import plain
from qconvert.layer_report import (
    by_input,
    by_role,
    calibration_rows,
    gain,
    gain_cell,
    of_calibrated,
    without_time,
    worst_linears,
)
from qconvert.units import share

LINEARS = {"attn_q": "Q4_K", "attn_o": "Q6_K"}


def block(index: int, *errors: tuple[float, float], outlier: float) -> BlockRecord:
    linears = tuple(
        LinearRecord(f"{index}.{role}", role, grid, plain_error, kept, ("weighted",))
        for (role, grid), (plain_error, kept) in zip(LINEARS.items(), errors, strict=True)
    )
    kurtosis = 100 - outlier
    return BlockRecord(index, linears, (InputRecord("attn_in", 8, 2, outlier, kurtosis),), 1.0, 9)


TWO = (
    block(0, (0.4, 0.1), (0.02, 0.01), outlier=30.0),
    block(1, (0.2, 0.2), (0.04, 0.05), outlier=10.0),
)


def shown(*parts: Any) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    for part in parts:
        console.print(part)
    return console.export_text()


def test_roles_are_told_by_their_means_and_worst() -> None:
    q, o = by_role(TWO)
    assert (q["role"], q["count"], q["grids"]) == ("attn_q", 2, ["Q4_K"])
    assert q["plain_error"] == pytest.approx(0.3)
    assert q["error"] == pytest.approx(0.15)
    assert q["gain"] == pytest.approx(0.5)
    assert (q["worst_block"], q["worst_error"]) == (1, 0.2)
    assert (o["worst_block"], o["worst_error"]) == (1, 0.05)


def test_inputs_are_told_by_their_extremes() -> None:
    (one,) = by_input(TWO)
    assert (one["outlier"], one["outlier_block"]) == (30.0, 0)
    assert (one["kurtosis"], one["kurtosis_block"]) == (90.0, 1)
    assert (one["dead"], one["channels"], one["read_by"]) == (4, 16, "q, k, v")


def test_gain_is_the_share_that_is_gone() -> None:
    assert gain(0.4, 0.1) == pytest.approx(0.75)
    assert gain(0.1, 0.2) == pytest.approx(-1)
    assert gain(0.0, 0.0) is None
    cells = [gain_cell(value) for value in (0.749, -1, None, -0.001)]
    assert cells == ["75 %", "-100 %", "-", "0 %"]


def test_shares_have_three_digits() -> None:
    values = (1.5, 0.123, 0.0456, 0.00789, 0.000012345, 1e-7, 0.0, None)
    assert [share(value) for value in values] == [
        "150 %", "12.3 %", "4.56 %", "0.789 %", "0.001 %", "1.0e-05 %", "0.000 %", "-"
    ]  # fmt: skip


def test_facts_hold_every_record_and_are_json(calibrated: Calibrated) -> None:
    facts = json.loads(json.dumps(plain(of_calibrated(calibrated)), allow_nan=False))
    assert [one["name"] for one in facts["linears"]] == [
        one.name for record in calibrated.blocks for one in record.linears
    ]
    first = calibrated.blocks[0]
    assert facts["linears"][0]["steps"] == list(first.linears[0].steps)
    assert facts["linears"][0]["error"] == first.linears[0].error
    assert facts["inputs"][3]["largest"] == list(first.inputs[3].largest)
    assert [one["seconds"] for one in facts["blocks"]] == [b.seconds for b in calibrated.blocks]
    assert facts["calibration"]["digest"] == "0123456789abcdef" * 4
    assert (facts["seed"], facts["effort"], facts["resumed_blocks"]) == (7, 2, 1)


def test_what_varies_is_left_out(calibrated: Calibrated) -> None:
    again = replace(
        calibrated,
        blocks=tuple(replace(b, seconds=99.0, peak_bytes=1) for b in calibrated.blocks),
        resumed=3,
    )
    assert of_calibrated(again) != of_calibrated(calibrated)
    assert without_time(of_calibrated(again)) == without_time(of_calibrated(calibrated))


def test_the_command_line_shows_the_worst_first(calibrated: Calibrated) -> None:
    result = {"calibrated": of_calibrated(calibrated)}
    worst = worst_linears(result["calibrated"], render_layers.WORST)
    every = result["calibrated"]["linears"]
    assert len(worst) == render_layers.WORST < len(every)
    least = min(one["error"] for one in worst)
    assert sum(one["error"] >= least for one in every) == len(worst)
    text = shown(*render_layers.layer_tables(result))
    places = [text.index(one["name"]) for one in worst]
    assert places == sorted(places)
    for word in ("attn_q", "ffn_down", "Q4_K", "weighted, gptq", "gate, up", "of 28", "1 of 192"):
        assert word in text


def test_how_the_weights_were_chosen_is_told(calibrated: Calibrated) -> None:
    text = shown(render.pairs("", calibration_rows(of_calibrated(calibrated))))
    for word in ("best (weighted, gptq)", "mine.txt", "64 rows of 512", "chat template",
                 "16 of them held out", "0123456789ab", "1 of 4 blocks"):  # fmt: skip
        assert word in text
    assert calibration_rows(of_calibrated(replace(calibrated, calibration=None, resumed=0))) == [
        ("method", "best (weighted, gptq)")
    ]


@pytest.mark.parametrize("engine", [False, True])
def test_no_tables_where_nothing_was_measured(calibrated: Calibrated, engine: bool) -> None:
    found = of_calibrated(replace(calibrated, blocks=())) if engine else None
    assert render_layers.layer_tables({"calibrated": found}) == []
