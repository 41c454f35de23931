"""`--report DIR`: what was run and what came of it, for people (HTML, PNG) and programs (JSON).

The same conversion gives the same bytes: no clock, duration, memory size or folder is told.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qconvert.engine.record import BlockRecord
from qconvert.facts import plain
from qconvert.formats.refusal import Reason, refuse
from qconvert.layer_report import calibration_line, gain_cell, method_line, without_time
from qconvert.plots import pictures
from qconvert.units import share, size

PAGE, DATA = "report.html", "layers.json"
CAPTIONS = {
    "error.png": "Error of each linear's output on held-out rows, relative to the output:"
                 " of the plain fit with nearest codes, and of what was kept.",
    "inputs.png": "What the linears read. An outlier is the largest magnitude over the root mean"
                  " square; a kurtosis far above 3 means that few values carry the energy.",
    "channels.png": "Largest magnitude of each channel of the first block's inputs. Channels that"
                    " stand out cost the others resolution when activations are quantized.",
}  # fmt: skip


def problems(folder: Path, *, force: bool) -> list[Reason]:
    """Why no report could be written to `folder`; writes nothing."""
    folder = folder.absolute()
    if not folder.parent.is_dir():
        return [Reason(f"no such folder to write the report to: {folder.parent}",
                       f"create it: mkdir -p {folder.parent}")]  # fmt: skip
    if not folder.exists():
        return []
    if not folder.is_dir():
        return [Reason(f"{folder} is a file", "name a folder with --report")]
    held = {path.name for path in folder.iterdir()}
    if held - {PAGE, DATA, *CAPTIONS}:
        return [Reason(f"{folder} holds other things than a report",
                       "name a new folder with --report")]  # fmt: skip
    if held and not force:
        return [Reason(f"{folder} holds a report", "replace it with --force, or name another")]
    return []


def write(folder: Path, result: Mapping[str, Any], blocks: Sequence[BlockRecord]) -> None:
    """Write the folder, whole or not at all, in the place of a report that is there.

    `result` is that of `facts.of_conversion`, `blocks` the records of its engine.
    """
    folder = folder.absolute()
    aside = folder.with_name(f".{folder.name}.part")
    images = pictures(blocks)
    facts = _facts(result)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        for name, image in images.items():
            (aside / name).write_bytes(image)
        text = json.dumps(plain(facts), indent=2, ensure_ascii=False, allow_nan=False)
        (aside / DATA).write_text(text + "\n", encoding="utf-8")
        (aside / PAGE).write_text(page(facts, images), encoding="utf-8")
        _replace(folder, aside)
    except OSError as error:
        raise refuse(f"cannot write the report {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _replace(folder: Path, new: Path) -> None:
    """Put `new` in the place of `folder`, which stays as it was when that fails."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _facts(result: Mapping[str, Any]) -> dict[str, Any]:
    """Of a conversion, what does not vary between runs and machines."""
    kept = ("qconvert", "target", "type", "bytes", "bits_per_weight", "types", "notes")
    found = result["calibrated"]
    return {
        "model": Path(result["model"]).name,
        **{key: result[key] for key in kept},
        "files": [
            {"name": Path(file["path"]).name, "bytes": file["bytes"]} for file in result["files"]
        ],
        "calibrated": None if found is None else without_time(found),
    }


def page(facts: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """One HTML page with everything in it: no script, no other file."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("qconvert", "data"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=size, share=share, gain=gain_cell, method=method_line, calibration=calibration_line
    )
    shown = [
        {"data": base64.b64encode(image).decode("ascii"), "caption": CAPTIONS[name]}
        for name, image in images.items()
    ]
    return environment.get_template("report.html.j2").render(facts=facts, pictures=shown) + "\n"
