"""The worker process of TensorRT-LLM, started by `bootstrap` in an interpreter that has it.

It loads one folder: CUDA does not survive a fork, and its memory is given back by ending a process.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from qconvert.runtimes.protocol import Answer, Service, WorkerError
from qconvert.runtimes.tensorrt_llm_engine import Engine

DISTRIBUTIONS = ("tensorrt-llm", "tensorrt_llm")


def describe() -> Answer:
    """Versions of TensorRT-LLM and torch, without importing them."""
    for name in DISTRIBUTIONS:
        try:
            return Answer(f"tensorrt-llm {version(name)} (torch {version('torch')})")
        except PackageNotFoundError:
            continue
    raise WorkerError("missing", "Python has no package tensorrt-llm")


if __name__ == "__main__":
    Service({"version": describe, **Engine().handlers}).run()
