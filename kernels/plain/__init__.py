"""The bodies of the operations in plain torch: the truth, on any device."""
