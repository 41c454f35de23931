"""ONNX graphs for ONNX Runtime and onnxruntime-genai."""
