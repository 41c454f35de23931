"""What configurations say is what the tensors are, for the names that loaders ask with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.formats.refusal import Refused
from qconvert.formats.serving.container import Entry, Linear, Told, containers
from qconvert.formats.serving.scheme import Scheme
from qconvert.formats.serving.schemes import scheme_named

PARTS = {
    "self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
ROLES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_o",
    "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip
MODULES = [f"model.layers.{layer}.{part}.{name}"
           for layer in range(12) for part, names in PARTS.items() for name in names]  # fmt: skip
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
NOWHERE = Path("nowhere")
SHAPE = (256, 256)


def told(main: str, *others: tuple[str, str | None], kv: str | None = None) -> Told:
    """All linears of `main`, but those that a pattern names: another scheme, or None for float."""
    linears, floats = [], []
    for module in MODULES:
        name = next((name for pattern, name in others if re.search(pattern, module)), main)
        if name is None:
            floats.append(module)
        else:
            linears.append(Linear(module, SHAPE, scheme_named(name)))
    return Told(linears, (*floats, "lm_head"), kv, "LlamaForCausalLM")


def quantization(container: str, what: Told) -> dict[str, Any]:
    """As a loader finds it: through JSON."""
    fields = containers()[container].config(what).quantization
    assert fields is not None
    return json.loads(json.dumps(fields))


def asked_for(what: Told) -> dict[str, Scheme | None]:
    """Every name that vLLM asks with, joined ones instead of their parts -> scheme, None: float."""
    schemes: dict[str, Scheme | None] = {one.module: one.scheme for one in what.linears}
    schemes |= dict.fromkeys(what.floats)
    found = {}
    for module, scheme in schemes.items():
        parent, _, last = module.rpartition(".")
        joined = next((name for name, parts in JOINED.items() if last in parts), last)
        found[f"{parent}.{joined}" if parent else joined] = scheme
    return found


def parts_of(name: str) -> list[str]:
    parent, _, last = name.rpartition(".")
    return [f"{parent}.{part}" for part in JOINED.get(last, ())]


# How loaders match, written down from vLLM 0.32 (`compressed_tensors/utils.py`,
# `utils/gptq_utils.py`, `utils/quant_utils.py: is_layer_skipped`, `modelopt.py`) and from older
# readers of the same files.


def listed(name: str, names: list[str]) -> bool:
    """Itself or a pattern that fits it, else all parts of a joined linear; never some of them."""

    def fits(one: str) -> bool:
        return any(
            re.match(entry[3:], one) is not None if entry.startswith("re:") else entry == one
            for entry in names
        )

    parts = [fits(part) for part in parts_of(name)]
    assert fits(name) or all(parts) or not any(parts), f"{name} in part"
    return fits(name) or (bool(parts) and all(parts))


def group_in_compressed_tensors(config: Mapping[str, Any], name: str, *, old: bool) -> Any:
    if listed(name, config["ignore"]):
        return None
    groups = list(config["config_groups"].values())
    by_class = next((group for group in groups if "Linear" in group["targets"]), None)
    by_class = None if name == "lm_head" else by_class

    def with_patterns(only: bool) -> Any:
        for group in groups:
            targets = [one for one in group["targets"] if one != "Linear"]
            if any(
                re.match(one.removeprefix("re:"), name) if one.startswith("re:") else one == name
                for one in targets
            ) or (not only and listed(name, targets)):
                return group
        return None

    if old:  # class names before parts
        return with_patterns(only=True) or by_class or with_patterns(only=False)
    return with_patterns(only=False) or by_class


def rule_in_gptq(config: Mapping[str, Any], name: str) -> dict[str, int] | None:
    base = {key: config[key] for key in ("bits", "group_size")}
    if name == "lm_head" and not config["lm_head"]:
        return None
    for pattern, changed in config["dynamic"].items():
        if pattern.startswith("-:") and re.match(pattern[2:], name):
            return None
        if not pattern.startswith("-:") and re.match(pattern.removeprefix("+:"), name):
            return {**base, **changed}
    return base


MIXES: list[tuple[tuple[str, str | None], ...]] = [
    (),
    ((r"\.1\.self_attn\.", None),),
    ((r"down_proj", None), (r"\.1[01]\.mlp\.", None)),
    ((r"\.self_attn\.[qkv]_proj", None),),
]


@pytest.mark.parametrize("others", MIXES)
def test_floats_are_told_both_ways(case: Any, others: Any) -> None:
    """Every linear that stays float is told of, and nothing else (traps 2, 13)."""
    what = told(case.scheme.name, *others)
    config = quantization(case.container.name, what)
    keys = {"compressed-tensors": ["ignore"], "awq": ["modules_to_not_convert"],
            "fp8": ["ignored_layers", "modules_to_not_convert"], "modelopt": ["ignore"],
            "gptq": []}[case.container.name]  # fmt: skip
    for key in keys:
        assert config[key] == list(what.floats)
        assert all(isinstance(name, str) for name in config[key])
    rules = [pattern for pattern in config.get("dynamic", ()) if pattern.startswith("-:")]
    if case.container.name == "gptq":
        known = [*MODULES, "lm_head"]
        named = {one for rule in rules for one in known if re.match(rule[2:], one)}
        assert named == set(what.floats)
        assert all(any(re.match(rule[2:], one) for one in known) for rule in rules)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    "others",
    [*MIXES, ((r"down_proj", "w8a8"), (r"\.3\.self_attn\.[qkv]", "w4a16-g32"), (r"\.0\.mlp", None)),
     ((r"\.(2|11)\.", "fp8-channel"),)],
)  # fmt: skip
def test_compressed_tensors_for_joined_names(others: Any, old: bool) -> None:
    what = told("w4a16-g64", *others)
    config = quantization("compressed-tensors", what)
    for name, scheme in asked_for(what).items():
        group = group_in_compressed_tensors(config, name, old=old)
        if scheme is None:
            assert group is None, name
        else:
            weights = group["weights"]
            assert weights["num_bits"] == scheme.bits, name
            assert (weights["group_size"] or 0) == scheme.group, name
            assert (group["input_activations"] is None) == (scheme.activations is None)
    targets = [one for group in config["config_groups"].values() for one in group["targets"]]
    for target in targets:
        assert target == "Linear" or any(re.match(target[3:], one) for one in MODULES), target


@pytest.mark.parametrize(
    "others",
    [*MIXES, ((r"down_proj", "w8a16-g64"), (r"\.3\.self_attn\.[qkv]", "w4a16-g32")),
     ((r"\.1\.", "w4a16-channel"), (r"\.1[01]\.mlp", None))],
)  # fmt: skip
def test_gptq_for_joined_and_single_names(others: Any) -> None:
    what = told("w4a16-g64", *others)
    config = quantization("gptq", what)
    single = {one.module: one.scheme for one in what.linears} | dict.fromkeys(what.floats)
    for name, scheme in (asked_for(what) | single).items():
        rule = rule_in_gptq(config, name)
        if scheme is None:
            assert rule is None, name
        else:
            assert rule == {"bits": scheme.bits, "group_size": scheme.group or -1}, name


@pytest.mark.parametrize("container", ["awq", "fp8", "modelopt"])
@pytest.mark.parametrize("others", MIXES)
def test_lists_for_joined_names(container: str, others: Any) -> None:
    """Names inside names (awq, modelopt) and patterns (modelopt) find the same linears."""
    scheme = {"awq": "w4a16-g64-asym", "fp8": "fp8-block", "modelopt": "nvfp4"}[container]
    what = told(scheme, *others)
    config = quantization(container, what)
    kept = config[
        {"awq": "modules_to_not_convert", "fp8": "ignored_layers"}.get(container, "ignore")
    ]
    for name, wanted in asked_for(what).items():
        each = parts_of(name) or [name]
        exact = [one in kept for one in each]
        inside = [any(entry in one or fnmatch(one, entry) for entry in kept) for one in each]
        assert exact == inside == [wanted is None] * len(each), name


def test_modelopt_is_told_of_twice_alike() -> None:
    what = told("fp8-channel", (r"down_proj", "nvfp4"), (r"\.2\.mlp", None), kv="fp8")
    config = containers()["modelopt"].config(what)
    flat = config.quantization
    assert flat is not None
    assert list(config.files) == ["hf_quant_config.json"]
    nested = json.loads(config.files["hf_quant_config.json"])["quantization"]
    assert flat["quant_algo"] == nested["quant_algo"] == "MIXED_PRECISION"
    assert flat["ignore"] == nested["exclude_modules"] == list(what.floats)
    assert flat["quantized_layers"] == nested["quantized_layers"]
    assert set(flat["quantized_layers"]) == {one.module for one in what.linears}
    assert nested["kv_cache_quant_algo"] == "FP8"
    assert flat["kv_cache_scheme"] == {"num_bits": 8, "type": "float", "dynamic": False}


def test_modelopt_names_blocks_as_each_loader_does() -> None:
    """TensorRT-LLM takes the name of a layer's algorithm as it is, vLLM knows ModelOpt's."""
    whole = containers()["modelopt"].config(told("fp8-block"))
    assert whole.quantization is not None
    assert whole.quantization["quant_algo"] == "fp8_pb_wo"
    mixed = containers()["modelopt"].config(told("fp8-block", (r"down_proj", "w4a16-g128")))
    nested = json.loads(mixed.files["hf_quant_config.json"])["quantization"]["quantized_layers"]
    assert mixed.quantization is not None
    flat = mixed.quantization["quantized_layers"]
    first, awq = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
    assert nested[first] == {"quant_algo": "FP8_BLOCK_SCALES", "group_size": 128}
    assert flat[first] == {"quant_algo": "fp8_pb_wo"}
    said = {"quant_algo": "W4A16_AWQ", "group_size": 128, "has_zero_point": False,
            "pre_quant_scale": True}  # fmt: skip
    assert nested[awq] == flat[awq] == said


THEIRS = {
    "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG": ("fp8-block", None),
    "FP8_DEFAULT_CFG-FP8_KV_CFG": ("fp8-tensor", "fp8"),
    "FP8_PER_CHANNEL_PER_TOKEN_CFG": ("fp8-channel", None),
    "INT4_AWQ_CFG": ("w4a16-g128", None),
    "INT4_BLOCKWISE_WEIGHT_ONLY_CFG": ("w4a16-g128", None),
    "INT8_SMOOTHQUANT_CFG": ("w8a8-static", None),
    "INT8_WEIGHT_ONLY_CFG": ("w8a16-channel", None),
    "NVFP4_DEFAULT_CFG-FP8_KV_CFG": ("nvfp4", "fp8"),
    "W4A8_AWQ_BETA_CFG": ("w4a8-fp8-g128", None),
}


@pytest.mark.parametrize("name", THEIRS)
def test_modelopt_configurations_are_nvidias(name: str) -> None:
    """Key by key those of nvidia-modelopt 0.47.0; but config.json also says the group, without
    which TensorRT-LLM cannot load integers from it."""
    path = Path(__file__).parents[2] / "data" / "modelopt" / "configurations.json"
    theirs = json.loads(path.read_text("utf-8"))[name]
    scheme, kv = THEIRS[name]
    what = told(scheme, kv=kv)
    names = {"model.embed_tokens": "embedding", "model.norm": "final_norm"}
    ours = containers()["modelopt"].config(replace(what, names=names))
    nested = json.loads(ours.files["hf_quant_config.json"])
    assert nested["quantization"] == theirs["hf_quant_config"]["quantization"]
    assert nested["producer"]["name"] == "qconvert"
    assert ours.quantization is not None
    group = scheme_named(scheme).group
    sized = {} if scheme == "fp8-block" or not group else {"group_size": group}
    known = {**theirs["quantization_config"], **sized, "producer": nested["producer"]}
    assert ours.quantization == known


def test_modelopt_nvfp4_caches() -> None:
    found = containers()["modelopt"].config(told("nvfp4", kv="nvfp4"))
    nested = json.loads(found.files["hf_quant_config.json"])["quantization"]
    assert found.quantization is not None
    assert (nested["kv_cache_quant_algo"], found.quantization["kv_cache_scheme"]) == (
        "NVFP4", "NVFP4",
    )  # fmt: skip
    config = {"quantization_config": found.quantization}
    assert containers()["modelopt"].kv(config, NOWHERE) == "nvfp4"
    scales = containers()["modelopt"].cache("k", "v", ("k", "v"), "nvfp4")
    assert [float(one.statistic.stored(448.0)) for one in scales] == [1, 1]
    config["quantization_config"] = {**found.quantization, "kv_cache_scheme": "INT8"}
    with pytest.raises(Refused, match="INT8"):
        containers()["modelopt"].kv(config, NOWHERE)


@pytest.mark.parametrize("largest", [0.0023, 0.875, 7 / 8, 0.8750001, 56.0, 3.0, 0.0])
def test_modelopt_scale_that_fused_linears_share(largest: float) -> None:
    """The smallest power of two with which codes of -8 stay within 448."""
    linear = Linear("m", SHAPE, scheme_named("w4a8-fp8-g128"))
    joint = containers()["modelopt"].joint(linear)
    assert joint is not None
    assert joint.entry == Entry("m.weight_scale_2", "F32", ())
    found = float(joint.stored(largest))
    if not largest:
        assert found == 1
        return
    assert 2.0 ** round(np.log2(found)) == found
    assert 224 < 8 * largest / found <= 448
    assert containers()["modelopt"].joint(Linear("m", SHAPE, scheme_named("w4a16-g128"))) is None


@pytest.mark.parametrize("scheme", ["w4a16-g128", "w4a16-g64", "w4a8-fp8-g128"])
def test_modelopt_column_scales(scheme: str, tmp_path: Path) -> None:
    """Of o_proj and down_proj, where TensorRT-LLM fails without; of no other, where it drops it."""
    held, what = containers()["modelopt"], told(scheme)
    config = {"quantization_config": quantization("modelopt", what)}
    stored = headers("modelopt", what)
    having = {name.rpartition(".")[0] for name in stored if name.endswith(".pre_quant_scale")}
    assert having == {one for one in MODULES if one.endswith(("o_proj", "down_proj"))}
    for name in sorted(having)[:2]:
        part = f"{name}.pre_quant_scale"
        assert stored[part] == Entry(part, "BF16", (256,))
        with pytest.raises(Refused, match=re.escape(part)) as refused:
            held.linears(config, changed(stored, **{part: None}), tmp_path)
        assert "ones" in refused.value.reasons[0].remedy
        with pytest.raises(Refused, match=re.escape(part)):
            held.linears(config, changed(stored, **{part: Entry(part, "BF16", (128,))}), tmp_path)
    extra = "model.layers.0.self_attn.q_proj.pre_quant_scale"
    with pytest.raises(Refused, match=re.escape(extra)):
        held.linears(config, changed(stored, **{extra: Entry(extra, "BF16", (256,))}), tmp_path)


def test_smoothquant_has_column_scales_everywhere() -> None:
    stored = headers("modelopt", told("w8a8-static"))
    assert {f"{one}.pre_quant_scale" for one in MODULES} <= stored.keys()
    assert {f"{one}.input_scale" for one in MODULES} <= stored.keys()


@pytest.mark.parametrize("part", ["weight_scale_2", "input_scale"])
def test_modelopt_w4a8_needs_its_numbers(part: str, tmp_path: Path) -> None:
    held, what = containers()["modelopt"], told("w4a8-fp8-g128")
    config = {"quantization_config": quantization("modelopt", what)}
    name = f"model.layers.3.self_attn.k_proj.{part}"
    stored = changed(headers("modelopt", what), **{name: None})
    with pytest.raises(Refused, match=re.escape(name)):
        held.linears(config, stored, tmp_path)


def test_modelopt_nvfp4_has_what_loaders_require() -> None:
    config = containers()["modelopt"].config(told("nvfp4"))
    nested = json.loads(config.files["hf_quant_config.json"])["quantization"]
    assert nested["group_size"] == 16
    assert {"kv_cache_quant_algo", "exclude_modules"} <= nested.keys()


@pytest.mark.parametrize(
    ("container", "what", "match"),
    [
        ("awq", told("w4a16-g64", ("down_proj", "w4a16-g32")), "one scheme"),
        ("fp8", told("fp8-block", ("down_proj", "fp8-tensor")), "one scheme"),
        ("gptq", told("w4a16-g64", kv="fp8"), "KV cache"),
        ("awq", told("w4a16-g64", kv="fp8"), "KV cache"),
        ("modelopt", Told([Linear("a.b.proj2", SHAPE, scheme_named("nvfp4"))], ["a.b.proj"]),
         "would keep a.b.proj2"),
        ("awq", Told([Linear("x.head_proj", SHAPE, scheme_named("w4a16-g64"))], ["head"]),
         "would keep x.head_proj"),
    ],
)  # fmt: skip
def test_what_it_cannot_hold_together_is_refused(container: str, what: Told, match: str) -> None:
    with pytest.raises(Refused, match=match) as refused:
        containers()[container].config(what)
    assert all(reason.remedy for reason in refused.value.reasons)


@pytest.mark.parametrize(
    ("container", "scheme", "match"),
    [("gptq", "w4a16-g128-asym", "zero points"), ("gptq", "w8a8", "activations"),
     ("awq", "w8a16-g128", "4 bits"), ("awq", "fp8-channel", "4 bits"),
     ("fp8", "fp8-channel", "blocks"),
     ("fp8", "w4a16-g128", "blocks"), ("modelopt", "w8a8", "NVFP4"),
     ("modelopt", "mxfp4", "NVFP4")],
)  # fmt: skip
def test_problems_say_what_works(container: str, scheme: str, match: str) -> None:
    (reason,) = containers()[container].problems(scheme_named(scheme))
    assert match in reason.problem
    assert "--" in reason.remedy


def test_measured_numbers() -> None:
    """Names, shapes and formulas: 448 and 127 divide, 2688 is divided in compressed-tensors."""

    def found(container: str, scheme: str) -> Any:
        one = Linear("m", SHAPE, scheme_named(scheme))
        return [(each.entry.name, each.entry.shape, float(each.statistic.stored(2.0)))
                for each in containers()[container].inputs(one, "m.weight")]  # fmt: skip

    assert found("compressed-tensors", "w8a8") == []
    assert found("compressed-tensors", "w8a8-static") == [
        ("m.input_scale", (1,), pytest.approx(2 / 127))
    ]
    assert found("compressed-tensors", "fp8-tensor") == [
        ("m.input_scale", (1,), pytest.approx(2 / 448))
    ]
    assert found("compressed-tensors", "nvfp4") == [("m.input_global_scale", (1,), 1344.0)]
    assert found("compressed-tensors", "nvfp4a16") == []
    assert found("fp8", "fp8-tensor") == [("m.input_scale", (), pytest.approx(2 / 448))]
    assert found("modelopt", "nvfp4") == [("m.input_scale", (), pytest.approx(2 / 2688))]
    for container, names, shape in (
        ("compressed-tensors", ["a.self_attn.k_scale", "a.self_attn.v_scale"], (1,)),
        ("modelopt", ["a.self_attn.k_proj.k_scale", "a.self_attn.v_proj.v_scale"], ()),
        ("gptq", [], ()),
    ):
        modules = ("a.self_attn.k_proj", "a.self_attn.v_proj")
        scales = containers()[container].cache(*modules, ("k", "v"), "fp8")
        assert [one.entry.name for one in scales] == names
        assert {one.entry.shape for one in scales} <= {shape}
        assert [one.statistic.kind for one in scales] == ["key", "value"][: len(names)]
        assert all(float(one.statistic.stored(448.0)) == 1 for one in scales)


def headers(container: str, what: Told) -> dict[str, Entry]:
    """The headers of a folder of `what`."""
    held = containers()[container]
    entries = [entry for one in what.linears for entry in held.entries(one, "BF16")]
    entries += [each.entry for one in what.linears for each in held.inputs(one, "")]
    for one in what.linears:
        role = ROLES[one.module.rpartition(".")[2]]
        joint, columns = held.joint(one), held.columns(one, role, "BF16")
        entries += [each for each in (columns, joint and joint.entry) if each is not None]
    entries += [Entry(f"{name}.weight", "BF16", SHAPE) for name in what.floats]
    entries += [Entry("model.embed_tokens.weight", "BF16", SHAPE),
                Entry("model.norm.weight", "BF16", (256,)),
                Entry("model.layers.0.self_attn.q_proj.bias", "BF16", (256,))]  # fmt: skip
    return {entry.name: entry for entry in entries}


def test_linears_are_found_again(case: Any, tmp_path: Path) -> None:
    what = told(case.scheme.name, (r"\.1\.self_attn\.", None))
    config = {"quantization_config": quantization(case.container.name, what)}
    others = [one for one in containers().values() if one.recognises(config, tmp_path)]
    assert others == [case.container]
    found = case.container.linears(config, headers(case.container.name, what), tmp_path)
    if case.container.name == "awq" and case.scheme.symmetric:  # zero points of 8 are stored
        found = [Linear(one.module, one.shape, case.scheme) for one in found
                 if one.scheme.name == f"{case.scheme.name}-asym"]  # fmt: skip
    assert list(found) == list(what.linears)


@pytest.mark.parametrize(
    ("container", "main", "other"),
    [("compressed-tensors", "w4a16-g64", "w8a16-g32"), ("gptq", "w4a16-g64", "w8a16-g32"),
     ("modelopt", "fp8-channel", "nvfp4"), ("modelopt", "fp8-block", "w4a16-g64"),
     ("modelopt", "w4a16-g128", "w8a16-channel"), ("modelopt", "w4a8-fp8-g128", "fp8-tensor"),
     ("modelopt", "w4a16-channel", "w4a16-g64")],
)  # fmt: skip
@pytest.mark.parametrize("both", [True, False])
def test_mixes_are_found_again(
    container: str, main: str, other: str, both: bool, tmp_path: Path
) -> None:
    """`both`: also from the files beside config.json, which say it again."""
    what = told(main, ("down_proj", other), (r"\.1\.mlp", None))
    config = containers()[container].config(what)
    for name, content in config.files.items() if both else ():
        (tmp_path / name).write_bytes(content)
    fields = {"quantization_config": config.quantization}
    found = containers()[container].linears(fields, headers(container, what), tmp_path)
    assert list(found) == list(what.linears)


def changed(stored: dict[str, Entry], **entries: Entry | None) -> dict[str, Entry]:
    return {name: entry for name, entry in (stored | entries).items() if entry is not None}


@pytest.mark.parametrize("container", sorted(containers()))
def test_contradictions_are_refused(container: str, tmp_path: Path) -> None:
    scheme = {"awq": "w4a16-g64-asym", "fp8": "fp8-block", "modelopt": "nvfp4"}.get(
        container, "w4a16-g64"
    )
    held, what = containers()[container], told(scheme, (r"\.1\.mlp", None))
    config = {"quantization_config": quantization(container, what)}
    stored, first = headers(container, what), what.linears[0]
    names = [entry.name for entry in held.entries(first, "BF16")]
    assert held.linears(config, stored, tmp_path)
    kept = what.floats[0]
    stray = f"{first.module}.weight_g_idx"
    wrong = [
        (changed(stored, **{names[1]: None}), names[1]),  # a scale is missing
        (changed(stored, **{names[1]: Entry(names[1], "I64", stored[names[1]].shape)}), names[1]),
        (changed(stored, **{stray: Entry(stray, "I32", (256,))}), stray),  # trap 15
        (changed(stored, **{f"{kept}.weight": None, **{
            entry.name: entry for entry in held.entries(Linear(kept, SHAPE, first.scheme), "BF16")
        }}), kept),  # quantized, though it is to stay float
        (changed(stored, **{**dict.fromkeys(names), f"{first.module}.weight":
                            Entry(f"{first.module}.weight", "BF16", SHAPE)}), first.module),
    ]  # fmt: skip
    if container != "gptq":  # its rules are patterns
        wrong.append((changed(stored, **{f"{kept}.weight": None}), kept))
    for entries, name in wrong:
        with pytest.raises(Refused, match=re.escape(name)):
            held.linears(config, entries, tmp_path)


def test_a_tied_head_needs_no_tensor() -> None:
    held, what = containers()["compressed-tensors"], told("w4a16-g64")
    stored = changed(headers("compressed-tensors", what), **{"lm_head.weight": None})
    config = {"quantization_config": quantization("compressed-tensors", what)}
    assert held.linears({**config, "tie_word_embeddings": True}, stored, NOWHERE)
    with pytest.raises(Refused, match="lm_head"):
        held.linears(config, stored, NOWHERE)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"quant_method": "gptq", "bits": 3, "group_size": 128, "sym": True}, "3 bits"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}, "desc_act"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False}, "holds no"),
        ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, "gemv"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "64"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "no group_size"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 32}, "holds no"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ", "group_size": 128,
          "has_zero_point": True}, "zero points"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_MXFP4_FP8"}, "W4A8_MXFP4_FP8"),
        ({"quant_method": "compressed-tensors", "format": "marlin-24",
          "config_groups": {"g": {"targets": ["Linear"], "weights": {}}}}, "marlin-24"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {
            "g": {"targets": ["Linear"],
                  "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                  "input_activations": {"num_bits": 8, "type": "float", "dynamic": False}}}},
         "strategy 'channel'"),
    ],
)  # fmt: skip
def test_unknown_forms_are_refused(fields: dict[str, Any], match: str) -> None:
    config = {"quantization_config": fields}
    stored = headers("gptq", told("w4a16-g64"))

    def read() -> None:
        for held in containers().values():
            if held.recognises(config, NOWHERE):
                held.linears(config, stored, NOWHERE)

    with pytest.raises(Refused, match=match):
        read()
