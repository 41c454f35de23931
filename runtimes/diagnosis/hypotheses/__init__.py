"""What a decoded tensor may be instead of what it should be: one module for each supposition."""
