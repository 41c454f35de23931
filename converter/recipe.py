"""What a method means: transforms, a fit and rounds, in the order in which they are applied.

A name is a preset or an algorithm; names joined by "+" are put together. What does not make sense
is refused, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qconvert.formats.refusal import Reason, raise_if_any
from qconvert.formats.target import Plan

USUAL_FIT = "weighted"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What fills the slots. `block_rounds` come after `rounds` and look at a whole block; they are
    applied from the effort `block_effort` on. `guarded`: a round is kept for a tensor only where it
    lowers the output error on rows that were held out. `mixed`: errors of v are measured behind
    attention, as its heads mix the tokens (`engine.attention`), not token by token."""

    name: str
    transforms: tuple[str, ...] = ()
    fit: str = USUAL_FIT
    rounds: tuple[str, ...] = ()
    guarded: bool = False
    mixed: bool = False
    block_rounds: tuple[str, ...] = ()
    block_effort: int = 0

    @property
    def steps(self) -> tuple[str, ...]:
        return (*self.transforms, self.fit, *self.rounds, *self.block_rounds)

    def at(self, effort: int) -> Recipe:
        """With only what this effort pays for."""
        return self if effort >= self.block_effort else replace(self, block_rounds=())

    @property
    def calibrated(self) -> bool:
        """Whether a step looks at what the linears read."""
        rounds = (*self.rounds, *self.block_rounds)
        return bool(rounds) or any(name not in GLOBAL for name in self.transforms)


GLOBAL = ("quarot",)
"""Transforms that look at weights alone."""
TRANSFORMS = ("quarot", "osplus", "smoothquant", "awq")
"""In the order in which they are applied."""
FITS = (USUAL_FIT, "minmax", "mse", "hqq")
ROUNDS = ("nearest", "gptq", "descent")
"""In the order in which they are applied."""
BLOCK_ROUNDS = ("learned",)

PRESETS: Mapping[str, Recipe] = {
    one.name: one
    for one in (
        Recipe("rtn"),
        Recipe("hqq", fit="hqq"),
        Recipe("awq", ("awq",), rounds=("nearest",)),
        Recipe("gptq", rounds=("gptq",)),
        Recipe("smoothquant", ("smoothquant",), rounds=("nearest",)),
        Recipe("osplus", ("osplus",), rounds=("nearest",)),
        Recipe("quarot", ("quarot",)),
        Recipe("best", rounds=("gptq", "descent"), guarded=True, mixed=True,
               block_rounds=("learned",), block_effort=2),
    )
}  # fmt: skip


HUGE = 4_000_000_000
"""Weights from which on a calibrated method is not the default: it would take hours on a CPU."""
MOST_BITS = 8.5  # with scales; what is stored more finely gains nothing
EVEN = ("int8",)
"""Kinds of rounded activations with steps of one size, which the largest of a token sets for all;
the steps of floats grow with the value, and outliers cost the others nothing."""


def usual(plan: Plan) -> Recipe:
    """The method when the user names none: `best` for a plan of 8 bits or less, behind
    `smoothquant` where outliers of activations do harm, unless the model is huge; else `rtn`."""
    if plan.rule:
        return PRESETS["rtn"]
    bits = [one.grid.bits_per_weight for one in plan.tensors if one.grid is not None]
    few = bool(bits) and min(bits) <= MOST_BITS
    if not few or plan.weights > HUGE:
        return PRESETS["rtn"]
    rounded = {one.input_rounding.kind for one in plan.tensors if one.input_rounding is not None}
    return parse("smoothquant+best") if rounded & {*EVEN} else PRESETS["best"]


def usual_scales(plan: Plan) -> str:
    """How fixed scales of activations are chosen when the user does not say: for the least squared
    error where the largest value would set even steps for all others (KL of static INT8 on the wide
    twin: 0.95 -> 0.56); floats keep theirs, and gain nothing."""
    fixed = {
        one.input_rounding.kind
        for one in plan.tensors
        if one.input_rounding is not None and one.input_rounding.per < 0
    }
    return "mse" if fixed & {*EVEN} else "max"


def why_usual(plan: Plan) -> tuple[str, ...]:
    """What a user should know who named no method and does not get the best one."""
    if plan.rule or plan.weights <= HUGE or not any(one.grid is not None for one in plan.tensors):
        return ()
    return (
        f"more than {HUGE / 1e9:.0f} billion weights: not calibrated unless asked for, "
        "with --method best; --plan tells the time",
    )


def parse(text: str) -> Recipe:
    """The recipe that `text` names; `Refused` with everything that is wrong with it."""
    names = [name.strip().lower() for name in text.split("+")]
    reasons = [*_unknown(names), *_repeated(names)]
    raise_if_any(reasons)
    parts = [_part(name) for name in names]
    raise_if_any(_clashes(names, parts))
    if len(parts) == 1:
        return parts[0]
    fits = [part.fit for part in parts if part.fit != USUAL_FIT]
    rounds = {name for part in parts for name in part.rounds}
    if len(rounds) > 1:
        rounds.discard("nearest")  # any other round begins with it
    return Recipe(
        "+".join(names),
        _ordered({name for part in parts for name in part.transforms}, TRANSFORMS),
        fits[0] if fits else USUAL_FIT,
        _ordered(rounds, ROUNDS),
        any(part.guarded for part in parts),
        any(part.mixed for part in parts),
        _ordered({name for part in parts for name in part.block_rounds}, BLOCK_ROUNDS),
        min((part.block_effort for part in parts if part.block_rounds), default=0),
    )


def _part(name: str) -> Recipe:
    if name in PRESETS:
        return PRESETS[name]
    if name in FITS:
        return Recipe(name, fit=name)
    if name in TRANSFORMS:
        return Recipe(name, (name,))
    if name in BLOCK_ROUNDS:
        return Recipe(name, block_rounds=(name,))
    return Recipe(name, rounds=(name,))


def _ordered(names: set[str], order: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in order if name in names)


def known() -> tuple[str, ...]:
    """Every name that `parse` takes, presets first."""
    found = (*PRESETS, *TRANSFORMS, *FITS, *ROUNDS, *BLOCK_ROUNDS)
    return tuple(dict.fromkeys(found))


def _unknown(names: Sequence[str]) -> list[Reason]:
    unknown = [name for name in names if name not in known()]
    if not unknown:
        return []
    shown = ", ".join(repr(name) for name in unknown)
    return [Reason(f"unknown method {shown}", f"known: {', '.join(known())}; see qconvert methods")]


def _repeated(names: Sequence[str]) -> list[Reason]:
    return [
        Reason(f"{name} is named {names.count(name)} times", "name it once")
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]


def _clashes(names: Sequence[str], parts: Sequence[Recipe]) -> list[Reason]:
    reasons = []
    fits = [part.fit for part in parts if part.fit != USUAL_FIT]
    if len(fits) > 1:
        reasons.append(Reason(f"{' and '.join(fits)} both choose the scales", "name one of them"))
    both = {"smoothquant", "osplus"} & {name for part in parts for name in part.transforms}
    if len(both) > 1:
        reasons.append(
            Reason(
                "smoothquant and osplus both move outliers of the same activations",
                "name one of them; osplus where the model has biases",
            )
        )
    if "rtn" in names and len(names) > 1:
        reasons.append(
            Reason("rtn is rounding to nearest without data: there is nothing to add to it",
                   f"leave it out: --method {'+'.join(name for name in names if name != 'rtn')}")
        )  # fmt: skip
    return reasons
