"""MLC: weight folders of MLC-LLM and its engines, in the group quantization of `mlc_llm`."""
