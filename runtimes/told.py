"""Does an output say of its model what the model's own files say?

Each reader tells what its file holds (`formats.told`); here the source's files are read in a plain
way of their own, with transformers' classes for what they leave unsaid, and the two are compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from qconvert.formats.refusal import Refused
from qconvert.formats.source import Source
from qconvert.formats.target import Reader
from qconvert.formats.told import Angles, Told
from qconvert.runtimes import told_model
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.told_chat import chat_findings
from qconvert.runtimes.told_copies import copy_findings
from qconvert.runtimes.told_files import ModelFiles
from qconvert.runtimes.told_model import Facts, alike, own_name, shown
from qconvert.runtimes.told_tokens import generation_findings, token_findings

CONTEXT = "max_position_embeddings"
TIED, HEADS = "tie_word_embeddings", ("lm_head", "output.")
CLOSE = 2e-5
"""Relative error of a frequency that float32 explains, in tables of cosines and in their making."""


def compare_told(reader: Reader, source: Source) -> list[Finding]:
    """What the output says otherwise than the source's own files, each once; empty for a reader
    that does not tell."""
    tell = getattr(reader, "told", None)
    if tell is None:
        return []
    told: Told = tell(source)
    files = ModelFiles(source.folder, source.config)
    found = _once([*_model(told, source), *_text(told, files)])
    return [one for one in found if one.culprit != TIED or not _has_own_head(reader, source)]


def _has_own_head(reader: Reader, source: Source) -> bool:
    """Whether the output holds a head that the model shares with its embedding, as after a
    rotation: then it must say so, and the head is compared as a tensor."""
    return source.tied and any(name.startswith(HEADS) for name in reader.tensors)


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    """One of each culprit, the first; "tokenizer" has as many as there are problems."""
    seen: set[tuple[str, str]] = set()
    for one in findings:
        key = (one.culprit, one.problem if one.culprit == "tokenizer" else "")
        if key not in seen:
            seen.add(key)
            yield one


def _model(told: Told, source: Source) -> Iterator[Finding]:
    try:
        config, facts, due = told_model.read(source.config)
    except Refused:
        return  # the source itself: said where it is opened as a model
    for name, held in told.model.items():
        if not _fits(name, held, facts, config, told.most):
            yield _otherwise(own_name(source.config, name), held, facts[name])
    held_angles = dict(told.angles)
    if told.config is not None:
        try:
            theirs, held_facts, held_angles = told_model.read(told.config)
        except Refused as refused:
            yield from _unread(told.config, source.config, refused)
            return
        yield from _whole(theirs, config, held_facts, facts)
        yield from _spelt(told.config, config, facts)
    thetas = _thetas(told, facts)
    yield from _angles(held_angles, due, source, facts.get("rope_theta"), thetas)
    yield from (Finding(one.stage, one.culprit, one.problem) for one in told.differs)


def _unread(config: Facts, ours: Facts, refused: Refused) -> Iterator[Finding]:
    """A configuration of which nothing can be made, by the keys that are not the model's."""
    keys = [key for key in ours if key in config and not alike(config[key], ours[key])]
    culprits = [key for key in keys if key not in told_model.LEFT_OUT or "rope" in key]
    problem = f"config.json: {refused.reasons[0].problem}"
    yield from (Finding("settings", key, problem) for key in culprits or ["config.json"])


def _fits(
    name: str, held: Any, facts: Mapping[str, Any], config: Any, most: Mapping[str, float]
) -> bool:
    if name not in facts:
        return True
    due = facts[name]
    if name in most and isinstance(due, int | float):
        due = min(due, most[name])
    if name == CONTEXT:
        return held == due or any(held == one for one in told_model.longest(config))
    return alike(held, due)


def _whole(theirs: Any, ours: Any, held: Mapping[str, Any], due: Mapping[str, Any]) -> Any:
    """A whole config.json, as transformers completes it, key by key."""
    for name in ("rope_theta", "rope_local_base_freq", "sliding_window", "layer_types"):
        if not alike(held.get(name), due.get(name)):
            yield _otherwise(name, held.get(name), due.get(name))
    found, wanted = told_model.settings_of(theirs), told_model.settings_of(ours)
    for key in told_model.differing(found, wanted):
        yield _otherwise(key, found.get(key), wanted.get(key))


