"""The finished parts in a work folder: `blocks/00007.safetensors`, `outer/before.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from qconvert.engine.aside import keep
from qconvert.engine.journal import Journal
from qconvert.engine.parts import Part
from qconvert.engine.record import BlockRecord, InputRecord, LinearRecord
from qconvert.engine.tensorfile import open_tensors
from qconvert.formats.refusal import Refused, refuse

Outer = Literal["before", "after"]
Which = int | Outer  # a block by its index, or what stands around the blocks


@dataclass(frozen=True, slots=True)
class Store:
    """Parts of one job, each checked to the last bit before anything of it is handed out."""

    folder: Path
    journal: Journal
    _checked: dict[Path, tuple[tuple[int, int, int], Part]] = field(default_factory=dict)

    @property
    def parts(self) -> tuple[Which, ...]:
        """All parts of the model in the order of computation."""
        return ("before", *range(self.journal.blocks), "after")

    def path(self, which: Which) -> Path:
        if isinstance(which, int):
            return self.folder / "blocks" / f"{which:05d}.safetensors"
        return self.folder / "outer" / f"{which}.safetensors"

    def has(self, which: Which) -> bool:
        """True when the part is finished, whatever became of it since."""
        return self.path(which).is_file()

    def missing(self) -> tuple[Which, ...]:
        """What is not finished yet."""
        return tuple(which for which in self.parts if not self.has(which))

    def valid(self, which: Which) -> bool:
        """True when the part is finished, undamaged and of this job."""
        try:
            self.read(which)
        except Refused:
            return False
        return True

    def read(self, which: Which) -> Part:
        """The part; `Refused`, naming the file and the way out, when it cannot be trusted."""
        path = self.path(which)
        if not self.has(which):
            raise refuse(f"{path} is missing", "give the command that made the folder again")
        status = path.stat()
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns)
        have = self._checked.get(path)
        if have is not None and have[0] == stamp:
            return have[1]
        remedy = (
            f"delete {path} and give the same command again: that part is made again, "
            "the others are kept"
        )
        part = Part(open_tensors(path, remedy))
        if part.told.get("job") != self.journal.digest:
            raise refuse(f"{path} is of another job than {self.folder}", remedy)
        self._checked[path] = (stamp, part)
        return part

    def record(self, index: int) -> BlockRecord:
        """What was told of a finished block."""
        return record_from(self.read(index).told["record"])

    def keep_told(self, which: Outer, records: Sequence[LinearRecord]) -> None:
        """Beside the part itself, whose header is written before anything of it is known."""
        told = {"job": self.journal.digest, "linears": [asdict(one) for one in records]}
        keep(self._told(which), (json.dumps(told, sort_keys=True) + "\n").encode("ascii"))

    def told(self, which: Outer) -> tuple[LinearRecord, ...]:
        """What `keep_told` kept; nothing where it is gone or damaged."""
        try:
            told = json.loads(self._told(which).read_bytes())
            if told["job"] != self.journal.digest:
                return ()
            return tuple(LinearRecord(**_tuples(one)) for one in told["linears"])
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def _told(self, which: Outer) -> Path:
        return self.path(which).with_suffix(".json")


def record_from(told: Mapping[str, Any]) -> BlockRecord:
    """A record from plain values, the inverse of `dataclasses.asdict`."""
    linears = tuple(LinearRecord(**_tuples(one)) for one in told["linears"])
    inputs = tuple(InputRecord(**_tuples(one)) for one in told["inputs"])
    return BlockRecord(**{**_tuples(told), "linears": linears, "inputs": inputs})


def _tuples(told: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists alone."""
    return {key: tuple(v) if isinstance(v, list) else v for key, v in told.items()}
