"""Gates: what is asked of an output, whether it is met, and how surely; the record of a check."""
