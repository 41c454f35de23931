"""NVIDIA ModelOpt. Run by an interpreter that has it; started by trtllm.py.

    python peer_modelopt.py MODEL TOKENS OUT THREADS CONFIG [KV_CONFIG]

TOKENS: a JSON file with rows of token ids; CONFIG: a configuration of `modelopt.torch.quantization`
by name, as INT4_AWQ_CFG. Prints one JSON line about the run.
"""

from __future__ import annotations

import copy
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.export import export_hf_checkpoint
from transformers import AutoModelForCausalLM


def main(model: str, tokens: str, out: str, threads: str, config: str, *kv: str) -> None:
    torch.set_num_threads(int(threads))
    rows = json.loads(Path(tokens).read_text("utf-8"))
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval()
    wanted = copy.deepcopy(getattr(mtq, config))
    for one in kv:
        wanted["quant_cfg"].update(copy.deepcopy(getattr(mtq, one)["quant_cfg"]))

    def calibrate(module: torch.nn.Module) -> None:
        with torch.inference_mode():
            for row in rows:
                module(torch.tensor([row]))

    begin = time.process_time()
    quantized = mtq.quantize(network, wanted, calibrate)
    with torch.inference_mode():
        export_hf_checkpoint(quantized, export_dir=out)
    own = round(time.process_time() - begin, 1)
    about = {name: version(name) for name in ("nvidia-modelopt", "torch", "transformers")}
    print(json.dumps({"versions": about, "cpu_s_without_imports": own}))


if __name__ == "__main__":
    main(*sys.argv[1:])
