"""The page without a browser: its structure, what it says, and that all of it stays text."""

from __future__ import annotations

import base64
import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from types import ModuleType
from typing import Any

import pytest

from qconvert.runtimes.findings import CheckReport, Finding, Interval, LayerError
from qconvert.runtimes.page.page import page
from qconvert.runtimes.page.reasons import reasons, says
from qconvert.runtimes.page.section import visible

EMPTY = {"meta", "link", "br", "img", "hr", "input"}


class Strict(HTMLParser):
    """Every element that is opened is closed, in order; ids are unique; what is pointed to is."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parsed(*reports: CheckReport) -> Strict:
    parser = Strict()
    parser.feed(page(reports))
    parser.close()
    assert not parser.open
    ids = Counter(one["id"] for _, one in parser.elements if "id" in one)
    assert not [name for name, count in ids.items() if count > 1]
    for _, one in parser.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert one.get(key, next(iter(ids))) in ids
        link = one.get("href") or ""
        assert not link.startswith("#") or link[1:] in ids
    return parser


CASES: dict[str, Callable[[Any], tuple[CheckReport, ...]]] = {
    "all": lambda made: (made.CHECK,),
    "failed": lambda made: (made.FAILED,),
    "undecided": lambda made: (made.UNDECIDED,),
    "alone": lambda made: (made.ALONE,),
    "hostile": lambda made: (made.hostile(),),
    "several": lambda made: (made.CHECK, made.FAILED, made.UNDECIDED, made.ALONE),
    "several hostile": lambda made: (made.hostile(), made.hostile()),
}


@pytest.mark.parametrize("case", CASES)
def test_a_page_is_well_formed_and_whole_in_itself(case: str, made: ModuleType) -> None:
    found = parsed(*CASES[case](made))
    assert not {"script", "iframe", "object", "embed", "img", "form"} & {
        tag for tag, _ in found.elements
    }
    for tag, attributes in found.elements:
        assert not [key for key in attributes if key.startswith("on") or key == "style"], tag
        for key in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(key) or "#").startswith(("#", "data:image/svg+xml;base64,"))
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert found.all("html")[0]["lang"] == "en"
    assert len(found.all("caption")) == len(found.all("table"))


def test_the_policy_allows_this_style_and_nothing_else(made: ModuleType) -> None:
    text = page([made.CHECK])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert policy is not None
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none';")
    assert "script-src" not in policy[1]
    assert "url(" not in style[1]
    assert "@import" not in style[1]


def test_the_same_reports_give_the_same_bytes(made: ModuleType) -> None:
    assert page([made.CHECK, made.FAILED]) == page([made.CHECK, made.FAILED])


def test_what_files_say_stays_text(made: ModuleType) -> None:
    parser = parsed(made.hostile())
    text = parser.text
    assert text.count("</script><img src=x onerror=alert(1)>") >= 15
    assert "{{7*7}}" in text
    assert "49" not in "".join(part for part in parser.words if "onerror" in part)


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ("CHECK", ("PASS", "All 3 gates hold, and no fault was found.", "small-Q4_K_M.gguf",
                 "105.5 MB", "5.01 bits per weight", "llama.cpp 0.5.0", "0.210", "3,911 of 3,911",
                 "Quantization costs", "The runtime adds", "a note", "0" * 64, "skeleton",
                 "2.52 or more", "151", "1.93", "211.0 MB", "8 at once")),
        ("FAILED", ("FAIL", "3 faults found, 1 gate missed.", "rope_theta is 10000", "block 7",
                  "a reason of no finding", "it is 1.21", "beyond the limit", "3 are left",
                  "256 92", "220 220 92")),
        ("UNDECIDED", ("INCONCLUSIVE", "about 34,000 tokens would decide")),
        ("ALONE", ("No gate was set, and no fault was found. No runtime was run", "no runtime")),
    ],
)  # fmt: skip
def test_it_says_what_was_found(report: str, told: tuple[str, ...], made: ModuleType) -> None:
    text = parsed(getattr(made, report)).text
    assert [piece for piece in told if piece not in text] == []


def test_several_are_compared(made: ModuleType) -> None:
    found = parsed(made.CHECK, made.FAILED, made.UNDECIDED)
    assert "3 outputs of small" in found.text
    assert [one["id"] for one in found.all("div") if "id" in one] == [
        "output-1", "output-2", "output-3",
    ]  # fmt: skip
    assert len(found.all("details")) == 3


def test_what_was_not_measured_is_left_out(made: ModuleType) -> None:
    text = parsed(made.ALONE).text
    for absent in ("Gates", "Error by layer", "KL by position", "Speed and memory", "Tensors"):
        assert absent not in text
    assert "Where the distance comes from" in text


def test_figures_that_are_not_finite_do_not_break_it(made: ModuleType) -> None:
    nan, inf = math.nan, math.inf
    lost = replace(made.distance(0.1), kl_mean=nan, kl_median=nan, kl_p99=nan, kl_p999=nan,
                   top1=nan, perplexity_ratio=inf, broken=4088, intervals=None)  # fmt: skip
    broken = replace(
        made.FAILED,
        quantization=lost,
        total=lost,
        layers=(LayerError(0, 0.0, None), LayerError(1, inf, nan)),
        tensors=(replace(made.FAILED.tensors[0], error=nan, worst_row=nan),),
        judgements=(replace(made.OPEN, found=Interval(nan, nan, nan)),),
    )
    text = parsed(broken).text
    assert "not measured" in text
    assert "4088 positions not finite" in text
    assert "nan" not in text.lower().replace("finance", "")
    parsed(broken, broken)
    exact = replace(
        made.CHECK, quantization=made.distance(0.0), total=made.distance(0.0), layers=()
    )
    parsed(exact)
    parsed(exact, exact)
    parsed(replace(made.CHECK, layers=(LayerError(0, 0.0),)))


def test_reasons_are_told_once(made: ModuleType) -> None:
    told = [one.problem for one in reasons(made.FAILED)]
    assert told == ["rope_theta is 10000", "row 3 is off by 140%", "it is 1.21",
                    "a reason of no finding"]  # fmt: skip
    assert says(made.UNDECIDED) == "1 gate that cannot be decided yet."


def test_tokens_are_seen() -> None:
    assert visible(" a b ") == "␣a b␣"
    assert visible("  ") == "␣␣"
    assert visible("\n\t\x07") == "↵⇥�"
    assert visible("") == "∅"


def test_a_page_needs_a_report() -> None:
    with pytest.raises(ValueError, match="needs a report"):
        page([])


def test_the_shown_markup_is_what_was_meant(made: ModuleType) -> None:
    assert "<img" not in page([made.hostile()]).replace("&lt;img", "")
    assert made.HOSTILE not in page([made.hostile()])


def test_many_findings_are_folded(made: ModuleType) -> None:
    many = tuple(Finding("bytes", f"tensor {n}", f"it {n} is off") for n in range(30))
    found = parsed(replace(made.FAILED, findings=many, reasons=(), judgements=()))
    assert "30 faults found." in found.text
    assert "and 20 more" in found.text
    assert "it 29 is off" in found.text
    assert len(found.all("details")) == 1
