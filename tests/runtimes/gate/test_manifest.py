"""A manifest is written, read back, and finds what has changed since."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qconvert.formats.refusal import Refused
from qconvert.runtimes.findings import CheckReport, Finding, Interval, Judgement
from qconvert.runtimes.gate.gates import Gates
from qconvert.runtimes.gate.manifest import (
    Manifest,
    checked,
    make_manifest,
    read_manifest,
    verify,
    write_manifest,
)

CALIBRATION = {"digest": "ab" * 32, "origin": "default", "rows": 64, "length": 512, "seed": 0}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "a-model"
    folder.mkdir()
    for name, content in {
        "config.json": "{}", "model.safetensors": "weights", "tokenizer.json": "{ }",
        "merges.txt": "a b", "README.md": "words", ".gitattributes": "x",
    }.items():  # fmt: skip
        (folder / name).write_text(content)
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "small.gguf"
    path.write_bytes(bytes(range(256)) * 100)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "small"
    (path / "inner").mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "inner" / "weights.bin").write_bytes(b"w" * 999)
    return path


def round_trip(manifest: Manifest, path: Path) -> Manifest:
    write_manifest(path, manifest)
    found = read_manifest(path)
    assert found == manifest
    assert not list(path.parent.glob("*.part"))
    return found


def test_what_is_written_is_read_again(out: Path, model: Path, tmp_path: Path) -> None:
    made = {"target": "gguf", "type": "Q4_K_M", "method": "best", "steps": ["gptq"]}
    manifest = make_manifest(out, model, made=made, calibration=CALIBRATION, runtime="r 1")
    found = round_trip(manifest, tmp_path / "m.json")
    assert list(found.source.files) == [
        "config.json", "merges.txt", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert found.source.files["config.json"].sha256 == hashlib.sha256(b"{}").hexdigest()
    assert found.output.files["small.gguf"].bytes == 25600
    assert (found.source.name, found.output.name) == ("a-model", "small.gguf")
    assert found.versions["runtime"] == "r 1"
    assert {"python", "numpy", "torch", "gguf"} <= set(found.versions)
    assert (found.made, found.calibration) == (made, CALIBRATION)


def test_no_clock_and_no_place_is_in_it(out: Path, model: Path, tmp_path: Path) -> None:
    texts = []
    for name in ("one.json", "two.json"):
        write_manifest(tmp_path / name, make_manifest(out, model, made={"path": out}))
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
    assert str(tmp_path) not in texts[0]


def test_what_a_check_said_is_kept(
    out: Path, model: Path, tmp_path: Path, report: CheckReport
) -> None:
    judgement = Judgement("max-kl-p999", 1.0, Interval(0.9, 0.8, math.inf), "INCONCLUSIVE", "...")
    unknown = Judgement("min-speedup", 2.0, Interval(*[math.nan] * 3), "INCONCLUSIVE", "none")
    broken = Finding("bytes", "a.weight", f"{out} holds other codes, see /usr/lib/x.txt and a/b")
    failed = replace(report, verdict="FAIL", findings=(broken,), judgements=(judgement, unknown))
    manifest = replace(make_manifest(out, model), checked=checked(failed, Gates(max_kl_p999=1.0)))
    write_manifest(tmp_path / "m.json", manifest)
    text = (tmp_path / "m.json").read_text()
    assert str(tmp_path) not in text
    assert "/usr" not in text
    found = read_manifest(tmp_path / "m.json").checked
    assert found is not None
    assert found.verdict == "FAIL"
    assert found.gates == {"max_kl_p999": 1.0}
    assert found.judgements[0] == judgement
    assert math.isnan(found.judgements[1].found.value)
    assert math.isnan(found.judgements[1].found.high)
    assert found.findings == (
        Finding("bytes", "a.weight", "small.gguf holds other codes, see x.txt and a/b"),
    )
    assert found.figures["kl_mean"].value == 0.044
    assert found.text == {"name": "wikitext", "sha256": "0" * 64, "windows": 8, "length": 512}
    assert found.runtime == {"name": "llamacpp", "version": "llama.cpp 0.5.0", "threads": 2}


def test_nothing_has_changed(out: Path, folder: Path, model: Path, tmp_path: Path) -> None:
    for one in (out, folder):
        found = round_trip(make_manifest(one, model), tmp_path / "m.json")
        assert verify(found, one, model) == []
        assert verify(found, one) == []


def test_a_single_file_may_be_renamed(out: Path, model: Path) -> None:
    manifest = make_manifest(out, model)
    assert verify(manifest, out.rename(out.with_name("other.gguf")), model) == []


@pytest.mark.parametrize(
    ("harm", "culprit", "piece"),
    [
        (lambda o, f, m: o.write_bytes(o.read_bytes()[:-1]), "small.gguf", "truncated: 25,599"),
        (lambda o, f, m: o.write_bytes(b"\x01" + o.read_bytes()[1:]), "small.gguf", "sha256"),
        (lambda o, f, m: o.unlink(), "small.gguf", "missing"),
        (lambda o, f, m: (o.unlink(), o.symlink_to("/dev/zero")), "small.gguf", "no plain file"),
        (lambda o, f, m: (m / "config.json").write_text("[]"), "config.json", "made from a-model"),
        (lambda o, f, m: (m / "tokenizer.json").unlink(), "tokenizer.json", "missing"),
    ],
)  # fmt: skip
def test_each_change_is_found(
    harm: Callable[..., object], culprit: str, piece: str, out: Path, folder: Path, model: Path
) -> None:
    manifest = make_manifest(out, model)
    harm(out, folder, model)
    (found,) = verify(manifest, out, model)
    assert (found.stage, found.culprit) == ("file", culprit)
    assert piece in found.problem


def test_what_was_added_to_a_folder_is_found(folder: Path, model: Path, tmp_path: Path) -> None:
    path = folder / "manifest.json"
    found = round_trip(make_manifest(folder, model, leave_out=[path]), path)
    for name in ("README.md", ".gitattributes", "LICENSE"):
        (folder / name).write_text("for people")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.json").write_text("{}")
    assert verify(found, folder) == []
    (folder / "inner" / "adapter.bin").write_text("x")
    (folder / "inner" / "weights.bin").write_bytes(b"v" * 999)
    assert {(one.culprit, one.problem.split(":")[0]) for one in verify(found, folder)} == {
        ("inner/adapter.bin", "inner/adapter.bin is not in the manifest"),
        ("inner/weights.bin", "inner/weights.bin has changed"),
    }


def test_files_beside_each_other(tmp_path: Path, model: Path) -> None:
    parts = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for part in parts:
        part.write_text(part.name)
    manifest = make_manifest(parts[0], model, files=parts)
    assert verify(manifest, parts[0], model) == []
    parts[1].unlink()
    assert [one.culprit for one in verify(manifest, parts[0])] == [parts[1].name]


def damaged(path: Path, change: Callable[[Any], object]) -> str:
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))
    with pytest.raises(Refused) as refused:
        read_manifest(path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "piece"),
    [
        (lambda told: told.update(schema=2, qconvert="9.9"), "newer qconvert ('9.9')"),
        (lambda told: told.update(schema=True), "no manifest"),
        (lambda told: told.pop("schema"), "no manifest"),
        (lambda told: told.update(extra=1), "'extra', which means nothing"),
        (lambda told: told.pop("output"), "output is not an object"),
        (lambda told: told["output"].update(files={}), "output.files is empty"),
        (lambda told: told["output"]["files"].update({"../x": {}}), "outside of the folder"),
        (lambda told: told["output"]["files"].update({"/dev/zero": {}}), "outside of the folder"),
        (lambda told: told["output"]["files"].update({"C:\\x": {}}), "outside of the folder"),
        (lambda told: told["output"]["files"]["small.gguf"].update(bytes=-1), "is no size"),
        (lambda told: told["output"]["files"]["small.gguf"].update(bytes=1.5), "not a whole"),
        (lambda told: told["output"]["files"]["small.gguf"].update(sha256="z" * 64), "no sha256"),
        (lambda told: told.update(checked={"verdict": "GOOD"}), "'GOOD', which means nothing"),
        (lambda told: told.update(versions=[]), "versions is not an object"),
    ],
)
def test_damage_is_refused(
    change: Callable[[Any], object], piece: str, out: Path, model: Path, tmp_path: Path
) -> None:
    write_manifest(tmp_path / "m.json", make_manifest(out, model))
    assert piece in damaged(tmp_path / "m.json", change)


def test_all_damage_is_told_at_once(out: Path, model: Path, tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.json", make_manifest(out, model))
    told = damaged(tmp_path / "m.json", lambda one: one.update(versions=3, made=[], source=None))
    for piece in ("versions", "made", "source"):
        assert f"{piece} is not an object" in told


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(
    data: st.DataObject, out: Path, model: Path, tmp_path: Path, report: CheckReport
) -> None:
    path = tmp_path / "m.json"
    said = checked(report, Gates(max_kl=1.0))
    write_manifest(path, replace(make_manifest(out, model), checked=said))
    told = json.loads(path.read_text())
    place, keys = told, list(told)
    while isinstance(place, dict) and place:
        key = data.draw(st.sampled_from(sorted(place)))
        if not isinstance(place[key], dict) or data.draw(st.booleans()):
            place[key] = data.draw(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text()
                | st.just([]) | st.just({}) | st.just([{}]) | st.just({"a": 1})
            )  # fmt: skip
            break
        place = place[key]
    assert keys
    path.write_text(json.dumps(told))
    try:
        found = read_manifest(path)
    except Refused:
        return
    verify(found, out, model)


def test_what_cannot_be_written_is_refused(out: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot write the manifest"):
        write_manifest(tmp_path / "none" / "m.json", make_manifest(out, model))
    with pytest.raises(Refused, match=r"no m\.json"):
        read_manifest(tmp_path / "m.json")
    with pytest.raises(Refused, match="cannot read"):
        make_manifest(tmp_path / "none.gguf", model)
