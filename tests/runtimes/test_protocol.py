from __future__ import annotations

import io

import numpy as np
import pytest

from qconvert.runtimes.protocol import receive, send


def test_a_message_comes_back_as_it_was() -> None:
    stream = io.BytesIO()
    arrays = [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.zeros((0, 4), np.float32),
        np.array(1.5),
    ]
    send(stream, {"call": "x", "arguments": {"text": "two\nlines, ü"}}, arrays)
    send(stream, {"result": None})
    stream.seek(0)
    first, second = receive(stream), receive(stream)
    assert first.head == {"call": "x", "arguments": {"text": "two\nlines, ü"}}
    assert [array.dtype for array in first.arrays] == [array.dtype for array in arrays]
    for got, sent in zip(first.arrays, arrays, strict=True):
        np.testing.assert_array_equal(got, sent)
    assert second.arrays == ()


def test_a_message_cut_short_is_the_end() -> None:
    stream = io.BytesIO()
    send(stream, {"result": 1}, [np.arange(100, dtype=np.float32)])
    whole = stream.getvalue()
    for length in (0, 10, len(whole) - 1):
        with pytest.raises(EOFError):
            receive(io.BytesIO(whole[:length]))
