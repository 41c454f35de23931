"""ONNX Runtime, in an environment and a process of its own."""
