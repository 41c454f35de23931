"""A second reader that shares code with the writer would share its mistakes."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import qconvert.runtimes.second
from qconvert.formats.target import targets
from qconvert.runtimes.second.reading import offered

FOLDER = Path(qconvert.runtimes.second.__file__).parent
FACTS = {"source", "told", "refusal", "discovery"}
"""Modules of `formats` that hold no way to store anything."""
COMPARING = {"agreement.py"}  # reads nothing: its findings are those of a check


def imports(path: Path) -> Iterator[str]:
    """Names of our modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names if one.name.startswith("qconvert"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qconvert"):
            assert node.module is not None
            for one in node.names:
                whole = f"{node.module}.{one.name}"
                yield whole if is_module(whole) else node.module


def is_module(name: str) -> bool:
    above = name.rpartition(".")[0]
    if importlib.util.find_spec(above) is None:
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # `above` is no package
        return False


def all_imports(start: str) -> set[str]:
    """Our modules that are loaded with one, however far away."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        name = waiting.pop()
        spec = importlib.util.find_spec(name)
        if name in found or spec is None or spec.origin is None:
            continue
        found.add(name)
        waiting += imports(Path(spec.origin))
    return found


def test_second_readers_import_none_of_what_writes() -> None:
    for path in FOLDER.rglob("*.py"):
        if path.name in COMPARING:
            continue
        for name in imports(path):
            room, _, rest = name.removeprefix("qconvert.").partition(".")
            allowed = rest in FACTS if room == "formats" else name.startswith(
                "qconvert.runtimes.second"
            )  # fmt: skip
            assert allowed, f"{path.name} imports {name}"


def test_the_rule_finds_a_breach(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def f():\n    from qconvert.formats.gguf import grids, header\n")
    assert list(imports(path)) == ["qconvert.formats.gguf.grids", "qconvert.formats.gguf.header"]
    assert "qconvert.kernels.layouts" in all_imports("qconvert.formats.gguf.grids")


def test_the_reader_of_graphs_imports_none_of_what_writes_them() -> None:
    """ONNX: the reader itself is the second one, so there is no other. What it shares with the
    writer are the plain data classes, and the floats of a file."""
    read = all_imports("qconvert.formats.onnx.reader")
    written = all_imports("qconvert.formats.onnx.writer") | all_imports(
        "qconvert.formats.onnx.graph"
    )
    front = "qconvert.formats."
    shared = {name.removeprefix(front) for name in read & written if name.startswith(front)}
    assert shared <= {
        "discovery", "floats", "grid", "refusal", "source", "target", "tensor", "checkpoint_files",
        "careful", "amounts", "safetensors_header",
    }, shared  # fmt: skip
    assert "qconvert.formats.onnx.reader_dequantize" in read
    assert "qconvert.formats.onnx.packing" in written - read


def test_every_target_has_a_second_reader_or_is_one() -> None:
    known = {name for one in offered("qconvert.runtimes.second", "SECOND").values()
             for name in one.targets}  # fmt: skip
    assert set(targets()) - known <= {"onnx"}
