"""Outputs of the target mlc in TVM's runtime, with a model of our own."""
