"""GPTQ by llmcompressor. Run by an interpreter that has it; started by peers.py.

    python peer_llmcompressor.py MODEL TOKENS OUT THREADS GROUP

TOKENS: a JSON file with rows of token ids. Prints one JSON line about the run.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.pipelines import cache


def main(model: str, tokens: str, out: str, threads: str, group: str) -> None:
    torch.set_num_threads(int(threads))
    if not torch.accelerator.is_available():  # 0.14.0.1 fails on a machine without one
        cache.IntermediatesCache.pin_memory = lambda *_, **__: None
    rows = json.loads(Path(tokens).read_text("utf-8"))
    fields = {"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}
    weights = {
        "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
        "group_size": int(group),
    }  # fmt: skip
    recipe = GPTQModifier(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=["lm_head"]
    )
    begin = time.process_time()
    oneshot(
        model=model,
        dataset=Dataset.from_dict(fields),
        recipe=recipe,
        output_dir=out,
        num_calibration_samples=len(rows),
        max_seq_length=len(rows[0]),
        shuffle_calibration_samples=False,
    )
    own = round(time.process_time() - begin, 1)
    about = {name: version(name) for name in ("llmcompressor", "torch", "transformers")}
    print(json.dumps({"versions": about, "cpu_s_without_imports": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
