"""What `kernel_speed.py` runs, one module for each family of operations, found by looking."""
