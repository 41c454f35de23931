"""benchmarks/faults.py: every fault can be planted, and the check finds it and names it."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import target_named

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
try:
    from planting import checking, goods, scoring, table
    from planting.fault import linears
    from planting.files import Inapplicable
    from planting.quantized import plain
    from planting.weights import pairs_order
finally:
    sys.path.remove(str(BENCHMARKS))

Tiny = Callable[..., Path]
ROPE = {"rope_type": "default", "rope_theta": 100000.0}
ROOM = {"mlc/q4f16_1": {"last file missing"}}  # a tiny model has one shard
REPRESENTATIVE = (
    "rope order", "gate and up exchanged", "a weight of another block", "stale scales",
    "nibbles swapped", "a scale is not a number", "a norm lost", "embedding shifted by one",
    "rope base lost", "two tokens exchanged", "chat template of another model", "another EOS",
    "a tensor never filled", "cut short",
)  # fmt: skip


@pytest.fixture(scope="session")
def model(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The model by a planter's name of it."""
    folder = tmp_path_factory.mktemp("faults") / "main"

    def named(name: str) -> Path:
        if name == goods.MAIN:
            made = tiny_model("llama", dtype="bfloat16", tie_word_embeddings=True,
                              rms_norm_eps=1e-5, rope_parameters=ROPE)  # fmt: skip
            return goods.main_model(made, folder)
        family, settings = goods.TINY[name]
        return tiny_model(family, dtype="bfloat16", **settings)

    return named


