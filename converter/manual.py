"""What the help texts teach. A line of \\b keeps the lines of its paragraph as they are."""

from qconvert.methods import method_lines

HELP = """Quantize a Hugging Face model, and prove the file that the runtime reads.

\b
  qconvert MODEL --to gguf --bits 4            write MODEL-Q4_K_M.gguf here
  qconvert MODEL --to gguf --bits 4 --plan     show what would be written, read no weight
  qconvert MODEL --to gguf --type Q8_0 --out small.gguf
  qconvert MODEL --to vllm --bits 4            write a folder for `vllm serve`
  qconvert MODEL --to vllm --scheme w8a8 --method smoothquant
  qconvert inspect small.gguf                  what a file, or a model folder, holds
  qconvert check small.gguf --against MODEL    how far it is from MODEL, in the runtime
  qconvert bench small.gguf                    tokens per second, and memory
  qconvert targets                             formats, types, and the runtimes usable here
  qconvert methods                             how weights can be chosen, and what it costs

MODEL is a folder with config.json, safetensors files and the tokenizer. A folder that is called as
one of the commands is reached as ./check.

\b
Bits: --bits N stands for the type that users of the target expect; files are a little larger.
  8  as good as the source in practice, half its size
  6  hard to tell from the source
  5  close to the source
  4  the usual choice: a third of the size or less, a small loss
  3  a loss that shows; 2 only when nothing else fits
For serving programs (vllm, sglang, lightllm) 4 is weights of 4 bits, computed in 16; 8 is both
weights and activations in 8 bits where that runs. See the section Serving, and --hardware.
Measure the loss of your own model with `qconvert check`: small models lose more. Text like your own
in --calib, and a better --method, make it smaller at the same size.

\b
Exit codes: 0 done; 1 a check failed; 2 refused, with every reason and what would work;
3 something is missing here, with the line that installs it; 70 a fault of qconvert itself;
130 interrupted. No half-written file is left behind in any of these cases.
"""

CONVERT = f"""Write MODEL, a Hugging Face folder, in the format TARGET.

The word `convert` may be left out.

\b
  qconvert MODEL --to gguf --bits 4
  qconvert MODEL --to gguf --bits 4 --calib my-texts/ --report report
  qconvert MODEL --to gguf --bits 3 --method best --effort 2 --work work --keep-work
  qconvert work --to gguf --out again.gguf     the same weights, without calibrating again
  qconvert MODEL --to gguf --type Q5_K_M --out out/model.gguf --split-size 2GB
  qconvert MODEL --to vllm --bits 4 --out served       then: vllm serve served
  qconvert MODEL --to vllm --scheme fp8 --kv fp8 --hardware hopper --tp 2
  qconvert MODEL --to vllm --bits 4 --layer '*.down_proj=w8a16'
  qconvert MODEL --to gguf --bits 4 --plan --json -

Everything that cannot work is found before a weight is read, and told at once. A conversion that
was interrupted goes on where it was, when it is asked for again.

\b
Methods; `qconvert methods` lists what they are made of:
{method_lines()}
"""
