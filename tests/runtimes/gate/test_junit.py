"""The XML against the rules of the two schemas in common use, written out below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from xml.etree import ElementTree as ET

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qconvert.runtimes.findings import CheckReport, Finding, Interval, Judgement, LoaderFacts
from qconvert.runtimes.gate.junit import junit

LOADER = LoaderFacts("edge-llm", "TensorRT Edge-LLM 0.1 loads it", "0.1", 53, 0, {}, ())
RESULTS = {"failure", "error", "skipped"}

CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"properties", "testcase", "system-out", "system-err"},
    "properties": {"property"},
    "testcase": RESULTS | {"system-out", "system-err"},
}
"""Element -> the elements in it; others hold text alone."""

ATTRIBUTES = {
    "testsuites": ({"tests", "failures", "errors"}, {"name", "time"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"skipped", "time"}),
    "properties": (set(), set()),
    "property": ({"name", "value"}, set()),
    "testcase": ({"name", "classname"}, {"time"}),
    "failure": ({"message", "type"}, set()),
    "error": ({"message", "type"}, set()),
    "skipped": (set(), {"message"}),
    "system-out": (set(), set()),
}
"""Element -> (what it must have, what it may have)."""


def valid(text: str) -> ET.Element:
    """The root of XML that keeps to the schemas."""
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n<testsuites ')
    root = ET.fromstring(text.encode("utf-8"))
    assert root.tag == "testsuites"
    for element in root.iter():
        inner = [child.tag for child in element]
        assert set(inner) <= CHILDREN.get(element.tag, set()), element.tag
        must, may = ATTRIBUTES[element.tag]
        assert must <= set(element.attrib) <= must | may, element.tag
        for name in {"tests", "failures", "errors", "skipped"} & set(element.attrib):
            assert int(element.attrib[name]) >= 0
        if "time" in element.attrib:
            assert math.isfinite(float(element.attrib["time"]))
        if element.tag == "testcase":  # one result at most, and what was printed behind it
            results = [tag for tag in inner if tag in RESULTS]
            assert len(results) <= 1
            assert inner == results + [tag for tag in inner if tag not in RESULTS]
        if element.tag == "testsuite":
            assert inner.count("properties") == 1
            assert inner[0] == "properties"
            counted(element)
    assert int(root.attrib["tests"]) == len(list(root.iter("testcase")))
    assert int(root.attrib["failures"]) == len(list(root.iter("failure")))
    assert int(root.attrib["errors"]) == len(list(root.iter("error")))
    return root


def counted(suite: ET.Element) -> None:
    kinds = {"tests": "testcase", "failures": "failure", "errors": "error", "skipped": "skipped"}
    for name, tag in kinds.items():
        assert int(suite.attrib[name]) == len(list(suite.iter(tag)))
    names = [case.attrib["name"] for case in suite.iter("testcase")]
    assert len(set(names)) == len(names)


def case(root: ET.Element, name: str) -> ET.Element:
    (found,) = [one for one in root.iter("testcase") if one.attrib["name"] == name]
    return found


def judgements(*verdicts: str) -> tuple[Judgement, ...]:
    names = ("max-kl", "min-top1", "max-size")
    return tuple(
        Judgement(name, 1.0, Interval(1, 1, 1), verdict, f"{name} is {verdict}")  # type: ignore[arg-type]
        for name, verdict in zip(names, verdicts, strict=False)
    )


def test_a_pass_has_a_case_for_all_that_was_looked_at(report: CheckReport) -> None:
    root = valid(junit([replace(report, loaders=(LOADER,), judgements=judgements("PASS"))]))
    suite = root[0]
    assert suite.attrib["name"] == "a.b.gguf"
    assert [one.attrib["name"] for one in suite.iter("testcase")] == [
        "file", "settings", "tokens", "bytes", "loader edge-llm", "runtime", "numbers",
        "gate max-kl",
    ]  # fmt: skip
    assert {one.attrib["classname"] for one in suite.iter("testcase")} == {"qconvert.a_b_gguf"}
    assert (root.attrib["failures"], root.attrib["errors"]) == ("0", "0")
    assert case(root, "tokens")[0].tag == "skipped"
    told = {one.attrib["name"]: one.attrib["value"] for one in suite.iter("property")}
    assert told["verdict"] == "PASS"
    assert told["runtime"] == "llama.cpp 0.5.0"
    assert told["kl_mean"] == "0.044 (0.0396 to 0.0484)"
    assert not any("/elsewhere" in value for value in told.values())
    assert float(case(root, "numbers").attrib["time"]) == 51.25


def test_findings_are_failures_of_their_stage(report: CheckReport) -> None:
    found = (
        Finding("settings", "rope_theta", "it is 1e4, the model has 1e6"),
        Finding("settings", "eos_token_id", "it is 0, the model has 2"),
        Finding("loader", "edge-llm", "it lacks a scale"),
        Finding("loader", "another", "it is not known"),
    )
    bad = replace(report, verdict="FAIL", findings=found, loaders=(LOADER,))
    root = valid(junit([bad]))
    assert root.attrib["failures"] == "3"
    failure = case(root, "settings")[0]
    assert failure.attrib["message"] == "rope_theta: it is 1e4, the model has 1e6"
    assert failure.text is not None
    assert "eos_token_id: it is 0" in failure.text
    assert case(root, "loader edge-llm")[0].tag == "failure"
    assert case(root, "loader")[0].tag == "failure"


def test_doubt_is_an_error(report: CheckReport) -> None:
    said = judgements("PASS", "FAIL", "INCONCLUSIVE")
    root = valid(junit([replace(report, verdict="FAIL", judgements=said)]))
    assert case(root, "gate min-top1")[0].attrib["type"] == "fail"
    assert case(root, "gate max-size")[0].tag == "error"
    assert case(root, "gate max-size")[0].attrib["type"] == "inconclusive"


def test_no_failed_check_is_green(report: CheckReport) -> None:
    root = valid(junit([replace(report, verdict="FAIL", reasons=("it is bad",))]))
    assert root.attrib["failures"] == "1"


def test_several_outputs_are_several_suites(report: CheckReport) -> None:
    other = replace(report, file=replace(report.file, path="/else/a.b.gguf"), runtime=None)
    third = replace(report, file=replace(report.file, path="/else/c"))
    root = valid(junit([report, other, third]))
    names = [suite.attrib["name"] for suite in root]
    assert names == ["/somewhere/a.b.gguf", "/else/a.b.gguf", "c"]
    assert float(root.attrib["time"]) == 3 * 51.25
    assert case(root[1], "runtime")[0].tag == "skipped"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.text(st.characters(codec=None, exclude_categories=[])), min_size=3, max_size=3))
def test_any_text_is_held(report: CheckReport, texts: Sequence[str]) -> None:
    culprit, problem, note = texts
    bad = replace(
        report, verdict="FAIL", findings=(Finding("bytes", culprit, problem),), notes=(note,)
    )
    root = valid(junit([bad]))
    assert root.attrib["failures"] == "1"


def test_what_xml_cannot_hold_is_marked(report: CheckReport) -> None:
    bad = replace(report, findings=(Finding("file", "a", "x\x00y\x1b[1m\ud800<&\"'>]]>"),))
    text = valid(junit([bad])).findtext(".//failure")
    assert text == "a: x\ufffdy\ufffd[1m\ufffd<&\"'>]]>"
