"""Pictures of a calibrated conversion, as PNG files: errors, outliers, the first block's inputs.

Same records, same bytes: fixed style and font, no date, no name of software. Colours are those of
Okabe and Ito, told apart by the colour-blind as well; lines differ in marker too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from qconvert.engine.record import BlockRecord, InputRecord
from qconvert.layer_report import READERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8A8A8A"
LINES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"))
INK = "#333333"
GAUSSIAN = 3.0  # kurtosis
CROWD = 60  # blocks; the markers of more would cover the lines
COLUMNS = 700  # of a panel of channels: narrower ones would fade
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9.0, "axes.titlesize": 10.0,
    "axes.titlelocation": "left", "axes.titleweight": "bold", "axes.labelsize": 9.0,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#999999",
    "axes.labelcolor": INK, "axes.titlecolor": INK, "text.color": INK,
    "xtick.color": INK, "ytick.color": INK, "xtick.labelsize": 8.0, "ytick.labelsize": 8.0,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": "#E4E4E4", "grid.linewidth": 0.7,
    "axes.axisbelow": True, "xtick.minor.size": 0.0, "ytick.minor.size": 0.0,
    "legend.frameon": False, "lines.linewidth": 1.4,
    "lines.markersize": 3.2, "savefig.dpi": 130, "figure.dpi": 130,
}  # fmt: skip


@contextmanager
def style() -> Iterator[None]:
    """The settings of this module alone, whatever the user's own are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def pictures(blocks: Sequence[BlockRecord]) -> dict[str, bytes]:
    """File name -> PNG, those for which there are records."""
    figures = {
        "error.png": errors_figure(blocks),
        "inputs.png": inputs_figure(blocks),
        "channels.png": channels_figure(blocks),
    }
    return {name: png(figure) for name, figure in figures.items() if figure is not None}


