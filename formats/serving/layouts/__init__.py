"""How the codes and parameters of one linear lie in tensors; one module a layout."""
