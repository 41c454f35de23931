"""TensorRT-LLM through its LLM API (PyTorch backend), in a process of its own. It was never run.

It computes on NVIDIA GPUs alone, and its wheels could not be had where this was written: the
packages of that name on the public index fetch the wheel from NVIDIA's own index. What is asked of
it was read in its sources (NVIDIA/TensorRT-LLM, see `tensorrt_llm_engine`); our side of it is
tested against a stand-in that records the calls. The first run on a GPU may find what reading did
not.

It is looked for in an environment of its own, and then beside qconvert, as in NVIDIA's container.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.runtimes import machine
from qconvert.runtimes.environments import Recipe, environment, install_line
from qconvert.runtimes.process import Launch, RuntimeFailed, Worker
from qconvert.runtimes.runtime import Session
from qconvert.runtimes.session import WorkerSession

RELEASE = "1.4.0rc1"
RECIPE = Recipe(
    "tensorrt-llm",
    commands=(("install", f"tensorrt-llm=={RELEASE}"),),
    package="tensorrt-llm",
    nbytes=40_000_000_000,
    systems=("Linux x86_64", "Linux aarch64"),
    needs_gpu=True,
    about="some 10 GB, partly from NVIDIA's own package index; it needs the libraries of OpenMPI;"
    " never tried by us",
)
STUBS = "packages of that name on the public index fetch the real one from NVIDIA's own"
NO_GPU = "no NVIDIA GPU is at hand, and it computes on nothing else"

ENVIRONMENT: Mapping[str, str] = {
    "TLLM_WORKER_USE_SINGLE_PROCESS": "1",  # the engine in our worker: its errors are seen
    "TRTLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class TensorRtLlm:
    """The runtime `tensorrt-llm`: it loads folders of the target `trtllm`, in the model's type."""

    eager: bool = True  # without CUDA graphs
    timeout: float = 1800.0  # seconds that one call may take
    name: str = "tensorrt-llm"
    target: str = "trtllm"
    float_type: str = "bfloat16"  # a session knows better

    @property
    def install(self) -> str:
        return install_line(self.name)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return (RECIPE,)

    @property
    def served(self) -> TensorRtLlm:
        return replace(self, eager=False)

    def unavailable(self) -> str | None:
        """None where there is a GPU and a package, which is not imported to find out."""
        if not machine.nvidia_gpu():
            return NO_GPU
        lack = environment(self.name).lack(self.recipes)
        if lack is None or _beside():
            return None
        return f"{lack} ({STUBS})"

    def version(self) -> str:
        """Of TensorRT-LLM and torch; `MissingRuntime` when not usable."""
        self._demand()
        worker = Worker(self._launch(1))
        try:
            return str(worker.call("version", timeout=60.0).head["result"])
        except RuntimeFailed as failed:
            raise MissingRuntime("TensorRT-LLM", f"{failed.problem}", self.install) from failed
        finally:
            worker.close()

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load a folder; `Refused` when TensorRT-LLM does not take it, with its own reason."""
        if not (path / "config.json").is_file():
            raise refuse(f"no model folder: {path}")
        self._demand()
        return WorkerSession(
            self._launch(threads), path, threads=threads, context=context, eager=self.eager
        )

    def _demand(self) -> None:
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)

    def _launch(self, threads: int) -> Launch:
        own = environment(self.name)
        return Launch(
            "TensorRT-LLM",
            "qconvert.runtimes.tensorrt_llm_worker",
            self.install,
            {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
            self.timeout,
            sys.executable if own.lack(self.recipes) else str(own.python),
        )


def _beside() -> bool:
    """Whether this interpreter has a package of that name."""
    return importlib.util.find_spec("tensorrt_llm") is not None


RUNTIME = TensorRtLlm()
