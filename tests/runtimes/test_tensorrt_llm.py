"""Our side of TensorRT-LLM, against a STAND-IN of that name: TensorRT-LLM itself is not run here.

The stand-in takes no argument that NVIDIA's sources do not have, records what it is asked, and
computes logits of a rule. So that what is asked, shapes, ends and errors are exercised through the
worker process; that the real program understands it the same way is read, and not tested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.formats.refusal import MissingRuntime, Refused
from qconvert.runtimes import environments, machine
from qconvert.runtimes.process import RuntimeFailed
from qconvert.runtimes.runtime import Session, runtimes
from qconvert.runtimes.tensorrt_llm import NO_GPU, RECIPE, RUNTIME, STUBS

VOCAB = 512
TOKENS = [5, 77, 300, 5, 12]
END, OTHER_END = 2, 9

STAND_IN = '''
"""A stand-in for tensorrt_llm in tests: the next token is the last one * 3 + 1."""
import json, os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from tensorrt_llm.llmapi import KvCacheConfig

VOCAB = 512

def record(**told):
    with open(os.environ["STAND_IN_LOG"], "a") as log:
        log.write(json.dumps(told) + "\\n")

@dataclass(kw_only=True)
class SamplingParams:
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    stop_token_ids: list | None = None
    include_stop_str_in_output: bool = False
    top_k: int | None = None
    return_context_logits: bool = False
    ignore_eos: bool = False
    detokenize: bool = True

class Tensor:
    """Of the members of a torch tensor those that are used."""
    def __init__(self, values): self.values = values
    def float(self): return Tensor(self.values.astype(np.float32))
    def cpu(self): return self
    def numpy(self): return self.values

class Tokenizer:
    def encode(self, text, add_special_tokens=True, split_special_tokens=False):
        record(encode=[add_special_tokens, split_special_tokens])
        return [ord(letter) % VOCAB for letter in text]

class LLM:
    def __init__(self, model, tokenizer=None, skip_tokenizer_init=False, trust_remote_code=False,
                 *, kv_cache_config=None, max_batch_size=None, max_num_tokens=None,
                 max_seq_len=None, enable_chunked_prefill=False, cuda_graph_config="default"):
        config = json.loads((Path(model) / "config.json").read_text())
        if "refuse" in config:
            raise ValueError(config["refuse"])
        record(load=[Path(model).name, skip_tokenizer_init, trust_remote_code, max_batch_size,
                     max_num_tokens, max_seq_len, enable_chunked_prefill, cuda_graph_config],
               cache=asdict(kv_cache_config),
               environment=[os.environ.get("TLLM_WORKER_USE_SINGLE_PROCESS")])
        self.context, self.fails = max_seq_len, config.get("fails", False)
        self.tokenizer = None if skip_tokenizer_init else Tokenizer()

    def generate(self, inputs, sampling_params=None, use_tqdm=True):
        assert isinstance(inputs, list)
        record(prompts=[one["prompt_token_ids"] for one in inputs], asked=asdict(sampling_params))
        return [self._one(one["prompt_token_ids"], sampling_params) for one in inputs]

    def _one(self, prompt, sampling):
        if self.fails and sampling.return_context_logits:
            os.abort()
        if len(prompt) >= self.context:
            raise RuntimeError("the prompt is longer than max_seq_len\\nmore of it")
        made, reason, stopped = [], "length", None
        while len(made) < sampling.max_tokens:
            made.append(([*prompt, *made][-1] * 3 + 1) % VOCAB)
            if sampling.ignore_eos:
                continue
            if made[-1] == sampling.end_id:
                made.pop()  # as a program may that does not give it back
                reason = "stop"
                break
            if made[-1] in (sampling.stop_token_ids or ()):
                reason, stopped = "stop", made[-1]
                if not sampling.include_stop_str_in_output:
                    made.pop()
                break
        logits = None
        if sampling.return_context_logits:
            values = np.zeros((len(prompt), VOCAB))
            values[np.arange(len(prompt)), (np.array(prompt) * 3 + 1) % VOCAB] = 7.5
            logits = Tensor(values)
        output = SimpleNamespace(token_ids=made, finish_reason=reason, stop_reason=stopped)
        return SimpleNamespace(outputs=[output], context_logits=logits)
'''
LLMAPI = """
from dataclasses import dataclass

