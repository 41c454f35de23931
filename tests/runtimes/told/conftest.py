"""Outputs of a model that says much of itself, and ways of damaging what they say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import pytest

from qconvert.asked import Asked
from qconvert.checkpoint import open_checkpoint
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes.findings import Finding
from qconvert.runtimes.told import compare_told

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128, "rope_theta": 500000.0,
}  # fmt: skip
GENERATION = {
    "bos_token_id": 1, "eos_token_id": [2, 4], "pad_token_id": 0, "do_sample": True,
    "temperature": 0.6, "top_p": 0.9,
}  # fmt: skip
OUTPUTS = ("gguf", "vllm", "trtllm", "onnx", "mlc")


def edit(path: Path, fields: dict[str, Any]) -> None:
    """Set keys of a JSON file; dots lead into objects, None takes a key away."""
    content = json.loads(path.read_text("utf-8"))
    for name, value in fields.items():
        *parents, last = name.split(".")
        inner = content
        for parent in parents:
            inner = inner[parent]
        if value is None:
            inner.pop(last)
        else:
            inner[last] = value
    path.write_text(json.dumps(content), "utf-8")


def rewritten(path: Path, keys: dict[str, Any]) -> Path:
    """The GGUF file with other values under some keys; None takes one away."""
    wanted, reader = dict(keys), gguf.GGUFReader(path)
    out = path.with_name(f"{path.stem}-{len(list(path.parent.iterdir()))}.gguf")
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = wanted.pop(name, field.contents())
        if value is not None:
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, value, kind, sub_type=sub)
    assert not wanted, f"no such keys: {list(wanted)}"
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def found(path: Path, target: str, model: Path) -> list[Finding]:
    return compare_told(target_named(target).reader(path), open_checkpoint(model))


@dataclass(frozen=True)
class Bench:
    """Good outputs of `model`, copies of them to damage, and what is found in those."""

    model: Path
    good: dict[str, Path]
    root: Path
    edit = staticmethod(edit)
    rewritten = staticmethod(rewritten)

    def copy(self, target: str) -> Path:
        good = self.good[target]
        if good.is_file():
            return Path(shutil.copyfile(good, self.root / good.name))
        return Path(shutil.copytree(good, self.root / good.name))

    def found(self, path: Path, target: str) -> list[Finding]:
        return found(path, target, self.model)

    def culprits(self, path: Path, target: str) -> list[str]:
        return [one.culprit for one in self.found(path, target)]


@pytest.fixture(scope="session")
def told_model(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with scaled positions, two ends of text and settings of generation."""
    built = tiny_model("llama", rope_parameters=LLAMA3, eos_token_id=[2, 4], rms_norm_eps=3e-6)
    folder = Path(shutil.copytree(built, tmp_path_factory.mktemp("told") / "model"))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    edit(folder / "tokenizer_config.json", {"add_bos_token": True})
    return folder


@pytest.fixture(scope="session")
def good_outputs(told_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of each target, one good output."""
    root = tmp_path_factory.mktemp("outputs")
    made = {}
    for target in OUTPUTS:
        made[target] = root / (f"{target}.gguf" if target == "gguf" else target)
        convert(told_model, to=target, out=made[target], threads=1, asked=Asked(method="rtn"))
    return made


@pytest.fixture
def bench(told_model: Path, good_outputs: dict[str, Path], tmp_path: Path) -> Bench:
    return Bench(told_model, good_outputs, tmp_path)


@pytest.fixture
def told_of(tmp_path: Path) -> Callable[..., list[Finding]]:
    """`told_of(model, target, form)`: converts, and says what is found."""

    def build(model: Path, target: str, **own: str) -> list[Finding]:
        name = "-".join([target, *own.values()])
        out = tmp_path / (f"{name}.gguf" if target == "gguf" else name)
        request = Request(own=tuple((key.replace("_", "-"), value) for key, value in own.items()))
        asked = Asked(method="rtn")
        convert(model, to=target, out=out, threads=1, request=request, asked=asked)
        return found(out, target, model)

    return build
