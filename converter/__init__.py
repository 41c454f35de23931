"""qconvert: quantize a Hugging Face model and prove the file that a runtime reads."""

__version__ = "0.1.0"
