"""The strings are many, the same every time, and the comparison finds what differs."""

from __future__ import annotations

from qconvert.runtimes.parity import Mismatch, compare, parity_strings


def test_the_list_is_fixed_by_its_seed() -> None:
    first = parity_strings(["<x>", "</x>"])
    assert first == parity_strings(["<x>", "</x>"])
    assert first != parity_strings(["<x>", "</x>"], seed=1)
    assert 3500 < len(first) == len(set(first))
    assert all(text.encode() for text in first)


def test_what_must_be_in_it() -> None:
    texts = set(parity_strings(["<x>"]))
    assert {"<x>", "a<x>b", "<x><x>", "don't", "DON'T", "12345678901234567", "\r\n", "   "} <= texts
    assert any("\u200d" in text for text in texts)
    assert any("मस" in text for text in texts)
    assert any("def f(x" in text for text in texts)


def test_compare_finds_exactly_the_differences() -> None:
    found = compare(lambda text: [len(text), 1], lambda text: [3, 1], ["abc", "ab", "xyz", "abcd"])
    assert found == [Mismatch("ab", (2, 1), (3, 1)), Mismatch("abcd", (4, 1), (3, 1))]
    assert [m.position for m in found] == [0, 0]
    assert Mismatch("t", (1, 2), (1, 2, 3)).position == 2
