"""File formats: what values a file can hold, and how it is laid out."""
