"""TensorRT-LLM: what differs from the other folders of serving programs."""