def _spelt(config: Mapping[str, Any], ours: Any, due: Mapping[str, Any]) -> Iterator[Finding]:
    """Positions are told in up to three places, of which programs read the one or the other: each
    value that is there must be the model's."""
    for name in ("rope_theta", "rope_local_base_freq"):
        value = config.get(name)
        if value is not None and due.get(name) is not None and not alike(value, due[name]):
            yield _otherwise(name, value, due[name])
    full, local = told_model.rope_parameters(ours)
    for place in ("rope_parameters", "rope_scaling"):
        told = config.get(place)
        told = told if isinstance(told, Mapping) else {}
        kinds = {"full_attention": (full, "rope_theta"),
                 "sliding_attention": (local, "rope_local_base_freq")}  # fmt: skip
        if not kinds.keys() & told.keys():
            kinds, told = {"full_attention": kinds["full_attention"]}, {"full_attention": told}
        for kind, (wanted, base) in kinds.items():
            held = told.get(kind)
            held = held if isinstance(held, Mapping) else {}
            for key in sorted(held.keys() & wanted.keys()):
                if not alike(held[key], wanted[key]):
                    one = _otherwise(key, held[key], wanted[key])
                    yield replace(one, culprit=base if key == "rope_theta" else place)


def _otherwise(name: str, held: Any, due: Any) -> Finding:
    said = "not in the file" if held is None else f"{shown(held)} in the file"
    own = "not in the model" if due is None else f"{shown(due)} in the model"
    return Finding("settings", name, f"{name} is {said} and {own}")


def _thetas(told: Told, facts: Mapping[str, Any]) -> bool:
    """Whether the bases are the model's, as far as the file names them."""
    names = ("rope_theta", "rope_local_base_freq", "rotated")
    return all(alike(told.model[name], facts.get(name)) for name in names if name in told.model)


def _angles(
    held: Mapping[str, Angles],
    due: Mapping[str, Angles],
    source: Source,
    theta: Any,
    bases_right: bool,
) -> Iterator[Finding]:
    """Angles that differ, by the setting that they would come of."""
    if not bases_right:
        return  # named already
    scaled = [key for key in ("rope_scaling", "rope_parameters") if source.config.get(key)]
    for name, angles in held.items():
        wanted = [due[name]] if name in due else [one for key, one in due.items() if key != "long"]
        problems = [_turned(angles, one) for one in wanted]
        if not all(problems) or not problems:
            continue
        problem = problems[0]
        base = told_model.base_of(angles)
        if name == "sliding" and "sliding" in due:
            culprit = "rope_local_base_freq"
        elif base is not None and theta is not None and not alike(round(base / theta, 4), 1.0):
            culprit, problem = "rope_theta", f"the base is {base:.6g} in the file, and {theta:.6g}"
            problem += " in the model"
        else:
            culprit = scaled[0] if scaled else "rope_scaling"
        yield Finding("settings", culprit, f"rotary positions: {problem}")
        return


def _turned(held: Angles, due: Angles) -> str:
    one, other = held.frequencies, due.frequencies
    if one.shape != other.shape:
        return f"{2 * len(one)} values of a head are rotated, and {2 * len(other)} in the model"
    wrong = ~np.isclose(one, other, rtol=CLOSE, atol=0.0)
    if wrong.any():
        at = int(np.argmax(wrong))
        return (f"{int(wrong.sum())} of {len(one)} frequencies are not the model's: number {at} is"
                f" {one[at]:.6g}, and {other[at]:.6g} in the model")  # fmt: skip
    if not alike(round(held.scale, 6), round(due.scale, 6)):
        return f"cosines are multiplied by {held.scale:.6g}, and by {due.scale:.6g} in the model"
    return ""


def _text(told: Told, source: ModelFiles) -> Iterator[Finding]:
    yield from token_findings(told, source)
    yield from generation_findings(told, source)
    held = None
    if told.folder is not None:
        yield from copy_findings(told.copies, told.folder, source)
        held = ModelFiles(told.folder).templates
    yield from chat_findings(told, held, source)
