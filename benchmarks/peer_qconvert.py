"""qconvert as one of the peers: a folder for vLLM, as its users get it. Started by peers.py.

    python peer_qconvert.py MODEL TEXT OUT THREADS GROUP METHOD ROWS LENGTH EFFORT

Calibrates on rows of TEXT. Prints one JSON line about the run.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

from qconvert import __version__
from qconvert.asked import Asked
from qconvert.pipeline import convert


def main(
    model: str, text: str, out: str, threads: str, group: str, method: str, rows: str, length: str,
    effort: str,
) -> None:  # fmt: skip
    folder = Path(out)
    folder.mkdir(parents=True)
    asked = Asked(
        method=method,
        calib=text,
        calib_rows=int(rows),
        calib_length=int(length),
        effort=int(effort),
        work=folder / "work",
        resume=False,
    )
    begin = time.process_time()
    convert(
        model, "vllm", type=f"w4a16-g{group}", out=folder / "vllm", threads=int(threads),
        asked=asked,
    )  # fmt: skip
    own = round(time.process_time() - begin, 1)
    about = {"qconvert": __version__, "torch": version("torch")}
    print(json.dumps({"versions": about, "cpu_s_without_imports": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
