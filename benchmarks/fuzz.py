"""Fuzz every reader of files, guided by coverage.

    pip install atheris
    python benchmarks/fuzz.py --seconds 120 --work fuzz            # all targets, one by one
    python benchmarks/fuzz.py --targets gguf onnx --seconds 600

For each target, one process starts from small good files and changes them. An input that ends in
anything but a reading or a refusal (another exception, a hang of 10 s, more than 2 GB) is saved,
and one JSON line tells of all: {"target", "executions", "coverage", "seconds", "read", "refused",
"crashes": [{"fault", "input"}], "versions"}. Exit 1 where there are any.

atheris is no dependency of qconvert. Good files are made by tests/tiny.py and `qconvert`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
MADE: Mapping[str, tuple[str, ...]] = {
    "gguf": ("--to", "gguf", "--type", "Q4_0"),
    "served": ("--to", "vllm", "--bits", "4", "--group", "32"),
    "onnx": ("--to", "onnx", "--bits", "4"),
    "mlc": ("--to", "mlc", "--bits", "4"),
}
HANG = 10
MOST_MB = 2048
SAME = 3  # inputs kept of one fault


def main() -> int:
    arguments = parsed()
    if arguments.child:
        return child(arguments.child, arguments.work, arguments.seconds)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 3
    arguments.work.mkdir(parents=True, exist_ok=True)
    make_good(arguments.work / "good")
    crashed = False
    for name in arguments.targets or TARGETS:
        found = fuzzed(name, arguments.work, arguments.seconds)
        crashed |= bool(found["crashes"])
        print(json.dumps(found), flush=True)
    return int(crashed)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="*", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=120, help="for each target")
    parser.add_argument("--work", type=Path, default=Path("fuzz"), help="corpus and what is found")
    parser.add_argument("--child", choices=sorted(TARGETS), help=argparse.SUPPRESS)
    return parser.parse_args()


def make_good(folder: Path) -> None:
    """A tiny model, and an output of it of each kind."""
    from qconvert.cli import run

    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "tiny.py")
    assert spec is not None
    assert spec.loader is not None
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    if not (folder / "model").exists():
        tiny.tiny_model(folder / "model", **SMALL)
    for name, words in MADE.items():
        out = folder / (f"{name}.gguf" if name == "gguf" else name)
        if not out.exists():
            code = run([str(folder / "model"), *words, "--method", "rtn", "--out", str(out)])
            assert code == 0, name


# --- what is fuzzed: each takes the changed bytes of one file, and reads all that hangs on them


def gguf(place: Path, good: Path) -> None:
    from qconvert.formats.gguf.reader import open_reader

    all_of(open_reader(place / "x.gguf"))


def safetensors(place: Path, good: Path) -> None:
    from qconvert.formats.safetensors_header import read_header

    read_header(place / "model.safetensors")


def config(place: Path, good: Path) -> None:
    from qconvert.checkpoint import open_checkpoint
    from qconvert.formats.gguf.model import read_model
    from qconvert.formats.mlc.model import read_model as read_mlc
    from qconvert.formats.onnx.model import read_model as read_onnx

    source = open_checkpoint(place)
    for read in (read_model, read_onnx, read_mlc):
        refused(lambda read=read: read(source))


def tokenizer(place: Path, good: Path) -> None:
    from qconvert.formats.gguf.vocab import read_vocabulary

    read_vocabulary(place, json.loads((good / "model" / "config.json").read_text()))


def quantization(place: Path, good: Path) -> None:
    from qconvert.formats.serving.folder.reader import open_reader

    all_of(open_reader(place))


def onnx(place: Path, good: Path) -> None:
    from qconvert.formats.onnx.reader import open_reader

    all_of(open_reader(place))


def mlc(place: Path, good: Path) -> None:
    from qconvert.formats.mlc.reader import open_reader

    all_of(open_reader(place))


def all_of(reader: Any) -> None:
    for name in reader.tensors:
        reader.decode(name)


def refused(read: Callable[[], Any]) -> None:
    from qconvert.formats.refusal import Refused

    try:
        read()
    except Refused:
        pass


Target = tuple[Callable[[Path, Path], None], str, str]
TARGETS: Mapping[str, Target] = {
    "gguf": (gguf, "gguf.gguf", "x.gguf"),
    "safetensors": (safetensors, "served", "model.safetensors"),
    "config": (config, "model", "config.json"),
    "tokenizer": (tokenizer, "model", "tokenizer.json"),
    "quantization": (quantization, "served", "config.json"),
    "onnx": (onnx, "onnx", "model.onnx"),
    "mlc": (mlc, "mlc", "tensor-cache.json"),
}
"""What reads, the good output, the file of it that is changed."""


# --- the process of one target


def child(name: str, work: Path, seconds: int) -> int:
    """Fuzz one target until the time is over, or until it hangs or is out of memory."""
    import atheris

    with atheris.instrument_imports(
        include=["qconvert.formats", "qconvert.config", "qconvert.checkpoint", "qconvert.models"]
    ):
        import qconvert.checkpoint
        import qconvert.formats.gguf.model
        import qconvert.formats.gguf.reader
        import qconvert.formats.gguf.vocab
        import qconvert.formats.mlc.model
        import qconvert.formats.mlc.reader
        import qconvert.formats.onnx.model
        import qconvert.formats.onnx.reader
        import qconvert.formats.serving.folder.reader  # noqa: F401
    from qconvert.formats.refusal import Refused

    read, source, file = TARGETS[name]
    good, place = work / "good", work / "place" / name
    link(good / source, place, file)
    tally: Counter[str] = Counter()
    kept: Counter[str] = Counter()

    def once(data: bytes) -> None:
        (place / file).write_bytes(data)
        tally["executions"] += 1
        try:
            read(place, good)
            tally["read"] += 1
        except Refused:
            tally["refused"] += 1
        except Exception as error:
            keep(error, data, work / "crashes" / name, kept)
        if tally["executions"] % 200 == 1:
            (work / f"{name}.tally").write_text(json.dumps(tally))

    corpus = work / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    first = good / source / file if (good / source).is_dir() else good / source
    (corpus / "good").write_bytes(first.read_bytes())
    atheris.Setup(
        [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-timeout={HANG}",
         f"-rss_limit_mb={MOST_MB}", "-max_len=400000", "-len_control=0", "-print_final_stats=1",
         f"-artifact_prefix={work / 'crashes' / name}/"],
        once,
    )  # fmt: skip
    (work / "crashes" / name).mkdir(parents=True, exist_ok=True)
    atheris.Fuzz()
    return 0


def link(source: Path, place: Path, file: str) -> None:
    """A folder of links to all of a good output but the file that is changed."""
    place.mkdir(parents=True, exist_ok=True)
    for one in source.iterdir() if source.is_dir() else ():
        if one.name != file and not (place / one.name).exists():
            (place / one.name).symlink_to(one.resolve())


def keep(error: Exception, data: bytes, folder: Path, kept: Counter[str]) -> None:
    """Save an input under the name of its fault and of the line that raised it."""
    at, line = error.__traceback__, ""
    while at is not None:
        if "site-packages" not in at.tb_frame.f_code.co_filename:
            line = f"{Path(at.tb_frame.f_code.co_filename).stem}-{at.tb_lineno}"
        at = at.tb_next
    fault = f"{type(error).__name__}-{line}"
    kept[fault] += 1
    if kept[fault] <= SAME:
        (folder / f"{fault}-{kept[fault]}").write_bytes(data)


def fuzzed(name: str, work: Path, seconds: int) -> dict[str, Any]:
    """What came of one target, in a process that may be lost."""
    folder = work / "crashes" / name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    began = time.monotonic()
    command = [sys.executable, "-P", __file__, "--child", name, "--seconds", str(seconds),
               "--work", str(work.resolve())]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False,
                          env={**os.environ, "NUMBA_DISABLE_JIT": "1"})  # fmt: skip
    tally = work / f"{name}.tally"
    told = json.loads(tally.read_text()) if tally.exists() else {}
    covered = re.findall(r"cov: (\d+) ft: (\d+)", done.stderr)
    total = re.findall(r"stat::number_of_executed_units: (\d+)", done.stderr)
    return {
        "target": name,
        "executions": int(total[-1]) if total else told.get("executions", 0),
        "coverage": {"edges": int(covered[-1][0]), "features": int(covered[-1][1])}
        if covered else None,
        "seconds": round(time.monotonic() - began, 1),
        "read": told.get("read", 0),
        "refused": told.get("refused", 0),
        "crashes": [{"fault": one.name, "input": str(one)} for one in sorted(folder.iterdir())],
        "exit": done.returncode,
        "versions": versions(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"python": platform.python_version(), **{one: version(one) for one in
            ("atheris", "numpy", "onnx", "tokenizers")}}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
