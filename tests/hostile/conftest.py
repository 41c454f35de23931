"""Good tiny outputs of each kind, and copies of them to be damaged."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ASKED = {
    "gguf": ("--to", "gguf", "--type", "Q4_0"),
    "gptq": ("--to", "vllm", "--bits", "4", "--container", "gptq"),
    "ct": ("--to", "vllm", "--bits", "4"),
    "onnx": ("--to", "onnx", "--bits", "4"),
    "mlc": ("--to", "mlc", "--bits", "4"),
}
SMALL = {
    "vocab_size": 320, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1,
    "max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="session")
def builders() -> ModuleType:
    """`builders.py`: tests are no packages."""
    path = Path(__file__).with_name("builders.py")
    spec = importlib.util.spec_from_file_location("qconvert_tests_hostile_builders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def good(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`good("gguf")`: an output, or `good("model")`; each made once, and never to be changed."""
    from qconvert.cli import run

    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("good")

    def build(kind: str) -> Path:
        if kind == "model":
            return tiny_model(dtype="float16", **SMALL)
        if kind not in made:
            out = root / (f"{kind}.gguf" if kind == "gguf" else kind)
            words = [str(build("model")), *ASKED[kind], "--method", "rtn", "--out", str(out)]
            assert run(words) == 0
            made[kind] = out
        return made[kind]

    return build


@pytest.fixture
def copy(good: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """As `good`, to be damaged; a model or an output."""

    def build(kind: str) -> Path:
        source, to = good(kind), tmp_path / good(kind).name
        if source.is_dir():
            shutil.copytree(source, to)
        else:
            shutil.copyfile(source, to)
        return to

    return build


@pytest.fixture(scope="session")
def use(good: Callable[[str], Path]) -> Callable[[Path], None]:
    """All that `inspect` and `check` read of an output, or of a model."""
    from qconvert import facts, render
    from qconvert.checkpoint import open_checkpoint
    from qconvert.formats.refusal import Refused
    from qconvert.formats.target import Request, targets
    from qconvert.running import recognised

    def read(path: Path) -> None:
        target: Any = recognised(path)
        if target is None:
            source = open_checkpoint(path)
            refused = None
            for one in ("gguf", "mlc"):
                try:
                    targets()[one].plan(source, Request())
                except Refused as error:
                    refused = error
            if refused is not None:
                raise refused
            return
        reader = target.reader(path)
        model = open_checkpoint(good("model"))
        for name in reader.tensors:
            reader.decode(name)
        for _ in reader.weights(model).values():
            pass
        if hasattr(reader, "told"):
            reader.told(model)
        render.inspect_tables(facts.of_output(path, target, each=True))

    return read
