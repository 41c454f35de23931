"""The bodies of the operations for a GPU, in Triton: imported only where one is asked for."""
