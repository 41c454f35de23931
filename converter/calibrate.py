"""A calibrated conversion around the engine: text to tokens, work folder, records.

Imports torch: only `pipeline`, and only when a recipe looks at data.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qconvert.algorithms.registry import transforms
from qconvert.algorithms.slots import Setting
from qconvert.asked import Asked, Calibrated, CalibrationFacts
from qconvert.calibration.rows import Calibration, Wanted, calibration
from qconvert.calibration.selfmade import WholeModel
from qconvert.checkpoint import Checkpoint
from qconvert.engine.engine import Engine
from qconvert.engine.fingerprint import fingerprint
from qconvert.engine.journal import forms_of
from qconvert.engine.observe import held_rows
from qconvert.engine.parts import COLUMNS
from qconvert.engine.reach import MAX, RULES
from qconvert.engine.stream import compute_type
from qconvert.engine.work import open_or_create
from qconvert.formats.refusal import Reason, raise_if_any
from qconvert.formats.source import Source
from qconvert.formats.target import Plan
from qconvert.progress import BlockProgress
from qconvert.recipe import GLOBAL, Recipe, usual_scales


def setting_of(asked: Asked, threads: int) -> Setting:
    return Setting(asked.seed, threads, asked.effort)


def transformed(
    checkpoint: Checkpoint, recipe: Recipe, asked: Asked
) -> tuple[Source, tuple[str, ...]]:
    """The model with the global transforms of the recipe, read lazily, and notes; `Refused` with
    every reason why a transform does not suit it."""
    known = [transforms()[name] for name in recipe.transforms]
    raise_if_any([reason for one in known for reason in one.problems(checkpoint)])
    source: Source = checkpoint
    for one in known:
        source = one.source(source, setting_of(asked, 1))
    return source, tuple(note for one in known for note in one.notes(checkpoint))


def device_of(asked: Asked) -> torch.device:
    """`Refused` when it is not there."""
    if asked.device == "cuda" and not torch.cuda.is_available():
        raise_if_any([Reason("torch finds no CUDA device here", "use --device cpu")])
    return torch.device(asked.device)


def rule_of(asked: Asked, plan: Plan) -> str:
    """How fixed scales of activations are chosen; `Refused` where nobody knows it."""
    rule, known = asked.activation_scales or usual_scales(plan), (MAX, *RULES)
    if rule not in known:
        raise_if_any(
            [Reason(f"unknown --activation-scales {rule!r}", f"known: {', '.join(known)}")]
        )
    return rule


def _besides(plan: Plan, recipe: Recipe, asked: Asked) -> dict[str, Any]:
    """For the fingerprint, where results depend on it: which tensors have a scale in common, how
    activations are rounded, how their scales are chosen, and for what the output has a scale of
    each column."""
    scales = rule_of(asked, plan)
    columns = [one.column_scale for one in plan.tensors if one.column_scale]
    found: dict[str, Any] = {
        "shares": {one.name: list(one.shares) for one in plan.tensors if one.shares},
        "inputs": {
            one.name: asdict(one.input_rounding) for one in plan.tensors if one.input_rounding
        },
        "activation scales": scales if scales != MAX else "",
        COLUMNS: columns if set(recipe.transforms) - set(GLOBAL) else [],
    }
    return {name: told for name, told in found.items() if told}


def tokens_of(checkpoint: Checkpoint, asked: Asked) -> Calibration:
    """The rows of tokens that the user asked for."""
    wanted = Wanted(asked.calib, asked.calib_rows, asked.calib_length, asked.calib_chat, asked.seed)
    sampler = WholeModel(checkpoint.folder, checkpoint.config) if asked.calib == "self" else None
    return calibration(checkpoint.folder, checkpoint.config, wanted, sampler)


def calibrate(
    checkpoint: Checkpoint,
    source: Source,
    plan: Plan,
    recipe: Recipe,
    asked: Asked,
    folder: Path,
    threads: int,
    told: BlockProgress,
    *,
    waits: bool = False,
) -> Calibrated:
    """Finish the work folder of this conversion, from where it is. `source`: `transformed`.
    `waits`: what is not at work leaves the device for the processor."""
    recipe = recipe.at(asked.effort)
    device = device_of(asked)
    compute = compute_type(asked.compute, device)
    text = tokens_of(checkpoint, asked)
    setting = setting_of(asked, threads)
    found = fingerprint(
        checkpoint,
        forms_of(source, plan),
        {
            "steps": list(recipe.steps),
            "guarded": recipe.guarded,
            "mixed": recipe.mixed,
            "effort": asked.effort,
            "ends": "optimised",  # embedding and head: an older folder has them fitted without data
        },
        text.tokens,
        seed=asked.seed,
        device=asked.device,
        compute=str(compute).removeprefix("torch."),
        **_besides(plan, recipe, asked),
    )
    with open_or_create(folder, source, plan, found, text.tokens, resume=asked.resume) as work:
        engine = Engine(
            source, plan, recipe, setting, device, compute, text.tokens, work, told,
            rule_of(asked, plan), torch.device("cpu") if waits else None,
        )  # fmt: skip
        records, resumed = engine.run()
        outside = engine.outside
    rows, length = text.tokens.shape
    facts = CalibrationFacts(
        text.origin, text.digest, rows, length, len(held_rows(rows)), asked.calib_chat, text.notes
    )
    kept = folder if asked.keep_work else None
    return Calibrated(
        recipe.name, recipe.steps, facts, asked.seed, asked.effort, asked.device, records,
        resumed, kept, outside,
    )  # fmt: skip
