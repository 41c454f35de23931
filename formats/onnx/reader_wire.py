"""How many fields a protobuf has, counted before a library makes an object of each.

An empty message is two bytes in a file and a hundred in memory. Encoding: protobuf.dev, "Encoding":
a tag is the field's number times 8 plus its wire type; sizes and tags are varints.
"""

from __future__ import annotations

from typing import Any

MOST_FIELDS = 1_000_000
"""A model of 126 blocks whose matrices are each a dozen nodes has half of that."""


def check_fields(content: bytes, descriptor: Any, most: int = MOST_FIELDS) -> None:
    """`ValueError` where `content`, a message of the type of `descriptor`, is cut off or has more
    than `most` fields, with all that is in it."""
    waiting = [(0, len(content), descriptor)]
    count = 0
    while waiting:
        at, end, kind = waiting.pop()
        known = kind.fields_by_number
        while at < end:
            count += 1
            if count > most:
                raise ValueError(f"it has more than {most:,} fields")
            tag, at = _varint(content, at, end)
            wire = tag & 7
            if wire == 2:
                size, at = _varint(content, at, end)
                if size > end - at:
                    raise ValueError("a field reaches past the end")
                field = known.get(tag >> 3)
                if field is not None and field.message_type is not None:
                    waiting.append((at, at + size, field.message_type))
                at += size
            elif wire == 0:
                _, at = _varint(content, at, end)
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:
                raise ValueError(f"a field of the unknown wire type {wire}")
        if at > end:
            raise ValueError("a field reaches past the end")


def _varint(content: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError("a number is cut off, or has more than 64 bits")
