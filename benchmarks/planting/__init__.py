"""Faults planted into good outputs: what `benchmarks/faults.py` puts before `qconvert check`."""
