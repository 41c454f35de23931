"""What is wrong with a tensor: statistics of a decoded one beside its source, and their reading."""
