"""qconvert as one of the peers: an integer grid on the linears of the blocks. Started by peers.py.

    python peer_qconvert.py MODEL TEXT OUT THREADS GROUP METHOD ROWS LENGTH EFFORT

Calibrates on rows of TEXT. Prints one JSON line about the run.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # left out under PYTHONSAFEPATH
from pure import FILE, convert_pure

from qconvert import __version__
from qconvert.asked import Asked
from qconvert.formats.integer import IntegerGrid


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
    grid = IntegerGrid(4, int(group))
    convert_pure(Path(model), grid, folder / FILE, asked, int(threads))
    own = round(time.process_time() - begin, 1)
    about = {"qconvert": __version__, "torch": version("torch")}
    print(json.dumps({"versions": about, "cpu_s_without_imports": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
