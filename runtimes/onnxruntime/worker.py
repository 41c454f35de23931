"""The worker process of ONNX Runtime, started by `bootstrap` in the runtime's own interpreter."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from qconvert.runtimes.onnxruntime.engine import Engine
from qconvert.runtimes.protocol import Answer, Service, WorkerError

DISTRIBUTIONS = ("onnxruntime", "onnxruntime-genai")


def describe() -> Answer:
    """Versions of both libraries, without importing them."""
    try:
        return Answer(", ".join(f"{name} {version(name)}" for name in DISTRIBUTIONS))
    except PackageNotFoundError as error:
        raise WorkerError("missing", f"Python has no package {error.name}") from None


if __name__ == "__main__":
    Service({"version": describe, **Engine().handlers}).run()
