"""A transformers model whose linears multiply with packed weights, by our own kernels."""
