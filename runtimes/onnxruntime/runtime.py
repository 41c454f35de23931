"""ONNX Runtime and onnxruntime-genai on the CPU, in an environment and a process of their own.

MatMulNBits at accuracy level 4, the level that stands in files because it is fast, rounds what it
multiplies to int8 in each block of columns. Checking asks for level 1, which does not, so that
nothing hides a wrong weight; and then for the file as it is, as users run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.runtimes.environments import Recipe, environment, install_line
from qconvert.runtimes.process import Launch, RuntimeFailed, Worker
from qconvert.runtimes.runtime import Session
from qconvert.runtimes.session import WorkerSession

RELEASES: Mapping[str, str] = {
    "onnxruntime": "1.31.1",
    "onnxruntime-genai": "0.18.0",
    "onnx": "1.23.2",
    "numpy": "2.4.6",
}
RECIPE = Recipe(
    "onnxruntime",
    commands=(("install", *(f"{name}=={release}" for name, release in RELEASES.items())),),
    package="onnxruntime-genai",
    nbytes=600_000_000,
    pins="onnxruntime-pins.txt",
    systems=(
        "Linux x86_64", "Linux aarch64", "Darwin arm64", "Windows AMD64", "Windows ARM64",
    ),
    about="240 MB, half a minute",
)  # fmt: skip

PROOF_LEVEL = 1
MISREADS: Mapping[str, str] = {
    "\x85": "onnxruntime-genai does not take U+0085 (next line) for white space, as tokenizers do",
}
"""Met with pre-tokenizers that cut at white space; version 0.18.0."""
PARTS = ("genai_config.json", "model.onnx")


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """The runtime `onnxruntime`."""

    level: int | None = PROOF_LEVEL  # of every MatMulNBits; None: as the file says
    timeout: float = 1800.0  # seconds that one call may take
    name: str = "onnxruntime"
    target: str = "onnx"
    float_type: str = "float32"

    @property
    def label(self) -> str:
        if self.level is None:
            return "as users run it, at the file's own accuracy level"
        return f"accuracy level {self.level}"

    @property
    def plain_inputs(self) -> bool:
        """Whether MatMulNBits multiplies what it reads as it is, whatever the file says."""
        return self.level is not None and self.level < 4

    @property
    def misreads(self) -> Mapping[str, str]:
        return MISREADS

    @property
    def also_checked(self) -> OnnxRuntime:
        return replace(self, level=None)

    @property
    def served(self) -> OnnxRuntime:
        return replace(self, level=None)

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
        """Of both libraries; `MissingRuntime` when not usable."""
        worker = self._worker(threads=1)
        try:
            return str(worker.call("version", timeout=60.0).head["result"])
        except RuntimeFailed as failed:
            raise MissingRuntime("ONNX Runtime", f"{failed.problem}", self.install) from failed
        finally:
            worker.close()

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load a folder; `Refused` when ONNX Runtime does not take it, with its own reason."""
        lacking = [name for name in PARTS if not (path / name).is_file()]
        if lacking:
            raise refuse(f"no {' and no '.join(lacking)} in {path}",
                         "give a folder that `qconvert MODEL --to onnx` has written")  # fmt: skip
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        return WorkerSession(
            self._launch(threads), path, threads=threads, context=context, level=self.level
        )

    def _worker(self, *, threads: int) -> Worker:
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        return Worker(self._launch(threads))

    def _launch(self, threads: int) -> Launch:
        return Launch(
            "ONNX Runtime",
            "qconvert.runtimes.onnxruntime.worker",
            self.install,
            {"OMP_NUM_THREADS": str(threads)},
            self.timeout,
            str(environment(self.name).python),
        )


RUNTIME = OnnxRuntime()
