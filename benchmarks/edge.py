"""Edge targets: each form written, checked and timed in its real runtime, one after another.

    python benchmarks/edge.py models/smollm2-135m-wide --calib wikitext-2/valid.txt \
        --text wikitext-2/test.txt [--forms onnx:int4,mlc:q4f16_1] [--builder ENV/bin/python]

A form is target:type, or target:type:OPTION[=VALUE] with one more option of the target
(`mlc:q4f16_1:mlc-compatible` holds the bytes of `mlc_llm convert_weight`). Forms of one type are
calibrated once where their codes are the same. `--builder` names an interpreter that has
onnxruntime-genai's builder: its own int4 then comes beside ours, checked and timed in the same way.
Prints one JSON line each; rates are those of one run, one form after another.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from command import Line, parser_of, print_lines, qconvert

FORMS = (
    "onnx:int4", "onnx:int4:onnx-form=qdq", "onnx:int8", "onnx:float32",
    "mlc:q4f16_1", "mlc:q4f16_1:mlc-compatible", "mlc:q4f16_2", "mlc:q3f16_1", "mlc:q0f16",
)  # fmt: skip
SAME_CODES = ("onnx:int4", "mlc:q4f16_1", "mlc:q4f16_0")
"""Forms whose files hold the same integers, of all linears, embedding and head."""
BUILDER = "onnxruntime-genai builder, int4"


@dataclass(frozen=True)
class Form:
    target: str
    type: str
    option: str = ""  # of the target's own

    @property
    def options(self) -> list[str]:
        name, _, value = self.option.partition("=")
        return [f"--{name}", *([value] if value else [])] if self.option else []

    @property
    def codes(self) -> str:
        """Names what is calibrated for it; others of the same name are written from that."""
        name = f"{self.target}:{self.type}"
        return SAME_CODES[0] if name in SAME_CODES else name

    @property
    def calibrated(self) -> bool:
        return "compatible" not in self.option

    @property
    def folder(self) -> str:
        parts = (self.target, self.type, self.option)
        return "-".join(part.replace("=", "-") for part in parts if part)


def written(form: Form, works: dict[str, Path], folder: Path, given: Line) -> Line:
    """Convert; from the kept work folder where its codes have been made already."""
    known = works.get(form.codes) if form.calibrated else None
    calibration: list[object] = []
    if known is None and form.calibrated:
        works[form.codes] = work = folder / f"{form.folder}.work"
        calibration = ["--work", work, "--keep-work", *given["calibration"]]
    again = known is not None and known.exists()  # what is not quantized leaves no work folder
    return qconvert(
        known if again else given["model"], "--to", form.target, "--type", form.type,
        *form.options, "--out", folder / form.folder, "--threads", given["threads"], *calibration,
    )  # fmt: skip


def built(python: Path, given: Line, folder: Path) -> Path:
    """The folder that the builder makes of the model."""
    out = folder / "builder-int4"
    command = [python, "-P", Path(__file__).with_name("peer_onnx_builder.py")]
    arguments = [given["model"], out, "int4", folder / "builder-cache"]
    subprocess.run([*map(str, command), *map(str, arguments)], check=True, stdout=sys.stderr)
    return out


def judged(out: Path, given: Line) -> Line:
    """What `check` finds and `bench` times."""
    check = qconvert(
        "check", out, "--against", given["model"], "--windows", given["windows"],
        "--length", given["length"], "--threads", given["threads"], *given["text"], fails=True,
    )  # fmt: skip
    check.pop("tensors", None)
    bench = qconvert("bench", out, "--threads", given["threads"], "--prompt", given["prompt"])
    return {"bytes": check["file"]["nbytes"], "check": check, "bench": bench}


def lines(options: argparse.Namespace, folder: Path) -> Iterator[Line]:
    given: Line = {
        "model": options.model, "threads": options.threads, "windows": options.windows,
        "length": options.length, "prompt": options.prompt,
        "text": [] if options.text is None else ["--text", options.text],
        "calibration": [
            "--calib", options.calib, "--calib-rows", options.calib_rows,
            "--calib-length", options.calib_length,
            *([] if options.method is None else ["--method", options.method]),
        ],
    }  # fmt: skip
    works: dict[str, Path] = {}
    for form in options.forms:
        made = written(form, works, folder, given)
        steps = (made["calibrated"] or {}).get("steps")
        line = {"form": form.folder, "steps": steps, "convert_s": made["seconds"]}
        yield {**line, **judged(folder / form.folder, given)}
    if options.builder is not None:
        yield {"form": BUILDER, **judged(built(options.builder, given, folder), given)}


def brief(line: Line) -> str:
    check, rates = line["check"], line["bench"]["throughput"]
    total = check["total"] or check["quantization"]
    return (
        f"{line['form']}: {check['verdict']}, {line['bytes'] / 1e6:.1f} MB,"
        f" KL {check['quantization']['kl_mean']:.4f} in the file, {total['kl_mean']:.4f} in the"
        f" runtime, perplexity {total['perplexity_q']:.2f}, top-1 {total['top1']:.1%};"
        f" prompt {rates['prompt_tokens_per_s']:.0f},"
        f" generation {rates['generate_tokens_per_s']:.1f} tokens/s"
    )


def read_forms(text: str) -> list[Form]:
    return [Form(*one.split(":", 2)) for one in text.split(",")]


def main() -> None:
    parser = parser_of(__doc__, threads=2)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of a timed prompt")
    parser.add_argument("--forms", type=read_forms, default=read_forms(",".join(FORMS)))
    parser.add_argument("--builder", type=Path, help="interpreter that has the builder")
    print_lines(parser.parse_args(), lines, brief)


if __name__ == "__main__":
    main()
