"""What `qconvert --help` teaches. A line of \\b keeps the lines of its paragraph as they are."""

HELP = """Quantize a Hugging Face model, and prove the file that the runtime reads.

\b
  qconvert MODEL --to gguf --bits 4            write MODEL-Q4_K_M.gguf here
  qconvert MODEL --to gguf --bits 4 --plan     show what would be written, read no weight
  qconvert MODEL --to gguf --type Q8_0 --out small.gguf
  qconvert inspect small.gguf                  what a file, or a model folder, holds
  qconvert check small.gguf --against MODEL    how far it is from MODEL, in the runtime
  qconvert bench small.gguf                    tokens per second, and memory
  qconvert targets                             formats, types, and the runtimes usable here

MODEL is a folder with config.json, safetensors files and the tokenizer. A folder that is called as
one of the commands is reached as ./check.

\b
Bits: --bits N stands for the type that users of the target expect; files are a little larger.
  8  as good as the source in practice, half its size
  6  hard to tell from the source
  5  close to the source
  4  the usual choice: a third of the size or less, a small loss
  3  a loss that shows; 2 only when nothing else fits
Measure the loss of your own model with `qconvert check`: small models lose more.

\b
Exit codes: 0 done; 1 a check failed; 2 refused, with every reason and what would work;
3 something is missing here, with the line that installs it; 70 a fault of qconvert itself;
130 interrupted. No half-written file is left behind in any of these cases.
"""
