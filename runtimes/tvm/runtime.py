"""TVM's runtime, the one below MLC-LLM, with a model of ours: it is not MLC's engine.

TVM's own C++ loader reads the folder, the code with which MLC reads it. The graph and the kernels
are ours, written in Relax and TIR, compiled by TVM for this processor, and compute in float32. So
it proves the file; its speed says how fast the codes can be read, not how fast MLC is.

MLC's engine and its tokenizer are C++ that no package index has. Tokens are those of Hugging Face's
`tokenizers` for the folder's tokenizer.json, which is what MLC's tokenizer is built on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.runtimes.environments import Recipe, environment, install_line
from qconvert.runtimes.process import Launch, RuntimeFailed, Worker
from qconvert.runtimes.runtime import Session
from qconvert.runtimes.session import WorkerSession

LABEL = "TVM runtime of the MLC stack, our graph (not MLCEngine)"
RECIPE = Recipe(
    "tvm",
    commands=(
        ("install", "apache-tvm==0.27.0.post1", "apache-tvm-ffi==0.1.15.post2", "numpy==2.4.6"),
        ("install", "--no-deps", "tokenizers==0.23.3"),
    ),
    package="apache-tvm",
    nbytes=1_200_000_000,
    pins="tvm-pins.txt",
    systems=("Linux x86_64", "Linux aarch64", "Darwin arm64"),
    newest_python=(3, 14),
    about="0.5 GB, a minute",
)
"""`tokenizers` alone: it asks for huggingface_hub only to download, which nothing here does."""


@dataclass(frozen=True, slots=True)
class Tvm:
    """The runtime `tvm`."""

    timeout: float = 1800.0  # seconds that one call may take; `load` compiles
    running: Worker | None = None
    """A process of `worker` to load in, in place of one for each session. A folder takes the place
    of the one before, and closing a session leaves the process running."""
    name: str = "tvm"
    target: str = "mlc"
    label: str = LABEL

    @property
    def install(self) -> str:
        return install_line(self.name)

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return (RECIPE,)

    @property
    def float_type(self) -> str:
        """Everything between weights is float32."""
        return "float32"

    def unavailable(self) -> str | None:
        """None when its environment is whole."""
        return environment(self.name).lack(self.recipes)

    def version(self) -> str:
        """Of TVM, and what this is; `MissingRuntime` when not usable."""
        worker = self.worker(threads=1)
        try:
            return f"{worker.call('version', timeout=60.0).head['result']}; {self.label}"
        except RuntimeFailed as failed:
            raise MissingRuntime("TVM", failed.problem, self.install) from failed
        finally:
            worker.close()

    def worker(self, *, threads: int) -> Worker:
        """A process that can load one folder after another, as `running`."""
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        return Worker(self._launch(threads))

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load and compile a folder; `Refused` when it is not one that our graph computes."""
        if not (path / "mlc-chat-config.json").is_file():
            raise refuse(f"no MLC folder: {path} has no mlc-chat-config.json")
        reason = self.unavailable()
        if reason is not None:
            raise MissingRuntime(self.name, reason, self.install)
        return WorkerSession(
            self._launch(threads),
            path,
            threads=threads,
            context=context,
            notes=(self.label,),
            worker=self.running,
        )

    def _launch(self, threads: int) -> Launch:
        variables = {
            "TVM_NUM_THREADS": str(threads),
            "TVM_BIND_THREADS": "0",  # on any cores: other programs run here too
            "TOKENIZERS_PARALLELISM": "false",
        }
        return Launch(
            "TVM",
            "qconvert.runtimes.tvm.worker",
            self.install,
            variables,
            self.timeout,
            str(environment(self.name).python),
        )


RUNTIME = Tvm()
