"""What a 4-bit embedding and head cost, optimised and without data, on the same blocks.

    python benchmarks/ends.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \\
        --text wikitext-2/test.txt --skip 2000 [--type int4]

Converts once with `--to onnx --type int4`, decodes the folder, and judges it by the protocol of
protocol.py four times: as it is; with embedding and head as the model has them; with both fitted to
the same grid without data; and with the blocks in float. Prints one JSON line each.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from protocol import Judge, Weights, add_options, brief, judge_of

from qconvert.asked import Asked
from qconvert.checkpoint import Checkpoint, open_checkpoint
from qconvert.formats.target import Plan, Request, target_named
from qconvert.pipeline import convert


def ends_of(source: Checkpoint) -> dict[str, Any]:
    """Embedding and head in float, by name."""
    found = [one for one in source.tensors if one.role in ("embedding", "head")]
    return {one.name: source.rows(one, 0, one.shape[0]) for one in found}


def without_data(ends: Mapping[str, Any], plan: Plan, threads: int) -> dict[str, Any]:
    """The same, on the grids of the plan by the weighted fit alone."""
    grids = {one.source.name: one.grid for one in plan.tensors if one.source and one.grid}
    return {
        name: grids[name].decode(grids[name].quantize(rows, threads=threads))
        for name, rows in ends.items()
    }


def cases(source: Checkpoint, decoded: Weights, plan: Plan, threads: int) -> dict[str, Weights]:
    plain = ends_of(source)
    blocks = {
        one.name: source.rows(one, 0, one.shape[0] if len(one.shape) > 1 else 1)
        for one in source.tensors
        if one.name not in plain
    }
    return {
        "as written": decoded,
        "embedding and head in float": ChainMap(plain, decoded),
        "embedding and head without data": ChainMap(without_data(plain, plan, threads), decoded),
        "blocks in float": ChainMap(blocks, decoded),
    }


def lines(source: Checkpoint, judge: Judge, options: argparse.Namespace) -> Iterator[Any]:
    target, request = target_named("onnx"), Request(type=options.type)
    asked = Asked(
        method="best", calib=str(options.calib), calib_rows=options.calib_rows,
        calib_length=options.calib_length,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="qconvert-ends-") as scratch:
        out = Path(scratch) / "out"
        done = convert(
            options.model, "onnx", request=request, out=out, asked=asked, threads=options.threads
        )
        decoded = target.reader(out).weights(source)
        for name, weights in cases(source, decoded, done.plan, options.threads).items():
            facts = {"case": name, "type": options.type, "convert_s": round(done.seconds, 1)}
            yield {**facts, **judge(weights)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_options(parser)
    parser.add_argument("--type", default="int4")
    options = parser.parse_args()
    source = open_checkpoint(options.model)
    with judge_of(source, options) as judge:
        for line in lines(source, judge, options):
            print(json.dumps(line), flush=True)
            judged = {name: line[name] for name in judge.texts}
            print(f"{line['case']}: {brief(judged)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
