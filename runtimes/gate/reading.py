"""A manifest read back: strictly, since it says what to trust, and all that is wrong at once."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, cast, get_args

from qconvert.formats.careful import read_json_object
from qconvert.formats.refusal import Reason, raise_if_any, refuse
from qconvert.runtimes.findings import Finding, Interval, Judgement, Stage, Verdict
from qconvert.runtimes.gate.recorded import SCHEMA, Checked, Files, Manifest, Sum

AGAIN = "make it again, with `qconvert convert ... --manifest FILE`"
SHA256 = re.compile("[0-9a-f]{64}")
KEYS = {
    "schema", "qconvert", "versions", "source", "output", "made", "calibration", "checked",
}  # fmt: skip
SHOWN = 8

Kind = TypeVar("Kind")


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; `Refused` where it is damaged, no manifest, or newer than this
    qconvert reads."""
    told = read_json_object(path, "name a file that `--manifest` has written")
    schema = told.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise refuse(f"{path} is no manifest: it has no schema", AGAIN)
    if schema > SCHEMA:
        raise refuse(
            f"{path} was written by a newer qconvert ({told.get('qconvert')!r:.40}): its schema is"
            f" {schema}, and {SCHEMA} is the newest that is read here",
            "update qconvert",
        )
    reading = _Reading()
    unknown = sorted(told.keys() - KEYS)
    reading.reasons += [f"it has {name!r:.40}, which means nothing" for name in unknown]
    manifest = Manifest(
        source=reading.files(told.get("source"), "source"),
        output=reading.files(told.get("output"), "output"),
        made=reading.maybe(told.get("made"), "made"),
        calibration=reading.maybe(told.get("calibration"), "calibration"),
        versions=reading.texts(told.get("versions"), "versions"),
        checked=None if told.get("checked") is None else reading.checked(told["checked"]),
        qconvert=reading.value(told.get("qconvert"), str, "qconvert") or "",
        path=path,
    )
    shown = reading.reasons[:SHOWN]
    if len(reading.reasons) > SHOWN:
        shown.append(f"and {len(reading.reasons) - SHOWN} faults more")
    raise_if_any([Reason(f"{path.name} is damaged: {one}", AGAIN) for one in shown])
    return manifest


@dataclass(slots=True)
class _Reading:
    """Values of the right kind, or a reason and something in their place."""

    reasons: list[str] = field(default_factory=list)

    def value(self, found: Any, kind: type[Kind], where: str) -> Kind | None:
        if isinstance(found, kind) and not (kind is int and isinstance(found, bool)):
            return found
        words = {str: "text", dict: "an object", list: "a list", int: "a whole number"}[kind]
        self.reasons.append(f"{where} is not {words}")
        return None

    def table(self, found: Any, where: str) -> Mapping[str, Any]:
        return self.value(found, dict, where) or {}

    def rows(self, found: Any, where: str) -> list[Mapping[str, Any]]:
        rows = self.value(found, list, where) or []
        return [self.table(row, f"{where}[{at}]") for at, row in enumerate(rows)]

    def text(self, table: Mapping[str, Any], key: str, where: str) -> str:
        return self.value(table.get(key), str, f"{where}.{key}") or ""

    def maybe(self, found: Any, where: str) -> Mapping[str, Any] | None:
        return None if found is None else self.table(found, where)

    def texts(self, found: Any, where: str) -> Mapping[str, str]:
        table = self.table(found, where)
        return {key: self.text(table, key, where) for key in table}

    def one_of(self, table: Mapping[str, Any], key: str, among: Any, where: str) -> str:
        found = self.text(table, key, where)
        if found and found not in get_args(among):
            self.reasons.append(f"{where}.{key} is {found!r:.40}, which means nothing")
        return found

    def number(self, table: Mapping[str, Any], key: str, where: str, unknown: float) -> float:
        found = table.get(key)
        if found is None and key in table:
            return unknown
        if isinstance(found, int | float) and not isinstance(found, bool):
            return float(found) if abs(found) < 1e300 else unknown
        self.reasons.append(f"{where}.{key} is not a number")
        return unknown

    def interval(self, found: Any, where: str) -> Interval:
        table = self.table(found, where)
        value = self.number(table, "value", where, math.nan)
        low = self.number(table, "low", where, math.nan)
        high = self.number(table, "high", where, math.nan if math.isnan(low) else math.inf)
        return Interval(value, low, high)

    def files(self, found: Any, where: str) -> Files:
        table = self.table(found, where)
        listed = self.table(table.get("files"), f"{where}.files")
        if not listed and isinstance(table.get("files"), dict):
            self.reasons.append(f"{where}.files is empty")
        files = {name: self.sum_(name, one, f"{where}.files") for name, one in listed.items()}
        return Files(self.text(table, "name", where), files)

    def sum_(self, name: str, found: Any, where: str) -> Sum:
        where = f"{where}[{name!r:.80}]"
        if not _inside(name):
            self.reasons.append(f"{where} is outside of the folder")
        table = self.table(found, where)
        nbytes = self.value(table.get("bytes"), int, f"{where}.bytes")
        if nbytes is not None and not 0 <= nbytes < 2**63:
            self.reasons.append(f"{where}.bytes is no size")
        digest = self.text(table, "sha256", where)
        if digest and SHA256.fullmatch(digest) is None:
            self.reasons.append(f"{where}.sha256 is no sha256")
        return Sum(nbytes or 0, digest)

    def checked(self, found: Any) -> Checked:
        table = self.table(found, "checked")
        gates = self.table(table.get("gates"), "checked.gates")
        figures = self.table(table.get("figures"), "checked.figures")
        return Checked(
            verdict=cast(Verdict, self.one_of(table, "verdict", Verdict, "checked")),
            gates={key: self.number(gates, key, "checked.gates", math.nan) for key in gates},
            judgements=tuple(
                self.judgement(one, f"checked.judgements[{at}]")
                for at, one in enumerate(self.rows(table.get("judgements"), "checked.judgements"))
            ),
            findings=tuple(
                self.finding(one, f"checked.findings[{at}]")
                for at, one in enumerate(self.rows(table.get("findings"), "checked.findings"))
            ),
            figures={
                key: self.interval(one, f"checked.figures.{key:.40}")
                for key, one in figures.items()
            },
            text=self.table(table.get("text"), "checked.text"),
            runtime=self.maybe(table.get("runtime"), "checked.runtime"),
        )

    def judgement(self, one: Mapping[str, Any], where: str) -> Judgement:
        return Judgement(
            gate=self.text(one, "gate", where),
            limit=self.number(one, "limit", where, math.nan),
            found=self.interval(one.get("found"), f"{where}.found"),
            verdict=cast(Verdict, self.one_of(one, "verdict", Verdict, where)),
            told=self.text(one, "told", where),
        )

    def finding(self, one: Mapping[str, Any], where: str) -> Finding:
        stage = cast(Stage, self.one_of(one, "stage", Stage, where))
        return Finding(stage, self.text(one, "culprit", where), self.text(one, "problem", where))


def _inside(name: str) -> bool:
    """Whether a name is that of a file in the folder itself, on any system."""
    parts = PurePosixPath(name).parts
    plain = not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).drive
    return bool(parts) and plain and ".." not in parts and "\\" not in name and "\0" not in name
