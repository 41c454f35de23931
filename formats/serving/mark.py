"""How a folder is known again: by the mark that every output has, or by how it is quantized."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.careful import read_json
from qconvert.formats.refusal import Refused
from qconvert.formats.serving.container import Container, containers
from qconvert.formats.shapes import TEXT, TEXTS, Keys, maybe

MARK = "qconvert.json"
"""Says what a folder was made for: the same folder may serve several programs."""


READ = Keys(
    {"target": TEXT, "type": TEXT, "container": maybe(TEXT), "kv": maybe(TEXT), "runs_on": TEXTS},
    required=("target", "type"),
)


def mark_json(
    target: str, type: str, container: str | None, kv: str | None, runs_on: Collection[str]
) -> bytes:
    fields = {
        "target": target, "type": type, "container": container, "kv": kv, "runs_on": list(runs_on),
    }  # fmt: skip
    return (json.dumps(fields, indent=2) + "\n").encode()


def mark_of(folder: Path) -> Mapping[str, Any]:
    """What `mark_json` wrote; empty for a folder of others, or one that is damaged."""
    found = _object(folder / MARK)
    whole = not any(READ.misfits(found, ""))
    return found if whole and (folder / "config.json").is_file() else {}


def container_of(folder: Path) -> Container | None:
    """The container that a folder of whatever origin is in; None for one that is not quantized."""
    config = _object(folder / "config.json")
    if not config:
        return None
    return next((one for one in containers().values() if one.recognises(config, folder)), None)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = read_json(path)
    except (OSError, Refused):
        return {}
    return found if isinstance(found, dict) else {}
