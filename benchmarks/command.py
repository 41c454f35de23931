"""qconvert as a user runs it: one command, its report read back."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

Line = dict[str, Any]


def qconvert(*arguments: object, fails: bool = False) -> Line:
    """A command's report; `fails`: a check that fails is a finding, too."""
    command = [sys.executable, "-P", "-m", "qconvert", *map(str, arguments), "--json", "-"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode > int(fails):
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}")
    found: Line = json.loads(done.stdout)
    return found