@dataclass
class KvCacheConfig:
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float | None = 0.9
"""


def greedy(tokens: list[int], n: int) -> list[int]:
    made: list[int] = []
    for _ in range(n):
        made.append(([*tokens, *made][-1] * 3 + 1) % VOCAB)
    return made


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU, and the stand-in beside qconvert. The log of what it was asked."""
    place = tmp_path / "packages"
    package, facts = place / "tensorrt_llm", place / "tensorrt_llm-0.0.0.dist-info"
    package.mkdir(parents=True)
    facts.mkdir()
    (package / "__init__.py").write_text(STAND_IN, encoding="utf-8")
    (package / "llmapi.py").write_text(LLMAPI, encoding="utf-8")
    (facts / "METADATA").write_text("Name: tensorrt-llm\nVersion: 0.0.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("STAND_IN_LOG", str(tmp_path / "log"))
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path / "runtimes"))
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: True)
    return tmp_path / "log"


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    def build(tokenizer: bool = True, **config: Any) -> Path:
        out = tmp_path / "model"
        out.mkdir(exist_ok=True)
        told = {"vocab_size": VOCAB, "dtype": "float16", "eos_token_id": [END, OTHER_END], **config}
        (out / "config.json").write_text(json.dumps(told), encoding="utf-8")
        if tokenizer:
            (out / "tokenizer.json").write_text("{}", encoding="utf-8")
        return out

    return build


@pytest.fixture
def session(stand_in: Path, folder: Callable[..., Path]) -> Iterator[Session]:
    with RUNTIME.open(folder(), threads=1, context=64) as opened:
        yield opened


def asked(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def test_is_found_by_its_name() -> None:
    assert runtimes()["tensorrt-llm"].target == "trtllm"


def test_without_a_gpu_it_is_unavailable_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: False)
    assert RUNTIME.unavailable() == NO_GPU
    with pytest.raises(MissingRuntime, match="no NVIDIA GPU"):
        RUNTIME.version()
    with pytest.raises(Refused, match="none is at hand"):
        environments.refuse_impossible(RECIPE, environments.environment("tensorrt-llm"))


def test_with_a_gpu_it_is_unavailable_without_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "nvidia_gpu", lambda: True)
    monkeypatch.setenv(environments.VARIABLE, str(tmp_path))
    assert RUNTIME.unavailable() == f"not installed ({STUBS})"
    assert "\n" not in STUBS


def test_a_package_beside_qconvert_will_do(stand_in: Path) -> None:
    assert RUNTIME.unavailable() is None
    assert RUNTIME.version().startswith("tensorrt-llm 0.0.0 (torch ")


def test_what_is_asked_when_a_folder_is_loaded(session: Session, stand_in: Path) -> None:
    load, first = asked(stand_in)
    assert load["load"] == ["model", False, False, 128, 2048, 65, False, None]
    assert load["cache"] == {"enable_block_reuse": False, "free_gpu_memory_fraction": 0.5}
    assert load["environment"] == ["1"]
    assert len(first["prompts"][0]) == 2
    assert getattr(session, "dtype", None) == "float16"


def test_as_served_it_uses_cuda_graphs(stand_in: Path, folder: Callable[..., Path]) -> None:
    with RUNTIME.served.open(folder(tokenizer=False), threads=1, context=4096):
        load = asked(stand_in)[0]["load"]
    assert load == ["model", True, False, 128, 4097, 4097, False, "default"]


