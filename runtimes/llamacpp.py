"""llama.cpp, through llama-cpp-python, in a process of its own.

It runs in its own environment where `qconvert runtimes install llamacpp` has made one, else in this
interpreter, where llama-cpp-python may be installed. The package brings a build of llama.cpp. A
user's own build (for the device at hand) takes its place when its folder of shared libraries is
named, by `LlamaCpp(library=...)` or QCONVERT_LLAMACPP.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qconvert.formats.refusal import MissingRuntime, refuse
from qconvert.runtimes import environments
from qconvert.runtimes.environments import Recipe, install_line
from qconvert.runtimes.process import Launch, RuntimeFailed, Worker
from qconvert.runtimes.runtime import Session
from qconvert.runtimes.session import WorkerSession

LIBRARY_VARIABLE = "QCONVERT_LLAMACPP"
LIBRARY_NAMES = ("libllama.so", "libllama.dylib", "llama.dll", "libllama.dll")

RECIPE = Recipe(
    "llamacpp",
    commands=(("install", "--no-cache-dir", "llama-cpp-python==0.3.36"),),
    package="llama-cpp-python",
    nbytes=1_000_000_000,
    pins="llamacpp-pins.txt",
    environment={
        # Only the library: no tools, examples, tests, server, images.
        "CMAKE_ARGS": "-DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF"
        " -DLLAMA_BUILD_SERVER=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF"
        # GCC 12 and older compile ggml's AMX kernels into a crash (ggml-org/llama.cpp#20824):
        # without them the AVX-512 and AVX2 ones are used.
        " -DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"
    },
    about="built from source, some minutes; needs a C++ compiler",
)
"""Past pip's cache, which may hold a build with other flags."""

ACTIVATION_BLOCKS: Mapping[str, int] = {
    **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"), 32),  # Q8_0, Q8_1
    **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), 256),  # Q8_K
}
"""Weight type -> columns of an activation row that share one 8-bit scale in llama.cpp's CPU kernels
(vec_dot_type in ggml/src/ggml-cpu/ggml-cpu.c); float weights are absent."""


@dataclass(frozen=True, slots=True)
class LlamaCpp:
    """The runtime `llamacpp`: CPU kernels, f16 KV cache, defaults as users get them."""

    library: Path | None = None  # folder of the user's own build; None: QCONVERT_LLAMACPP, or ours
    timeout: float = 900.0  # seconds that one call may take
    name: str = "llamacpp"
    target: str = "gguf"

    @property
    def install(self) -> str:
        """The one line that makes it usable, or a build of one's own that fits."""
        if self.library is None and not os.environ.get(LIBRARY_VARIABLE):
            return install_line(self.name)
        return (
            "name a folder with the shared libraries of a llama.cpp build (-DBUILD_SHARED_LIBS=ON)"
            " that fits the installed llama-cpp-python, or name none to use the build inside that"
            " package"
        )

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return (RECIPE,)

    @property
    def activation_blocks(self) -> Mapping[str, int]:
        return ACTIVATION_BLOCKS

    def unavailable(self) -> str | None:
        """None, or why not, found by loading the library in a process of its own (0.3 s)."""
        try:
            self.version()
        except MissingRuntime as missing:
            return missing.reason.partition("\n")[0]
        return None

    def version(self) -> str:
        """Of llama.cpp and of the binding; `MissingRuntime` when not usable."""
        try:
            worker = Worker(self._launch())
            try:
                return str(worker.call("version", timeout=60.0).head["result"])
            finally:
                worker.close()
        except RuntimeFailed as failed:
            raise MissingRuntime("llama.cpp", f"{failed.problem}", self.install) from failed

    def open(self, path: Path, *, threads: int, context: int) -> Session:
        """Load a GGUF (the first file of a split one); `Refused` when it does not load.

        A build whose repacked kernels crash (with AMX, when compiled by GCC 12 or older:
        ggml-org/llama.cpp#20824, PR 26954) is used without them; `notes` of the session says so.
        """
        if not path.is_file():
            raise refuse(f"no such file: {path}")
        try:
            return self._open(path, threads, context, repack=True)
        except RuntimeFailed as failed:
            if not failed.crashed:
                raise
            first = failed
        note = f"llama.cpp {first.problem} with repacked weights: run without them, so slower"
        try:
            return self._open(path, threads, context, repack=False, notes=(note,))
        except RuntimeFailed as failed:
            raise refuse(f"llama.cpp does not load {path.name}: it {_words(failed)}") from failed

    def _open(
        self, path: Path, threads: int, context: int, *, repack: bool, notes: Sequence[str] = ()
    ) -> Session:
        return WorkerSession(
            self._launch(), path, threads=threads, context=context, notes=notes, repack=repack
        )

    def _launch(self) -> Launch:
        environment = {"GGML_NO_BACKTRACE": "1"}
        folder = self._folder()
        if folder is not None:
            environment["LLAMA_CPP_LIB_PATH"] = str(folder)  # the binding's own mechanism
        return Launch(
            "llama.cpp",
            "qconvert.runtimes.llamacpp_worker",
            self.install,
            environment,
            self.timeout,
            self._python(),
        )

    def _python(self) -> str:
        """Of its own environment where that is whole, else this one: users may have installed
        `qconvert[llamacpp]`."""
        own = environments.environment(self.name)
        return sys.executable if own.lack(self.recipes) else str(own.python)

    def _folder(self) -> Path | None:
        """Folder of the user's own build; `MissingRuntime` when there is no library in it."""
        named = os.environ.get(LIBRARY_VARIABLE)
        folder = self.library or (Path(named) if named else None)
        if folder is None:
            return None
        if not any((folder / name).exists() for name in LIBRARY_NAMES):
            looked = " or ".join(LIBRARY_NAMES[:3])
            raise MissingRuntime("llama.cpp", f"no {looked} in {folder}", self.install)
        return folder.absolute()


def _words(failed: RuntimeFailed) -> str:
    return str(failed).removeprefix(f"{failed.runtime} ")


RUNTIME = LlamaCpp()
