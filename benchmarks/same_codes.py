"""Whether a device gives the codes of the processor: every grid, fits, sweeps and conversions.

    python -P benchmarks/same_codes.py [--only "Q4_K|nvfp4"]           # on a CUDA device
    python -P benchmarks/same_codes.py --body plain --tiny             # on a processor
    python -P benchmarks/same_codes.py --body gpu --tiny               # the same, interpreted
    python -P benchmarks/same_codes.py --convert MODEL --calib TEXT    # and a whole model

One JSON line a grid, shape and operation: codes compared, those that differ, parameters and decoded
values that differ, and `why` they may. Two kinds of comparison:

- `fit` (nearest codes, parameters, decoded values), `feedback` (a panel of GPTQ's), `descent` (a
  panel of its): bodies get the same inputs and keep the order of sums. Nothing may differ.
- `rounds` (GPTQ, then descent, of a linear) and `conversion`: on a device moments, factors and
  products between panels are summed in another order, so some codes differ; how many is printed.
  Where a processor computes both (`--body`), rounds must agree too.

Exits with 1 where nothing may differ and something does.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

Line = dict[str, Any]
GRIDS = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
    "IQ4_XS", "int2_g16", "int3_g40_asym_bf16", "int4_g32_portable", "int4_g128_portable",
    "int4_g128_asym_portable", "int4_g64_asym_f32", "int5_g32_bf16", "int8_g64_asym",
    "int4_g32_portable5", "int2_channel_f32", "int4_channel_asym", "int8_channel_f32",
    "fp8_channel", "fp8_tensor", "fp8_block128", "nvfp4", "mxfp4",
)  # fmt: skip
"""Of every kind of search there is, with every type that scales are stored in."""
SHAPES = ((256, 1024), (4096, 1024), (1021, 2048))
TINY = ((3, 64),)
SAME = "the same inputs, and sums in the same order: nothing may differ"
ORDER = "moments, factors and products between panels are summed in another order"
LARGEST = 0.5  # of weights that a grid is bound to


def main() -> int:
    options = _options()
    if options.body == "gpu" and options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined
    failed = []
    for line in lines(options):
        print(json.dumps(line), flush=True)
        if wrong(line):
            failed.append(f"{line['operation']} of {line['grid']} {line['shape']}")
    print(json.dumps({"benchmark": "same_codes", "failed": failed, **_about(options)}))
    return 1 if failed else 0


def wrong(line: Line) -> bool:
    return bool(line["equal"] and (line["differ"] or line["others_differ"]))


def lines(options: argparse.Namespace) -> Iterator[Line]:
    import torch

    device = torch.device(options.device)
    for name in GRIDS:
        if re.search(options.only, name):
            for rows, cols in TINY if options.tiny else SHAPES:
                yield from of_grid(name, rows, cols, device, options)
    if options.convert is not None:
        yield from conversions(options)


def of_grid(name: str, rows: int, cols: int, device: Any, options: Any) -> Iterator[Line]:
    from qconvert.formats.known_grids import grid_named

    grid: Any = grid_named(name)
    grid = grid.bound(LARGEST) if hasattr(grid, "bound") else grid
    unit = max(grid.block, grid.group, 1)
    cols = max(unit, cols // unit * unit)
    ours = task(grid, rows, cols, None, "cpu")
    other = task(grid, rows, cols, options.body, device)
    asked = {"grid": name, "shape": [rows, cols]}
    for operation, compare in OPERATIONS.items():
        pairs = compare(ours, other)
        equal = operation != "rounds" or device.type == "cpu"
        codes, differ = _differing(pairs[:1])
        told = {"operation": operation, **asked, "codes": codes, "differ": differ}
        others = _differing(pairs[1:])[1]
        why = SAME if equal else ORDER
        yield {**told, "others_differ": others, "equal": equal, "why": why}


def task(grid: Any, rows: int, cols: int, body: Any, device: Any) -> Any:
    """A linear, the same values wherever it is."""
    from qconvert.algorithms.slots import Setting, Task

    w, second = (one.to(device) for one in inputs(rows, cols))
    setting = Setting(threads=os.cpu_count() or 1, effort=0, body=body)
    return Task("linear", w, second, second, grid, setting)


@cache
def inputs(rows: int, cols: int) -> tuple[Any, Any]:
    """Weights, and second moments of correlated inputs."""
    import torch

    chance = torch.Generator().manual_seed(0)
    mix = torch.eye(cols) + 0.05 * torch.randn(cols, cols, generator=chance)
    x = torch.randn(2 * cols, cols, generator=chance) @ mix
    w = 0.02 * torch.randn(rows, cols, generator=chance)
    return w.clamp_(-LARGEST, LARGEST), x.t() @ x / len(x)


def fit(ours: Any, other: Any) -> list[Any]:
    """The fit of the grid, weighted, and the values it stands for."""
    from qconvert.algorithms.place import decoded
    from qconvert.algorithms.rounds.nearest import ROUND

    found = []
    for one in (ours, other):
        tensor = ROUND(one, _weighted(), None)
        found.append([tensor.codes, *tensor.params.values(), decoded(one, tensor)])
    return list(zip(*found, strict=True))


def feedback(ours: Any, other: Any) -> list[Any]:
    """One panel of GPTQ's, with the factor of the processor."""
    from qconvert.algorithms.curvature import damped, factor
    from qconvert.algorithms.place import away, place_of
    from qconvert.algorithms.rounds.nearest import ROUND
    from qconvert.kernels.descent import feed_back

    start = ROUND(ours, _weighted(), None)
    width = _panel(ours)
    upper = factor(damped(ours.second, 0.01), "linear")[:width, :width]
    found = []
    for one in (ours, other):
        where = one.w.device
        place = place_of(one.grid, where, one.setting)
        scale, offset = place.lines(away(start, where))
        each = ours.w.shape[1] // scale.shape[1]
        spread = [None if part is None else part.t().repeat_interleave(each, 0)[:width].contiguous()
                  for part in (scale, offset)]  # fmt: skip
        now = one.w.t()[:width].contiguous()
        found.append(feed_back(now, upper.to(where).contiguous(), *spread, one.grid.levels,
                               body=one.setting.body))  # fmt: skip
    return list(zip(*found, strict=True))


