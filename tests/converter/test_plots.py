"""Pictures: every record is in them, they are the same each time, and nothing global changes."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from qconvert import plots
from qconvert.engine.record import BlockRecord

Records = Callable[..., tuple[BlockRecord, ...]]


def curves(axes: Any) -> dict[str, list[float]]:
    return {
        str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.get_lines()
    }


def test_each_role_has_a_panel_with_both_errors(records: Records) -> None:
    blocks = records(5)
    figure = plots.errors_figure(blocks)
    assert figure is not None
    panels = {axes.get_title("left"): axes for axes in figure.axes if axes.axison}
    assert list(panels) == [one.role for one in blocks[0].linears]
    for place, axes in enumerate(panels.values()):
        found = [block.linears[place] for block in blocks]
        assert axes.get_yscale() == "log"
        assert curves(axes) == {
            "plain fit": [one.plain_error for one in found],
            "kept": [one.error for one in found],
        }
        assert np.asarray(axes.get_lines()[0].get_xdata()).tolist() == [0, 1, 2, 3, 4]
    assert "relative error of the output" in figure.get_supylabel()
    assert figure.get_supxlabel() == "block"


def test_each_input_has_a_line_of_outliers_and_one_of_kurtosis(records: Records) -> None:
    blocks = records(5)
    figure = plots.inputs_figure(blocks)
    assert figure is not None
    outliers, kurtosis = map(curves, figure.axes)
    for place, name in enumerate(("attn_in (q, k, v)", "attn_mid (o)", "ffn_in (gate, up)",
                                  "ffn_mid (down)")):  # fmt: skip
        assert outliers[name] == [block.inputs[place].outlier for block in blocks]
        assert kurtosis[name] == [block.inputs[place].kurtosis for block in blocks]
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)
    assert figure.axes[1].get_ylim()[0] < plots.GAUSSIAN


def test_the_first_block_shows_every_channel(records: Records) -> None:
    (block,) = records(1)
    figure = plots.channels_figure((block,))
    assert figure is not None
    assert len(figure.axes) == 4
    for axes, one in zip(figure.axes, block.inputs, strict=True):
        (area,) = axes.collections
        corners = np.asarray(area.get_paths()[0].vertices)
        assert set(one.largest) <= set(corners[:, 1])
        assert axes.get_xlim() == (0, one.channels)
        top = max(range(one.channels), key=lambda channel: one.largest[channel])
        assert f"channel {top}" in axes.texts[0].get_text()


def test_many_channels_share_columns_and_no_outlier_is_lost(records: Records) -> None:
    (block,) = records(1)
    largest = [1.0] * 50_000
    largest[31_234] = 77.0
    wide = replace(block.inputs[0], channels=50_000, largest=tuple(largest))
    figure = plots.channels_figure((replace(block, inputs=(wide,)),))
    assert figure is not None
    (area,) = figure.axes[0].collections
    corners = np.asarray(area.get_paths()[0].vertices)
    assert len(corners) < 5 * plots.COLUMNS
    assert corners[:, 1].max() == 77.0
    assert "channel 31,234, 77 x the median" in figure.axes[0].texts[0].get_text()


def test_a_block_alone_and_a_crowd_can_be_read(records: Records) -> None:
    for count, shape in ((1, "o"), (plots.CROWD + 1, "")):
        figure = plots.errors_figure(records(count))
        assert figure is not None
        axes = figure.axes[0]
        assert axes.get_lines()[0].get_marker() == shape
        low, high = axes.get_xlim()
        assert low < 0 <= count - 1 < high
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert ticks == [round(tick) for tick in ticks]


def test_an_error_of_zero_is_a_gap(records: Records) -> None:
    first, *rest = records(3)
    exact = tuple(replace(one, plain_error=0.0, error=0.0) for one in first.linears)
    figure = plots.errors_figure((replace(first, linears=exact), *rest))
    assert figure is not None
    assert math.isnan(curves(figure.axes[0])["kept"][0])
    assert plots.png(figure)[:4] == b"\x89PNG"


def test_nothing_to_show_gives_no_picture(records: Records) -> None:
    assert plots.pictures(()) == {}
    (block,) = records(1)
    assert set(plots.pictures((replace(block, inputs=()),))) == {"error.png"}


DRAW = """
import hashlib, sys
from qconvert import plots
from qconvert.engine.record import BlockRecord, InputRecord, LinearRecord
linears = (LinearRecord("a", "attn_q", "Q4_K", 0.02, 0.01, ()),)
inputs = (InputRecord("attn_in", 3, 0, 9.0, 4.0, (1.0, 2.0, 3.0)),)
images = plots.pictures([BlockRecord(i, linears, inputs, 1.0, 1) for i in range(3)])
print(sorted((name, hashlib.sha256(image).hexdigest()) for name, image in images.items()))
print("matplotlib.pyplot" in sys.modules, file=sys.stderr)
"""


def test_another_process_draws_the_same_bytes() -> None:
    once, again = (
        subprocess.run(
            [sys.executable, "-P", "-c", DRAW], capture_output=True, text=True, check=True
        )
        for _ in range(2)
    )
    assert once.stdout == again.stdout
    assert "channels.png" in once.stdout
    assert once.stderr.splitlines()[-1] == "False"


def test_the_users_own_style_changes_nothing(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = plots.png(plots.inputs_figure(records(2)))  # type: ignore[arg-type]
    monkeypatch.setitem(mpl.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(mpl.rcParams, "savefig.dpi", 20)
    assert plots.png(plots.inputs_figure(records(2))) == before  # type: ignore[arg-type]
    assert mpl.rcParams["lines.linewidth"] == 9.0
    for varying in (b"Software", b"Creation Time", b"date"):
        assert varying not in before
