"""What a method's name stands for, and which names do not go together."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from qconvert.formats.gguf.grids import GRIDS
from qconvert.formats.refusal import Refused
from qconvert.formats.target import InputRounding, OutputTensor, Plan
from qconvert.methods import NAMED, algorithms
from qconvert.recipe import (
    BLOCK_ROUNDS,
    FITS,
    HUGE,
    PRESETS,
    ROUNDS,
    TRANSFORMS,
    known,
    parse,
    usual,
    why_usual,
)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_itself(name: str) -> None:
    assert parse(name) == PRESETS[name]
    assert parse(f" {name.upper()} ") == PRESETS[name]


def test_presets_are_what_users_are_told_of() -> None:
    assert [one.name for one in NAMED] == list(PRESETS)
    assert {one.name: one.data for one in NAMED} == {
        name: recipe.calibrated for name, recipe in PRESETS.items()
    }
    assert PRESETS["rtn"].steps == ("weighted",)
    assert PRESETS["awq"].steps == ("awq", "weighted", "nearest")
    assert PRESETS["gptq"].steps == ("weighted", "gptq")
    assert PRESETS["best"].steps[:3] == ("weighted", "gptq", "descent")


@pytest.mark.parametrize("name", [one.name for one in NAMED])
def test_a_summary_names_no_step_that_is_not_there(name: str) -> None:
    """Of the algorithms that have a name of their own, a summary speaks of those in the recipe."""
    (told,) = (one for one in NAMED if one.name == name)
    words = set(told.summary.replace(",", " ").replace(";", " ").split())
    named = words & {"awq", "gptq", "hqq", "descent", "learned", "quarot"}
    assert named <= {*PRESETS[name].steps}
    assert ("no data" in told.cost) <= (not told.data)


def test_every_name_is_an_algorithm_that_is_there() -> None:
    slots: dict[str, set[str]] = {}
    for one in algorithms():
        slots.setdefault(one.slot, set()).add(one.name)
    assert slots == {
        "transform": {*TRANSFORMS},
        "fit": {*FITS},
        "round": {*ROUNDS},
        "block": {*BLOCK_ROUNDS},
    }
    assert {*known()} == {*PRESETS, *TRANSFORMS, *FITS, *ROUNDS, *BLOCK_ROUNDS}


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("awq+gptq", ("awq", "weighted", "gptq")),
        ("hqq+gptq", ("hqq", "gptq")),
        ("quarot+awq+gptq", ("quarot", "awq", "weighted", "gptq")),
        ("gptq+descent", ("weighted", "gptq", "descent")),
        ("nearest+mse", ("mse", "nearest")),
        ("awq+descent", ("awq", "weighted", "descent")),
        ("osplus+awq", ("osplus", "awq", "weighted", "nearest")),
        ("mse", ("mse",)),
        ("learned", ("weighted", "learned")),
    ],
)
def test_combinations_have_one_order(text: str, steps: tuple[str, ...]) -> None:
    names = text.split("+")
    for order in permutations(names):
        recipe = parse("+".join(order))
        assert recipe.steps == steps
        assert recipe.name == "+".join(order)


def test_best_keeps_its_guard_in_company() -> None:
    for text in ("awq+best", "best+awq", "quarot+best"):
        recipe = parse(text)
        assert recipe.guarded
        assert recipe.mixed
        assert recipe.rounds == PRESETS["best"].rounds
    assert not parse("awq+gptq").guarded


def test_only_what_looks_at_inputs_is_calibrated() -> None:
    free = {"rtn", "hqq", "quarot", "minmax", "mse", "weighted", "quarot+hqq"}
    assert not any(parse(text).calibrated for text in free)
    seeing = {"nearest", "gptq", "descent", "awq", "smoothquant", "osplus", "best", "quarot+gptq"}
    assert all(parse(text).calibrated for text in seeing)


def test_effort_pays_for_rounds_over_a_block() -> None:
    best = parse("best")
    assert best.at(best.block_effort) == best
    assert best.at(best.block_effort - 1).steps == ("weighted", "gptq", "descent")
    assert parse("learned").at(0).block_rounds == ("learned",)  # asked for by name


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("magic", ["unknown method 'magic'", "qconvert methods"]),
        ("", ["unknown method ''"]),
        ("gptq+", ["unknown method ''"]),
        ("magic+wand", ["'magic', 'wand'"]),
        ("gptq+gptq", ["gptq is named 2 times", "name it once"]),
        ("magic+awq+awq", ["'magic'", "awq is named 2 times"]),
        ("hqq+mse", ["hqq and mse both choose the scales"]),
        ("smoothquant+osplus", ["both move outliers", "osplus where the model has biases"]),
        ("rtn+gptq", ["nothing to add to it", "--method gptq"]),
        ("rtn+hqq+mse", ["hqq and mse", "--method hqq+mse"]),
    ],
)
def test_what_makes_no_sense_is_refused_with_all_reasons(text: str, told: list[str]) -> None:
    with pytest.raises(Refused) as caught:
        parse(text)
    for part in told:
        assert part in str(caught.value)


def plan(kind: str | None, weights: int = 1 << 20) -> Plan:
    grid = None if kind is None else GRIDS[kind]
    shape = (weights // 256, 256)
    return Plan("x", "y", (OutputTensor("w", shape, grid, kind or "F16", 1, None),), "x.y")


@pytest.mark.parametrize(
    ("kind", "weights", "name"),
    [
        ("Q4_K", 1 << 20, "best"),
        ("Q8_0", 1 << 20, "best"),
        (None, 1 << 20, "rtn"),
        ("Q4_K", HUGE, "best"),
        ("Q4_K", HUGE + 256, "rtn"),
    ],
)
def test_the_usual_method(kind: str | None, weights: int, name: str) -> None:
    assert usual(plan(kind, weights)).name == name
    told = "\n".join(why_usual(plan(kind, weights)))
    assert ("--method best" in told) == (weights > HUGE)


@pytest.mark.parametrize(
    ("how", "name"),
    [
        (InputRounding("int8", 0), "smoothquant+best"),
        (InputRounding("int8", -1), "smoothquant+best"),
        (InputRounding("fp8", 0), "best"),
        (InputRounding("fp4", 16), "best"),
    ],
)
def test_the_usual_method_where_activations_are_rounded(how: InputRounding, name: str) -> None:
    def with_inputs(weights: int) -> Plan:
        made = plan("Q8_0", weights)
        tensors = tuple(replace(one, input_rounding=how) for one in made.tensors)
        return replace(made, tensors=tensors)

    assert usual(with_inputs(1000)).name == name
    assert usual(with_inputs(HUGE + 1000)).name == "rtn"
