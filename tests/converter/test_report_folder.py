"""The report: everything is in it, it needs nothing else, it is whole or not there."""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

from qconvert import layer_report, plots, report_folder
from qconvert.asked import Calibrated
from qconvert.formats.refusal import Refused

FILES = ["channels.png", "error.png", "inputs.png", "layers.json", "report.html"]


drawn = cache(plots.pictures)  # drawing takes a second


@pytest.fixture(autouse=True)
def _drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_folder, "pictures", lambda blocks: drawn(tuple(blocks)))


def conversion(calibrated: Calibrated | None) -> dict[str, Any]:
    """As `facts.of_conversion` makes it."""
    return {
        "qconvert": "1.2.3", "model": "/somewhere/a <b> model", "target": "gguf", "type": "Q4_K_M",
        "files": [{"path": "/somewhere/out.gguf", "bytes": 123_456_789}], "bytes": 123_456_789,
        "bits_per_weight": 4.85, "types": {}, "notes": ["one & only"], "seconds": 1.5,
        "peak_memory_bytes": 5, "threads": 2,
        "calibrated": None if calibrated is None else layer_report.of_calibrated(calibrated),
    }  # fmt: skip


def write(folder: Path, calibrated: Calibrated) -> dict[str, bytes]:
    report_folder.write(folder, conversion(calibrated), calibrated.blocks)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_page_holds_every_layer_and_picture(tmp_path: Path, calibrated: Calibrated) -> None:
    held = write(tmp_path / "report", calibrated)
    assert list(held) == FILES
    page = held["report.html"].decode()
    for block in calibrated.blocks:
        for linear in block.linears:
            assert page.count(f"<td>{linear.name}</td>") == 1
    rows = re.findall(r'<tr><td class="n">(\d+)</td><td>(\w+)</td>', page)
    assert rows == [(str(b.index), one.name) for b in calibrated.blocks for one in b.inputs]
    images = [base64.b64decode(data) for data in re.findall(r"base64,([^\"]+)", page)]
    assert sorted(images) == sorted(held[name] for name in FILES[:3])
    for word in ("1.2.3", "Q4_K_M", "best (weighted, gptq)", "mine.txt", "123.5 MB",
                 "0123456789abcdef" * 4, "7, 2, cpu"):  # fmt: skip
        assert word in page


def test_the_page_stands_alone_and_escapes(tmp_path: Path, calibrated: Calibrated) -> None:
    page = write(tmp_path / "report", calibrated)["report.html"].decode()
    assert "<b>" not in page
    assert html.escape("a <b> model") in page
    assert "one &amp; only" in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    assert "<script" not in page


def test_the_same_conversion_gives_the_same_report(tmp_path: Path, calibrated: Calibrated) -> None:
    slower = replace(
        calibrated,
        blocks=tuple(replace(b, seconds=b.seconds * 9, peak_bytes=7) for b in calibrated.blocks),
        work=tmp_path,
        resumed=2,
    )
    assert write(tmp_path / "a", calibrated) == write(tmp_path / "b", slower)
    assert str(tmp_path) not in (tmp_path / "b" / "layers.json").read_text()
    assert "/somewhere" not in (tmp_path / "b" / "layers.json").read_text()


def test_layers_for_programs(tmp_path: Path, calibrated: Calibrated) -> None:
    told = json.loads(write(tmp_path / "report", calibrated)["layers.json"])
    assert told["calibrated"]["calibration"]["origin"] == "mine.txt"
    assert len(told["calibrated"]["linears"]) == sum(len(b.linears) for b in calibrated.blocks)
    assert told["calibrated"]["linears"][5]["error"] == calibrated.blocks[0].linears[5].error


def test_weights_fitted_one_by_one_have_a_short_report(tmp_path: Path) -> None:
    report_folder.write(tmp_path / "report", conversion(None), ())
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == FILES[3:]
    assert "No error was measured" in (tmp_path / "report" / "report.html").read_text()


def test_a_report_is_replaced_whole(
    tmp_path: Path, calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "report"
    before = write(folder, calibrated)

    def full(*_: object) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(report_folder, "page", full)
        with pytest.raises(Refused, match="No space left"):
            write(folder, replace(calibrated, method="gptq"))
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == before
    report_folder.write(folder, conversion(None), ())
    assert sorted(path.name for path in folder.iterdir()) == FILES[3:]
    assert list(tmp_path.iterdir()) == [folder]


def test_a_rename_that_fails_keeps_the_old_report(
    tmp_path: Path, calibrated: Calibrated, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "report"
    before = write(folder, calibrated)
    rename = Path.rename

    def fails(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(Refused, match="Input/output"):
        write(folder, replace(calibrated, method="gptq"))
    assert {path.name: path.read_bytes() for path in sorted(folder.iterdir())} == before
    assert list(tmp_path.iterdir()) == [folder]


def problems(folder: Path, *, force: bool = False) -> str:
    return "; ".join(str(reason) for reason in report_folder.problems(folder, force=force))


def test_what_stands_in_the_way_is_found_before(tmp_path: Path, calibrated: Calibrated) -> None:
    folder = tmp_path / "report"
    assert problems(folder) == ""
    assert "no such folder" in problems(tmp_path / "no" / "report")
    folder.mkdir()
    assert problems(folder) == ""
    write(folder, calibrated)
    assert "--force" in problems(folder)
    assert problems(folder, force=True) == ""
    (folder / "thesis.tex").write_text("precious")
    assert "other things" in problems(folder, force=True)
    assert "is a file" in problems(folder / "thesis.tex")
