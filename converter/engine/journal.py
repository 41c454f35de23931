"""`job.json`: what a work folder is for. Blocks that are done tell so by being there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qconvert.engine.fingerprint import digest
from qconvert.formats.refusal import Refused, refuse
from qconvert.formats.source import Source, SourceTensor
from qconvert.formats.target import Plan

LAYOUT = 1
"""Of the work folder. One that another qconvert laid out otherwise is not read."""

NAME = "job.json"


@dataclass(frozen=True, slots=True)
class Journal:
    """The facts of the model as it is quantized (a rotation may have changed them), what is made
    of it, and what guards a resume. All of it can be plain JSON."""

    fingerprint: Mapping[str, Any]
    config: Mapping[str, Any]
    model_type: str
    tied: bool
    tensors: tuple[SourceTensor, ...]
    notes: tuple[str, ...]
    target: str  # that it was planned for
    type: str
    forms: Mapping[str, tuple[str, ...]]  # source tensor -> its grids, or its float types
    files: Mapping[str, str]  # copied from the model's folder: path -> sha256

    @property
    def digest(self) -> str:
        """Stands in every file of the work folder."""
        return digest(self.fingerprint)

    @property
    def blocks(self) -> int:
        return 1 + max((one.block for one in self.tensors if one.block is not None), default=-1)

    def part(self, which: int | str) -> tuple[SourceTensor, ...]:
        """The tensors of a block by its index, or of "before" or "after" the blocks."""
        if isinstance(which, int):
            return tuple(one for one in self.tensors if one.block == which)
        inside = [place for place, one in enumerate(self.tensors) if one.block is not None]
        edges = {"before": slice(0, inside[0]), "after": slice(inside[-1] + 1, None)}
        return self.tensors[edges[which]]


def forms_of(source: Source, plan: Plan) -> dict[str, tuple[str, ...]]:
    """Source tensor -> what the plan stores it as. A tied head may ask for a second grid of the
    embedding; what the plan leaves out is kept in float."""
    found: dict[str, list[str]] = {tensor.name: [] for tensor in source.tensors}
    for output in plan.tensors:
        if output.source is not None:
            kinds = found[output.source.name]
            kind = output.dtype if output.grid is None else output.grid.name
            if kind not in kinds:
                kinds.append(kind)
    kept = {tensor.name: tensor.dtype for tensor in source.tensors}
    return {name: tuple(kinds) or (kept[name],) for name, kinds in found.items()}


def encode(journal: Journal) -> bytes:
    """Deterministic JSON with a digest of itself."""
    fields = {"layout": LAYOUT, **asdict(journal)}
    return _text({"sha256": _digest(fields), **fields})


def read_journal(folder: Path) -> Journal:
    """What `encode` wrote; `Refused` when it is damaged, or of another layout."""
    path = folder / NAME
    remedy = (
        f"delete {path} and give the command that made the folder again: "
        "the finished blocks are kept"
    )
    try:
        fields = json.loads(path.read_bytes())
        layout = fields["layout"]
        if layout != LAYOUT:
            raise refuse(
                f"{folder} is laid out as version {layout} of the work folder; "
                f"this qconvert knows version {LAYOUT}",
                "use the qconvert that made it, or name another folder with --work",
            )
        if fields.pop("sha256") != _digest(fields):
            raise refuse(f"{path} is damaged: it is not what was written", remedy)
        del fields["layout"]
        return _journal(fields)
    except OSError as fault:
        raise refuse(f"{path} cannot be read: {fault.strerror}") from fault
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise refuse(f"{path} is damaged: {fault}", remedy) from None


def _journal(fields: dict[str, Any]) -> Journal:
    tensors = tuple(
        SourceTensor(**{**one, "shape": tuple(one["shape"])}) for one in fields.pop("tensors")
    )
    forms = {name: tuple(kinds) for name, kinds in fields.pop("forms").items()}
    notes = tuple(fields.pop("notes"))
    return Journal(tensors=tensors, forms=forms, notes=notes, **fields)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_text(fields)).hexdigest()


def _text(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=1) + "\n").encode("ascii")


def mismatch(folder: Path, differing: Sequence[str]) -> Refused:
    """Why a folder cannot be continued."""
    listed = "\n    ".join(differing)
    fields = "1 field differs" if len(differing) == 1 else f"{len(differing)} fields differ"
    return refuse(
        f"{folder} was begun with something else, {fields}:\n    {listed}",
        "give the same model and options as then, name another folder with --work, "
        f"or delete {folder} to begin anew",
    )
