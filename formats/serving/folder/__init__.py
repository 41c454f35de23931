"""Writing and reading such a folder."""
