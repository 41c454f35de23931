"""Runtimes that load what was written, and the measurements made in them."""
