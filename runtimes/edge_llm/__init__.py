"""NVIDIA's loader of TensorRT Edge-LLM: it reads a folder and computes nothing."""
