"""The worker process of packed models, started by `bootstrap` in this interpreter.

It loads one folder: CUDA does not survive a fork, and its memory is given back by ending a process.
"""

from __future__ import annotations

from qconvert.runtimes.packed.engine import Engine
from qconvert.runtimes.protocol import Service

if __name__ == "__main__":
    Service(dict(Engine().handlers)).run()
