"""Faults of storage: what was written right, and did not arrive whole."""

from __future__ import annotations

import numpy as np

from planting.fault import here, named
from planting.files import Inapplicable
from planting.output import Culprits, Output

PAGE = 4096


def cut_short(out: Output) -> Culprits:
    """The last tenth of the last data file is missing."""
    name = out.data_files()[-1]
    size = out.files.read(name).stat().st_size
    with out.files.own(name).open("r+b") as stream:
        stream.truncate(size - size // 10)
    return (name, out.files.path.name)


def file_missing(out: Output) -> Culprits:
    """The last of several data files is missing."""
    names = out.data_files()
    if len(names) < 2 and not out.files.has("model.onnx"):
        raise Inapplicable("there is one data file alone")
    out.files.remove(names[-1])
    return (names[-1], out.files.path.name)


def never_filled(out: Output) -> Culprits:
    """A linear lies in a part of the file that was reserved, and not downloaded: zeros."""
    weight = named(here(out.facts), "down_proj")
    name, offset, length = out.span(weight)
    with out.files.own(name).open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * length)
    return (weight, name)


def zero_page(out: Output) -> Culprits:
    """One page of a linear is zero."""
    weight = named(here(out.facts), "gate_proj")
    name, offset, length = out.span(weight)
    size = min(PAGE, length // 2)
    start = offset + (length - size) // 2
    with out.files.own(name).open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\0" * size)
    # rows of joined linears may share a page
    return (weight, named(here(out.facts), "up_proj"), name)


def one_bit(out: Output) -> Culprits:
    """The highest bit of one byte in the middle of a linear."""
    weight = named(here(out.facts), "up_proj")
    name, offset, length = out.span(weight)
    with out.files.own(name).open("r+b") as stream:
        stream.seek(offset + length // 2)
        byte = stream.read(1)
        stream.seek(-1, 1)
        stream.write(bytes([byte[0] ^ 0x80]))
    return (weight, named(here(out.facts), "gate_proj"), name)


def shifted(out: Output) -> Culprits:
    """A linear is read 64 bytes too early."""
    weight = named(here(out.facts), "o_proj")
    name, offset, length = out.span(weight)
    with out.files.own(name).open("r+b") as stream:
        stream.seek(offset)
        data = np.frombuffer(stream.read(length), np.uint8)
        stream.seek(offset)
        stream.write(np.roll(data, 64).tobytes())
    return (weight, name)
