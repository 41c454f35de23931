"""What fixed scales of activations reach to: by each rule, in the rows and in the file alike."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert.asked import Asked
from qconvert.calibrate import calibrate, rule_of, transformed
from qconvert.checkpoint import open_checkpoint
from qconvert.engine import reach
from qconvert.engine.block import READS
from qconvert.engine.bundle import Bundle, open_bundle
from qconvert.engine.observe import held_rows
from qconvert.engine.sample import LOUD, VALUES, Sample, Tokens, spread
from qconvert.engine.tensorfile import open_tensors
from qconvert.formats.known_grids import grid_named
from qconvert.formats.refusal import Refused
from qconvert.formats.target import InputRounding, OutputTensor, Plan, Statistic
from qconvert.job import prepare
from qconvert.recipe import parse, usual_scales
from qconvert.runtimes import reference
from qconvert.runtimes.noise import round_inputs

Tiny = Callable[..., Path]
TOPS = {"int8": 127.0, "fp8": 448.0, "fp4": 6.0 * 448.0}
KINDS = [("int8", -1), ("fp8", -1), ("fp4", 16)]
every_kind = pytest.mark.parametrize(("kind", "per"), KINDS)
every_rule = pytest.mark.parametrize("rule", reach.RULES)


def heavy(rows: int = 96, cols: int = 128, loud: float = 1.0) -> torch.Tensor:
    made = np.random.default_rng(0).standard_t(4, (rows, cols)).astype(np.float32)
    made[7, 5] = 5.0 * loud
    return torch.from_numpy(made)


def error(x: torch.Tensor, how: InputRounding, reach: float) -> float:
    stated = replace(how, scale=reach / TOPS[how.kind])
    return float((round_inputs(x, stated) - x).double().square().sum())


def all_of(x: torch.Tensor) -> Tokens:
    return Tokens(x, torch.ones(len(x), dtype=torch.float64))


def test_a_sample_is_the_same_whatever_the_waves() -> None:
    x = torch.randn(5000, VALUES // 700, generator=torch.Generator().manual_seed(0))
    x[[9, 4000, 4001]] *= 100
    found = []
    for size in (5000, 700, 1):
        one = Sample(len(x), x.shape[1])
        for part in x.split(size):
            one.add(part)
        found.append(one.tokens)
    for one in found[1:]:
        assert torch.equal(one.x, found[0].x)
        assert torch.equal(one.count, found[0].count)
    assert found[0].x.numel() <= VALUES
    assert 600 < len(found[0].x) <= 700


def test_a_sample_has_the_loudest_once_and_stands_for_all() -> None:
    x = torch.ones(5000, VALUES // 700) * torch.linspace(1, 2, 5000)[:, None]
    x[[9, 4000, 4001]] *= 100
    one = Sample(len(x), x.shape[1])
    one.add(x)
    found = one.tokens
    assert sorted(found.x[:3, 0].tolist()) == sorted(x[[9, 4000, 4001], 0].tolist())
    assert found.x[:, 0].unique().numel() == len(found.x)
    assert (found.count[: 700 // LOUD] == 1).all()
    assert float(found.count.sum()) == pytest.approx(len(x))
    mean = float((found.x[:, 0] * found.count).sum() / len(x))
    assert mean == pytest.approx(float(x[:, 0].mean()), rel=1e-3)


def test_a_small_sample_is_everything() -> None:
    x = torch.randn(100, 64, generator=torch.Generator().manual_seed(0))
    one = Sample(100, 64)
    one.add(x[:30])
    one.add(x[30:])
    assert torch.equal(one.tokens.x.sort(0).values, x.sort(0).values)
    assert (one.tokens.count == 1).all()


@pytest.mark.parametrize(("count", "most"), [(10, 20), (64 * 512, 2048), (1000, 999), (7, 1)])
def test_samples_are_spread(count: int, most: int) -> None:
    found, size = spread(count, most), min(count, most)
    edges = [index * count // size for index in range(size + 1)]
    assert all(low <= one < high for low, one, high in zip(edges, found, edges[1:], strict=False))


def test_no_place_in_a_row_is_preferred() -> None:
    """Even distances would take the first token of every row of 512."""
    places = np.bincount(spread(64 * 512, 2048) % 512, minlength=512)
    assert places[0] <= 8
    assert places.max() <= 16
    assert (places > 0).mean() > 0.9


def literal_percentile(x: torch.Tensor) -> np.float32:
    ordered = np.sort(x.abs().numpy().reshape(-1))
    return np.float32(ordered[int(np.ceil(reach.SHARE * ordered.size)) - 1])


def test_a_percentile_leaves_out_the_largest_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "SHARE", 0.9999)
    x = heavy(400, 100, loud=1000.0)
    found = reach.percentile(all_of(x), [], float(x.abs().max()))
    assert found == literal_percentile(x)
    assert (x.abs() > found).sum() == 4
    twice = Tokens(x, torch.full((400,), 2.0, dtype=torch.float64))
    assert reach.percentile(twice, [], 0.0) == literal_percentile(x.repeat(2, 1))
    silent = torch.zeros(400, 64)
    silent[0, 0] = 3.0
    assert reach.percentile(all_of(silent), [], 3.0) == 3.0


def test_tokens_count_for_as_many_as_they_stand_for() -> None:
    x, how = heavy(loud=8.0), InputRounding("int8", -1)
    count = torch.ones(len(x), dtype=torch.float64)
    count[:8] = 5
    many = x.repeat_interleave(count.long(), 0)
    largest = float(x.abs().max())
    assert reach.least_error(Tokens(x, count), [how], largest) == reach.least_error(
        all_of(many), [how], largest
    )


@every_kind
def test_the_error_is_the_least(kind: Any, per: int) -> None:
    """Of a fine literal search over all reaches, rounding as runtimes do."""
    how = InputRounding(kind, per)
    for x in (heavy(), heavy(loud=40.0)):
        largest = float(x.abs().max())
        tried = largest * 2 ** np.linspace(-8, 0, 400)
        least = min(error(x, how, float(one)) for one in tried)
        found = reach.least_error(all_of(x), [how], largest)
        assert error(x, how, found) <= 1.05 * least  # tried in steps of 9 %
        assert error(x, how, found) <= error(x, how, largest)


def test_even_steps_are_not_spent_on_one_loud_value() -> None:
    x, how = heavy(rows=4000, loud=40.0), InputRounding("int8", -1)
    largest = float(x.abs().max())
    found = reach.least_error(all_of(x), [how], largest)
    assert found < 0.5 * largest
    assert error(x, how, found) < 0.5 * error(x, how, largest)


def plan_of(model: Path, how: InputRounding | None) -> Plan:
    grid, outputs = grid_named("int8_channel_f32"), []
    for one in open_checkpoint(model).tensors:
        linear = one.role in READS and one.part == "weight"
        outputs.append(OutputTensor(
            one.name, one.shape, grid if linear else None, "x" if linear else one.dtype,
            one.nbytes, one, input_rounding=how if linear else None,
        ))  # fmt: skip
    return Plan("none", "w8a8", tuple(outputs), "none")


def bundle_of(
    model: Path, plan: Plan, folder: Path, rule: str, method: str = "rtn", threads: int = 1
) -> Bundle:
    asked = Asked(method=method, calib_rows=9, calib_length=32, compute="float32",
                  activation_scales=rule)  # fmt: skip
    source, recipe = open_checkpoint(model), parse(method)
    seen = transformed(source, recipe, asked)[0]
    calibrate(source, seen, plan, recipe, asked, folder, threads, lambda *_: None)
    return open_bundle(folder)


def first_input(bundle: Bundle, work: Path) -> torch.Tensor:
    """What the first block of the bundle reads on the rows to fit to."""
    weights = {
        one.name: bundle.rows(one, 0, one.shape[0] if len(one.shape) > 1 else 1)
        for one in bundle.tensors
    }
    made, seen = reference.from_weights(bundle, weights, threads=1), list[torch.Tensor]()
    linear = made.model.model.layers[0].self_attn.k_proj
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    rows = np.load(work / "tokens.npy")
    for index in sorted(set(range(len(rows))) - held_rows(len(rows))):
        made.logits(rows[index].tolist())
    return torch.cat(seen)


@every_rule
@every_kind
def test_rows_and_file_have_the_reach_of_what_is_read(
    tiny_model: Tiny,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
    per: int,
    rule: str,
) -> None:
    """Behind the transforms: the norm of the first block is stored as they left it."""
    model, how = tiny_model("llama"), InputRounding(kind, per)
    monkeypatch.setattr(reach, "SHARE", 0.999)
    bundle = bundle_of(model, plan_of(model, how), tmp_path / "work", rule, "smoothquant")
    x = first_input(bundle, tmp_path / "work")
    found = bundle.store.record(0).covered["attn_in"]
    largest = float(x.abs().max())
    if rule == "percentile":
        assert found == pytest.approx(literal_percentile(x), rel=1e-4)
        assert found < largest
    else:
        tried = largest * 2 ** np.linspace(-8, 0, 65)
        assert error(x, how, found) <= 1.01 * min(error(x, how, float(one)) for one in tried)
    for index in (0, 1):
        record = bundle.store.record(index)
        names = {"attn_in", "attn_mid", "ffn_in", "ffn_mid"}
        assert set(record.covered) == names
        assert {name: record.largest[name] for name in names} == record.covered
        assert {"key", "value"} < set(record.largest)
    stored: dict[tuple[int | None, str], set[np.float32]] = {}
    for one in bundle.tensors:  # those that a runtime fuses read one input: one scale
        if one.role in READS:
            statistic = Statistic("input", one.name, TOPS[kind])
            scale = statistic.stored(bundle.largest(statistic))
            stored.setdefault((one.block, READS[one.role]), set()).add(scale)
    assert len(stored) == 8
    assert all(len(scales) == 1 for scales in stored.values())
    assert stored[0, "attn_in"] == {np.float32(found / TOPS[kind])}


def content(work: Path, index: int) -> dict[str, bytes]:
    file = open_tensors(work / "blocks" / f"{index:05d}.safetensors", "")
    record = json.loads(file.metadata["part"])["record"]
    kept = {name: file.rows(name).tobytes() for name in file.entries}
    return {**kept, "": json.dumps([record["covered"], record["largest"]]).encode()}


@every_rule
def test_the_bytes_are_the_same_after_a_stop_and_with_more_threads(
    tiny_model: Tiny, tmp_path: Path, rule: str
) -> None:
    model = tiny_model("llama", num_hidden_layers=3)
    plan = plan_of(model, InputRounding("int8", -1))
    work = tmp_path / "work"
    bundle_of(model, plan, work, rule, "smoothquant+gptq")
    before = [content(work, index) for index in range(3)]
    (work / "blocks" / "00001.safetensors").unlink()
    shutil.rmtree(work / "rows")
    bundle_of(model, plan, work, rule, "smoothquant+gptq", threads=2)
    assert [content(work, index) for index in range(3)] == before
    bundle_of(model, plan, tmp_path / "more", rule, "smoothquant+gptq", threads=3)
    assert [content(tmp_path / "more", index) for index in range(3)] == before


def test_the_usual_rule_leaves_no_trace_and_another_is_another_job(
    tiny_model: Tiny, tmp_path: Path
) -> None:
    model = tiny_model("llama")
    plan, work = plan_of(model, InputRounding("int8", -1)), tmp_path / "work"
    bundle = bundle_of(model, plan, work, "max")
    assert "activation scales" not in bundle.store.journal.fingerprint
    with pytest.raises(Refused, match='activation scales: nothing then, "mse" now'):
        bundle_of(model, plan, work, "mse")
    with pytest.raises(Refused, match="unknown --activation-scales 'median'"):
        bundle_of(model, plan, tmp_path / "other", "median")


@pytest.mark.parametrize(("to", "kind"), [("gguf", "Q4_0"), ("vllm", "w8a8"), ("vllm", "w4a16")])
def test_it_is_refused_where_nothing_is_fixed(tiny_model: Tiny, to: str, kind: str) -> None:
    model = tiny_model("llama", dtype="bfloat16")
    prepare(model, to, type=kind)
    with pytest.raises(Refused, match="fixes no scales of activations") as refused:
        prepare(model, to, type=kind, asked=Asked(activation_scales="mse"))
    assert "--static" in refused.value.reasons[0].remedy
    prepare(model, "vllm", type="w8a8-static", asked=Asked(activation_scales="mse"))


def test_it_is_refused_of_a_work_folder(tiny_model: Tiny, tmp_path: Path) -> None:
    model = tiny_model("llama")
    bundle_of(model, plan_of(model, InputRounding("int8", -1)), tmp_path / "work", "mse")
    with pytest.raises(Refused, match="chosen already"):
        prepare(tmp_path / "work", "vllm", asked=Asked(activation_scales="mse"))


@pytest.mark.parametrize(
    ("to", "kind", "rule"),
    [("vllm", "w8a8-static", "mse"), ("vllm", "fp8-tensor", "max"), ("vllm", "nvfp4", "max"),
     ("vllm", "w8a8", "max"), ("gguf", "Q4_0", "max")],
)  # fmt: skip
def test_what_is_taken_where_nothing_is_said(
    tiny_model: Tiny, to: str, kind: str, rule: str
) -> None:
    """One loud value sets the steps of all others where they are even; floats do not mind."""
    plan = prepare(tiny_model("llama", dtype="bfloat16"), to, type=kind).plan
    assert usual_scales(plan) == rule
    assert rule_of(Asked(), plan) == rule
    assert rule_of(Asked(activation_scales="percentile"), plan) == "percentile"