@pytest.fixture(scope="session")
def good(
    model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A good output, built once."""
    folder = tmp_path_factory.mktemp("good")

    def built(name: str) -> Path:
        asked = {"compute": "float32", "calib_length": 32}
        place = folder / name.replace("/", "-")
        return goods.build(name, model(goods.split_name(name)[1]), place, **asked)

    return built


@pytest.fixture(scope="session")
def checker(model: Callable[[str], Path]) -> Iterator[Callable[[str], Any]]:
    """The product's check of one model's outputs, without a runtime."""
    asking = checking.Asking(windows=1, length=32, threads=1, runtime=False)
    with ExitStack() as stack:
        made: dict[str, Any] = {}

        def of(name: str) -> Any:
            if name not in made:
                made[name] = stack.enter_context(checking.Checker.of(model(name), asking))
            return made[name]

        yield of


def sums(path: Path) -> dict[str, str]:
    folder = path.parent if path.is_file() else path
    return {
        one.name: hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(folder.iterdir())
        if one.is_file() and one.name != ".path"
    }


def planted(fault: Any, name: str, good: Path, model: Path, place: Path) -> tuple[Any, list[str]]:
    files = goods.copied(good, place)
    output = goods.opened(name, files, model)
    expected = list(fault.plant(output))
    if not fault.storage:
        output.finish()
    return files, expected


def test_there_are_enough_and_each_says_where_it_was_seen() -> None:
    assert len(table.FAULTS) >= 40
    assert len({fault.name for fault in table.FAULTS}) == len(table.FAULTS)
    assert len(table.cases()) >= 100
    for fault in table.FAULTS:
        assert fault.about
        assert fault.source
        assert {goods.split_name(name)[0] for name in fault.on} <= set(goods.GOODS)
        assert {goods.split_name(name)[1] for name in fault.on} <= {goods.MAIN, *goods.TINY}


@pytest.mark.parametrize("fault", table.FAULTS, ids=lambda fault: fault.name)
def test_each_is_planted_in_a_copy(
    fault: Any, model: Callable[[str], Path], good: Callable[[str], Path], tmp_path: Path
) -> None:
    for name in fault.on:
        whole = good(name)
        before = sums(whole)
        if fault.name in ROOM.get(name, ()):
            with pytest.raises(Inapplicable):
                planted(fault, name, whole, model(goods.split_name(name)[1]), tmp_path / "none")
            continue
        place = tmp_path / name.replace("/", "-")
        files, expected = planted(fault, name, whole, model(goods.split_name(name)[1]), place)
        assert sums(files.path if files.path.exists() else files.folder) != before, name
        assert sums(whole) == before, name
        assert expected


@pytest.mark.parametrize("name", [name for name in goods.GOODS if not name.endswith("split")])
def test_planters_read_what_the_product_wrote(
    name: str, model: Callable[[str], Path], good: Callable[[str], Path], tmp_path: Path
) -> None:
    """Values by the planters' own layouts are those of our readers; stored again, so are bytes."""
    files = goods.copied(good(name), tmp_path / "copy")
    output = goods.opened(name, files, model(goods.MAIN))
    before = sums(files.path)
    source = open_checkpoint(model(goods.MAIN))
    ours = target_named(goods.GOODS[name].to).reader(files.path).weights(source)
    compared = 0
    for weight in linears(output.facts):
        fields = output.get(weight)
        output.put(weight, fields)
        values = decoded(name, fields)
        if values is None:
            continue
        heads = {"q_proj": output.facts.heads, "k_proj": output.facts.kv_heads}
        part = weight.split(".")[-2]
        if output.rope_pairs and part in heads:
            values = values[pairs_order(len(values), heads[part], into_pairs=False)]
        np.testing.assert_allclose(values, ours[weight], rtol=2e-3, atol=1e-6)
        compared += 1
    output.finish()
    assert sums(files.path) == before
    assert compared or name in ("gguf/Q4_K_M", "gguf/BF16")  # more parts, or none


def decoded(name: str, fields: dict[str, Any]) -> Any:
    """What a weight stands for, by the formula of its type; None for types of more parts."""
    if "code" in fields and fields["code"].dtype.kind != "i":
        return fields["code"].astype(np.float32) * fields["scale"].astype(np.float32)
    if name == "vllm/gptq":  # zero points are stored minus one
        fields = {**fields, "zero": fields["zero"] + 1}
    signed = "code" in fields and fields["code"].min() < 0
    usual = {"gguf": 8, "mlc": 7}.get(name.split("/")[0], 8)
    try:
        return plain(fields, 0 if signed else usual)
    except Inapplicable:
        return None


@pytest.mark.parametrize("name", goods.FOUR)
def test_an_undamaged_copy_passes(
    name: str, good: Callable[[str], Path], checker: Callable[[str], Any], tmp_path: Path,
    model: Callable[[str], Path],
) -> None:  # fmt: skip
    files = goods.copied(good(name), tmp_path / "copy")
    found = checker(goods.MAIN)(files.path, goods.GOODS[name].to)
    assert found.reasons == ()
    assert found.verdict == "PASS"
    manifest = checking.manifest_of(good(name), model(goods.MAIN))
    assert not checking.against_manifest(manifest, files.path).detected


@pytest.mark.parametrize("name", goods.FOUR)
@pytest.mark.parametrize("fault", REPRESENTATIVE)
def test_it_is_found_and_named(
    fault: str,
    name: str,
    model: Callable[[str], Path],
    good: Callable[[str], Path],
    checker: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    one = next(one for one in table.FAULTS if one.name == fault)
    files, expected = planted(one, name, good(name), model(goods.MAIN), tmp_path / "copy")
    found = checker(goods.MAIN)(files.path, goods.GOODS[name].to)
    assert found.detected
    assert scoring.right(dataclasses.asdict(found), expected, first=True), found
    manifest = checking.manifest_of(good(name), model(goods.MAIN))
    assert checking.against_manifest(manifest, files.path).detected


def test_a_culprit_is_right_by_its_own_name_alone() -> None:
    expected = ("model.layers.7.mlp.up_proj.weight", "config.json")
    assert scoring.is_right("model.layers.7.mlp.up_proj.weight", expected)
    assert scoring.is_right("model.layers.7.mlp.up_proj", expected)
    assert scoring.is_right("some/where/config.json", expected)
    assert not scoring.is_right("model.layers.17.mlp.up_proj.weight", expected)
    assert not scoring.is_right("block 7", expected)


def line(**own: Any) -> dict[str, Any]:
    arm = {"verdict": "FAIL", "detected": True, "right_first": True, "right_any": True,
           "kl": 0.1, "ratio": 1.2}  # fmt: skip
    return {"kind": "fault", "fault": "f", "good": "gguf/Q4_0", "format": "gguf", "model": "main",
            "source": "s", "unchanged": False, "still": False, "good_ratio": 1.1,
            "good_verdict": "PASS", "arms": {"source": arm}, **own}  # fmt: skip


def test_the_summary_counts() -> None:
    passed = {"verdict": "PASS", "detected": False, "right_first": False, "right_any": False,
              "kl": 0.0, "ratio": 1.1}  # fmt: skip
    lines = [
        line(),
        line(fault="g", arms={"source": passed}),
        line(kind="good", good="fine", arms={"source": passed}),
        line(kind="good", good="bad", arms={"source": {**passed, "verdict": "FAIL"}}),
        {"kind": "left out", "fault": "h", "good": "gguf/Q4_0"},
    ]
    found = scoring.summary(lines)
    assert (found["faults"], found["cases"]) == (2, 2)
    assert found["source"]["detected"] == {"of": 2, "is": 1, "share": 0.5}
    assert found["source"]["right_first"] == {"of": 1, "is": 1, "share": 1.0}
    assert found["false_alarms"] == {"of": 3, "is": 1, "share": 0.3333, "which": ["bad"]}
    assert found["perplexity_alone"]["1.05"]["is"] == 1
    assert found["unseen"] == ["g (gguf/Q4_0)"]
    assert "| g | s | 0/1 |" in scoring.table(lines)
