"""`qconvert MODEL --to TARGET --manifest FILE`: what was made of what, with the sums of all files.

Part of the command line, which alone sees all rooms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.formats.refusal import Reason

if TYPE_CHECKING:
    from qconvert.pipeline import Conversion


def manifest_place_problems(manifest: Path | None) -> list[Reason]:
    """Why no manifest could be written there: said before the work is done, not after."""
    folder = None if manifest is None else manifest.absolute().parent
    if folder is None or folder.is_dir():
        return []
    return [Reason(f"cannot write the manifest {manifest}: there is no folder {folder}",
                   "name a file in a folder that exists")]  # fmt: skip


def manifest_problems(manifest: Path | None, model: Path) -> list[Reason]:
    """Why no manifest of a conversion of `model` could be written."""
    from qconvert.engine.bundle import recognises

    if manifest is None:
        return []
    found = manifest_place_problems(manifest)
    if recognises(model):
        found.append(Reason(f"{model} is a work folder: it does not hold the files of the model",
                            "leave --manifest out, and let `qconvert check OUT --against MODEL"
                            " --manifest FILE` write it"))  # fmt: skip
    return found


def write_manifest_of(done: Conversion, out: Path, manifest: Path) -> None:
    """The manifest of a finished conversion, which has not been checked yet."""
    from qconvert.runtimes.gate.manifest import make_manifest, write_manifest

    made = make_manifest(
        out,
        done.model,
        files=done.files,
        made=_made(done),
        calibration=_calibration(done),
        leave_out=[manifest],
    )
    write_manifest(manifest, made)


def _made(done: Conversion) -> dict[str, Any]:
    by = done.calibrated
    method = {"method": "rtn"} if by is None else {
        "method": by.method, "steps": list(by.steps), "seed": by.seed, "effort": by.effort,
    }  # fmt: skip
    return {"target": done.target, "type": done.type, **method}


def _calibration(done: Conversion) -> dict[str, Any] | None:
    text = None if done.calibrated is None else done.calibrated.calibration
    if text is None:
        return None
    return {
        "origin": text.origin, "digest": text.digest, "rows": text.rows, "length": text.length,
        "held_rows": text.held_rows, "chat": text.chat,
    }  # fmt: skip
