"""NVIDIA's own loader of TensorRT Edge-LLM, on a CPU, in an environment and a process of its own.

It proves that NVIDIA's code finds the tensors that it looks for, in the shapes that the model
needs, and makes of each linear what was meant. It computes nothing, and it is the edge runtime's
loader: TensorRT-LLM has another. It is lenient (a linear without its scale becomes a float linear
with no error), so that all it did is compared with what the configuration makes expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert.formats.checkpoint_files import stored_tensors
from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.formats.source import Source
from qconvert.runtimes.edge_llm.expected import Expected, Module, expected, unread
from qconvert.runtimes.environments import Recipe, environment, install_line
from qconvert.runtimes.loader import Loaded
from qconvert.runtimes.process import Launch, Worker

RELEASE = "0.11.0"
PINNED: Mapping[str, str] = {
    "torch": "2.13.0",
    "transformers": "5.14.1",
    "onnx": "1.19.0",
    "onnxscript": "0.7.1",
    "safetensors": "0.8.0",
    "numpy": "2.2.6",
    "onnx-graphsurgeon": "0.6.1",
    "requests": "2.34.2",
}
RECIPE = Recipe(
    "edge-llm",
    commands=(
        ("install", *(f"{name}=={release}" for name, release in PINNED.items())),
        # its dependencies are CUDA builds and TensorRT, which reading a folder does not need
        ("install", "--no-deps", f"tensorrt-edgellm=={RELEASE}"),
    ),
    package="tensorrt-edgellm",
    nbytes=4_000_000_000,
    pins="edge-llm-pins.txt",
    systems=("Linux x86_64", "Linux aarch64"),
    newest_python=(3, 12),
    about="2 GB, some minutes; it reads folders and computes nothing",
)
SHOWN = 5  # problems of a kind


@dataclass(frozen=True, slots=True)
class EdgeLlm:
    """The loader `edge-llm`."""

    timeout: float = 900.0  # seconds that one call may take
    running: Worker | None = None  # a process of `worker` to load in, which is left running
    name: str = "edge-llm"
    label: str = f"TensorRT Edge-LLM {RELEASE} loads it (NVIDIA's edge runtime; not TensorRT-LLM)"
    targets: tuple[str, ...] = ("trtllm", "edge-llm")

    @property
    def install(self) -> str:
        return install_line(self.name)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return (RECIPE,)

    def unavailable(self) -> str | None:
        """None when its environment is whole."""
        return environment(self.name).lack(self.recipes)

    def version(self) -> str:
        """`MissingRuntime` when not usable."""
        with self._asked() as worker:
            found = worker.call("version", timeout=60.0).head["result"]
        return f"tensorrt-edgellm {found}"

    def passes_over(self, path: Path) -> str:
        return unread(path)

    def load(self, path: Path, source: Source) -> Loaded:
        """As `Loader.load`; some 5 seconds of CPU time."""
        reason = unread(path)
        if reason:
            raise refuse(f"TensorRT Edge-LLM: {reason}")
        with self._asked() as worker:
            version = worker.call("version", timeout=60.0).head["result"]
            told = worker.call("load", path=str(path.absolute())).head["result"]
        meant = expected(path, source)
        kinds = Counter(
            one["class"] for one in told["modules"].values() if one["class"].endswith("Linear")
        )
        return Loaded(
            problems=tuple(problems(told, meant, stored_tensors(path).keys())),
            version=f"tensorrt-edgellm {version}",
            tensors=told["tensors"],
            skipped=told["skipped"],
            layers=dict(sorted(kinds.items())),
            notes=tuple(told["warnings"]),
        )

    def nodes(self, path: Path) -> Mapping[str, int]:
        """Kind of node -> how many of them the ONNX graph has to which the folder is exported."""
        with self._asked() as worker:
            told = worker.call("export", path=str(path.absolute())).head["result"]
        return {str(kind): int(count) for kind, count in told.items()}

    @contextmanager
    def _asked(self) -> Iterator[Worker]:
        if self.running is not None:
            yield self.running
            return
        worker = self.worker()
        try:
            yield worker
        finally:
            worker.close()

    def worker(self) -> Worker:
        """A process that can load one folder after another, as `running`."""
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        return Worker(
            Launch(
                "TensorRT Edge-LLM",
                "qconvert.runtimes.edge_llm.worker",
                self.install,
                {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"},
                self.timeout,
                str(environment(self.name).python),
            )
        )


def problems(told: Mapping[str, Any], meant: Expected, names: Set[str]) -> Iterator[str]:
    """Where what the loader told differs from what is expected; nothing where it is the same.

    `names`: of the tensors that the folder holds, to say which are at fault.
    """
    taken, skipped = told["tensors"], told["skipped"]
    if skipped:
        yield f"it left {skipped} tensors of the folder"
    if taken != len(meant.stored):
        yield (
            f"it took {taken} tensors, where the model and the configuration make"
            f" {len(meant.stored)}"
        )
    yield from _some([f"the folder lacks {name}" for name in sorted(meant.stored - names)])
    yield from _some([f"the folder has {name}, which nothing reads"
                      for name in sorted(names - meant.stored)])  # fmt: skip
    found: Mapping[str, Any] = told["modules"]
    yield from _some([one for name, module in meant.modules.items()
                      for one in _unlike(name, module, found.get(name))])  # fmt: skip


def _unlike(name: str, meant: Module, found: Mapping[str, Any] | None) -> Iterator[str]:
    if found is None:
        yield f"{name} is missing"
        return
    if meant.kind and found["class"] != meant.kind:
        yield f"{name} became {found['class']}, not {meant.kind}"
        return
    for buffer, (shape, type_) in meant.buffers.items():
        there = found["buffers"].get(buffer)
        if there is None:
            yield f"{name}.{buffer} is missing"
        elif (tuple(there[0]), there[1]) != (shape, type_):
            yield f"{name}.{buffer} is {there[1]} {tuple(there[0])}, not {type_} {shape}"


def _some(lines: Sequence[str]) -> Iterator[str]:
    yield from lines[:SHOWN]
    if len(lines) > SHOWN:
        yield f"{len(lines) - SHOWN} more of the same kind"


LOADER = EdgeLlm()
