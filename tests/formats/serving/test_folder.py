"""Folders: written whole or not at all, read by safetensors itself and by our reader."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from qconvert.formats.floats import decode_floats, encode_floats
from qconvert.formats.refusal import Refused
from qconvert.formats.serving.container import Entry, FolderPlan, Linear, Told, containers
from qconvert.formats.serving.folder.reader import FolderReader, open_reader
from qconvert.formats.serving.folder.writer import open_folder, outputs, overhead
from qconvert.formats.serving.schemes import scheme_named
from qconvert.formats.target import OutputTensor, Plan, Statistic

MODULES = ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj")
ROLES = dict(zip(MODULES, ("attn_q", "ffn_down"), strict=True))
SHAPE = (24, 256)
FLOATS = {"model.embed_tokens": (50, 24), "model.norm": (24,), "lm_head": (50, 24)}
Make = Callable[..., Any]


def plan_of(
    container: str = "compressed-tensors", scheme: str = "w4a16-g32", kv: Any = "fp8", **more: Any
) -> Plan:
    """A model of two linears, an embedding, a norm and a head, with scales of a cache."""
    held, kind = containers()[container], scheme_named(scheme)
    tensors: list[OutputTensor] = []
    entries: dict[str, tuple[Entry, ...]] = {}
    linears: dict[str, Linear] = {}
    numbers: dict[str, tuple[str, ...]] = {}

    def add(tensor: OutputTensor, stored: tuple[Entry, ...]) -> None:
        tensors.append(tensor)
        entries[tensor.name] = stored

    def add_float(name: str, shape: tuple[int, ...]) -> None:
        entry = Entry(f"{name}.weight", "BF16", shape)
        add(OutputTensor(entry.name, shape, None, "BF16", entry.nbytes, None), (entry,))

    add_float("model.embed_tokens", FLOATS["model.embed_tokens"])
    for module in MODULES:
        name = f"{module}.weight"
        linears[name] = Linear(module, SHAPE, kind)
        stored = held.entries(linears[name], "BF16")
        joint = held.joint(linears[name])
        if joint is not None:
            numbers[name] = (name,)
            stored = (*stored, joint.entry)
        nbytes = sum(entry.nbytes for entry in stored)
        add(OutputTensor(name, SHAPE, kind.grid, kind.name, nbytes, None), stored)
        for one in held.inputs(linears[name], name):
            add(OutputTensor(one.entry.name, one.entry.shape, None, "F32", 4, None,
                             statistic=one.statistic), (one.entry,))  # fmt: skip
        columns = held.columns(linears[name], ROLES[module], "BF16")
        if columns is not None:
            add(OutputTensor(columns.name, columns.shape, None, "BF16", columns.nbytes, None,
                             column_scale=name), (columns,))  # fmt: skip
    attention = "model.layers.0.self_attn"
    scales = held.cache(f"{attention}.k_proj", f"{attention}.v_proj", ("k", "v"), kv)
    for one in scales:
        add(OutputTensor(one.entry.name, one.entry.shape, None, "F32", 4, None,
                         statistic=one.statistic), (one.entry,))  # fmt: skip
    add(
        OutputTensor("kept", (1,), None, "F32", 0, None, statistic=Statistic("key", "k", 448.0)), ()
    )
    add_float("model.norm", FLOATS["model.norm"])
    add_float("lm_head", FLOATS["lm_head"])
    config = held.config(Told(list(linears.values()), ["lm_head"], kv if scales else None))
    fields = {"model_type": "llama", "quantization_config": config.quantization}
    files = {"config.json": json.dumps(fields).encode(), **config.files}
    folder = FolderPlan(entries, linears, held, "BF16", files, {}, numbers, **more)
    return Plan("vllm", scheme, tuple(tensors), "out", details={"folder": folder})


def values_of(tensor: OutputTensor, make: Make) -> Any:
    """What is written as `tensor`."""
    rng = np.random.default_rng(len(tensor.name))
    if tensor.grid is not None:
        return make(scheme_named(tensor.dtype), tensor.shape, len(tensor.name))
    if tensor.statistic is not None:
        return np.full(tensor.shape, tensor.statistic.stored(3.0), np.float32)
    return rng.standard_normal(tensor.shape, dtype=np.float32)


def write(plan: Plan, path: Path, make: Make, rows: int = 7) -> Path:
    """All of `plan`, some rows at a time."""
    with open_folder(plan, path) as sink:
        for tensor in plan.tensors:
            found = values_of(tensor, make)
            if len(tensor.shape) < 2:
                sink.write(tensor, found)
                continue
            for start in range(0, tensor.shape[0], rows):
                part = slice(start, start + rows)
                sink.write(tensor, found[part] if tensor.grid is None else found.take_rows(part))
    return path


def write_rest(sink: Any, plan: Plan, make: Make) -> None:
    """All but the first tensor, whole."""
    for tensor in plan.tensors[1:]:
        sink.write(tensor, values_of(tensor, make))


FORMS = [
    ("compressed-tensors", "w4a16-g32"), ("compressed-tensors", "w4a16-g32-asym"),
    ("compressed-tensors", "w8a8-static"), ("compressed-tensors", "fp8-channel"),
    ("compressed-tensors", "nvfp4"), ("compressed-tensors", "mxfp4"), ("gptq", "w4a16-g32"),
    ("awq", "w4a16-g64-asym"), ("fp8", "fp8-block"), ("fp8", "fp8-tensor"), ("modelopt", "nvfp4"),
    ("modelopt", "fp8-channel"), ("modelopt", "w4a16-g128"), ("modelopt", "w4a8-fp8-g128"),
    ("modelopt", "w8a8-static"), ("modelopt", "w8a16-channel"), ("modelopt", "w4a16-channel"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "scheme"), FORMS)
def test_what_is_written_is_read(
    container: str, scheme: str, tmp_path: Path, make: Make, alike: Callable[..., bool]
) -> None:
    plan = plan_of(container, scheme)
    reader = open_reader(write(plan, tmp_path / "out", make))
    scaling = {
        one.column_scale: decode_floats(encode_floats(values_of(one, make), "BF16", ""), "BF16")
        for one in plan.tensors
        if one.column_scale
    }
    assert reader.column_scales.keys() == scaling.keys()
    assert all(np.array_equal(reader.column_scales[name], one) for name, one in scaling.items())
    for tensor in plan.tensors:
        expected = values_of(tensor, make)
        if tensor.grid is not None:
            assert alike(reader.codes(tensor.name), expected)
            columns = scaling.get(tensor.name)
            values = tensor.grid.decode(expected) * (1 if columns is None else columns)
            np.testing.assert_array_equal(reader.decode(tensor.name), values)
            found = reader.tensors[tensor.name]
            assert (found.shape, found.dtype) == (tensor.shape, scheme)
            extra = sum(4 for _ in reader.container.inputs(reader.linears[tensor.name], ""))
            assert found.nbytes == tensor.nbytes + extra + 512 * (columns is not None)
        elif tensor.statistic is None and not tensor.column_scale:
            stored = decode_floats(encode_floats(expected, "BF16", ""), "BF16")
            np.testing.assert_array_equal(reader.decode(tensor.name), stored)
    assert sum(one.nbytes for one in reader.tensors.values()) == sum(
        entry.nbytes for stored in plan.details["folder"].entries.values() for entry in stored
    )


@pytest.mark.parametrize(("container", "scheme"), FORMS)
def test_safetensors_reads_it(container: str, scheme: str, tmp_path: Path, make: Make) -> None:
    """Names, types and shapes are those planned; every tensor can be had by torch."""
    plan = plan_of(container, scheme)
    write(plan, tmp_path / "out", make)
    entries = [one for each in plan.details["folder"].entries.values() for one in each]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {entry.name for entry in entries}
        for entry in entries:
            found = file.get_slice(entry.name)
            assert (found.get_dtype(), tuple(found.get_shape())) == (entry.dtype, entry.shape)
            assert file.get_tensor(entry.name).nbytes == entry.nbytes
        embedding = file.get_tensor("model.embed_tokens.weight")
        expected = torch.from_numpy(values_of(plan.tensors[0], make)).bfloat16()
        assert torch.equal(embedding, expected)


def test_odd_sizes_stay_aligned(tmp_path: Path, make: Make) -> None:
    """torch cannot view a tensor that does not begin at a multiple of its element."""
    kind, held = scheme_named("fp8-channel"), containers()["compressed-tensors"]
    linear = Linear("m", (3, 5), kind)
    entries = held.entries(linear, "BF16")
    tensor = OutputTensor("m.weight", (3, 5), kind.grid, "fp8", 27, None)
    folder = FolderPlan({"m.weight": entries}, {"m.weight": linear}, held, "BF16", {}, {})
    plan = Plan("vllm", "fp8", (tensor,), "out", details={"folder": folder})
    expected = make(kind, (3, 5))
    with open_folder(plan, tmp_path / "out") as sink:
        sink.write(tensor, expected)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        weight, scale = (file.get_tensor(f"m.{part}") for part in ("weight", "weight_scale"))
        values = (weight.float() * scale).numpy()
    np.testing.assert_array_equal(values, kind.grid.decode(expected))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_plan_gives_the_same_bytes(tmp_path: Path, make: Make) -> None:
    a = write(plan_of(), tmp_path / "a", make, rows=1)
    b = write(plan_of(), tmp_path / "b", make, rows=24)
    assert contents(a) == contents(b)


@pytest.mark.parametrize("limit", [1, 4000, 9000, 10**9])
def test_shards(limit: int, tmp_path: Path, make: Make) -> None:
    """No file is larger than allowed, but for one tensor alone; all are found by the index."""
    plan = plan_of(split_bytes=limit)
    reader = open_reader(write(plan, tmp_path / "out", make))
    weights = sorted((tmp_path / "out").glob("*.safetensors"))
    index = tmp_path / "out" / "model.safetensors.index.json"
    assert index.exists() == (len(weights) > 1)
    if limit == 10**9:
        assert [one.name for one in weights] == ["model.safetensors"]
        return
    assert [one.name for one in weights] == [
        f"model-{number:05d}-of-{len(weights):05d}.safetensors"
        for number in range(1, len(weights) + 1)
    ]
    entries = plan.details["folder"].entries
    fields = json.loads(index.read_text("utf-8"))
    names = {entry.name for stored in entries.values() for entry in stored}
    assert set(fields["weight_map"]) == names
    held = {one.name: set(safe_open(one, "pt").keys()) for one in weights}
    assert all(name in held[shard] for name, shard in fields["weight_map"].items())
    assert sum(map(len, held.values())) == len(names)
    stored = sum(entry.nbytes for each in entries.values() for entry in each)
    assert fields["metadata"] == {"total_size": stored}
    for one in weights:
        of = {name for name, found in entries.items()
              if {entry.name for entry in found} & held[one.name]}  # fmt: skip
        assert one.stat().st_size <= limit or len(of) == 1
    for tensor in plan.tensors:
        if tensor.grid is not None:
            assert np.array_equal(reader.codes(tensor.name).codes, values_of(tensor, make).codes)


def test_sizes_are_known_before(tmp_path: Path, make: Make) -> None:
    copied = tmp_path / "tokenizer.json"
    copied.write_text("{}", "utf-8")
    for limit in (4000, 10**9):
        plan = plan_of(split_bytes=limit)
        folder = replace(plan.details["folder"], copies={"tokenizer.json": copied})
        plan = replace(plan, details={"folder": folder})
        plan = replace(plan, overhead_bytes=overhead(plan))
        path = write(plan, tmp_path / f"out-{limit}", make)
        assert sorted(outputs(plan, path)) == sorted(path.iterdir())
        assert sum(one.stat().st_size for one in path.iterdir()) == plan.nbytes


def test_files_are_made_of_measured_numbers(tmp_path: Path, make: Make) -> None:
    """Also of those that are stored nowhere else."""

    def made(numbers: Any) -> bytes:
        return json.dumps(dict(numbers)).encode()

    path = write(plan_of(made={"kv.json": made}), tmp_path / "out", make)
    numbers = json.loads((path / "kv.json").read_text("utf-8"))
    assert numbers["kept"] == pytest.approx(3 / 448)
    assert set(numbers) == {"kept", "model.layers.0.self_attn.k_scale",
                            "model.layers.0.self_attn.v_scale"}  # fmt: skip
    with safe_open(path / "model.safetensors", "pt") as file:
        assert "kept" not in file.keys()


def test_rounding_is_told(tmp_path: Path, make: Make) -> None:
    def reader(container: str, scheme: str) -> FolderReader:
        path = tmp_path / f"{container}-{scheme}"
        return open_reader(write(plan_of(container, scheme), path, make))

    name = f"{MODULES[0]}.weight"
    assert reader("compressed-tensors", "w4a16-g32").input_rounding == {}
    found = reader("compressed-tensors", "w8a8").input_rounding
    assert set(found) == {f"{module}.weight" for module in MODULES}
    assert (found[name].kind, found[name].per, found[name].scale) == ("int8", 0, None)
    static = reader("compressed-tensors", "w8a8-static").input_rounding[name]
    assert (static.kind, static.per, static.scale) == ("int8", -1, pytest.approx(3 / 127))
    block = reader("fp8", "fp8-block").input_rounding[name]
    assert (block.kind, block.per, block.scale) == ("fp8", 128, None)
    for container in ("compressed-tensors", "modelopt"):  # a divisor in one, its inverse in other
        found = reader(container, "nvfp4")
        fp4 = found.input_rounding[name]
        assert (fp4.kind, fp4.per, fp4.scale) == ("fp4", 16, pytest.approx(3 / 2688))
        cache = found.cache_rounding
        assert set(cache) == {0}
        assert (cache[0].key, cache[0].value) == (pytest.approx(3 / 448), pytest.approx(3 / 448))
        assert cache[0].kind == "fp8"
    assert reader("gptq", "w4a16-g32").cache_rounding == {}
    four = reader("modelopt", "w4a8-fp8-g128").input_rounding[name]
    assert (four.kind, four.per, four.scale) == ("fp8", -1, pytest.approx(3 / 448))
    static = reader("modelopt", "w8a8-static").input_rounding[name]
    assert (static.kind, static.per, static.scale) == ("int8", -1, pytest.approx(3 / 127))


def test_an_nvfp4_cache_is_told(tmp_path: Path, make: Make) -> None:
    reader = open_reader(write(plan_of("modelopt", "nvfp4", kv="nvfp4"), tmp_path / "out", make))
    assert reader.kv == "nvfp4"
    (found,) = reader.cache_rounding.values()
    assert (found.kind, found.key) == ("nvfp4", pytest.approx(3 / 448))


def test_column_scales_that_are_no_numbers_are_refused(tmp_path: Path, make: Make) -> None:
    path = write(plan_of("modelopt", "w4a16-g128"), tmp_path / "out", make)
    reader = open_reader(path)
    (name,) = reader.column_scales
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    with safe_open(file, "pt") as stored:
        scale = stored.get_tensor(name.replace("weight", "pre_quant_scale"))
    at = bytes(content).index(scale.view(torch.uint8).numpy().tobytes())
    content[at : at + 2] = b"\xc0\x7f"
    file.write_bytes(content)
    with pytest.raises(Refused, match="pre_quant_scale"):
        open_reader(path).decode(name)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_older_output_is_replaced_whole(tmp_path: Path, make: Make) -> None:
    path = write(plan_of(split_bytes=4000), tmp_path / "out", make)
    assert len(list(path.glob("*.safetensors"))) > 1
    write(plan_of("gptq"), path, make)
    assert left(path) == ["config.json", "model.safetensors"]
    assert left(tmp_path) == ["out"]


class Stop(Exception):
    pass


@pytest.mark.parametrize("older", [False, True])
def test_nothing_is_left_of_a_failure(older: bool, tmp_path: Path, make: Make) -> None:
    path, plan = tmp_path / "out", plan_of()
    if older:
        write(plan_of("gptq"), path, make)
    before = contents(path) if older else None

    def fail(error: type[BaseException]) -> None:
        with open_folder(plan, path) as sink:
            sink.write(plan.tensors[0], values_of(plan.tensors[0], make))
            raise error

    for error in (Stop, KeyboardInterrupt):
        with pytest.raises(error):
            fail(error)
        assert left(tmp_path) == (["out"] if older else [])
    with pytest.raises(ValueError, match="were not written"), open_folder(plan, path):
        pass
    assert left(tmp_path) == (["out"] if older else [])
    assert not older or contents(path) == before


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a full disk: writing on fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [100, 5000])
def test_a_full_disk_leaves_nothing(size: int, tmp_path: Path, make: Make) -> None:
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = write(plan_of("gptq"), tmp_path / "out", make)
    kept = contents(path)
    try:
        with files_of_at_most(size), pytest.raises(OSError, match="too large"):
            write(plan_of(), path, make)
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert left(tmp_path) == ["out"]
    assert contents(path) == kept


def test_a_rename_that_fails_keeps_the_older(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(plan_of("gptq"), tmp_path / "out", make)
    kept = contents(path)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self.name.endswith(".part"):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="no"):
        write(plan_of(), path, make)
    assert left(tmp_path) == ["out"]
    assert contents(path) == kept


def test_other_things_are_never_replaced(tmp_path: Path, make: Make) -> None:
    """A folder that is no output, one with folders in it, a file, the model itself."""
    notes, nested, file = tmp_path / "notes", tmp_path / "nested", tmp_path / "file"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work", "utf-8")
    (nested / "inner").mkdir(parents=True)
    (nested / "config.json").write_text("{}", "utf-8")
    file.write_text("x", "utf-8")
    source = tmp_path / "model"
    source.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (source / name).write_text("{}", "utf-8")
    plan = plan_of()
    folder = replace(plan.details["folder"], copies={"tokenizer.json": source / "tokenizer.json"})
    plan = replace(plan, details={"folder": folder})
    for path in (notes, nested, file, source):
        with pytest.raises(Refused):
            write(plan, path, make)
    assert left(tmp_path) == ["file", "model", "nested", "notes"]
    assert (notes / "thesis.txt").read_text("utf-8") == "years of work"
    (empty := tmp_path / "empty").mkdir()
    write(plan, empty, make)
    assert "tokenizer.json" in left(empty)


def test_writing_out_of_order_is_an_error(tmp_path: Path, make: Make) -> None:
    plan = plan_of()
    first, linear = plan.tensors[0], plan.tensors[1]
    with pytest.raises(ValueError, match="is due"), open_folder(plan, tmp_path / "a") as sink:
        sink.write(linear, values_of(linear, make))
    with pytest.raises(ValueError, match="rows"), open_folder(plan, tmp_path / "b") as sink:
        sink.write(first, np.zeros((51, 24), np.float32))
    with open_folder(plan, tmp_path / "c") as sink:
        sink.write(first, values_of(first, make))
        with pytest.raises(ValueError, match="wants codes"):
            sink.write(linear, np.zeros(SHAPE, np.float32))
        write_rest(sink, plan, make)


def test_a_float_that_does_not_fit_is_refused(tmp_path: Path, make: Make) -> None:
    plan = plan_of()
    too_large = np.full(plan.tensors[0].shape, np.inf, np.float32)
    with pytest.raises(Refused, match="embed_tokens"), open_folder(plan, tmp_path / "a") as sink:
        sink.write(plan.tensors[0], too_large)
    assert left(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 7, 100, -1, -1000])
def test_a_truncated_file_is_named(keep: int, tmp_path: Path, make: Make) -> None:
    path = write(plan_of(), tmp_path / "out", make)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(Refused, match=r"model\.safetensors"):
        open_reader(path)


def test_missing_and_contradicting_files_are_named(tmp_path: Path, make: Make) -> None:
    path = write(plan_of(split_bytes=4000), tmp_path / "out", make)
    shard = sorted(path.glob("*.safetensors"))[1]
    kept = shard.read_bytes()
    shard.unlink()
    with pytest.raises(Refused, match=shard.name):
        open_reader(path)
    shard.write_bytes(kept)
    config = json.loads((path / "config.json").read_text("utf-8"))
    config["quantization_config"]["ignore"] = []  # the head would be taken for a quantized linear
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    reader = open_reader(path)  # read as it is stored, and told of
    assert "lm_head" not in reader.linears
    assert "lm_head is stored in float" in reader.contradictions[0].problem
    config["quantization_config"] = {"quant_method": "unheard-of"}
    (path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(Refused, match="unheard-of"):
        open_reader(path)
    (path / "config.json").write_text("{", "utf-8")
    with pytest.raises(Refused, match=r"config\.json"):
        open_reader(path)
    with pytest.raises(Refused, match="no such folder"):
        open_reader(tmp_path / "nowhere")


@pytest.mark.parametrize("container", sorted(containers()))
def test_random_damage_is_refused_or_read(container: str, tmp_path: Path, make: Make) -> None:
    """No bit flipped in a header makes anything but a refusal, or a folder that can be read."""
    scheme = {"awq": "w4a16-g64-asym", "fp8": "fp8-block", "modelopt": "nvfp4"}.get(
        container, "w4a16-g32"
    )
    path = write(plan_of(container, scheme), tmp_path / "out", make)
    file = path / "model.safetensors"
    good = file.read_bytes()
    size = 8 + int.from_bytes(good[:8], "little")
    rng = np.random.default_rng(0)
    for place in rng.integers(0, size, 150):
        bad = bytearray(good)
        bad[place] ^= 1 << int(rng.integers(0, 8))
        file.write_bytes(bytes(bad))
        try:
            reader = open_reader(path)
        except Refused:
            continue
        for name in reader.linears:
            reader.decode(name)
