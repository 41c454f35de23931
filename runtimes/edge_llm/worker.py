"""The worker process of TensorRT Edge-LLM's loader, started by `bootstrap` in its interpreter."""

from __future__ import annotations

from qconvert.runtimes.edge_llm.engine import handlers
from qconvert.runtimes.protocol import Service

if __name__ == "__main__":
    Service(handlers()).run()
