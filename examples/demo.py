"""Convert a model folder to 4 bits, check and time the result in its runtime, and print one table.

    python examples/demo.py models/smollm2-135m [--to gguf] [--bits 4] [--threads N]
    python examples/demo.py models/smollm2-135m --to trtllm --no-runtime

Runs the commands that it prints, as a user would, and reads their --json reports. Exits with the
code of the first that fails. `--no-runtime`: for a target whose runtime does not run here.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROWS = 32
"""Rows of text to calibrate on: half of the usual, to be done in a few minutes on two cores."""


def run(*arguments: str) -> dict[str, Any]:
    """`qconvert ARGUMENTS`; its report, with the seconds that the command took."""
    print("$ qconvert", *arguments, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-P", "-m", "qconvert", *arguments, "--json", str(report)]
        begin = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - begin
        if done.returncode:
            sys.stdout.write(done.stdout)
            raise SystemExit(done.returncode)
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found | {"wall_seconds": seconds}


def written(made: dict[str, Any]) -> str:
    """The file or folder that a conversion has made."""
    return str(made["folder"] or made["files"][0]["path"])


def megabytes(nbytes: float) -> str:
    return f"{nbytes / 1e6:,.1f} MB"


def method(calibrated: dict[str, Any] | None) -> str:
    """The method, its steps, and what it gains over its fit, in errors of outputs."""
    if calibrated is None:
        return "rtn: more than 8 bits are fitted without data"
    steps = ", ".join(calibrated["steps"])
    roles = calibrated["by_role"]
    plain, kept = (
        sum(one[key] * one["count"] for one in roles) for key in ("plain_error", "error")
    )
    return f"{calibrated['method']} ({steps}), {1 - kept / plain:.0%} less error than the fit alone"


def calibration(calibrated: dict[str, Any] | None) -> str:
    if calibrated is None:
        return "nothing"
    facts = calibrated["calibration"]
    return f"{facts['origin']}: {facts['rows']} rows of {facts['length']} tokens"


def as_users_run_it(checked: dict[str, Any]) -> dict[str, str]:
    """What comes out where users run the output otherwise than it is proved, if they do."""
    other = checked.get("also")
    if not other or not other["total"]:
        return {}
    found = other["total"]
    return {
        "as users run it": f"{found['kl_mean']:.4f} nats, perplexity {found['perplexity_q']:.2f},"
        f" top-1 {found['top1']:.1%}"
    }


def distances(checked: dict[str, Any]) -> dict[str, str]:
    """How far the output is from its source: in the runtime, where there was one."""
    cost, total = checked["quantization"], checked["total"]
    found = total or cost
    told = f"{cost['kl_mean']:.4f} from the file alone"
    return {
        "KL divergence to the source": f"{total['kl_mean']:.4f} nats in the runtime, {told}"
        if total
        else told,
        "perplexity": f"{found['perplexity_q']:.2f} (source {found['perplexity_p']:.2f})",
        "top-1 agreement": f"{found['top1']:.1%}",
    }


def loaders(checked: dict[str, Any]) -> dict[str, str]:
    """What loaders that compute nothing made of the output, where some were asked."""
    told = [
        one["label"]
        + (f": {one['tensors']} tensors, {one['skipped']} left" if one["tensors"] else "")
        for one in checked["loaders"]
    ]
    return {"loaders": "\n".join(told)} if told else {}


def speed(timed: dict[str, Any] | None) -> dict[str, str]:
    if timed is None:
        return {"runtime": "none was run"}
    rates, runtime = timed["throughput"], timed["runtime"]
    return {
        "runtime": f"{runtime['name']} {runtime['version']}, {runtime['threads']} threads",
        "prompt": f"{rates['prompt_tokens_per_s']:.0f} tokens/s"
        f" ({rates['prompt_tokens']} tokens, median of {rates['repetitions']})",
        "generation": f"{rates['generate_tokens_per_s']:.0f} tokens/s"
        f" ({rates['generate_tokens']} tokens, median of {rates['repetitions']})",
    }


def spent(
    made: dict[str, Any], checked: dict[str, Any], timed: dict[str, Any] | None
) -> dict[str, str]:
    """Time and memory of each command."""
    steps = {"convert": made, "check": checked, **({} if timed is None else {"bench": timed})}
    memory = f"convert {megabytes(made['peak_memory_bytes'])}"
    return {
        "time": ", ".join(f"{name} {one['wall_seconds']:.1f} s" for name, one in steps.items()),
        "peak memory": memory
        if timed is None
        else f"{memory}, run {megabytes(timed['peak_bytes'])}",
        "notes": "\n".join((checked if timed is None else timed)["notes"]) or "none",
    }


def rows(
    model: Path, made: dict[str, Any], checked: dict[str, Any], timed: dict[str, Any] | None
) -> dict[str, str]:
    """The table's lines, by name."""
    source = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    text = checked["text"]
    return {
        "model": str(model),
        "output": written(made),
        "type": f"{made['target']} {made['type']}",
        "size": f"{megabytes(made['bytes'])} (source {megabytes(source)})",
        "bits per weight": f"{made['bits_per_weight']:.2f}",
        "method": method(made["calibrated"]),
        "calibrated on": calibration(made["calibrated"]),
        "text": f"{text['name']}, {text['windows']} windows of {text['length']} tokens",
        **distances(checked),
        **as_users_run_it(checked),
        "check": checked["verdict"],
        **loaders(checked),
        **speed(timed),
        **spent(made, checked, timed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--to", default="gguf", help="gguf, vllm, onnx, mlc, trtllm")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--calib-rows", type=int, default=ROWS, help="rows to calibrate on")
    parser.add_argument("--threads", type=int, help="default: the cores that are there")
    parser.add_argument("--no-runtime", action="store_true", help="judge the file alone")
    args = parser.parse_args()
    threads = [] if args.threads is None else ["--threads", str(args.threads)]

    bits = ["--bits", str(args.bits)]
    few = ["--calib-rows", str(args.calib_rows)]
    made = run(str(args.model), "--to", args.to, *bits, *few, *threads, "--force")
    out = written(made)
    alone = ["--no-runtime"] if args.no_runtime else []
    checked = run("check", out, "--against", str(args.model), *alone, *threads)
    timed = None if args.no_runtime else run("bench", out, *threads)

    table = Table(title=f"{args.model.name} in {args.bits} bits", show_header=False)
    for name, value in rows(args.model, made, checked, timed).items():
        table.add_row(name, value)
    Console(width=None if sys.stdout.isatty() else 110, highlight=False).print(table, markup=False)


if __name__ == "__main__":
    main()
