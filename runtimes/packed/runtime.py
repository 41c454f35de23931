"""Our own kernels on the packed weights of a folder for vLLM, in the model's class of transformers.

A second opinion on a GPU, and a way to time a scheme there without installing a serving program:
every quantized linear multiplies with the codes as the file holds them (`kernels.products`). It is
not what users serve with, so it is taken only where it is asked for (`--runtime packed`), and no
verdict stands on it otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.kernels.bodies import Body, has_triton
from qconvert.runtimes import machine
from qconvert.runtimes.process import Launch
from qconvert.runtimes.runtime import Session
from qconvert.runtimes.session import WorkerSession

NO_GPU = "no NVIDIA GPU is at hand"
PACKAGES = ("torch", "transformers", "triton")
ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Packed:
    """The runtime `packed`: folders of compressed-tensors in W4A16, W8A8 or float types."""

    device: str = "cuda"  # torch's name; "cpu" is for tests
    dtypes: tuple[str, ...] = ("float16", "bfloat16")  # the first in which nothing overflows
    body: Body | None = None  # of the products; None: the fastest on the device
    timeout: float = 1800.0  # seconds that one call may take
    name: str = "packed"
    target: str = "vllm"
    on_request: bool = True
    install: str = "pip install 'qconvert[gpu]', on a machine with an NVIDIA GPU"

    @property
    def float_type(self) -> str:
        """To which values are rounded between linears; a session knows better."""
        return self.dtypes[0]

    def unavailable(self) -> str | None:
        """None where there is a GPU, and Triton. Neither is started to find out, nor is torch
        imported."""
        if self.device == "cpu":
            return None
        if not machine.nvidia_gpu():
            return NO_GPU
        if not has_triton():
            return "Python has no package triton"
        build = version("torch")
        return f"torch {build} is built without CUDA" if build.endswith("+cpu") else None

    def version(self) -> str:
        """Of the packages that compute; `MissingRuntime` when not usable."""
        self._demand()
        return ", ".join(f"{name} {told}" for name in PACKAGES if (told := _version(name)))

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load a folder; `Refused` where there is no product for it."""
        if not (path / "config.json").is_file():
            raise refuse(f"no model folder: {path}")
        self._demand()
        return WorkerSession(
            self._launch(threads), path, threads=threads, context=context,
            device=self.device, dtypes=self.dtypes, body=self.body,
        )  # fmt: skip

    def _demand(self) -> None:
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)

    def _launch(self, threads: int) -> Launch:
        return Launch(
            "packed",
            "qconvert.runtimes.packed.worker",
            self.install,
            {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
            self.timeout,
            sys.executable,
        )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


RUNTIME = Packed()
