"""Other quantizers on the same rows: accuracy and cost at 4 bits in symmetric groups.

    python benchmarks/peers.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \\
        --text wikitext-2/test.txt --skip 2000 \\
        --llmcompressor LLMC_ENV/bin/python --autoround AR_ENV/bin/python --methods best

Each peer runs in a process of its own, by the interpreter of its own environment, with its default
settings but for: the rows given, 4 bits, `--group` columns a scale, symmetric, head and embedding
in float, `--threads`, and no torch.compile. Its packed tensors are decoded here and judged by the
protocol of protocol.py; so are those that qconvert writes for vLLM, by the same decoder. Prints one
JSON line each. Processor seconds and peak memory are those of the whole process, imports included;
`cpu_s_without_imports` is what it measured itself around its work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from child import measured
from packed import folder_weights
from protocol import Judge, add_options, brief, calibration_rows, judge_of
from weights import block_linears

from qconvert.checkpoint import Checkpoint, open_checkpoint

Lines = Iterator[dict[str, Any]]

PEERS: Mapping[str, tuple[str, str]] = {
    "llmcompressor": ("peer_llmcompressor.py", "llmcompressor GPTQ"),
    "autoround": ("peer_autoround.py", "auto-round iters=0"),
}
"""Option that names the interpreter -> (script, name in the figures)."""


def run_script(script: str, python: Path, out: Path, given: Sequence[object], threads: int) -> Any:
    """Run one of the quantizers; what it cost, and what it says of itself."""
    shutil.rmtree(out, ignore_errors=True)
    command = [str(python), str(Path(__file__).with_name(script)), *map(str, given)]
    environment = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "PYTHONSAFEPATH": "1",  # modules of this folder must not be taken for the peer's
    }
    output, cost = measured(command, out.with_suffix(".log"), environment)
    said = json.loads(output.strip().splitlines()[-1])
    return {**{name: round(value, 1) for name, value in asdict(cost).items()}, **said}


def output_folder(folder: Path) -> Path:
    """The folder with the weights: `folder` itself, or the one folder that the peer made in it."""
    places = sorted({file.parent for file in folder.rglob("*.safetensors")})
    if len(places) != 1:
        raise SystemExit(f"{folder} holds {len(places)} checkpoints")
    return places[0]


def weights_of(source: Checkpoint, folder: Path) -> dict[str, Any]:
    """What the peer wrote, by name. Stops where a linear of a block stayed in float."""
    found = folder_weights(output_folder(folder))
    for name, tensor in block_linears(source).items():
        levels = {len(set(row[:32].tolist())) for row in found[name][:8]}
        if found[name].shape != tensor.shape or min(levels) > 16:
            raise SystemExit(f"{name} was not quantized")
    return {tensor.name: found[tensor.name] for tensor in source.tensors}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.set_defaults(calib_rows=64, calib_length=256)
    parser.add_argument("--group", type=int, default=128)
    for peer, (_, name) in PEERS.items():
        parser.add_argument(f"--{peer}", type=Path, help=f"the Python that has it ({name})")
    parser.add_argument("--methods", type=_names, default=[], help="of qconvert, by comma")
    parser.add_argument("--effort", type=int, default=1, help="of qconvert's methods")
    parser.add_argument("--keep", type=Path, help="folder for the peers' outputs and logs")
    return parser.parse_args()


def _names(value: str) -> list[str]:
    return [name for name in value.split(",") if name]


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="qconvert-peers-") as name:
        yield Path(name)


def peer_lines(
    source: Checkpoint, judge: Judge, folder: Path, options: argparse.Namespace
) -> Lines:
    """Those whose interpreter was named."""
    rows = calibration_rows(source, options.calib, options.calib_rows, options.calib_length)
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps(rows.tokens), encoding="utf-8")
    for peer, (script, name) in PEERS.items():
        named = getattr(options, peer)
        if named is None:
            continue
        python, out = Path(os.path.abspath(named)), folder / peer  # noqa: PTH100
        given = (options.model, tokens, out, options.threads, options.group)
        line = run_script(script, python, out, given, options.threads)
        yield {"by": name, "group": options.group, **line, **judge(weights_of(source, out))}


def own_lines(source: Checkpoint, judge: Judge, folder: Path, options: argparse.Namespace) -> Lines:
    """qconvert's methods, each in a process of its own as well."""
    for method in options.methods:
        out = folder / f"qconvert-{method}"
        given = (
            options.model, options.calib.resolve(), out, options.threads, options.group, method,
            options.calib_rows, options.calib_length, options.effort,
        )  # fmt: skip
        line = run_script("peer_qconvert.py", Path(sys.executable), out, given, options.threads)
        found = judge(weights_of(source, out))
        by = f"qconvert {method}, effort {options.effort}"
        yield {"by": by, "group": options.group, **line, **found}


def main() -> None:
    options = _options()
    options.model = options.model.resolve()
    source = open_checkpoint(options.model)
    with _folder(options.keep) as folder, judge_of(source, options) as judge:
        for lines in (peer_lines, own_lines):
            for line in lines(source, judge, folder, options):
                print(json.dumps(line), flush=True)
                judged = {name: line[name] for name in judge.texts}
                print(f"{line['by']}: {brief(judged)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
