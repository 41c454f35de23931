"""What the command line shows: tables for people. The same facts as JSON are in `facts.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qconvert.layer_report import calibration_rows, method_line, planned_rows, work_rows
from qconvert.units import duration, size

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

PLAIN_WIDTH = 160  # columns when standard output is not a terminal


def console() -> Console:
    """Standard output; wide and without colours when it is not a terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(width=width, highlight=False, soft_wrap=False)


def show(*parts: RenderableType) -> None:
    out = console()
    for part in parts:
        out.print(part, markup=False)


def add(table: Table, *cells: object) -> None:
    """A row of plain text: what users name may hold the marks that rich would interpret."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells))


def table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table in the house style; `right` names the columns of numbers."""
    from rich import box
    from rich.table import Table

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for column in columns:
        number = column in right
        made.add_column(column, justify="right" if number else "left", no_wrap=number)
    return made


def pairs(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """Two columns without a head: a fact and its value."""
    from rich import box
    from rich.table import Table

    made = Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE, show_header=False
    )
    made.add_column(style="dim")
    made.add_column()
    for name, value in rows:
        add(made, name, value)
    return made


def tensor_table(result: Mapping[str, Any], *, names: bool) -> list[Any]:
    """One row per group of like tensors, as `facts.grouped` makes them, and the reasons below."""
    groups = result["groups"]
    reasons = list(dict.fromkeys(group["note"] for group in groups if group["note"]))
    columns = {
        "role": "role", "pattern": "tensors", "shape": "shape", "count": "count", "type": "type",
        "bits_per_weight": "bits/w", "bytes": "size", "note": "why",
    }  # fmt: skip
    empty = {key for key in ("role", "note") if not any(group[key] for group in groups)}
    shown = [key for key in columns if key not in empty and (names or key != "pattern")]
    made = table("tensors", *(columns[key] for key in shown), right=("count", "bits/w", "size"))
    for group in groups:
        cells = {
            **group,
            "shape": " x ".join(str(n) for n in group["shape"]),
            "bits_per_weight": f"{group['bits_per_weight']:.2f}",
            "bytes": size(group["bytes"]),
            "note": f"({reasons.index(group['note']) + 1})" if group["note"] else "",
        }
        add(made, *(cells[key] for key in shown))
    total = (
        f"{result['tensors']:,} tensors, {result['weights']:,} weights,"
        f" {result['bits_per_weight']:.2f} bits per weight"
    )
    return [made, total, *(f"({i}) {reason}" for i, reason in enumerate(reasons, 1))]


def _types(result: Mapping[str, Any]) -> Table:
    made = table("types", "type", "tensors", "weights", "size", "bits/w",
                 right=("tensors", "weights", "size", "bits/w"))  # fmt: skip
    for kind, entry in result["types"].items():
        bits = 8 * entry["bytes"] / max(entry["weights"], 1)
        counts = f"{entry['tensors']:,}", f"{entry['weights']:,}"
        add(made, kind, *counts, size(entry["bytes"]), f"{bits:.2f}")
    return made


def _notes(result: Mapping[str, Any]) -> list[str]:
    return [f"note: {note}" for note in result["notes"]]


def plan_tables(result: Mapping[str, Any]) -> list[Any]:
    """`facts.of_plan` for people."""
    cost, free, data = result["estimate"], result["disk_free_bytes"], result["calibrating"]
    rows = [
        ("model", f"{result['model']} ({result['model_type']})"),
        ("output", "\n".join(result["files"]) if result["folder"] is None else result["folder"]),
        ("type", f"{result['target']} {result['type']}"),
        *result["about"].items(),
        ("size", f"{size(result['bytes'])}, {result['bits_per_weight']:.2f} bits per weight"),
        *([("method", method_line(result))] if result["method"] else ()),
        *(planned_rows(data) if data else ()),
        ("memory", f"about {size(cost['peak_memory_bytes'])} at most"),
        ("disk", size(cost["disk_bytes"]) + ("" if free is None else f" of {size(free)} free")),
        *(work_rows(data) if data else ()),
        ("time", f"about {duration(cost['seconds'])}"),
    ]
    obstacles = [
        f"in the way: {one['problem']}" + (f"\n    -> {one['remedy']}" if one["remedy"] else "")
        for one in result["obstacles"]
    ]
    told = {group["note"] for group in result["groups"]} - {""}
    notes = [note for note in _notes(result) if not any(reason in note for reason in told)]
    return [pairs("plan", rows), *tensor_table(result, names=False), *notes, *obstacles]


def conversion_tables(result: Mapping[str, Any]) -> list[Any]:
    """`facts.of_conversion` for people."""
    rate = result["source_bytes"] / max(result["seconds"], 1e-9)
    calibrated = result["calibrated"]
    rows = [
        ("model", result["model"]),
        *_written(result),
        ("type", f"{result['target']} {result['type']}"),
        *result["about"].items(),
        ("bits per weight", f"{result['bits_per_weight']:.2f}"),
        *(calibration_rows(calibrated) if calibrated else ()),
        ("time", f"{result['seconds']:.1f} s, {size(rate)}/s of the source,"
                 f" {result['threads']} threads"),
        ("peak memory", size(result["peak_memory_bytes"])),
    ]  # fmt: skip
    return [pairs("converted", rows), _types(result), *_notes(result)]


def _written(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    if result["folder"] is None:
        return [("wrote", f"{file['path']} ({size(file['bytes'])})") for file in result["files"]]
    return [
        ("wrote", f"{result['folder']} ({size(result['bytes'])}, {len(result['files'])} files)")
    ]


def inspect_tables(result: Mapping[str, Any]) -> list[Any]:
    """`facts.of_output` or `facts.of_model` for people."""
    files = [(file["path"], size(file["bytes"])) for file in result["files"]]
    metadata = [(key, _one_line(value)) for key, value in result["metadata"].items()]
    return [
        pairs(f"{result['kind']}, {size(result['bytes'])}", files),
        *([pairs("output", result["about"].items())] if result.get("about") else ()),
        pairs("metadata", metadata),
        *tensor_table(result, names=True),
        _types(result),
    ]


def _one_line(value: object, most: int = 100) -> str:
    text = value if isinstance(value, str) else repr(value)
    text = text.replace("\n", "\\n")
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def target_tables(result: Sequence[Mapping[str, Any]]) -> list[Any]:
    """`facts.of_targets` for people."""
    parts: list[Any] = []
    for target in result:
        parts.append(f"--to {target['target']}: {target['summary']}")
        types = table("types", "--type", "what it is")
        for kind in target["types"]:
            add(types, kind["name"], kind["summary"])
        runtimes = table("runtimes", "runtime", "here", "version, or why not")
        for one in target["runtimes"]:
            why = one["version"] if one["usable"] else f"{one['reason']}\n-> {one['install']}"
            add(runtimes, one["name"], "usable" if one["usable"] else "not usable", why)
        parts += [types, *([runtimes] if target["runtimes"] else ())]
    return parts


def method_tables(result: Mapping[str, Any]) -> list[Any]:
    """`facts.of_methods` for people."""
    named = table("methods: --method NAME", "name", "what it does", "what it costs", "text")
    for one in result["methods"]:
        add(named, one["name"], one["summary"], one["cost"], "yes" if one["data"] else "no")
    slots = table("algorithms, in the order of a recipe: --method NAME+NAME",
                  "slot", "name", "what it does")  # fmt: skip
    for one in result["algorithms"]:
        add(slots, one["slot"], one["name"], one["summary"])
    return [named, slots]
