"""How a folder is known again: by the mark that every output has, or by how it is quantized."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.formats.serving.container import Container, containers

MARK = "qconvert.json"
"""Says what a folder was made for: the same folder may serve several programs."""


def mark_json(target: str, type: str, container: str | None) -> bytes:
    fields = {"target": target, "type": type, "container": container}
    return (json.dumps(fields, indent=2) + "\n").encode()


def marked_for(folder: Path) -> str | None:
    """The target that `folder` is an output of; None where nothing says so."""
    target = _object(folder / MARK).get("target")
    return target if isinstance(target, str) and (folder / "config.json").is_file() else None


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
