"""Outputs of tiny models, each converted once, and what they were made of."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.source import SourceTensor
from qconvert.formats.target import Request, target_named
from qconvert.pipeline import convert
from qconvert.runtimes.second.reading import second_weights

SERVING = Path(__file__).parents[2] / "formats" / "serving"


@dataclass(frozen=True)
class Output:
    target: str
    path: Path
    source: Checkpoint
    work: Path | None = None

    def ours(self, source: Any = None) -> Mapping[str, Any]:
        return target_named(self.target).reader(self.path).weights(source or self.source)

    def second(self, source: Any = None) -> Mapping[str, Any]:
        found = second_weights(self.target, self.path, source or self.source)
        assert found is not None
        return found

    def check(self) -> None:
        """Both readings are the same to the bit."""
        ours, second = self.ours(), self.second()
        assert set(ours) == set(second)
        for name in ours:
            np.testing.assert_array_equal(second[name], ours[name], err_msg=name, strict=True)


@pytest.fixture(scope="session")
def output(
    tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Output]:
    """`output("gguf", "Q4_0", family="llama", container=None, method="rtn", split=None, **model)`.
    The file is shared: copy it before changing anything in it."""
    folder = tmp_path_factory.mktemp("outputs")
    made: dict[str, Output] = {}

    def build(
        to: str,
        type: str | None,
        family: str = "llama",
        *,
        container: str | None = None,
        method: str = "rtn",
        split: int | None = None,
        **model: Any,
    ) -> Output:
        key = repr((to, type, family, container, method, split, sorted(model.items())))
        if key not in made:
            source = tiny_model(family, **model)
            path = folder / str(len(made)) / ("out.gguf" if to == "gguf" else "out")
            path.parent.mkdir()
            work = None if method == "rtn" else path.with_name("work")
            asked = Asked(method=method, calib_rows=4, calib_length=32, work=work,
                          keep_work=work is not None)  # fmt: skip
            convert(source, to, type=type, out=path, split_bytes=split, threads=1,
                    request=Request(container=container), asked=asked)  # fmt: skip
            made[key] = Output(to, path, open_checkpoint(source), work)
        return made[key]

    return build


@dataclass(frozen=True)
class Headers:
    """As much of a source as second readers ask for."""

    tensors: tuple[SourceTensor, ...]
    config: Mapping[str, Any]
    model_type: str = "llama"
    tied: bool = False


def headers(*names: str, model_type: str = "llama", **config: Any) -> Any:
    tensors = tuple(SourceTensor(name, "attn_q", "weight", 0, (1, 1), "F32") for name in names)
    return Headers(tensors, config, model_type)


@pytest.fixture
def served(tmp_path: Path) -> Callable[..., Mapping[str, Any]]:
    """`served(quantization, {"m.weight": tensor, ...}, "m.weight")`: the weights of a folder."""

    def build(quantization: Any, tensors: Mapping[str, torch.Tensor], *names: str) -> Any:
        import json

        config = {"quantization_config": quantization}
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(dict(tensors), tmp_path / "model.safetensors")
        return second_weights("vllm", tmp_path, headers(*names))

    return build


def _loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"qconvert_tests_second_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def folders() -> tuple[ModuleType, ModuleType]:
    """The tests of our folders: what makes a plan of two linears, and random codes for it."""
    return _loaded(SERVING / "test_folder.py"), _loaded(SERVING / "conftest.py")
