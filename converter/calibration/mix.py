"""The text that ships with qconvert: a little of everything a model may be asked to read.

One file for each kind (data/LICENSE.md says where every piece comes from), so that a model is not
fitted to prose alone: what is quiet in an encyclopedia may be loud in code or in another language.
"""

from __future__ import annotations

import json
from importlib.resources import files

from qconvert.calibration.documents import Document, document_of


def default_mix() -> tuple[Document, ...]:
    """All documents, kind by kind."""
    data = files("qconvert.calibration") / "data"
    found = []
    for file in sorted(data.iterdir(), key=lambda one: one.name):
        kind, _, suffix = file.name.partition(".")
        if suffix != "jsonl":
            continue
        for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
            one = document_of(json.loads(line), f"{file.name}, line {number}")
            found.append(Document(one.text, one.turns, kind))
    return tuple(found)