def png(figure: Figure) -> bytes:
    """The bytes of a picture, the same for the same figure."""
    target = io.BytesIO()
    with style():
        figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _figure(width: float, height: float) -> Figure:
    """A figure that belongs to no window and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def errors_figure(blocks: Sequence[BlockRecord]) -> Figure | None:
    """One panel per role: the error by block, of the plain fit and of what was kept."""
    roles = tuple(dict.fromkeys(one.role for block in blocks for one in block.linears))
    if not roles:
        return None
    columns = min(4, len(roles))
    count = math.ceil(len(roles) / columns)
    with style():
        figure = _figure(2.6 * columns + 0.6, 2.2 * count + 0.8)
        grid = figure.subplots(count, columns, sharex=True, sharey=True, squeeze=False)
        panels = list(grid.flat)
        for axes, role in zip(panels, roles, strict=False):
            _error_panel(axes, role, blocks)
        for column in range(columns):  # the last panel of each column carries the numbers
            used = [row for row in range(count) if row * columns + column < len(roles)]
            grid[used[-1], column].tick_params(labelbottom=True)
        for axes in panels[len(roles) :]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        if len(panels) > len(roles):
            panels[-1].legend(handles, labels, loc="center left", fontsize=9)
        else:
            figure.legend(handles, labels, loc="outside upper right", ncols=2)
        figure.suptitle("Output error of each linear", fontsize=11, x=0.01, ha="left")
        figure.supylabel("relative error of the output", fontsize=9)
        figure.supxlabel("block", fontsize=9)
    return figure


def _error_panel(axes: Axes, role: str, blocks: Sequence[BlockRecord]) -> None:
    found = [(b.index, one) for b in blocks for one in b.linears if one.role == role]
    x = [index for index, _ in found]
    plain = [_positive(one.plain_error) for _, one in found]
    kept = [_positive(one.error) for _, one in found]
    axes.set_yscale("log")
    axes.fill_between(x, kept, plain, color=BLUE, alpha=0.10, linewidth=0)
    shape = marker("o", blocks)
    axes.plot(x, plain, color=GREY, marker=shape, markerfacecolor="white", label="plain fit")
    axes.plot(x, kept, color=BLUE, marker=shape, label="kept")
    axes.set_title(role)
    _error_ticks(axes)
    _block_axis(axes, blocks)


def _error_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def marker(shape: str, blocks: Sequence[BlockRecord]) -> str:
    """`shape` where there is room for markers, else none."""
    return shape if len(blocks) <= CROWD else ""


def _block_axis(axes: Axes, blocks: Sequence[BlockRecord]) -> None:
    from matplotlib.ticker import MaxNLocator

    numbers = [block.index for block in blocks]
    axes.set_xlim(min(numbers) - 0.7, max(numbers) + 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def inputs_figure(blocks: Sequence[BlockRecord]) -> Figure | None:
    """Two panels: outliers and kurtosis of each input by block."""
    names = tuple(dict.fromkeys(one.name for block in blocks for one in block.inputs))
    if not names:
        return None
    with style():
        figure = _figure(9.6, 3.7)
        left, right = figure.subplots(1, 2)
        for number, name in enumerate(names):
            colour, shape = LINES[number % len(LINES)]
            found = [(b.index, one) for b in blocks for one in b.inputs if one.name == name]
            x = [index for index, _ in found]
            for axes, values in (
                (left, [_positive(one.outlier) for _, one in found]),
                (right, [_positive(one.kurtosis) for _, one in found]),
            ):
                label = f"{name} ({READERS.get(name, '')})"
                axes.plot(x, values, color=colour, marker=marker(shape, blocks), label=label)
        for axes in (left, right):
            axes.set_yscale("log")
            axes.set_xlabel("block")
            _block_axis(axes, blocks)
            _plain_ticks(axes)
        figure.suptitle("Inputs of the blocks", fontsize=11, x=0.01, ha="left")
        left.set_title("Outliers")
        left.set_ylabel("largest magnitude / root mean square")
        right.set_title("Kurtosis")
        right.set_ylabel("fourth moment / squared variance")
        right.axhline(GAUSSIAN, color=GREY, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        right.set_ylim(bottom=min(right.get_ylim()[0], GAUSSIAN / 2.6))
        right.annotate("Gaussian: 3", (1, GAUSSIAN), xycoords=("axes fraction", "data"),
                       xytext=(0, -3), textcoords="offset points", ha="right", va="top",
                       color="#666666", fontsize=8)  # fmt: skip
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _plain_ticks(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    near = high / low < 200  # under about two decades, ticks between the powers of ten
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,), numticks=12))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def channels_figure(blocks: Sequence[BlockRecord]) -> Figure | None:
    """2 x 2 panels: the largest magnitude of each channel of the first block's inputs."""
    found = [one for block in blocks[:1] for one in block.inputs if one.largest][:4]
    if not found:
        return None
    with style():
        figure = _figure(9.6, 5.4)
        panels = list(figure.subplots(2, 2).flat)
        for axes, one, (colour, _) in zip(panels, found, LINES, strict=False):
            _channel_panel(axes, one, colour)
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        figure.suptitle(f"Inputs of block {blocks[0].index}", fontsize=11, x=0.01, ha="left")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right")
        figure.supxlabel("channel", fontsize=9)
        figure.supylabel("largest magnitude over all calibration tokens", fontsize=9)
    return figure


def _channel_panel(axes: Axes, one: InputRecord, colour: str) -> None:
    heights = [value if math.isfinite(value) else 0.0 for value in one.largest]
    step = math.ceil(len(heights) / COLUMNS)
    x = range(0, len(heights), step)
    bars = [max(heights[start : start + step]) for start in x]
    axes.fill_between([*x, len(heights)], [*bars, bars[-1]], step="post", color=colour,
                      linewidth=0.5)  # fmt: skip
    middle = sorted(heights)[len(heights) // 2]
    axes.axhline(middle, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="median of channels")
    axes.set_xlim(0, len(heights))
    axes.set_ylim(0, max(1.12 * max(heights), 1e-30))
    axes.set_title(f"{one.name}: read by {READERS.get(one.name, one.name)}")
    top = max(range(len(heights)), key=lambda channel: heights[channel])
    times = f", {heights[top] / middle:.3g} x the median" if middle > 0 else ""
    axes.text(1, 1.02, f"largest: channel {top:,}{times}", transform=axes.transAxes, ha="right",
              va="bottom", fontsize=8, color="#666666")  # fmt: skip


def _positive(value: float) -> float:
    """What a logarithmic axis can show; a gap for all else."""
    return value if value > 0 and math.isfinite(value) else math.nan
