"""How a folder is known again: by the mark that every output has, or by how it is quantized."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.serving.container import Container, containers

MARK = "qconvert.json"
"""Says what a folder was made for: the same folder may serve several programs."""


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
    whole = isinstance(found.get("target"), str) and isinstance(found.get("type"), str)
    return found if whole and (folder / "config.json").is_file() else {}


def container_of(folder: Path) -> Container | None:
    """The container that a folder of whatever origin is in; None for one that is not quantized."""
    config = _object(folder / "config.json")
    if not config:
        return None
    return next((one for one in containers().values() if one.recognises(config, folder)), None)


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
