"""auto-round with iters=0: scales tuned with data, nearest codes. Run by an interpreter that has
it; started by peers.py.

    python peer_autoround.py MODEL TOKENS OUT THREADS GROUP

TOKENS: a JSON file with rows of token ids. Prints one JSON line about the run.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from auto_round import AutoRound
from transformers import AutoTokenizer

BATCH = 8  # the default


def main(model: str, tokens: str, out: str, threads: str, group: str) -> None:
    torch.set_num_threads(int(threads))
    rows = torch.tensor(json.loads(Path(tokens).read_text("utf-8")))
    batches = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)}
        for part in torch.split(rows, BATCH)
    ]
    begin = time.process_time()
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(model),
        bits=4,
        group_size=int(group),
        sym=True,
        iters=0,
        dataset=batches,
        nsamples=len(rows),
        seqlen=rows.shape[1],
        batch_size=BATCH,
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounder.quantize_and_save(out, format="auto_gptq")
    own = round(time.process_time() - begin, 1)
    about = {name: version(name) for name in ("auto-round", "torch", "transformers")}
    print(json.dumps({"versions": about, "cpu_s_without_imports": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
