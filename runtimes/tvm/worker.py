"""The worker process of TVM, started by `bootstrap` in TVM's own interpreter."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from qconvert.runtimes.protocol import Answer, Service, WorkerError
from qconvert.runtimes.tvm.engine import handlers


def describe() -> Answer:
    """Versions, without importing TVM."""
    try:
        return Answer(f"apache-tvm {version('apache-tvm')} (ffi {version('apache-tvm-ffi')})")
    except PackageNotFoundError as error:
        raise WorkerError("missing", f"Python has no package {error.name}") from None


if __name__ == "__main__":
    Service({"version": describe, **handlers()}).run()
