"""Folders of tiny models, and the independent decoder: tests are no package."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qconvert.asked import Asked
from qconvert.formats.target import Request
from qconvert.pipeline import convert

Write = Callable[..., Path]
DATA = Path(__file__).parents[2] / "data" / "trtllm"
TYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn,
         "U8": torch.uint8, "I8": torch.int8}  # fmt: skip


def beside(name: str) -> ModuleType:
    """The module of this name in this folder."""
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"qconvert_tests_trtllm_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def decoder() -> ModuleType:
    return beside("decoder")


@pytest.fixture(scope="session")
def simulate() -> ModuleType:
    return beside("simulate")


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., Path]) -> Write:
    """`written(scheme, to="trtllm", family="llama", method="rtn", config={}, **request)`: the
    folder of a tiny bfloat16 model, each distinct one written once. Copy before changing it."""
    known: dict[str, Path] = {}

    def write(
        scheme: str,
        to: str = "trtllm",
        family: str = "llama",
        method: str = "rtn",
        config: tuple[tuple[str, Any], ...] = (),
        **more: Any,
    ) -> Path:
        key = repr((scheme, to, family, method, config, sorted(more.items())))
        if key not in known:
            asked = Asked(method=method, calib_rows=4, calib_length=32, compute="float32")
            model = tiny_model(family, dtype="bfloat16", **dict(config))
            out = tmp_path_factory.mktemp("trtllm") / "out"
            request = Request(scheme=scheme, **more)
            known[key] = (
                convert(model, to, out=out, request=request, asked=asked, threads=1).files[0].parent
            )
        return known[key]

    return write


@pytest.fixture(scope="session")
def source_of(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """The model folder that `written` takes for the same family and config."""

    def find(family: str = "llama", config: tuple[tuple[str, Any], ...] = ()) -> Path:
        return tiny_model(family, dtype="bfloat16", **dict(config))

    return find


@dataclass(frozen=True)
class Folder:
    """What there is of a folder that NVIDIA ModelOpt 0.47 wrote."""

    files: Mapping[str, Any]  # name -> JSON
    metadata: Mapping[str, str]  # of its safetensors file
    tensors: Mapping[str, list[Any]]  # type, shape, start of the sha256 of the bytes, value of one

    def hollow(self, path: Path) -> Path:
        """A folder with these headers and numbers, and zeros in place of the other tensors."""
        path.mkdir()
        for name, content in self.files.items():
            (path / name).write_text(json.dumps(content), "utf-8")
        save_file({name: self._tensor(*one) for name, one in self.tensors.items()},
                  path / "model.safetensors", dict(self.metadata))  # fmt: skip
        return path

    @staticmethod
    def _tensor(dtype: str, shape: list[int], digest: str, value: float = 0.0) -> torch.Tensor:
        return torch.full(shape, value).to(TYPES[dtype])


@pytest.fixture(scope="session")
def modelopt() -> Callable[[str], Folder]:
    """`modelopt("llama-INT4_AWQ_CFG")`: see tests/data/trtllm/README.md."""

    def find(name: str) -> Folder:
        return Folder(**json.loads((DATA / f"{name}.json").read_text("utf-8")))

    return find


@pytest.fixture(scope="session")
def random_source(
    modelopt: Callable[[str], Folder], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """`random_source("llama")`: the model that ModelOpt was given, made again from its seed, and a
    tokenizer that reads token 7 in "t7"."""
    known: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in known:
            files = modelopt(f"{family}-source").files
            known[family] = tmp_path_factory.mktemp("source") / family
            _random_model(files["config.json"]).save_pretrained(known[family])
            for name, content in files.items():
                (known[family] / name).write_text(json.dumps(content), "utf-8")
            _write_tokenizer(known[family])
        return known[family]

    return make


def _random_model(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    named = ("model_type", "architectures", "dtype", "transformers_version")
    fields = {key: value for key, value in config.items() if key not in named}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **fields), dtype=torch.bfloat16
        )


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"t{number}": number for number in range(512)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="session")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of the tokens that ModelOpt was given, twice: some rows are held out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = torch.cat([torch.randint(0, 512, (2, 32)) for _ in range(4)])
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    words = (f"t{number}" for number in torch.cat([rows, rows]).flatten().tolist())
    path.write_text(" ".join(words), "utf-8")
    return path