def test_logits_of_every_position(session: Session, stand_in: Path) -> None:
    found = session.logits(TOKENS)
    assert found.shape == (5, VOCAB)
    assert found.dtype == np.float32
    assert found.argmax(axis=1).tolist() == [(token * 3 + 1) % VOCAB for token in TOKENS]
    last = asked(stand_in)[-1]
    assert last["prompts"] == [TOKENS]
    assert last["asked"]["return_context_logits"]
    assert (last["asked"]["max_tokens"], last["asked"]["top_k"]) == (1, 1)


def test_greedy_generation(session: Session, stand_in: Path) -> None:
    assert session.generate(TOKENS, 5) == greedy(TOKENS, 5)
    told = asked(stand_in)[-1]["asked"]
    assert (told["end_id"], told["stop_token_ids"], told["top_k"]) == (END, [OTHER_END], 1)
    assert not told["return_context_logits"]


@pytest.mark.parametrize("which", [0, 1])
def test_an_end_token_is_the_last(which: int, stand_in: Path, folder: Callable[..., Path]) -> None:
    """The first is not given back by the stand-in, the second is."""
    made = greedy(TOKENS, 4)
    ends = [made[2], 511] if which == 0 else [511, made[2]]
    with RUNTIME.open(folder(eos_token_id=ends), threads=1, context=64) as session:
        assert session.generate(TOKENS, 9) == made[:3]


def test_generation_settings_name_the_ends_first(
    stand_in: Path, folder: Callable[..., Path]
) -> None:
    out = folder()
    (out / "generation_config.json").write_text('{"eos_token_id": 7}', encoding="utf-8")
    with RUNTIME.open(out, threads=1, context=64):
        told = asked(stand_in)[-1]["asked"]
    assert (told["end_id"], told["stop_token_ids"]) == (7, None)


def test_tokens_without_special_ones(session: Session, stand_in: Path) -> None:
    assert session.tokenize("ab") == [97, 98]
    session.tokenize("ab", special=True)
    assert [one["encode"] for one in asked(stand_in)[-2:]] == [[False, True], [False, False]]


def test_throughput_of_one_and_of_many(session: Session, stand_in: Path) -> None:
    found = session.throughput(16, 4, 2, 8)
    assert (found.sequences, found.repetitions, found.batch) == (8, 2, 2048)
    assert found.prompt_tokens_per_s > 0
    assert found.generate_tokens_per_s > 0
    calls = asked(stand_in)[-6:]
    assert [len(one["prompts"]) for one in calls] == [8] * 6
    assert [len(one["prompts"][0]) for one in calls] == [16] * 3 + [1] * 3
    assert [one["asked"]["max_tokens"] for one in calls] == [1] * 3 + [4] * 3
    assert all(one["asked"]["ignore_eos"] for one in calls)
    assert session.peak_bytes() > 10e6
    with pytest.raises(Refused, match="at most 128"):
        session.throughput(16, 4, 1, 1000)


def test_what_it_does_not_take_is_one_line(stand_in: Path, folder: Callable[..., Path]) -> None:
    with pytest.raises(Refused) as raised:
        RUNTIME.open(folder(refuse="unsupported quant mode: 5\nand more"), threads=1, context=64)
    (reason,) = raised.value.reasons
    assert reason.problem == "unsupported quant mode: 5"
    with pytest.raises(Refused, match="no model folder"):
        RUNTIME.open(stand_in.parent / "nothing", threads=1, context=64)


def test_failures_are_told_and_crashes_survived(
    stand_in: Path, folder: Callable[..., Path]
) -> None:
    with RUNTIME.open(folder(fails=True), threads=1, context=64) as session:
        with pytest.raises(RuntimeFailed, match="longer than max_seq_len"):
            session.generate([5] * 80, 4)
        with pytest.raises(RuntimeFailed, match="SIGABRT") as raised:
            session.logits(TOKENS)
    assert raised.value.crashed


def test_a_folder_without_a_tokenizer(stand_in: Path, folder: Callable[..., Path]) -> None:
    with (
        RUNTIME.open(folder(tokenizer=False), threads=1, context=64) as session,
        pytest.raises(RuntimeFailed, match="no tokenizer"),
    ):
        session.tokenize("ab")
