"""Folders that serving programs read: safetensors, a configuration that says how they are packed,
and the tokenizer."""