def descent(ours: Any, other: Any) -> list[Any]:
    """One panel of the descent's, from the fit of the processor and its gradient."""
    import torch

    from qconvert.algorithms.place import away, decoded
    from qconvert.algorithms.rounds.descent import _state
    from qconvert.algorithms.rounds.nearest import ROUND
    from qconvert.kernels.descent import descend, parameters_move

    start, cols, width = ROUND(ours, _weighted(), None), ours.w.shape[1], _panel(ours)
    gradient = ours.second @ (decoded(ours, start) - ours.w).t()
    found = []
    for one in (ours, other):
        where, search = one.w.device, one.grid.search
        coded = away(start, where)
        lines = {} if parameters_move(search) else {"d": _scale(one, coded)}
        params = {name: values.to(torch.float32, copy=True).t().contiguous()
                  for name, values in (lines or coded.params).items()}  # fmt: skip
        levels = torch.tensor(one.grid.levels, device=where)
        chosen = levels[coded.codes.t().contiguous().int()][:width]
        slope = gradient[:width].to(where, copy=True)
        square = one.second[:width, :width].contiguous()
        change = descend(slope, square, chosen, _state(params, slice(0, width), cols), search,
                         parameters=bool(one.grid.block), body=one.setting.body)  # fmt: skip
        found.append([chosen, change, *params.values()])
    return list(zip(*found, strict=True))


def rounds(ours: Any, other: Any) -> list[Any]:
    """GPTQ, then the descent from it, of the whole linear."""
    from qconvert.algorithms.registry import rounds as known

    found = []
    for one in (ours, other):
        tensor = known()["gptq"](one, _weighted(), None)
        tensor = known()["descent"](one, _weighted(), tensor)
        found.append([tensor.codes, *tensor.params.values()])
    return list(zip(*found, strict=True))


OPERATIONS: dict[str, Callable[[Any, Any], list[Any]]] = {
    "fit": fit, "feedback": feedback, "descent": descent, "rounds": rounds,
}  # fmt: skip


def conversions(options: argparse.Namespace) -> Iterator[Line]:
    """A whole model on both, block by block."""
    from qconvert.asked import Asked
    from qconvert.engine.bundle import open_bundle
    from qconvert.pipeline import convert

    with tempfile.TemporaryDirectory() as folder:
        made = []
        for device in ("cpu", options.device):
            place = Path(folder) / f"{len(made)}"
            asked = Asked(method=options.method, calib=str(options.calib), calib_rows=options.rows,
                          calib_length=options.length, device=device, compute="float32",
                          work=place, keep_work=True)  # fmt: skip
            convert(options.convert, options.to, type=options.type,
                    out=place.with_suffix(".out"), asked=asked)  # fmt: skip
            made.append(open_bundle(place))
        for tensor in made[0].tensors:
            for grid in made[0].grids_of(tensor.name):
                sides = [one.quantized(tensor.name, 0, tensor.shape[0], grid) for one in made]
                codes, differ = _differing([[one.codes for one in sides]])
                yield {"operation": "conversion", "grid": grid, "tensor": tensor.name,
                       "shape": list(tensor.shape), "codes": codes, "differ": differ,
                       "others_differ": 0, "equal": False, "why": ORDER}  # fmt: skip


def _weighted() -> Any:
    from qconvert.algorithms.registry import fits

    return fits()["weighted"]


def _panel(one: Any) -> int:
    from qconvert.algorithms.panels import Panels

    return int(Panels.of(one).columns[0].stop)


def _scale(one: Any, coded: Any) -> Any:
    from qconvert.algorithms.place import place_of

    return place_of(one.grid, one.w.device, one.setting).lines(coded)[0]


def _differing(pairs: Sequence[Sequence[Any]]) -> tuple[int, int]:
    """How many values there are, and how many are not the same; a zero has no sign."""
    import torch

    count = differ = 0
    for ours, other in pairs:
        a, b = (torch.as_tensor(one).cpu() for one in (ours, other))
        count += a.numel()
        differ += int((a != b).sum()) if a.shape == b.shape else max(a.numel(), 1)
    return count, differ


def _about(options: argparse.Namespace) -> Line:
    import torch

    on_gpu = options.device != "cpu"
    name = torch.cuda.get_device_name() if on_gpu else f"processor, body {options.body}"
    return {"device": name, "torch": torch.__version__}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", help="default: cuda, or cpu where there is a --body")
    parser.add_argument("--body", choices=["plain", "gpu"], help="default: the device's own")
    parser.add_argument("--tiny", action="store_true", help="shapes that the interpreter can run")
    parser.add_argument("--only", default="", help="a pattern of grids")
    parser.add_argument("--convert", type=Path, metavar="MODEL", help="compare a whole conversion")
    parser.add_argument("--calib", default="default")
    parser.add_argument("--to", default="gguf")
    parser.add_argument("--type", default="Q4_K_M")
    parser.add_argument("--method", default="best")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    options.device = options.device or ("cuda" if options.body is None else "cpu")
    if options.convert is not None and options.device == "cpu":
        parser.error("--convert compares a device with the processor: not with --body alone")
    return options


if __name__ == "__main__":
    sys.exit(main())
