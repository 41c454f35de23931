"""What an output was made of, with what, and how it was judged: sums of all files, in JSON.

    {"schema": 1, "qconvert": "...", "versions": {...},
     "source": {"name": "smollm2-135m", "files": {"config.json": {"bytes": 861, "sha256": ...}}},
     "output": {"name": "smollm2-135m-Q4_K_M.gguf", "files": {...}},
     "made": {"target": ..., ...}, "calibration": {...} or null, "checked": {...} or null}

No clock, host or place is in it: the same files, made and judged alike, give the same manifest.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qconvert.formats.careful import is_plain
from qconvert.formats.refusal import Reason, Refused, raise_if_any
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.gate.reading import read_manifest as read_manifest
from qconvert.runtimes.gate.recorded import SCHEMA, Files, Manifest, Sum, plain
from qconvert.runtimes.gate.recorded import checked as checked

OF_A_MODEL = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.tiktoken", "*.txt")
"""Files of a model folder that an output is made from: configuration, weights, tokenizer."""

NO_PART = (".*", "*.md", "LICENSE*", "NOTICE*")
"""Files and folders beside an output that no loader reads, and people add."""

PACKAGES = (
    "gguf", "numba", "numpy", "onnx", "safetensors", "tokenizers", "torch", "transformers",
)  # fmt: skip


def make_manifest(
    out: Path,
    source_folder: Path,
    *,
    files: Sequence[Path] | None = None,
    made: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    runtime: str = "",
    leave_out: Iterable[Path] = (),
) -> Manifest:
    """Read and sum the files of an output and of the model that it was made from.

    `files`: those of an output that is several files beside each other, by default `out` itself; of
    a folder all that is in it is summed, but for `leave_out`, such as the manifest's own place.
    `runtime`: a version to be recorded. `Refused` with each file that cannot be read.
    """
    folder = out.is_dir()
    root = out if folder else out.parent
    if folder or files is None:
        files = _of_output(out, leave_out)
    return Manifest(
        source=_summed(source_folder, _of_model(source_folder)),
        output=replace(_summed(root, files), name=_name(out)),
        made=None if made is None else plain(made),
        calibration=None if calibration is None else plain(calibration),
        versions=versions(runtime),
    )


def versions(runtime: str = "") -> dict[str, str]:
    """Of Python, of the packages that take part, and of a runtime."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found | ({"runtime": runtime} if runtime else {})


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write aside, then rename; `Refused` where that cannot be done."""
    told = {
        "schema": SCHEMA,
        "qconvert": manifest.qconvert,
        "versions": dict(manifest.versions),
        "source": plain(manifest.source),
        "output": plain(manifest.output),
        "made": plain(manifest.made),
        "calibration": plain(manifest.calibration),
        "checked": plain(manifest.checked),
    }
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except (OSError, UnicodeEncodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "a file's name is no Unicode"
        aside.unlink(missing_ok=True)
        raise Refused(
            Reason(f"cannot write the manifest {path}: {why}", "name a file in another folder")
        ) from error


def verify(manifest: Manifest, out: Path, source_folder: Path | None = None) -> list[Finding]:
    """What has changed since the manifest was written: all of it, sizes before sums.

    An output that is one file may have another name by now. Files that were added beside the
    model's are no fault; beside those of an output folder they are, but for notes to people.
    """
    found: list[Finding] = []
    folder = out.is_dir()
    recorded = manifest.output.files
    if not folder and len(recorded) == 1:
        name, sum_ = next(iter(recorded.items()))
        found += _changed(out, name, sum_, "it was checked or made")
    else:
        root = out if folder else out.parent
        for name, sum_ in recorded.items():
            found += _changed(root / name, name, sum_, "it was checked or made")
    if folder:
        leave = () if manifest.path is None else (manifest.path,)
        here = {one.relative_to(out).as_posix() for one in _of_output(out, leave)}
        found += [
            Finding("file", name, f"{name} is not in the manifest: it was added since")
            for name in sorted(here - set(recorded))
        ]
    if source_folder is not None:
        model = f"the output was made from {manifest.source.name}"
        for name, sum_ in manifest.source.files.items():
            found += _changed(source_folder / name, name, sum_, model)
    return found


def _changed(path: Path, name: str, recorded: Sum, since: str) -> Iterator[Finding]:
    if not is_plain(path):
        there = path.exists() or path.is_symlink()
        yield Finding("file", name, f"{name} is {'no plain file' if there else 'missing'}")
        return
    try:
        nbytes = path.stat().st_size
        if nbytes != recorded.bytes:
            what = "truncated" if nbytes < recorded.bytes else "longer"
            yield Finding(
                "file", name,
                f"{name} is {what}: {nbytes:,} bytes, and {recorded.bytes:,} when {since}",
            )  # fmt: skip
        elif (found := _sum(path).sha256) != recorded.sha256:
            yield Finding(
                "file", name,
                f"{name} has changed: its sha256 is {found[:12]}..., and was"
                f" {recorded.sha256[:12]}... when {since}",
            )  # fmt: skip
    except OSError as error:
        yield Finding("file", name, f"{name} cannot be read: {error.strerror}")


def _sum(path: Path) -> Sum:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Sum(file.tell(), digest)


def _summed(root: Path, files: Iterable[Path]) -> Files:
    reasons, found = [], {}
    for path in files:
        name = path.relative_to(root).as_posix()
        try:
            found[name] = _sum(path)
        except OSError as error:
            reasons.append(Reason(f"cannot read {path}: {error.strerror}"))
    raise_if_any(reasons)
    return Files(_name(root), dict(sorted(found.items())))


def _of_model(folder: Path) -> list[Path]:
    chosen = {path for pattern in OF_A_MODEL for path in folder.glob(pattern)}
    chosen |= set(folder.glob("additional_chat_templates/*.jinja"))
    return sorted(path for path in chosen if not path.name.startswith(".") and is_plain(path))


def _of_output(out: Path, leave_out: Iterable[Path]) -> list[Path]:
    if not out.is_dir():
        return [out]
    left = {path.absolute() for path in leave_out}
    return sorted(
        path
        for path in out.rglob("*")
        if is_plain(path) and path.absolute() not in left and _is_part(path.relative_to(out))
    )


def _is_part(path: Path) -> bool:
    hidden = any(Path(part).match(NO_PART[0]) for part in path.parts)
    return not hidden and not any(path.match(pattern) for pattern in NO_PART)


def _name(path: Path) -> str:
    return path.resolve().name if path.name in ("", "..") else path.name
