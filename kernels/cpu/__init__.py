"""The bodies of the operations for a CPU, compiled by numba: the same bits as the plain ones."""
