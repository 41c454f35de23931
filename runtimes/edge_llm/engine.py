"""What NVIDIA's loader makes of a folder, told as data: in the process that has tensorrt-edgellm.

The loader logs how many tensors it took and how many it left, and raises for few of the faults that
a folder can have. What it built is therefore told whole: the class of every module that holds
tensors, and shape and type of each of them.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from qconvert.runtimes.protocol import Answer, Handler, WorkerError

DISTRIBUTION = "tensorrt-edgellm"
COUNTS = re.compile(r"Loaded (\d+) tensors, skipped (\d+) from .*")
KEPT = ("bias", "weight")  # which the loader may leave as a plain attribute of its module


def handlers() -> Mapping[str, Handler]:
    return {"version": describe, "load": load, "export": export}


def describe() -> Answer:
    """Version of the package, without importing it."""
    try:
        return Answer(version(DISTRIBUTION))
    except PackageNotFoundError:
        raise WorkerError("missing", f"Python has no package {DISTRIBUTION}") from None


def load(path: str) -> Answer:
    """{"tensors", "skipped", "modules": {name: {"class", "buffers": {name: [shape, type]}}},
    "warnings"}. Some 5 seconds of CPU time, most of them spent importing torch."""
    model, heard = _loaded(path)
    counts = next((found for line in heard.lines if (found := COUNTS.fullmatch(line))), None)
    if counts is None:
        raise WorkerError("failed", "the loader did not say how many tensors it took")
    modules = {}
    for name, module in model.named_modules():
        held = {**module._buffers, **module._parameters}
        held |= {
            one: value for one in KEPT if hasattr(value := getattr(module, one, None), "dtype")
        }
        buffers = {
            one: [list(value.shape), str(value.dtype).removeprefix("torch.")]
            for one, value in held.items()
            if value is not None
        }
        if buffers:
            modules[name] = {"class": type(module).__name__, "buffers": buffers}
    told = {"tensors": int(counts[1]), "skipped": int(counts[2])}
    return Answer({**told, "modules": modules, "warnings": heard.warnings})


def export(path: str) -> Answer:
    """Kind of node -> how many there are in the ONNX graph that the loaded model is exported to.
    Some 10 seconds of CPU time with two blocks."""
    import onnx  # type: ignore[import-not-found,unused-ignore]
    from tensorrt_edgellm import export_onnx  # type: ignore[import-not-found,unused-ignore]

    model, _ = _loaded(path)
    with tempfile.TemporaryDirectory(prefix="qconvert-") as folder:
        out = Path(folder) / "model.onnx"
        try:
            export_onnx(model, str(out), model_dir=path)
        except Exception as error:  # after the graph is written: tokenizer and chat template
            if not out.exists():
                raise WorkerError("failed", _line(error)) from error
        graph = onnx.load(str(out), load_external_data=False).graph
    return Answer(dict(sorted(Counter(node.op_type for node in graph.node).items())))


class _Heard(logging.Handler):
    """What the package logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = " ".join(record.getMessage().split())
        (self.warnings if record.levelno >= logging.WARNING else self.lines).append(text)


def _loaded(path: str) -> tuple[Any, _Heard]:
    try:
        import torch
        from tensorrt_edgellm.model import (  # type: ignore[import-not-found,unused-ignore]
            AutoModel,
        )
    except ImportError as error:
        raise WorkerError("missing", f"tensorrt-edgellm does not load: {error}") from None
    torch.set_num_threads(1)
    heard, log = _Heard(), logging.getLogger("tensorrt_edgellm")
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    try:
        return AutoModel.from_pretrained(path, device="cpu"), heard
    except Exception as error:
        raise WorkerError("refused", _line(error)) from error
    finally:
        log.removeHandler(heard)


def _line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
