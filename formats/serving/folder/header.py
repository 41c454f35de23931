"""The header of a safetensors file, written.

Layout: huggingface/safetensors, `safetensors/src/tensor.rs`: u64 little-endian length, JSON, data
with no gaps. The JSON is filled with spaces, so that data begin at a multiple of 8, and wide types
come first, so that every tensor begins at a multiple of its element.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qconvert.formats.serving.container import SIZES, Entry

ALIGNMENT = 8
METADATA = {"format": "pt"}  # transformers and vLLM look for it
_FAR = 10**12  # an offset with as many digits as any


@dataclass(frozen=True, slots=True)
class Placed:
    """A file's header, and where each tensor begins in the file."""

    header: bytes
    offsets: Mapping[str, int]
    size: int  # of the whole file


def place(entries: Sequence[Entry]) -> Placed:
    """Header of a file that holds `entries`; the same entries give the same bytes."""
    ordered = sorted(entries, key=lambda entry: -SIZES[entry.dtype])  # stable
    begins, end = {}, 0
    for entry in ordered:
        begins[entry.name] = end
        end += entry.nbytes
    fields = {"__metadata__": METADATA} | {
        entry.name: _fields(entry, begins[entry.name]) for entry in ordered
    }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    start = 8 + len(text)
    header = len(text).to_bytes(8, "little") + text
    return Placed(header, {name: start + begin for name, begin in begins.items()}, start + end)


def _fields(entry: Entry, begin: int) -> dict[str, object]:
    return {
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "data_offsets": [begin, begin + entry.nbytes],
    }


def room(entry: Entry) -> int:
    """Bytes that an entry takes in a file at most, with its line in the header."""
    line = json.dumps({entry.name: _fields(entry, _FAR)}, ensure_ascii=False).encode()
    return entry.nbytes + len(line)
